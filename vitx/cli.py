"""The `vitx` command: parse, call, print."""

import argparse
import contextlib
import functools
import io
import logging
import os
import select
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any

import vitx
from vitx import cli_ablations, cli_bench, cli_board, cli_data, cli_explain, cli_models, cli_runs, environment
from vitx.cli_settings import Parser, parse_settings, take_settings
from vitx.console import escape, print_text
from vitx.errors import Preempted, RunError, UserError, did_you_mean
from vitx.storage import as_path, local_path

TRAIN_USAGE = "vitx train EXPERIMENT.py --workdir DIR [--extend] [--SETTING VALUE ...]"
TRAIN_HELP = f"""usage: {TRAIN_USAGE}
       vitx train --resume DIR [--extend] [--SETTING VALUE ...]

With an EXPERIMENT.py, --help lists every setting with its default.

--workdir DIR      folder of the run; a run that is there already is resumed
--resume DIR       resume a run by its folder alone, with the settings in its config.json
--extend           allow more training.steps than the run began with
--profile_startup  print what takes the time until the first step ends

Several processes run the same command: --distributed on TPU VMs, in SLURM, Open MPI and Kubernetes; elsewhere
--coordinator HOST:PORT --process_id I --num_processes N; --join_timeout SECONDS limits how long they wait."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns its exit status.

    0 is success, 2 the caller's mistake, 75 a run that saved because it was asked to stop, and 1 anything else.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in arguments
    if not debug:
        quiet_libraries()
    try:
        words, settings = take_settings([argument for argument in arguments if argument != "--debug"])
        options, unknown = _parser().parse_known_args(words)
        _check_options(options, unknown)
    except UserError as error:
        print_text(f"vitx: {error}", error=True)
        return 2
    settings = unknown + settings
    try:
        import numpy  # noqa: F401  where NumPy is broken, jaxlib and others would print tracebacks of their own

        status = options.command(options, settings) or 0
        sys.stdout.flush()
        return status
    except (Exception, KeyboardInterrupt) as error:
        if isinstance(error, BrokenPipeError) and _is_output_closed():
            return 1
        message, status = describe_error(error, training=options.command in (_train, cli_ablations.run_ablation))
        if debug and isinstance(error, Exception) and not isinstance(error, Preempted):
            print_text(traceback.format_exc(), lines=True, error=True)
            return status
        print_text(f"vitx: {message}", lines=True, error=True)
        return status


def _is_output_closed() -> bool:
    """Returns whether nobody reads standard output any more, as after `| head`; the rest of it is then dropped."""
    output, pipe = sys.stdout.fileno(), select.poll()
    pipe.register(output, 0)  # errors, which are reported without being asked for
    if not pipe.poll(0):
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), output)  # Python flushes once more when it ends
    return True


def _check_options(options: argparse.Namespace, unknown: Sequence[str]) -> None:
    """Raises UserError where words are left over that are no settings of the command."""
    if unknown and not options.takes_settings:
        known = did_you_mean(unknown[0].partition("=")[0], options.known_options)
        raise UserError(f"there is no option {unknown[0]} here{known} --help lists them")


def quiet_libraries() -> None:
    """Silences loggers of libraries that announce every file, or repeat with a traceback an error that vitx reports."""
    # absl sets its level again when it starts, so a filter is needed (Orbax 0.12.8 logs through it, 2026-11).
    logging.getLogger("absl").addFilter(lambda record: record.levelno >= logging.CRITICAL)
    for name in ("asyncio", "concurrent"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    if getattr(sys.unraisablehook, "func", None) is not _report_unraisable:
        sys.unraisablehook = functools.partial(_report_unraisable, sys.unraisablehook)


def _report_unraisable(report: Callable[[Any], None], unraisable: Any) -> None:
    """Reports an exception that no caller can get, other than one that follows an error that is reported already.

    tensorstore 0.1.86 (2026-11) wakes Orbax's event loop after each write, also when a full disk has ended the loop.
    """
    if str(unraisable.exc_value) != "Event loop is closed":
        report(unraisable)


def describe_error(error: BaseException, *, training: bool = True) -> tuple[str, int]:
    """Returns (message, exit status) of an exception."""
    resumes = "the same command resumes from the last checkpoint"
    if isinstance(error, KeyboardInterrupt):
        return f"interrupted; {resumes}" if training else "interrupted", 1
    if isinstance(error, Preempted):
        return str(error) or f"stopped; {resumes}", 75
    if isinstance(error, UserError | RunError):
        return str(error), 2 if isinstance(error, UserError) else 1
    if explanation := environment.explain_environment(error):
        return explanation, 1
    return escape(f"{type(error).__name__}: {error} (--debug shows where)"), 1


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="vitx",
        description="Efficient video Transformers in JAX and Flax.",
        epilog="--debug, with any command, shows where an error comes from.",
    )
    parser.add_argument("--version", action="version", version=f"vitx {vitx.__version__}")
    parser.set_defaults(takes_settings=False)
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    train = commands.add_parser(
        "train", help="train an experiment file, or resume it", usage=TRAIN_USAGE, add_help=False
    )
    train.add_argument("experiment", nargs="?", type=local_path, metavar="EXPERIMENT.py")
    train.add_argument("--workdir", type=as_path)
    train.add_argument("--resume", type=as_path)
    train.add_argument("--extend", action="store_true")
    train.add_argument("--profile_startup", action="store_true")
    train.add_argument("--distributed", action="store_true")
    train.add_argument("--coordinator", metavar="HOST:PORT")
    train.add_argument("--process_id", type=int)
    train.add_argument("--num_processes", type=int)
    train.add_argument("--join_timeout", type=int, default=300)
    train.add_argument("-h", "--help", action="store_true")
    train.set_defaults(command=_train, takes_settings=True)

    cli_runs.add_commands(commands)
    cli_ablations.add_commands(commands)
    cli_data.add_commands(commands)
    cli_explain.add_commands(commands)
    cli_board.add_commands(commands)
    cli_models.add_commands(commands)
    cli_bench.add_commands(commands)
    return parser


def _train(options: argparse.Namespace, settings: list[str]) -> int | None:
    if options.experiment is None and options.resume is None:
        print_text(TRAIN_HELP, lines=True, error=True)
        return 0 if options.help else 2
    if options.experiment is not None and options.experiment.suffix != ".py":
        raise UserError(f"found {options.experiment}; expected an experiment file: vitx train EXPERIMENT.py ...")
    if options.resume is not None and options.workdir is not None:
        raise UserError("found --resume and --workdir; --resume DIR names the run's folder alone")
    workdir = options.resume or options.workdir
    if workdir is None and not options.help:
        raise UserError("vitx train needs --workdir DIR, the folder of the run")
    from vitx.training.startup import StartupProfile

    with StartupProfile() if options.profile_startup else contextlib.nullcontext() as clock:
        return _train_in(workdir, options, settings, clock)


def _train_in(workdir: Any, options: argparse.Namespace, settings: list[str], clock: Any) -> None:
    """Trains in a folder; see `vitx.run.train` for the clock."""
    from vitx.training import processes

    addresses = options.coordinator, options.process_id, options.num_processes
    if options.distributed or any(address is not None for address in addresses):
        processes.join_processes(*addresses, options.join_timeout)
    from vitx.experiment import load_config, load_experiment

    experiment = load_config(workdir) if options.experiment is None else load_experiment(options.experiment.absolute())
    experiment = experiment.override(parse_settings(settings))
    if options.help:
        _print_settings(experiment, options.experiment or workdir)
    from vitx.compiled_programs import keep_programs
    from vitx.run import train

    keep_programs(experiment.training.compilation_cache)
    with processes.fail_together(describe_error):
        run = train(experiment, workdir, extend=options.extend, clock=clock)
    print_text(f"vitx predict {run.workdir} clip.mp4 applies it to a video", error=True)


def _print_settings(experiment: Any, source: Any) -> None:
    """Prints the settings of an experiment with their meanings and values, and exits."""
    import tyro

    from vitx.configuration import paths, tuples_of_parts

    in_files = ", ".join(f"--{path}" for path in tuples_of_parts(experiment))
    page = io.StringIO()
    try:
        # Printed by us: a config.json of somebody else may have escape sequences in its values.
        with contextlib.redirect_stdout(page):
            tyro.cli(
                type(experiment),
                description=f"Every setting, its meaning and its default. Set in an experiment file alone: {in_files}.",
                prog=f"vitx train {source} --workdir DIR [--extend]",
                default=experiment,
                args=["--help"],
                use_underscores=True,
                config=(tyro.conf.FlagConversionOff, tyro.conf.AvoidSubcommands),
            )
    finally:
        text = page.getvalue().rstrip("\n")
        # tyro has no line for a part that is None
        absent = [f"--{path} {value}" for path, value in paths(experiment) if f"--{path}" not in text]
        if absent:
            text += f"\n\nParts that take a name, then their own settings; with their defaults: {', '.join(absent)}"
        print_text(text, lines=True)


if __name__ == "__main__":
    sys.exit(main())
