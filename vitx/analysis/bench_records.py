"""Records of `vitx bench`: one file for each benchmark and kind of machine, and what has become slower since."""

import itertools
import json
import os
import re
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import vitx
from vitx import storage
from vitx.errors import RunError, UserError

FORMAT = 1
LOSS = 0.05  # growth of a time or a memory, as a fraction, beyond which it is a loss
MEASURED = re.compile(r"(forward|train_step|frame)_ms|(forward|train_step)_memory_bytes")
Rows = Sequence[Mapping[str, Any]]


def machine_kind(machine: Mapping[str, Any]) -> str:
    """Returns a name for machines whose times may be compared: the card, or the CPU and its cores."""
    device = machine["device"]
    return _slug(f"{machine['processor']} {machine['threads']} cores" if device.startswith("cpu") else device)


def record_path(path: Path, command: Sequence[str], machine: Mapping[str, Any]) -> Path:
    """Returns the file of a record: `path`, or a name for the benchmark and the kind of machine if it is a folder."""
    return path / f"{_slug(' '.join(command))}__{machine_kind(machine)}.json" if path.is_dir() else path


def write_record(path: Path, command: Sequence[str], machine: Mapping[str, Any], rows: Rows) -> None:
    """Writes what was measured, by which command and on what.

    Args:
        path: the file.
        command: words after `vitx bench`.
        machine: `describe_machine`.
        rows: results by model.
    """
    content = {"format": FORMAT, "command": list(command), "machine": dict(machine), "models": list(rows)}
    storage.write_json(path, content)


def read_record(path: Path) -> dict[str, Any]:
    """Returns {"command", "machine", "models"} of a record.

    Raises:
        UserError: the file is no record.
    """
    record = storage.read_json(path)
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise UserError(f"{path} is no record of format {FORMAT}; expected a file of `vitx bench ... --json {path}`")
    command, machine, rows = (record.get(name) for name in ("command", "machine", "models"))
    words = isinstance(command, list) and all(isinstance(word, str) for word in command)
    described = isinstance(machine, dict) and {"device", "processor", "threads"} <= machine.keys()
    measured = isinstance(rows, list) and all(map(_is_row, rows))
    if not (words and described and measured):
        raise UserError(f"{path} lacks a command, a machine or rows of models; measure anew with --json {path}")
    return record


def check_same_machine(path: Path, record: Mapping[str, Any], machine: Mapping[str, Any]) -> None:
    """Raises UserError where a record's times are those of another kind of machine."""
    if (theirs := machine_kind(record["machine"])) != (ours := machine_kind(machine)):
        raise UserError(
            f"{path} was measured on {theirs}; this machine is {ours}. Times of two machines cannot be compared: "
            "name a record of this one, or compare with --baseline CHECKOUT"
        )


def compare_rows(before: Rows, now: Rows) -> list[dict[str, Any]]:
    """Returns a row for each measurement of the record: what it was, what it is, and whether it is a loss.

    "ratio" is before over now, so more than 1 is better. A loss is more than 5 %, and where there are quartiles, they
    lie apart. What is no longer measured, as a batch that no longer fits, is a loss, too; "now" is then None.
    """
    found = []
    measured = {_case(row): row for row in now}
    for old in before:
        row = measured.get(_case(old), {})
        for name in filter(MEASURED.fullmatch, old):
            about = {"model": old["model"], "batch": old["batch"], "measurement": name, "before": old[name]}
            if name not in row:
                found.append(about | {"now": None, "ratio": None, "spread": None, "loss": True})
                continue
            quartiles = name.removesuffix("_ms") + "_quartiles_ms"
            lows, highs = zip(*(x.get(quartiles, (x[name], x[name])) for x in (old, row)), strict=True)
            ratio, spread = old[name] / row[name], [lows[0] / highs[1], highs[0] / lows[1]]
            loss = ratio < 1 / (1 + LOSS) and lows[1] > highs[0]
            found.append(about | {"now": row[name], "ratio": ratio, "spread": spread, "loss": loss})
    if not found:
        raise UserError("the record has no measurement; measure anew with --json FILE")
    return sorted(found, key=lambda row: (row["model"], row["batch"], row["measurement"]))


def measure_beside(
    baseline: Path, command: Sequence[str], rounds: int, report: Callable[[str], None]
) -> list[dict[str, Any]]:
    """Runs a benchmark with another checkout of vitx and with this one in turns, each time in a process of its own.

    Args:
        baseline: the checkout.
        command: words after `vitx bench`, which both versions understand.
        rounds: number of turns.
        report: gets a line of progress for each turn.

    Returns:
        Rows as of `compare_rows`: "ratio" is the median of the rounds' ratios, "spread" their quartiles.

    Raises:
        UserError: there is no vitx in the checkout, or the two versions measured nothing of the same name.
        RunError: one of the two failed.
    """
    here = Path(vitx.__file__).parents[1]
    if not (baseline / "vitx" / "__init__.py").is_file():
        raise UserError(f"--baseline is {baseline}, which has no vitx/__init__.py; expected a checkout of vitx")
    measured: dict[tuple[Any, ...], list[tuple[float, float]]] = {}
    for turn in range(rounds):
        report(f"round {turn + 1} of {rounds}")
        before, now = ({_case(row): row for row in _measure(path, command)} for path in (baseline, here))
        for case in before.keys() & now.keys():
            for name in filter(MEASURED.fullmatch, before[case].keys() & now[case].keys()):
                measured.setdefault((*case, name), []).append((before[case][name], now[case][name]))
    if not measured:
        raise UserError(f"{baseline} and this version measured nothing of the same name; expected a newer checkout")
    found = []
    for (model, *_, batch, name), pairs in sorted(measured.items(), key=str):
        low, ratio, high = np.percentile([before / now for before, now in pairs], (25, 50, 75)).tolist()
        before, now = (statistics.median(values) for values in zip(*pairs, strict=True))
        row = {"model": model, "batch": batch, "measurement": name, "before": before, "now": now}
        found.append(row | {"ratio": ratio, "spread": [low, high], "loss": ratio < 1 / (1 + LOSS) and high < 1})
    return found


def format_comparison(rows: Rows) -> str:
    """Returns a table of `compare_rows` or `measure_beside`."""
    lines = [f"{'model':28} {'batch':>5} {'measurement':24} {'before':>12} {'now':>12} {'ratio':>6}  spread"]
    for row in rows:
        values, spread = f"{row['before']:12,.5g} {'missing':>12} {'-':>6}", "-"
        if row["now"] is not None:
            spread = "{:.2f} to {:.2f}".format(*row["spread"])
            values = f"{row['before']:12,.5g} {row['now']:12,.5g} {row['ratio']:6.2f}"
        lost = "  LOSS" if row["loss"] else ""
        lines.append(f"{row['model']:28} {row['batch']:5} {row['measurement']:24} {values}  {spread}{lost}".rstrip())
    return "\n".join(lines)


def _measure(checkout: Path, command: Sequence[str]) -> Rows:
    words = [sys.executable, "-m", "vitx", "bench", *command, "--json"]
    environment = os.environ | {"PYTHONPATH": str(checkout.resolve())}
    done = subprocess.run(words, cwd=checkout, env=environment, capture_output=True, text=True)
    if done.returncode:
        last = next((line for line in reversed(done.stderr.splitlines()) if line.strip()), "no message")
        raise RunError(f"vitx bench {' '.join(command)} failed in {checkout} with status {done.returncode}: {last}")
    return json.loads(done.stdout)["models"]


def _case(row: Mapping[str, Any]) -> tuple[Any, ...]:
    """Returns the values that identify a row among those of one command."""
    return tuple(row.get(name) for name in ("model", "frames", "height", "width", "batch"))


def _is_row(row: Any) -> bool:
    """Returns whether a row of a record has what `compare` reads."""
    if not isinstance(row, dict) or not {"model", "batch"} <= row.keys():
        return False
    times = [row[name] for name in filter(MEASURED.fullmatch, row)]
    quartiles = [value for name, value in row.items() if name.endswith("_quartiles_ms")]
    if not all(isinstance(pair, list) and len(pair) == 2 for pair in quartiles):
        return False
    return all(isinstance(x, int | float) and x > 0 for x in (*times, *itertools.chain(*quartiles)))


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9.]+", "_", text.lower()).strip("_")
