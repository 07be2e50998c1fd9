"""Settings on the command line: --a.b VALUE ..., and files that define parts of one's own."""

from pathlib import Path
from typing import Any

from vitx.errors import UserError


def parse_settings(words: list[str]) -> dict[str, Any]:
    """Returns {dotted path: its words} of --a.b WORD [WORD ...] and --a.b=WORD, for `vitx.configuration.override`.

    `override` reads the words as the type of the setting. tyro, which prints `--help`, would need the types of an
    experiment's polymorphic parts before it knows them, and names no nearest setting.
    """
    from vitx.configuration import Words

    changes: dict[str, Words] = {}
    path = None
    for word in words:
        if word.startswith("--"):
            path, equals, value = word[2:].partition("=")
            changes[path] = Words([value] if equals else [])
        elif path is None:
            raise UserError(f"{word!r} belongs to no setting; expected --SETTING VALUE")
        else:
            changes[path] = Words([*changes[path], word])
    for path, values in changes.items():
        if not values:
            raise UserError(f"--{path} has no value; expected --{path} VALUE")
    return dict(changes)


def load_parts(file: Path | None) -> None:
    """Executes an experiment file, so that the parts which it registers are known."""
    if file is not None:
        from vitx.experiment import load_experiment

        load_experiment(file.absolute())
