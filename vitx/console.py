"""What people see on the terminal: messages and progress bars, on standard error."""

import sys
from collections.abc import Iterable
from typing import Any

from tqdm.auto import tqdm


def progress_bar(iterable: Iterable[Any] | None = None, **options: Any) -> tqdm:
    """Returns a progress bar in a terminal or a notebook, and one that prints nothing elsewhere.

    Args:
        iterable: what to iterate over; None for a bar that `update` moves.
        options: other arguments of `tqdm`, such as desc, total and unit.
    """
    # Not tqdm's own `disable=None`: it asks for a terminal, and in a notebook, which is none, bars are widgets.
    in_notebook = "ipykernel" in sys.modules
    return tqdm(iterable, disable=not (in_notebook or sys.stderr.isatty()), dynamic_ncols=True, **options)


def print_message(message: str) -> None:
    """Prints a line on standard error, above a progress bar where there is one."""
    tqdm.write(message, file=sys.stderr)
