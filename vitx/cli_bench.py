"""`vitx bench`: how fast named models are here, beside their originals, beside a record or beside another version."""

import argparse
import os
from collections.abc import Sequence
from typing import Any

from vitx.cli_models import create_models
from vitx.cli_settings import Parser, parse_settings
from vitx.console import print_json, print_text
from vitx.errors import UserError, as_user_error
from vitx.storage import check_writable, local_path

VALUES = ("num_frames", "against")  # options of a measurement that may be missing
FLAGS = ("sweep", "first_step", "eager")
LIBRARIES = ("huggingface", "torchvision", "pytorchvideo")


def add_commands(commands: Any) -> None:
    """Adds the command to the parser of `vitx`."""
    bench = commands.add_parser(
        "bench",
        help="measure the speed of named models here, alone or beside their originals",
        usage="vitx bench NAME ... [--batch 2] [--num_frames 16] [--against LIBRARY] [--json [FILE]] "
        "[--SETTING VALUE ...]\n       vitx bench --compare FILE [--baseline CHECKOUT]",
        description="Times a forward pass, a training step, and one frame of a stream for models that read streams; "
        "counts memory. --against interleaves the original in the same process, with the same weights and clips. "
        "--SETTING VALUE is a field of the model, such as --dtype bfloat16; --clip 8 112 112 sets frames, height and "
        "width of any model. A comparison ends with status 1 where a time or a memory has grown by more than 5 %, "
        "beyond the spread.",
    )
    _add_measurement(bench)
    bench.add_argument("--compare", type=local_path, metavar="FILE", help="run a record's command again, print ratios")
    bench.add_argument("--baseline", type=local_path, metavar="CHECKOUT", help="another version of vitx, run in turns")
    bench.add_argument("--rounds", type=int, default=5, help="turns with --baseline (default: 5)")
    bench.add_argument(
        "--json",
        nargs="?",
        const=True,
        metavar="FILE",
        help="print one JSON object; with FILE, write a record for --compare. A folder as FILE gets one for each "
        "benchmark and kind of machine",
    )
    bench.set_defaults(command=_bench, takes_settings=True)


def _add_measurement(parser: argparse.ArgumentParser) -> None:
    """Adds the options that say what is measured; a record keeps them."""
    parser.add_argument("names", nargs="*", metavar="NAME", help="names or patterns, such as 'x3d_*'")
    parser.add_argument("--batch", type=int, default=2, help="clips of a step (default: 2)")
    parser.add_argument("--num_frames", type=int, help="frames of a clip (default: the model's own)")
    parser.add_argument("--repeats", type=int, default=10, help="repetitions of each measurement (default: 10)")
    parser.add_argument("--against", choices=LIBRARIES, help="whose original")
    parser.add_argument("--sweep", action="store_true", help="double --batch as long as memory and 3 minutes allow")
    parser.add_argument("--first_step", action="store_true", help="time a first step too, with empty and filled cache")
    parser.add_argument("--eager", action="store_true", help="run the original without torch.compile")


def normal_command(words: Sequence[str]) -> list[str]:
    """Returns the words of a measurement as its record has them."""
    return _command(*_parse(words))


def _parse(words: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Returns (what is measured, settings of the models)."""
    parser = Parser(prog="vitx bench", add_help=False)
    _add_measurement(parser)
    return parser.parse_known_args(words)


def _command(options: argparse.Namespace, settings: list[str]) -> list[str]:
    """Returns the words of a measurement, as `_add_measurement` reads them."""
    words = [*options.names, "--batch", str(options.batch), "--repeats", str(options.repeats)]
    for name in VALUES:
        if (value := getattr(options, name)) is not None:
            words += [f"--{name}", str(value)]
    return [*words, *(f"--{name}" for name in FLAGS if getattr(options, name)), *settings]


def _bench(options: argparse.Namespace, settings: list[str]) -> int:
    from vitx.analysis import bench_records as records

    # argparse gives up on NAME ... where options stand before the names.
    while settings and not settings[0].startswith("-"):
        options.names.append(settings.pop(0))
    record, measurement = None, options
    if options.compare is not None:
        _check_alone(options, settings)
        record = records.read_record(options.compare)
        measurement, settings = _parse(record["command"])
        measurement.first_step = False  # timed once: a difference of 5 % would say nothing
    _check_options(options, measurement)
    command = _command(measurement, settings)
    if options.baseline is not None:
        rows = records.measure_beside(options.baseline, command, options.rounds, lambda x: print_text(x, error=True))
        return _print_comparison(rows, options.json)
    if measurement.against is not None:
        # The original needs memory of the same card, of which JAX would reserve three quarters when it starts.
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    file = None if options.json in (None, True) else local_path(options.json)
    if file is not None:
        check_writable(file / "record.json" if file.is_dir() else file)
    first = _time_first_steps(measurement, settings) if measurement.first_step else {}
    if record is not None:
        records.check_same_machine(options.compare, record, _describe_machine(None))
    rows = [row | first.get(row["model"], {}) for row in _measure(measurement, settings)]
    machine = _describe_machine(measurement.against)
    if file is not None:
        file = records.record_path(file, command, machine)
        records.write_record(file, command, machine, rows)
        print_text(f"see {file}", error=True)
    if record is not None:
        return _print_comparison(records.compare_rows(record["models"], rows), options.json)
    if options.json is True:
        print_json({"machine": machine, "models": rows})
    else:
        _print_rows(machine, rows)
    return 0


def _check_alone(options: argparse.Namespace, settings: list[str]) -> None:
    """Raises UserError where a measurement is described beside --compare, which takes all of it from the record."""
    usual, _ = _parse([])
    measured = ("batch", "repeats", *VALUES, *FLAGS)
    changed = [f"--{name}" for name in measured if getattr(options, name) != getattr(usual, name)]
    if extra := [*settings, *options.names, *changed]:
        raise UserError(f"--compare runs the command of {options.compare}; leave out {extra[0]}")


def _check_options(options: argparse.Namespace, measurement: argparse.Namespace) -> None:
    """Raises UserError where options have values that cannot be, or do not fit together."""
    for name, value in (("batch", measurement.batch), ("repeats", measurement.repeats), ("rounds", options.rounds)):
        if value < 1:
            raise UserError(f"--{name} is {value}; expected at least 1")
    if not measurement.names:
        raise UserError("vitx bench needs the NAME of a model (`vitx models` lists them), or --compare FILE")
    if measurement.sweep and measurement.against:
        raise UserError("found --sweep and --against; the memory of an original cannot be predicted: leave out one")
    if measurement.eager and measurement.against is None:
        raise UserError("found --eager, which runs an original without torch.compile; add --against LIBRARY")
    if options.baseline is not None and options.json not in (None, True):
        raise UserError("found --baseline and --json FILE; a record holds one version: leave out one of them")


def _describe_machine(against: str | None) -> dict[str, Any]:
    from vitx.analysis.bench import describe_machine
    from vitx.experiment import git_commit

    return describe_machine(against) | {"commit": git_commit()}


def _time_first_steps(options: argparse.Namespace, settings: list[str]) -> dict[str, dict[str, float]]:
    """Returns times of first steps by model; each runs alone, before this process uses its devices."""
    from vitx.analysis.first_step import time_first_step

    models = create_models(options.names, parse_settings(settings), options.num_frames)
    return {name: time_first_step(name, model, options.batch) for name, model in models.items()}


def _measure(options: argparse.Namespace, settings: list[str]) -> list[dict[str, Any]]:
    """Returns the rows of all models; what does not fit in memory is refused before the first is measured."""
    import jax

    from vitx.analysis.bench import bench, check_options, sweep
    from vitx.analysis.bench_programs import check_fits, compile_programs
    from vitx.analysis.cost import abstract_inputs
    from vitx.compiled_programs import keep_programs

    keep_programs()
    models = create_models(options.names, parse_settings(settings), options.num_frames)
    for name, model in models.items():
        check_options(model, options.batch)
        with as_user_error(of=name):
            abstract_inputs(model, model.input_shape)
    size = {"batch": options.batch, "repeats": options.repeats}
    if options.sweep:
        return [row for name, model in models.items() for row in sweep(name, model, **size)]
    device = jax.devices()[0]
    programs = {name: compile_programs(name, model, options.batch, device) for name, model in models.items()}
    for name, compiled in programs.items():
        check_fits(name, options.batch, compiled.bytes_beside(options.against), device)
    beside = {"against": options.against, "eager": options.eager}
    return [bench(name, model, **size, **beside, programs=programs[name]) for name, model in models.items()]


def _print_rows(machine: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    from vitx.analysis.bench import format_row

    print_text(str(machine), error=True)
    for row in rows:
        print_text(format_row(row), lines=True)


def _print_comparison(rows: list[dict[str, Any]], as_json: Any) -> int:
    """Prints a comparison; returns the exit status, 1 where something has become slower or larger."""
    from vitx.analysis.bench_records import format_comparison

    if as_json is True:
        print_json({"comparison": rows})
    else:
        print_text(format_comparison(rows), lines=True)
    return int(any(row["loss"] for row in rows))
