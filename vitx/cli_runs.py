"""`vitx evaluate` and `vitx predict`: metrics and answers of a trained run, or of weights."""

import argparse
import re
from typing import Any

from vitx import cli_predict
from vitx.cli_settings import load_parts, parse_settings
from vitx.console import print_json, print_text
from vitx.storage import as_path, local_path

SETTINGS = "[--data.SETTING VALUE ...]"
ABOUT_SETTINGS = (
    "--data.SETTING VALUE replaces a setting of the evaluation, such as --data.dataset.path FOLDER or "
    "--data.eval_clips 4."
)


def add_commands(commands: Any) -> None:
    """Adds the commands to the parser of `vitx`."""
    evaluate = _add(
        commands,
        "evaluate",
        "evaluate a run and write its report",
        "RUN [--split test] [--calibrate] [--budgets 64,128]",
    )
    evaluate.add_argument("--split", choices=("train", "validation", "test"), default="test", help="default: test")
    evaluate.add_argument(
        "--calibrate", action="store_true", help="fit temperatures of the probabilities on the validation split first"
    )
    evaluate.add_argument(
        "--budgets", type=_numbers, metavar="N,N,...", help="evaluate with so many tokens of a clip: accuracy and GMACs"
    )
    evaluate.set_defaults(command=_evaluate)

    predict = _add(commands, "predict", "classify video files with a trained run", "RUN VIDEO ... [--out FILE]")
    cli_predict.add_options(predict)


def _add(commands: Any, name: str, text: str, words: str) -> argparse.ArgumentParser:
    about = f"{text[0].upper()}{text[1:]}. {ABOUT_SETTINGS}"
    usage = f"vitx {name} {words} [--checkpoint best] [--json] {SETTINGS}"
    command = commands.add_parser(name, help=text, description=about, usage=usage)
    command.add_argument("run", type=as_path, metavar="RUN", help="folder that `vitx train` filled")
    command.add_argument("--checkpoint", choices=("best", "last"), default="best", help="which one (default: best)")
    command.add_argument("--experiment", type=local_path, help="file that defines your own parts; it is executed")
    command.add_argument("--json", action="store_true", help="print one JSON object on standard output")
    return command


def _numbers(text: str) -> tuple[int, ...]:
    if not re.fullmatch(r"\d+(,\d+)*", text):
        raise argparse.ArgumentTypeError(f"found {text!r}; expected numbers with commas between them, such as 64,128")
    return tuple(map(int, text.split(",")))


def _evaluate(options: argparse.Namespace, settings: list[str]) -> None:
    from vitx.compiled_programs import keep_own_programs
    from vitx.evaluation.presentation import presenter_for
    from vitx.run import load_run
    from vitx.run_budgets import describe_budgets

    load_parts(options.experiment)
    run = load_run(options.run, options.checkpoint, parse_settings(settings))
    keep_own_programs(run.experiment.training.compilation_cache)
    if options.calibrate:
        run.calibrate()
    if options.budgets:
        rows = run.evaluate_budgets(options.budgets, options.split)
        if options.json:
            print_json({"step": run.step, "split": options.split, "budgets": rows})
        else:
            print_text("\n".join(describe_budgets(rows, presenter_for(run.experiment.task))), lines=True)
        return
    metrics = run.evaluate(options.split)
    if options.json:
        print_json(metrics)
        return
    for name, value in metrics.items():
        if isinstance(value, int | float | str):
            text = f"{value:10.3f}" if isinstance(value, float) else f"{value!s:>10}"
            low, high = metrics["intervals"].get(name, (None, None))
            print_text(f"{name:32} {text}" + ("" if low is None else f"  95 % interval {low:.1f} to {high:.1f}"))
    for label, found in metrics.get("calibration", {}).items():
        error = f"{found['ece']:.1f} % before and {found['calibrated_ece']:.1f} % after temperature"
        print_text(f"{label}: expected calibration error {error} {found['temperature']:.3g}")
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
