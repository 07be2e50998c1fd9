"""What a run writes while it trains: metrics.jsonl, TensorBoard, Weights & Biases, profiles, phase times."""

import collections
import contextlib
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
from tensorboardX import SummaryWriter

from vitx.console import print_message
from vitx.errors import UserError
from vitx.storage import report_io_errors
from vitx.training.processes import is_first_process

Row = dict[str, Any]


def log_info(message: str) -> None:
    """Prints a line for people on standard error; of several processes only the first prints."""
    if is_first_process():
        print_message(message)


class MetricsLog:
    """metrics.jsonl, the record of a run's metrics, and what mirrors it: TensorBoard and Weights & Biases.

    metrics.jsonl and TensorBoard's events are rewritten when the log is opened, without rows that are no longer true:
    those of steps that a resumed run takes again. Of several processes only the first writes.

    Attributes:
        path: path of metrics.jsonl.
    """

    def __init__(self, workdir: Path, keep: Callable[[Row], bool], wandb_project: str | None = None) -> None:
        """Opens the log.

        Args:
            workdir: the run's folder.
            keep: whether an existing row stays.
            wandb_project: project of Weights & Biases that gets new rows too; None for none.
        """
        self.path = workdir / "metrics.jsonl"
        self._file = self._events = self._wandb = None
        if not is_first_process():
            return
        if wandb_project is not None:
            self._wandb = _start_wandb(wandb_project, workdir)
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
        if self._wandb is not None:
            self._wandb.finish()

    def write(self, step: int, split: str, metrics: Mapping[str, Any]) -> None:
        """Adds one row. Values that are not numbers go to metrics.jsonl alone."""
        if self._file is None:
            return
        row = {"step": step, "split": split, **metrics}
        with report_io_errors(self.path):
            self._file.write(json.dumps(row) + "\n")
            self._file.flush()
            self._add_events(row)
        if self._wandb is not None:
            self._wandb.log({f"{split}/{name}": value for name, value in _numbers(row).items()}, step=step)

    def sync(self) -> None:
        """Returns when all rows are on disk: a checkpoint must never be newer than the log."""
        if self._file is not None:
            with report_io_errors(self.path):
                os.fsync(self._file.fileno())

    def _add_events(self, row: Row) -> None:
        for name, value in _numbers(row).items():
            self._events.add_scalar(f"{row['split']}/{name}", value, row["step"])


def _numbers(row: Row) -> dict[str, float]:
    return {name: value for name, value in row.items() if name != "step" and isinstance(value, int | float)}


def _start_wandb(project: str, workdir: Path) -> Any:
    """Returns a run of Weights & Biases that belongs to the folder: a resumed run goes on in the same one."""
    try:
        import wandb
    except ImportError as error:
        raise UserError(
            f"training.wandb is {project!r} and the package wandb is not installed; pip install 'vitx[wandb]'"
        ) from error
    identity = hashlib.sha256(str(workdir.absolute()).encode()).hexdigest()[:16]
    settings = wandb.Settings(console="off", silent=True)
    config = json.loads((workdir / "config.json").read_text())
    return wandb.init(
        project=project,
        name=workdir.absolute().name,
        id=identity,
        resume="allow",
        dir=str(workdir),
        config=config,
        settings=settings,
    )


def read_metrics(workdir: Path) -> list[Row]:
    """Returns the rows of a run's metrics.jsonl; a last line that a kill cut short is left out.

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
    """Traces some steps with `jax.profiler`, for TensorBoard (with xprof) or Perfetto."""

    def __init__(self, folder: Path, steps: tuple[int, int] | None) -> None:
        """Prepares a trace.

        Args:
            folder: folder that the trace is written to.
            steps: first and last step of the trace; None for no trace.
        """
        self._folder, self._steps, self._running = folder, steps or (0, 0), False

    def __enter__(self) -> "Profiler":
        return self

    def __exit__(self, *_: Any) -> None:
        if self._running:
            self._running = False
            jax.profiler.stop_trace()
            log_info(f"wrote a profile to {self._folder}")

    def ends_at(self, step: int) -> bool:
        """Returns whether the trace ends with this step; the devices must have finished it before it does."""
        return self._running and step == self._steps[1]

    @contextlib.contextmanager
    def step(self, step: int) -> Iterator[None]:
        """Marks the time inside the `with` as the step's."""
        if step == self._steps[0]:
            jax.profiler.start_trace(self._folder)
            self._running = True
        with jax.profiler.StepTraceAnnotation("train", step_num=step):
            yield
        if self.ends_at(step):
            self.__exit__()


class Stopwatch:
    """Splits wall time into named phases; a phase inside another one stops the outer one's clock."""

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
