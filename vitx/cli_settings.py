"""Settings on the command line: --a.b VALUE ..., and files that define parts of one's own."""

from pathlib import Path

from vitx.errors import UserError


def parse_settings(words: list[str]) -> dict[str, str]:
    """Returns {dotted path: text of the value} of --a.b VALUE [VALUE ...] and --a.b=VALUE; several values are a tuple.

    `vitx.configuration.override` reads the text by the type of the setting. tyro, which prints `--help`, would need the
    types of an experiment's polymorphic parts before it knows them, and names no nearest setting.
    """
    changes: dict[str, list[str]] = {}
    for word in words:
        if word.startswith("--"):
            path, equals, value = word[2:].partition("=")
            changes[path] = [value] if equals else []
        elif changes:
            changes[path].append(word)
        else:
            raise UserError(f"{word!r} belongs to no setting; expected --SETTING VALUE")
    for path, values in changes.items():
        if not values:
            raise UserError(f"--{path} has no value; expected --{path} VALUE")
    return {path: values[0] if len(values) == 1 else f"({', '.join(values)})" for path, values in changes.items()}


def load_parts(file: Path | None) -> None:
    """Executes an experiment file, so that the parts which it registers are known."""
    if file is not None:
        from vitx.experiment import load_experiment

        load_experiment(file.absolute())
