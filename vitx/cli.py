"""The `vitx` command: parse, call, print."""

import argparse
import json
import logging
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

from vitx.errors import RunError, UserError


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns its exit status.

    0 success; 2 the caller's mistake, told in one message; 1 anything else.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in arguments
    if not debug:
        # Orbax announces every folder that it opens; its threads report again the error that we tell
        for name, level in (("absl", logging.ERROR), ("asyncio", logging.CRITICAL), ("concurrent", logging.CRITICAL)):
            logging.getLogger(name).setLevel(level)
    options, settings = _parser().parse_known_args([argument for argument in arguments if argument != "--debug"])
    if settings and options.command is not _train:
        print(f"vitx: there is no option {settings[0]} here (--help lists them)", file=sys.stderr)
        return 2
    try:
        return options.command(options, settings) or 0
    except KeyboardInterrupt:
        print("vitx: interrupted; a run goes on from its last checkpoint with the same command", file=sys.stderr)
        return 1
    except Exception as error:
        if debug:
            traceback.print_exc()
            return 2 if isinstance(error, UserError) else 1
        if isinstance(error, UserError | RunError):
            print(f"vitx: {error}", file=sys.stderr)
            return 2 if isinstance(error, UserError) else 1
        print(f"vitx: {type(error).__name__}: {error} (--debug shows where)", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="vitx",
        description="Efficient video Transformers in JAX and Flax.",
        epilog="--debug, with any command, shows where an error comes from.",
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    train = commands.add_parser(
        "train",
        help="train an experiment file, or go on with it",
        usage="vitx train EXPERIMENT.py --workdir DIR [--extend] [--SETTING VALUE ...]",
        add_help=False,
    )
    train.add_argument("experiment", nargs="?", type=Path, metavar="EXPERIMENT.py")
    train.add_argument("--workdir", type=Path)
    train.add_argument("--extend", action="store_true")
    train.add_argument("-h", "--help", action="store_true")
    train.set_defaults(command=_train)

    def on_a_run(name: str, text: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        command.add_argument("run", type=Path, help="the folder that `vitx train` filled")
        command.add_argument("--checkpoint", choices=("best", "last"), default="best", help="which one (default: best)")
        command.add_argument("--experiment", type=Path, help="its file, where it has parts of your own; it is executed")
        command.add_argument("--json", action="store_true", help="print one JSON object on standard output")
        return command

    evaluate = on_a_run("evaluate", "evaluate a run and write its report")
    evaluate.add_argument("--split", choices=("train", "validation", "test"), default="test", help="default: test")
    evaluate.set_defaults(command=_evaluate)

    predict = on_a_run("predict", "say what a trained run sees in video files")
    predict.add_argument("files", nargs="+", type=Path, metavar="VIDEO")
    predict.add_argument("--top", type=int, default=5, help="classes shown for each label (default: 5)")
    predict.set_defaults(command=_predict)

    models = commands.add_parser("models", help="list the named models")
    models.add_argument("pattern", nargs="?", default="*", help="such as 'vivit_b_*'")
    models.set_defaults(command=_models)
    return parser


def _train(options: argparse.Namespace, settings: list[str]) -> int | None:
    if options.experiment is None:
        print("usage: vitx train EXPERIMENT.py --workdir DIR [--extend] [--SETTING VALUE ...]\n", file=sys.stderr)
        print("With an EXPERIMENT.py, --help lists every setting with its default.", file=sys.stderr)
        return 0 if options.help else 2
    if options.experiment.suffix != ".py":
        raise UserError(f"found {options.experiment} where the experiment file belongs: vitx train EXPERIMENT.py ...")
    from vitx.experiment import load_experiment

    experiment = load_experiment(options.experiment.absolute()).override(_changes(settings))
    if options.help:
        import tyro

        tyro.cli(
            type(experiment),
            prog=f"vitx train {options.experiment} --workdir DIR [--extend]",
            default=experiment,
            args=["--help"],
            use_underscores=True,
            config=(tyro.conf.FlagConversionOff,),
        )
    if options.workdir is None:
        raise UserError("vitx train needs --workdir DIR, the folder that the run fills")
    from vitx.runs import train_run

    train_run(experiment, options.workdir, extend=options.extend)
    return None


def _changes(words: list[str]) -> dict[str, str]:
    """Reads --a.b VALUE [VALUE ...] and --a.b=VALUE; several values are a tuple."""
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


def _evaluate(options: argparse.Namespace, _: list[str]) -> None:
    from vitx.runs import evaluate_run

    _know_parts_of(options.experiment)
    figures = evaluate_run(options.run, split=options.split, which=options.checkpoint)
    if options.json:
        print(json.dumps(figures))
    else:
        for name, value in figures.items():
            if isinstance(value, int | float | str):
                print(f"{name:32} {value:10.3f}" if isinstance(value, float) else f"{name:32} {value!s:>10}")
        for label, table in figures["per_class"].items():
            print(f"\n{label:18} " + " ".join(f"{column:>10}" for column in next(iter(table.values()))))
            for name, row in table.items():
                print(f"  {name:16} " + " ".join(f"{value:10.1f}" for value in row.values()))


def _predict(options: argparse.Namespace, _: list[str]) -> None:
    from vitx.runs import predict_files

    _know_parts_of(options.experiment)
    answers = predict_files(options.run, options.files, which=options.checkpoint, top=options.top)
    if options.json:
        print(json.dumps(answers))
        return
    for file, labels in answers.items():
        print(file)
        for label, classes in labels.items():
            print(f"  {label}: " + ", ".join(f"{name} {100 * share:.1f} %" for name, share in classes.items()))


def _know_parts_of(file: Path | None) -> None:
    if file is not None:
        from vitx.experiment import load_experiment

        load_experiment(file.absolute())


def _models(options: argparse.Namespace, _: list[str]) -> None:
    from vitx.models import list_models

    names = list_models(options.pattern)
    if not names:
        raise UserError(f"no model matches {options.pattern!r}; `vitx models` lists all")
    print("\n".join(names))


if __name__ == "__main__":
    sys.exit(main())
