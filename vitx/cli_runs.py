"""`vitx evaluate` and `vitx predict`: what a trained run, or weights, make of videos."""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from vitx.cli_settings import load_parts, parse_settings
from vitx.console import escape, print_json, print_text
from vitx.errors import UserError
from vitx.storage import as_path, exists, local_path

SETTINGS = "[--data.SETTING VALUE ...]"
ABOUT_SETTINGS = (
    "--data.SETTING VALUE replaces a setting of the evaluation, such as --data.dataset.path FOLDER or "
    "--data.eval_clips 4."
)


def add_commands(commands: Any) -> None:
    """Adds the commands to the parser of `vitx`."""
    evaluate = _add(commands, "evaluate", "evaluate a run and write its report", "RUN [--split test]")
    evaluate.add_argument("--split", choices=("train", "validation", "test"), default="test", help="default: test")
    evaluate.set_defaults(command=_evaluate)

    predict = _add(commands, "predict", "classify video files with a trained run", "RUN VIDEO ...")
    predict.add_argument("files", nargs="+", type=local_path, metavar="VIDEO", help="files, or folders of them")
    predict.add_argument("--model", help="NAME of the model, if RUN is a bare file of weights")
    predict.add_argument("--top", type=int, default=5, help="classes shown for each label (default: 5)")
    predict.set_defaults(command=_predict)


def _add(commands: Any, name: str, text: str, words: str) -> argparse.ArgumentParser:
    about = f"{text[0].upper()}{text[1:]}. {ABOUT_SETTINGS}"
    usage = f"vitx {name} {words} [--checkpoint best] [--json] {SETTINGS}"
    command = commands.add_parser(name, help=text, description=about, usage=usage)
    command.add_argument("run", type=as_path, metavar="RUN", help="folder that `vitx train` filled")
    command.add_argument("--checkpoint", choices=("best", "last"), default="best", help="which one (default: best)")
    command.add_argument("--experiment", type=local_path, help="file that defines your own parts; it is executed")
    command.add_argument("--json", action="store_true", help="print one JSON object on standard output")
    return command


def _evaluate(options: argparse.Namespace, settings: list[str]) -> None:
    from vitx.run import load_run

    load_parts(options.experiment)
    metrics = load_run(options.run, options.checkpoint, parse_settings(settings)).evaluate(options.split)
    if options.json:
        print_json(metrics)
        return
    for name, value in metrics.items():
        if isinstance(value, int | float | str):
            text = f"{value:10.3f}" if isinstance(value, float) else f"{value!s:>10}"
            low, high = metrics["intervals"].get(name, (None, None))
            print_text(f"{name:32} {text}" + ("" if low is None else f"  95 % interval {low:.1f} to {high:.1f}"))
    for path, value in metrics.get("settings", {}).items():
        print_text(f"{path:32} {value!s:>10}")
    for label, table in metrics.get("per_class", {}).items():
        print_text("")
        print_text(f"{label:18} " + " ".join(f"{column:>10}" for column in next(iter(table.values()))))
        for name, row in table.items():
            cells = (
                f"{value:10.1f}" if isinstance(value, float) else f"{'' if value is None else value:>10}"
                for value in row.values()
            )
            print_text(f"  {name:16} " + " ".join(cells))


def _predict(options: argparse.Namespace, settings: list[str]) -> int:
    if options.top < 1:
        raise UserError(f"--top is {options.top}; expected at least 1")
    if not exists(options.run):
        raise UserError(f"there is no {options.run}")
    files, errors = _find_files(options.files)
    answers = {}
    presenter, predicted = _predictions(options, settings, files) if files else (None, ())
    for file, answer in predicted:
        if isinstance(answer, Exception):
            errors[file] = str(answer) if str(answer).startswith(file) else f"{file}: {answer}"
            continue
        answers[file] = answer
        if not options.json:
            print_text(file)
            for label, classes in answer.items():
                print_text(f"  {label}: {presenter.format_answer(classes)}")
    if options.json:
        print_json(answers | {file: {"error": error} for file, error in errors.items()})
    if errors:
        listed = "".join(f"\n  {escape(error)}" for error in errors.values())
        summary = f"vitx: {len(errors)} of {len(answers) + len(errors)} videos cannot be read:"
        print_text(summary + listed, lines=True, error=True)
    return 1 if errors else 0


def _find_files(paths: Sequence[Path]) -> tuple[list[str], dict[str, str]]:
    """Returns (videos, {path: error}): a folder stands for the videos in it and in its sub-folders."""
    from vitx.data.file_kinds import find_videos, is_sequence
    from vitx.data.folders import list_folder

    files, errors = [], {}
    for path in paths:
        found = [path]
        if not path.exists():
            errors[str(path)], found = f"there is no {path}", []
        elif path.is_dir() and not is_sequence(path):
            listing = list_folder(path)
            found = list(find_videos(listing))
            if listing.unreadable:
                errors[str(path)] = "; ".join(listing.unreadable)
            elif not found:
                errors[str(path)] = f"{path} is a folder without videos; expected files such as {path}/clip.mp4"
        files += map(str, found)
    return list(dict.fromkeys(files)), errors


def _predictions(
    options: argparse.Namespace, settings: list[str], files: list[str]
) -> tuple[Any, Iterator[tuple[str, Any]]]:
    """Returns the presenter of answers, and the answer or the error of each file."""
    from vitx.evaluation.presentation import presenter_for
    from vitx.run import load_run
    from vitx.run_folder import is_run

    if is_run(options.run):
        if options.model is not None:
            raise UserError(f"--model is {options.model}; {options.run} is a run, which names its model; leave it out")
        load_parts(options.experiment)
        run = load_run(options.run, options.checkpoint, parse_settings(settings))
        return presenter_for(run.experiment.task), run.predict_each(files, top=options.top)
    if settings:
        raise UserError(f"found {settings[0]}; {options.run} is no run, whose settings could be replaced; leave it out")
    from vitx.interop import predict
    from vitx.pretrained import load_pretrained
    from vitx.tasks.classification import Classification

    pretrained = load_pretrained(options.run, options.model)
    return presenter_for(Classification()), predict.predict_each(pretrained, files, top=options.top)
