"""Settings on the command line: --a.b VALUE ..., and files that define parts of one's own."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from vitx.errors import UserError, did_you_mean

DOTTED = ("train", "evaluate", "predict")  # commands that take settings of an experiment, --data.eval_clips 4


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one message, with the command or option that was probably meant."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; {self.prog} --help lists what is expected")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[argparse.Namespace, list[str]]:
        options, unknown = super().parse_known_args(args, namespace)
        if not hasattr(options, "known_options"):  # a command's own parser returns before the parser around it
            options.known_options = list(self._option_string_actions)
        return options, unknown

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            choices = list(map(str, action.choices))
            name = action.metavar or "/".join(action.option_strings)
            raise UserError(
                f"{name} is {value!r}{did_you_mean(str(value), choices)} Expected one of {', '.join(choices)}"
            )


def take_settings(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Returns (the other words, settings with a dot and their values) of a command line.

    argparse would take the value of a setting that it does not know for an argument of its own.
    """
    if not words or words[0] not in DOTTED:
        return list(words), []
    others, settings, inside = [], [], False
    for word in words:
        if word.startswith("--"):
            inside = "." in word.partition("=")[0]
        (settings if inside else others).append(word)
    return others, settings


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
