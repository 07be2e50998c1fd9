"""One cell: trains its run, or resumes it, and records the results of all cells in the ablation's folder.

results/CELL.json        metrics of the test split, speed, memory, machine; the cell is finished
results/CELL.failed.json reason why the last attempt failed
"""

import resource
import secrets
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

import jax
import numpy as np

from vitx import storage
from vitx.ablations.plan import Cell
from vitx.analysis.bench import describe_machine
from vitx.errors import Preempted, RunError, UserError
from vitx.experiment import git_commit
from vitx.locks import BusyError, Lease
from vitx.run import train
from vitx.training.logs import log_info

FAILED = ".failed.json"


class CellResults:
    """The results in an ablation's folder."""

    def __init__(self, workdir: PurePath):
        self._folder = workdir / "results"

    def names(self) -> set[str]:
        """Returns the names of all result files; one request for all cells."""
        return set(storage.names_in(self._folder))

    def read_result(self, cell: Cell) -> dict[str, Any] | None:
        """Returns the record of a finished cell, None for another."""
        return self._read(f"{cell.name}.json")

    def read_failure(self, cell: Cell) -> dict[str, Any] | None:
        """Returns {"attempt", "reason"} of a cell whose last attempt failed, None for another."""
        return self._read(cell.name + FAILED)

    def record(self, cell: Cell, result: dict[str, Any]) -> None:
        """Records that a cell is finished."""
        storage.create_folder(self._folder)
        storage.write_json(self._folder / f"{cell.name}.json", result)
        storage.remove(self._folder / (cell.name + FAILED))

    def record_failure(self, cell: Cell, reason: str) -> None:
        """Records why an attempt failed; each attempt has a name of its own."""
        storage.create_folder(self._folder)
        failure = {"attempt": secrets.token_hex(8), "reason": reason}
        storage.write_json(self._folder / (cell.name + FAILED), failure)

    def _read(self, name: str) -> dict[str, Any] | None:
        path = self._folder / name
        return storage.read_json(path) if storage.exists(path) else None


def run_cell(cell: Cell, lease: Lease, results: CellResults) -> bool:
    """Trains a cell that this process has leased, and records its result or why it failed.

    Returns:
        Whether the cell is settled; False where another process turns out to write its run, or has taken the lease.

    Raises:
        Preempted: a stop was requested; the run is saved.
    """
    began, is_new = time.monotonic(), not storage.exists(cell.folder / "config.json")
    reset_peak_memory()
    run, reason = None, ""
    try:
        run = train(cell.experiment, cell.folder)
    except Preempted:
        raise
    except BusyError as error:
        # A lease may expire while its owner was held up; the lock of the run's folder decides.
        log_info(str(error))
        return False
    except Exception as error:
        known = isinstance(error, UserError | RunError)
        reason = str(error) if known else f"{type(error).__name__}: {error}"
    try:
        lease.check()
    except RunError as error:
        log_info(str(error))
        return False
    if run is None:
        results.record_failure(cell, reason)
        log_info(f"row {cell.row!r}, seed {cell.seed} failed: {reason}")
        return True
    rows = run.metrics()
    tested = find_test_row(rows, run.step)
    speeds = [row["clips_per_second"] for row in rows if row["split"] == "train" and "clips_per_second" in row]
    machine = describe_machine()
    record = {
        "row": cell.row,
        "seed": cell.seed,
        "step": run.step,
        "metrics": {name: value for name, value in tested.items() if name not in ("step", "split", "views")},
        "views": tested["views"],
        # The first row has the steps that fill caches and queues.
        "clips_per_second": float(np.median(speeds[1:] or speeds)) if speeds else None,
        "peak_memory_mib": peak_memory_mib(),
        "seconds": time.monotonic() - began if is_new else None,  # a resumed run took longer than this process knows
        "hardware": f"{machine['processor']}, {machine['threads']} threads, {jax.device_count()} x {machine['device']}",
        "versions": machine["versions"],
        "commit": git_commit(),
        "date": machine["date"],
    }
    results.record(cell, record)
    return True


def find_test_row(rows: Sequence[Mapping[str, Any]], step: int) -> Mapping[str, Any]:
    """Returns the newest row of metrics.jsonl with the test of a checkpoint under the run's own settings."""
    # `vitx evaluate RUN --data.eval_clips 4` adds rows of other settings, which no other cell shares.
    own = (row for row in reversed(rows) if "settings" not in row)
    return next(row for row in own if (row["split"], row["step"]) == ("test", step))


def reset_peak_memory() -> None:
    """Begins a new measurement of `peak_memory_mib`, where Linux allows it."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def peak_memory_mib() -> float | None:
    """Returns the peak of memory: of the fullest device where devices count it, of this process on a CPU.

    Devices count from the start of the process, so a smaller cell after a larger one shows the larger one's peak.
    """
    peaks = [(device.memory_stats() or {}).get("peak_bytes_in_use") for device in jax.local_devices()]
    known = [peak for peak in peaks if peak]
    if known:
        return max(known) / 2**20
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) / 2**10 for line in lines if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        unit = 2**20 if sys.platform == "darwin" else 2**10
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
