"""Output on the terminal: messages, progress bars, JSON. Names are escaped, so that none controls the terminal."""

import contextlib
import sys
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from contextvars import ContextVar
from typing import Any

from vitx import strict_json

# Cc: control characters, escape sequences among them. Cf: invisible ones that reorder text. Cs, Co, Cn: lone
# surrogates, which no terminal prints, private and unassigned ones. Zl, Zp: line breaks of Unicode.
UNPRINTABLE = frozenset(("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"))
JOINERS = frozenset("\u200c\u200d")  # spelling of Persian and of emoji needs them
PREFIX: ContextVar[str] = ContextVar("PREFIX", default="")  # of messages, where several processes share a terminal


def escape(text: str, *, lines: bool = False) -> str:
    """Returns text for a terminal or a report, with every character that is not printed as an escape of Python.

    Names of files and classes come from other people: an escape sequence in one could rewrite what a terminal shows.

    Args:
        text: text with names in it.
        lines: whether the text has several lines; otherwise line breaks are escaped too.
    """
    if text.isprintable():
        return text
    kept = JOINERS | ({"\n"} if lines else set())
    return "".join(ascii(x)[1:-1] if unicodedata.category(x) in UNPRINTABLE and x not in kept else x for x in text)


def print_text(text: str, *, lines: bool = False, error: bool = False) -> None:
    """Prints text, escaped; everything that vitx prints goes through here, `print_message` or a progress bar.

    Args:
        text: text with names in it.
        lines: whether the text has several lines; otherwise line breaks are escaped too.
        error: whether to print on standard error.
    """
    print(escape(text, lines=lines), file=sys.stderr if error else sys.stdout, flush=error)


def report_unreadable(errors: Mapping[str, str], total: int, what: str = "read") -> int:
    """Prints videos that failed, and returns the exit status of the command.

    Args:
        errors: {path of a video: why it failed}.
        total: number of all videos.
        what: what cannot be done with them.
    """
    if errors:
        listed = "".join(f"\n  {escape(error)}" for error in errors.values())
        summary = f"vitx: {len(errors)} of {total} videos cannot be {what}:"
        print_text(summary + listed, lines=True, error=True)
    return 1 if errors else 0


def print_json(data: Any) -> None:
    """Prints one strictly valid JSON object on standard output."""
    print(strict_json.dumps(data))


def progress_bar(iterable: Iterable[Any] | None = None, **options: Any) -> Any:
    """Returns a progress bar in a terminal or a notebook, and one that prints nothing elsewhere.

    Args:
        iterable: what to iterate over; None for a bar that `update` moves.
        options: other arguments of `tqdm`, such as desc, total and unit.
    """
    from tqdm.auto import tqdm  # not at the top: the command line must start, to report a package that is missing

    options = {name: escape(value) if isinstance(value, str) else value for name, value in options.items()}
    # Not tqdm's own `disable=None`: it asks for a terminal, and in a notebook, which is none, bars are widgets.
    in_notebook = "ipykernel" in sys.modules
    return tqdm(iterable, disable=not (in_notebook or sys.stderr.isatty()), dynamic_ncols=True, **options)


def print_message(*lines: str) -> None:
    """Prints lines on standard error, above a progress bar where there is one."""
    from tqdm.auto import tqdm

    tqdm.write("\n".join(escape(PREFIX.get() + line) for line in lines), file=sys.stderr)


@contextlib.contextmanager
def prefix_messages(prefix: str) -> Iterator[None]:
    """Begins every line of `print_message` inside the `with` with some text."""
    token = PREFIX.set(prefix)
    try:
        yield
    finally:
        PREFIX.reset(token)
