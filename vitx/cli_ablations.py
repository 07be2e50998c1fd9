"""`vitx ablate` and `compare`: tables of many runs, and runs side by side."""

import argparse
import json
from fnmatch import fnmatch
from typing import Any

from vitx.cli_settings import load_parts
from vitx.console import print_json, print_text
from vitx.errors import RunError
from vitx.storage import as_path, local_path
from vitx.worker_processes import stop_with_parent


def add_commands(commands: Any) -> None:
    """Adds the commands to the parser of `vitx`."""
    ablate = commands.add_parser(
        "ablate",
        help="train the rows of an ablation with several seeds, and write its table",
        description="Trains what is missing, resumes what was stopped, and writes table.md, .tex, .csv, .json and "
        "pictures. Any number of processes and machines may share the folder, also in a bucket.",
    )
    ablate.add_argument("file", type=local_path, metavar="ABLATION.py")
    ablate.add_argument("--workdir", type=as_path, required=True, help="folder of the ablation")
    ablate.add_argument("--rows", nargs="+", metavar="ROW", help="names or patterns of the rows to run (default: all)")
    ablate.add_argument("--seeds", nargs="+", type=int, metavar="SEED", help="seeds to run (default: the file's)")
    ablate.add_argument("--jobs", type=int, default=1, help="processes that share the cells (default: 1)")
    ablate.add_argument("--dry_run", action="store_true", help="print the estimated time and cost of each cell alone")
    ablate.add_argument("--json", action="store_true", help="print one JSON object on standard output")
    ablate.add_argument("--worker", type=json.loads, help=argparse.SUPPRESS)  # one of --jobs: the cells it may take
    ablate.set_defaults(command=run_ablation)

    compare = commands.add_parser(
        "compare",
        help="compare runs: settings, metrics, curves, clips that only one gets right",
        description="Compares runs with the first. Predictions that a run keeps are read; others are computed.",
    )
    compare.add_argument("runs", nargs="+", type=as_path, metavar="RUN")
    compare.add_argument("--split", choices=("train", "validation", "test"), default="test", help="default: test")
    compare.add_argument("--output", type=as_path, default="comparison", help="folder to write (default: comparison)")
    compare.add_argument("--experiment", type=local_path, help="file that defines your own parts; it is executed")
    compare.add_argument("--json", action="store_true", help="print one JSON object on standard output")
    compare.set_defaults(command=_compare)


def run_ablation(options: argparse.Namespace, _: list[str]) -> None:
    """Runs `vitx ablate`."""
    import dataclasses

    from vitx.ablations import runner, tables
    from vitx.ablations.estimate import format_estimates
    from vitx.compiled_programs import keep_programs

    keep_programs()
    if options.worker:
        stop_with_parent()
        plan = runner.create_plan(runner.load_ablation(options.file), options.workdir, **options.worker)
        runner.run_cells(plan, name_lines=True)
        return
    selected = {"rows": options.rows, "seeds": options.seeds}
    done = runner.ablate(options.file, options.workdir, **selected, jobs=options.jobs, dry_run=options.dry_run)
    if options.dry_run:
        cells = [dataclasses.asdict(cell) for cell in done]
        print_json({"cells": cells}) if options.json else print_text(format_estimates(done), lines=True)
        return
    print_text((tables.to_json if options.json else tables.to_markdown)(done).rstrip("\n"), lines=True)
    print_text(f"see {options.workdir / 'table.md'}", error=True)
    selected = [row for row in done.rows if any(fnmatch(row.name, pattern) for pattern in options.rows or "*")]
    if failed := [row.name for row in selected if row.failures]:
        raise RunError(f"cells of {len(failed)} rows failed ({', '.join(failed)}); the same command tries them again")


def _compare(options: argparse.Namespace, _: list[str]) -> None:
    from vitx.ablations import comparison

    load_parts(options.experiment)
    found = comparison.compare(options.runs, options.output, split=options.split)
    print_text((comparison.to_json if options.json else comparison.to_markdown)(found).rstrip("\n"), lines=True)
    print_text(f"see {options.output / 'comparison.md'}", error=True)
