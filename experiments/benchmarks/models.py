"""Measures models beside their originals, and writes the tables of docs/speed.md.

python experiments/benchmarks/models.py             # each command that has no record of this kind of machine
python experiments/benchmarks/models.py --tables    # only writes the tables, from the records beside this file
"""

import argparse
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vitx.analysis.bench import describe_machine
from vitx.analysis.bench_records import machine_kind, read_record
from vitx.cli_bench import normal_command

FOLDER = Path(__file__).resolve().parent
PAGE = FOLDER.parents[1] / "docs" / "speed.md"
MARKS = ("<!-- measured: written by experiments/benchmarks/models.py -->", "<!-- end of what was measured -->")
COMMANDS = (
    "vivit_b_16x2 --num_frames 16 --batch 1 --against huggingface",
    "vivit_b_16x2_fe --num_frames 16 --batch 1 --against huggingface",
    "vivit_b_16x2_fsa --num_frames 16 --batch 1",
    "vivit_b_16x2_fdp --num_frames 16 --batch 1",
    "timesformer_b_16_divided --num_frames 8 --batch 1 --against huggingface",
    "videomae_b_16x2 --batch 1 --against huggingface",
    "r3d_18 --batch 1 --against torchvision",
    "r2plus1d_18 --batch 1 --against torchvision",
    "s3d --batch 1 --against torchvision",
    "slowfast_r50_8x8 --batch 1 --against pytorchvideo",
    "x3d_s --batch 1 --against pytorchvideo",
)
"""Words after `vitx bench`. Models 3 and 4 have no original."""
MAX_LOAD = 1.25  # load average for each core above which other jobs have run beside a benchmark
HEADER = (
    "| command after `vitx bench` | load | forward, ms | original | ratio | training, ms | original | ratio | memory |",
    "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
)


def read_records() -> dict[str, list[Mapping[str, Any]]]:
    """Returns the records of these commands by kind of machine, in their order."""
    order = [normal_command(shlex.split(command)) for command in COMMANDS]
    read = [read_record(path) for path in sorted(FOLDER.glob("*.json"))]
    chosen = sorted((x for x in read if x["command"] in order), key=lambda x: order.index(x["command"]))
    by_kind: dict[str, list[Mapping[str, Any]]] = {}
    for record in chosen:
        by_kind.setdefault(machine_kind(record["machine"]), []).append(record)
    return by_kind


def measure() -> list[str]:
    """Runs each command that this kind of machine has no record of, in its own process; returns those that failed."""
    done = [record["command"] for record in read_records().get(machine_kind(describe_machine()), [])]
    failed = []
    for command in COMMANDS:
        words = shlex.split(command)
        if normal_command(words) not in done:
            bench = [sys.executable, "-m", "vitx", "bench", *words, "--json", str(FOLDER)]
            failed += [command] if subprocess.call(bench) else []
    return failed


def format_tables() -> str:
    """Returns a table for each kind of machine that has records."""
    if not (by_kind := read_records()):
        return "Nothing has been recorded yet.\n"
    lines = []
    for found in by_kind.values():
        lines += [f"{describe_machines(found)}:", "", *HEADER]
        lines += [format_line(record, row) for record in found for row in record["models"]]
        lines.append("")
    return "\n".join(lines)


def describe_machines(found: Sequence[Mapping[str, Any]]) -> str:
    """Returns the conditions of the records of one kind of machine, in words."""
    machines = [record["machine"] for record in found]
    versions = {name: version for machine in machines for name, version in machine["versions"].items()}
    dates = sorted({machine["date"] for machine in machines})
    processor = f"{machines[0]['processor']}, {machines[0]['threads']} cores, {machines[0]['device']}"
    named = ", ".join(f"{name} {version}" for name, version in versions.items())
    return f"{processor}; {named}; {' to '.join(dict.fromkeys((dates[0], dates[-1])))}"


def format_line(record: Mapping[str, Any], row: Mapping[str, Any]) -> str:
    """Returns the line of one model: medians, their quartiles, and ratios with theirs unless other jobs ran."""
    load, is_disturbed = record["machine"]["load"], record["machine"]["load"] > MAX_LOAD * record["machine"]["threads"]
    cells = [f"`{shlex.join(record['command'])}`", f"{load:.1f}"]
    for call in ("forward", "train_step"):
        cells.append(format_time(row, call))
        if f"peer_{call}_ms" not in row:
            cells += ["", ""]
            continue
        (low, high), (peer_low, peer_high) = (row[f"{name}{call}_quartiles_ms"] for name in ("", "peer_"))
        # Records before 2026-11-28 have no quartiles of ratios, but what those of both times allow.
        low, high = row.get(f"{call}_ratio_quartiles", (peer_low / high, peer_high / low))
        ratio = "measure again" if is_disturbed else f"{row[f'{call}_ratio']:.2f} ({low:.2f} to {high:.2f})"
        cells += [format_time(row, f"peer_{call}"), ratio]
    cells.append(f"{row['train_step_memory_bytes'] / 1e9:.2f} GB")
    return "| " + " | ".join(cells) + " |"


def format_time(row: Mapping[str, Any], call: str) -> str:
    """Returns a median and its quartiles."""
    return "{:.0f} ({:.0f} to {:.0f})".format(row[f"{call}_ms"], *row[f"{call}_quartiles_ms"])


def format_page() -> str:
    """Returns the text of docs/speed.md with the tables in their place."""
    before, rest = PAGE.read_text().split(MARKS[0])
    return f"{before}{MARKS[0]}\n\n{format_tables()}\n{MARKS[1]}{rest.split(MARKS[1])[1]}"


def main() -> None:
    """Measures, if asked to, and writes the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tables", action="store_true", help="measure nothing")
    failed = [] if parser.parse_args().tables else measure()
    PAGE.write_text(format_page())
    if failed:
        sys.exit(f"no record of: {'; '.join(failed)}")


if __name__ == "__main__":
    main()
