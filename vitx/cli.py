"""The `vitx` command: parse, call, print."""

import argparse
import ast
import json
import logging
import operator
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vitx import cli_data, environment
from vitx.errors import Preempted, RunError, UserError, as_user_error


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns its exit status.

    0 success; 2 the caller's mistake, told in one message; 75 a run that saved because it was told to stop; 1 anything
    else.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in arguments
    if not debug:
        # Orbax announces every folder that it opens, and its threads report again, each with its traceback, the error
        # that we tell; a filter, because absl sets its own level back
        logging.getLogger("absl").addFilter(_is_critical)
        for name in ("asyncio", "concurrent"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
    options, settings = _parser().parse_known_args([argument for argument in arguments if argument != "--debug"])
    if settings and options.command not in (_train, _cost, _bench, _convert):
        print(f"vitx: there is no option {settings[0]} here (--help lists them)", file=sys.stderr)
        return 2
    try:
        import numpy  # noqa: F401  where it is broken, jaxlib and others print tracebacks of their own

        return options.command(options, settings) or 0
    except (Exception, KeyboardInterrupt) as error:
        message, status = _told(error, training=options.command is _train)
        if debug and isinstance(error, Exception) and not isinstance(error, Preempted):
            traceback.print_exc()
            return status
        print(f"vitx: {message}", file=sys.stderr)
        return status


def _told(error: BaseException, *, training: bool = True) -> tuple[str, int]:
    """What to say of an exception, and the exit status."""
    goes_on = "the same command goes on from the last checkpoint"
    if isinstance(error, KeyboardInterrupt):
        return f"interrupted; {goes_on}" if training else "interrupted", 1
    if isinstance(error, Preempted):
        return str(error) or f"stopped; {goes_on}", 75
    if isinstance(error, UserError | RunError):
        return str(error), 2 if isinstance(error, UserError) else 1
    if explanation := environment.explain_environment(error):
        return explanation, 1
    return f"{type(error).__name__}: {error} (--debug shows where)", 1


def _is_critical(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.CRITICAL


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
    train.add_argument("--distributed", action="store_true")
    train.add_argument("--coordinator", metavar="HOST:PORT")
    train.add_argument("--process_id", type=int)
    train.add_argument("--num_processes", type=int)
    train.add_argument("--join_timeout", type=int, default=300)
    train.add_argument("-h", "--help", action="store_true")
    train.set_defaults(command=_train)

    def with_parts(command: argparse.ArgumentParser) -> None:
        command.add_argument("--experiment", type=Path, help="its file, where it has parts of your own; it is executed")

    def on_a_run(name: str, text: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        command.add_argument("run", type=Path, metavar="RUN", help="the folder that `vitx train` filled")
        command.add_argument("--checkpoint", choices=("best", "last"), default="best", help="which one (default: best)")
        with_parts(command)
        command.add_argument("--json", action="store_true", help="print one JSON object on standard output")
        return command

    evaluate = on_a_run("evaluate", "evaluate a run and write its report")
    evaluate.add_argument("--split", choices=("train", "validation", "test"), default="test", help="default: test")
    evaluate.set_defaults(command=_evaluate)

    predict = on_a_run("predict", "say what a trained run sees in video files")
    predict.add_argument("files", nargs="+", type=Path, metavar="VIDEO")
    predict.add_argument("--model", help="the NAME of the model, where RUN is a bare file of weights")
    predict.add_argument("--top", type=int, default=5, help="classes shown for each label (default: 5)")
    predict.set_defaults(command=_predict)

    convert = commands.add_parser(
        "convert",
        help="weights from anywhere into one file of ours, or into a Hugging Face directory",
        usage="vitx convert SOURCE DESTINATION [--model NAME] [--json] [--SETTING VALUE ...]",
        description="SOURCE is a run, a Hugging Face directory (Vivit, Timesformer) or a bare .safetensors, .npz, "
        ".msgpack or .pth file. DESTINATION ending in .safetensors becomes one file with our names; any other a "
        "Hugging Face directory. --SETTING VALUE is a field of the model, as in --num_frames 16, to which positions "
        "are resized.",
    )
    convert.add_argument("source", type=Path, metavar="SOURCE")
    convert.add_argument("destination", type=Path, metavar="DESTINATION")
    convert.add_argument("--model", help="the NAME of the model, where SOURCE is a bare file of weights")
    with_parts(convert)
    convert.add_argument("--inflation", choices=("central", "average"), default="central", help="of an image's kernels")
    convert.add_argument("--other_attention", choices=("copy", "zero"), default="copy", help="where an image has one")
    convert.add_argument("--grid", type=int, nargs=2, metavar=("ROWS", "COLUMNS"), help="of an image's patches")
    convert.add_argument("--allow_missing", action="append", default=[], metavar="PATTERN", help="may stay fresh")
    convert.add_argument("--allow_unexpected", action="append", default=[], metavar="PATTERN", help="may be left over")
    convert.add_argument("--json", action="store_true", help="print one JSON object: what became of every tensor")
    convert.set_defaults(command=_convert)

    cli_data.add_commands(commands)

    models = commands.add_parser("models", help="list the named models")
    models.add_argument("patterns", nargs="*", metavar="PATTERN", help="such as 'vivit_b_*'")
    models.add_argument("--json", action="store_true", help="print one JSON object: settings by name")
    models.set_defaults(command=_models)

    cost = commands.add_parser(
        "cost",
        help="count parameters, multiply-accumulates and memory of named models",
        usage="vitx cost NAME ... [--published] [--plot FILE.png] [--json] [--SETTING VALUE ...]",
        description="Counts parameters, multiply-accumulates (MACs, elsewhere printed as FLOPs) and the activations "
        "that a training step keeps of one clip; runs nothing. --SETTING VALUE is a field of the model, as in "
        "--num_frames 64; --clip 64 192 320 is the frames, height and width of any model.",
    )
    cost.add_argument("names", nargs="*", metavar="NAME", help="names or patterns, such as 'vivit_b_16x2*'")
    cost.add_argument("--published", action="store_true", help="beside the figures that papers print")
    cost.add_argument("--plot", type=Path, metavar="FILE.png", help="draw GMACs and memory against 8 to 128 frames")
    cost.add_argument("--json", action="store_true", help="print one JSON object on standard output")
    cost.set_defaults(command=_cost)

    bench = commands.add_parser(
        "bench",
        help="measure how fast named models are here, alone or beside their originals",
        usage="vitx bench NAME ... [--batch 2] [--num_frames 16] [--against LIBRARY] [--json] [--SETTING VALUE ...]",
        description="Times a forward pass, a training step, and a frame of a stream where the model reads one; counts "
        "memory. --against runs the original in the same process, with the same weights on the same "
        "clips, in turns. --SETTING VALUE is a field of the model, as in --dtype bfloat16; --clip 8 112 112 is the "
        "frames, height and width of any model.",
    )
    bench.add_argument("names", nargs="+", metavar="NAME", help="names or patterns, such as 'x3d_*'")
    bench.add_argument("--batch", type=int, default=2, help="clips of a step (default: 2)")
    bench.add_argument("--num_frames", type=int, help="of the clips, where not those that the model was made for")
    bench.add_argument("--repeats", type=int, default=10, help="of every measurement (default: 10)")
    bench.add_argument("--against", choices=("huggingface", "torchvision", "pytorchvideo"), help="whose original")
    bench.add_argument("--compiled", action="store_true", help="the original through torch.compile, channels last")
    bench.add_argument("--json", action="store_true", help="print one JSON object on standard output")
    bench.set_defaults(command=_bench)
    return parser


def _train(options: argparse.Namespace, settings: list[str]) -> int | None:
    if options.experiment is None:
        print("usage: vitx train EXPERIMENT.py --workdir DIR [--extend] [--SETTING VALUE ...]\n", file=sys.stderr)
        print("With an EXPERIMENT.py, --help lists every setting with its default.", file=sys.stderr)
        print(
            "Many processes, the same command in each: --distributed on TPU VMs, in SLURM, Open MPI and Kubernetes;\n"
            "elsewhere --coordinator HOST:PORT --process_id I --num_processes N; --join_timeout SECONDS.",
            file=sys.stderr,
        )
        return 0 if options.help else 2
    if options.experiment.suffix != ".py":
        raise UserError(f"found {options.experiment} where the experiment file belongs: vitx train EXPERIMENT.py ...")
    if options.workdir is None and not options.help:
        raise UserError("vitx train needs --workdir DIR, the folder that the run fills")
    from vitx.training import processes

    addresses = options.coordinator, options.process_id, options.num_processes
    if options.distributed or any(each is not None for each in addresses):
        processes.join(*addresses, options.join_timeout)
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
    from vitx.runs import train_run

    with processes.ending_together(_told):
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
        for label, table in figures.get("per_class", {}).items():
            print(f"\n{label:18} " + " ".join(f"{column:>10}" for column in next(iter(table.values()))))
            for name, row in table.items():
                cells = (
                    f"{value:10.1f}" if isinstance(value, float) else f"{value if value is not None else '':>10}"
                    for value in row.values()
                )
                print(f"  {name:16} " + " ".join(cells))


def _predict(options: argparse.Namespace, _: list[str]) -> None:
    if options.top < 1:
        raise UserError(f"--top is {options.top}; expected at least 1")
    if not options.run.exists():
        raise UserError(f"there is no {options.run}")
    if missing := [str(file) for file in options.files if not file.is_file()]:
        raise UserError(f"there is no video file {', '.join(missing)}")
    from vitx.evaluation.presentation import presenter_for
    from vitx.experiment import load_config
    from vitx.runs import is_run, predict_files

    if is_run(options.run):
        if options.model is not None:
            raise UserError(f"{options.run} says itself which model it is of; leave out --model")
        _know_parts_of(options.experiment)
        presenter = presenter_for(load_config(options.run).task)
        answers = predict_files(options.run, options.files, which=options.checkpoint, top=options.top)
    else:
        from vitx.interop import predict
        from vitx.pretrained import load_pretrained
        from vitx.tasks.classification import Classification

        presenter = presenter_for(Classification())
        answers = predict.predict_files(load_pretrained(options.run, options.model), options.files, top=options.top)
    if options.json:
        print(json.dumps(answers))
        return
    for file, labels in answers.items():
        print(file)
        for label, classes in labels.items():
            print(f"  {label}: {presenter.format_answer(classes)}")


def _convert(options: argparse.Namespace, settings: list[str]) -> None:
    import dataclasses

    from vitx.interop.images import FromImage
    from vitx.pretrained import convert

    _know_parts_of(options.experiment)
    how = FromImage(options.inflation, options.other_attention, options.grid and tuple(options.grid))
    allowed = {"allow_missing": options.allow_missing, "allow_unexpected": options.allow_unexpected}
    pretrained = convert(
        options.source, options.destination, options.model, fields=_changes(settings), from_image=how, **allowed
    )
    if options.json:
        print(json.dumps(dataclasses.asdict(pretrained.report)))


def _know_parts_of(file: Path | None) -> None:
    if file is not None:
        from vitx.experiment import load_experiment

        load_experiment(file.absolute())


def _models(options: argparse.Namespace, _: list[str]) -> None:
    from vitx.configuration import to_dict
    from vitx.models import VARIANTS

    names = _matching(options.patterns or ["*"])
    print(json.dumps({name: to_dict(VARIANTS[name]) for name in names}) if options.json else "\n".join(names))


def _matching(patterns: list[str]) -> list[str]:
    from vitx.errors import closest
    from vitx.models import list_models

    for pattern in patterns:
        if not list_models(pattern):
            raise UserError(f"no model matches {pattern!r}{closest(pattern, list_models())} `vitx models` lists all")
    return list(dict.fromkeys(name for pattern in patterns for name in list_models(pattern)))


def _made(patterns: list[str], changes: dict[str, str], frames: int | str | None) -> dict[str, Any]:
    """Models by name with fields replaced, the shape of their clips among them, whatever they call it."""
    from vitx.analysis.growth import of_length
    from vitx.configuration import override, settings
    from vitx.models import VARIANTS

    clip = _three(changes.pop("clip")) if "clip" in changes else None
    if clip and (frames is not None or "image_size" in changes):
        raise UserError("--clip says the frames, height and width; leave out --num_frames and --image_size")

    def made(model: Any) -> Any:
        if clip:
            shape = {"clip": clip} if "clip" in settings(model) else {"num_frames": clip[0], "image_size": clip[1:]}
            return override(model, changes | shape)
        return override(model, changes) if frames is None else of_length(model, frames, changes)

    models = {}
    for name in _matching(patterns):
        with as_user_error(of=name):
            models[name] = made(VARIANTS[name])
    return models


def _three(clip: str) -> tuple[int, int, int]:
    try:
        frames, height, width = ast.literal_eval(clip)
        return operator.index(frames), operator.index(height), operator.index(width)
    except (ValueError, TypeError, SyntaxError) as error:
        raise UserError(f"--clip is {clip}; expected FRAMES HEIGHT WIDTH") from error


def _cost(options: argparse.Namespace, settings: list[str]) -> None:
    from tqdm import tqdm

    from vitx.analysis import growth, published
    from vitx.analysis.cost import clip_of, count_cost

    changes = _changes(settings)
    if options.plot and {"num_frames", "sampled_frames", "clip"} & changes.keys():
        raise UserError("--plot chooses the frames itself; leave out num_frames, sampled_frames and clip")
    if options.published:
        if settings or options.plot:
            raise UserError("--published compares models as they were printed; leave out --plot and settings")
        rows = list(published.printed(_matching(options.names or ["*"])))
        if not rows:
            raise UserError(f"no printed figures are known for {' '.join(options.names)}")
        _print_rows([published.compared(row) for row in tqdm(rows, desc="counting", unit=" models")], options.json)
        return
    if not options.names:
        raise UserError("vitx cost needs the NAME of a model (`vitx models` lists them), or --published")
    models = _made(options.names, changes, changes.pop("num_frames", None))
    if options.plot:
        rows = growth.growth(models)
        growth.draw(rows, options.plot)
        _print_rows(rows, options.json)
        return
    counted = {}
    for name, model in tqdm(models.items(), desc="counting"):
        with as_user_error(of=name):
            counted[name] = count_cost(model, clip_of(model))
    _print_rows([{"model": name} | each.figures() for name, each in counted.items()], options.json)


def _bench(options: argparse.Namespace, settings: list[str]) -> None:
    for name in ("batch", "repeats"):
        if getattr(options, name) < 1:
            raise UserError(f"--{name} is {getattr(options, name)}; expected at least 1")
    from vitx.analysis.bench import bench, described, machine
    from vitx.analysis.cost import abstract, clip_of

    models = _made(options.names, _changes(settings), options.num_frames)
    for name, model in models.items():  # of all, before the first is measured
        with as_user_error(of=name):
            abstract(model, clip_of(model))
    how = {name: getattr(options, name) for name in ("batch", "repeats", "against", "compiled")}
    rows = [bench(name, model, **how) for name, model in models.items()]
    about = machine(options.against)
    if options.json:
        print(json.dumps({"machine": about, "models": rows}))
        return
    print(about, file=sys.stderr)
    for row in rows:
        print(described(row))


UNITS = {
    "params": ("params M", 1e6),
    "macs": ("GMACs", 1e9),
    "flops_xla": ("XLA GFLOPs", 1e9),
    "activation_bytes": ("activations MiB", 2**20),
}


def _print_rows(rows: list[dict[str, Any]], as_json: bool) -> None:
    if as_json:
        print(json.dumps({"models": rows}))
        return
    cells = [[UNITS.get(name, (name.replace("_", " "), 1))[0] for name in rows[0]]]
    for row in rows:
        scaled = [
            value / UNITS[name][1] if name in UNITS and value is not None else value for name, value in row.items()
        ]
        cells.append(["" if x is None else f"{x:,.2f}" if isinstance(x, float) else str(x) for x in scaled])
    widths = [max(len(line[column]) for line in cells) for column in range(len(cells[0]))]
    for line in cells:
        aligned = [
            cell.ljust(width) if isinstance(value, str) else cell.rjust(width)
            for cell, width, value in zip(line, widths, rows[0].values(), strict=True)
        ]
        print("  ".join(aligned).rstrip())


if __name__ == "__main__":
    sys.exit(main())
