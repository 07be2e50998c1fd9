"""What a run writes while it goes: metrics.jsonl, TensorBoard events, the terminal, and where its time went."""

import collections
import contextlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
from tensorboardX import SummaryWriter
from tqdm import tqdm

from vitx.errors import UserError
from vitx.storage import report_io_errors
from vitx.training.processes import first


def say(message: str) -> None:
    """Prints a line for people, on standard error, above a progress bar where there is one.

    Of many processes the first alone speaks.
    """
    if first():
        tqdm.write(message, file=sys.stderr)


class MetricsLog:
    """metrics.jsonl, the one record of a run's figures, and TensorBoard's view of it.

    Both are rewritten when the log is opened, without the rows that are no longer true: those of steps that a
    resumed run will take again. Of many processes the first alone writes.

    Attributes:
        path: of metrics.jsonl.
    """

    def __init__(self, workdir: Path, keep: Callable[[dict[str, Any]], bool]):
        self.path = workdir / "metrics.jsonl"
        self._file = self._events = None
        if not first():
            return
        rows = [row for row in read_metrics(workdir) if keep(row)]
        old_events = list(workdir.glob("events.out.tfevents.*"))
        draft = self.path.with_suffix(".tmp")
        with report_io_errors(self.path):
            draft.write_text("".join(json.dumps(row) + "\n" for row in rows))
            draft.replace(self.path)
            for events in old_events:
                events.unlink()
            self._file = open(self.path, "a")
            self._events = SummaryWriter(str(workdir), max_queue=1000, flush_secs=30)
            for row in rows:
                self._add_events(row)

    def __enter__(self) -> "MetricsLog":
        return self

    def __exit__(self, *_: Any) -> None:
        if self._file is not None:
            with report_io_errors(self.path):
                self._file.close()
                self._events.close()

    def write(self, step: int, split: str, figures: Mapping[str, Any]) -> None:
        """Adds one row; figures are by name, accuracies in percent. What is no number is in metrics.jsonl alone."""
        row = {"step": step, "split": split, **figures}
        if self._file is None:
            return
        with report_io_errors(self.path):
            self._file.write(json.dumps(row) + "\n")
            self._file.flush()
            self._add_events(row)

    def sync(self) -> None:
        """Returns when all rows are on disk: a checkpoint must never be newer than the log."""
        if self._file is None:
            return
        with report_io_errors(self.path):
            os.fsync(self._file.fileno())

    def _add_events(self, row: dict[str, Any]) -> None:
        for name, value in row.items():
            if name not in ("step", "split") and isinstance(value, int | float):
                self._events.add_scalar(f"{row['split']}/{name}", value, row["step"])


def read_metrics(workdir: Path) -> list[dict[str, Any]]:
    """Returns the rows of a run's metrics.jsonl; a last line cut short by a kill is left out.

    Raises:
        UserError: another line is not a row.
    """
    path = Path(workdir) / "metrics.jsonl"
    if not path.exists():
        return []
    lines = path.read_text().split("\n")
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            if line:
                rows.append(json.loads(line))
        except ValueError as error:
            if number < len(lines):
                raise UserError(f"{path}, line {number} is not JSON: {error}") from error
    return rows


class Profiler:
    """A trace of some steps by `jax.profiler`, for TensorBoard (with xprof) or Perfetto.

    Args:
        folder: that it goes to.
        steps: the first and the last of them, or None for no trace.
    """

    def __init__(self, folder: Path, steps: tuple[int, int] | None):
        self._folder, self._steps, self._running = folder, steps or (0, 0), False

    def __enter__(self) -> "Profiler":
        return self

    def __exit__(self, *_: Any) -> None:
        if self._running:
            self._running = False
            jax.profiler.stop_trace()
            say(f"a trace is in {self._folder}")

    def ends(self, step: int) -> bool:
        """Whether this is the last step of the trace, after which the devices must be waited for."""
        return self._running and step == self._steps[1]

    @contextlib.contextmanager
    def step(self, step: int) -> Iterator[None]:
        """Marks the time inside the `with` as the step's."""
        if step == self._steps[0]:
            jax.profiler.start_trace(self._folder)
            self._running = True
        with jax.profiler.StepTraceAnnotation("train", step_num=step):
            yield
        if self.ends(step):
            self.__exit__()


class Stopwatch:
    """Splits wall time into named phases; a phase inside another stops the outer one's clock."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = collections.defaultdict(float)
        self._phases: list[str] = []
        self._since = time.perf_counter()

    @contextlib.contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        """Counts the time inside the `with` as the phase's."""
        self._switch()
        self._phases.append(phase)
        try:
            yield
        finally:
            self._switch()
            self._phases.pop()

    def _switch(self) -> None:
        now = time.perf_counter()
        if self._phases:
            self.seconds[self._phases[-1]] += now - self._since
        self._since = now

    def __str__(self) -> str:
        return ", ".join(f"{phase} {seconds:.0f} s" for phase, seconds in self.seconds.items())
