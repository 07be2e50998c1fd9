"""Logs of a run while it trains: metrics.jsonl, TensorBoard, Weights & Biases, profiles, times of phases."""

import contextlib
import hashlib
import math
import secrets
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

import jax

from vitx import storage
from vitx.console import print_message
from vitx.errors import UserError
from vitx.rows import RowsWriter, read_rows
from vitx.stores import is_bucket, report_io_errors
from vitx.training.processes import is_first_process

Row = Mapping[str, Any]

MAX_NUMBER = 2**63 - 1  # largest step or count in a row
EVENTS_SECONDS = 60.0  # between two copies of TensorBoard's events to a bucket, which stores a file as a whole


def log_info(*lines: str) -> None:
    """Prints lines on standard error; of several processes only the first prints."""
    if is_first_process():
        print_message(*lines)


class MetricsLog:
    """metrics.jsonl, the record of a run's metrics, and what mirrors it: TensorBoard and Weights & Biases.

    metrics.jsonl and TensorBoard's events are rewritten when the log is opened, without the rows
    of steps that a resumed run takes again. Of several processes only the first writes.

    Attributes:
        path: path of metrics.jsonl.
    """

    def __init__(self, workdir: PurePath, keep: Callable[[Row], bool], wandb_project: str | None = None) -> None:
        """Opens the log.

        Args:
            workdir: the run's folder.
            keep: returns whether an existing row stays.
            wandb_project: project of Weights & Biases that gets new rows too; None for none.
        """
        self.path = workdir / "metrics.jsonl"
        self._rows = self._events = self._wandb = None
        if not is_first_process():
            return
        if wandb_project is not None:
            self._wandb = _start_wandb(wandb_project, workdir)
        self._rows = RowsWriter(self.path, keep)
        self._events = Events(workdir, self._rows.rows)

    def __enter__(self) -> "MetricsLog":
        return self

    def __exit__(self, *_: Any) -> None:
        with contextlib.ExitStack() as stack:  # closes every log, also where one cannot be written
            if self._wandb is not None:
                stack.callback(self._wandb.finish)
            if self._rows is not None:
                stack.callback(self._events.close)
                stack.callback(self._rows.close)

    def write(self, step: int, split: str, metrics: Mapping[str, Any]) -> None:
        """Adds one row. Values that are not numbers go to metrics.jsonl alone."""
        if self._rows is None:
            return
        row = {"step": step, "split": split, **metrics}
        self._rows.write(row)
        self._events.add(row)
        if self._wandb is not None:
            self._wandb.log({f"{split}/{name}": value for name, value in _numbers(row).items()}, step=step)

    def sync(self) -> None:
        """Waits until all rows are stored: a checkpoint must never be newer than the log."""
        if self._rows is not None:
            self._rows.sync()
            self._events.sync()


class Events:
    """TensorBoard's view of the rows; in a bucket, a copy of a local file that is stored once a minute."""

    def __init__(self, workdir: PurePath, rows: Sequence[Row]) -> None:
        """Replaces the events of a folder with those of some rows."""
        self._workdir, self._stored_at = workdir, -math.inf
        for name in storage.names_in(workdir):
            if name.startswith("events.out.tfevents."):
                storage.remove(workdir / name)
        with report_io_errors(workdir):
            self._local = Path(tempfile.mkdtemp(prefix="vitx-events-")) if is_bucket(workdir) else workdir
            # Not SummaryWriter: its thread ends where a disk is full, and then its queue fills and blocks forever.
            self._tensorboard = _import_tensorboard()
            self._writer = self._tensorboard.event_file_writer.EventsWriter(
                str(self._local / "events"), f".{secrets.token_hex(8)}"
            )
        try:
            for row in rows:
                self.add(row)
        except UserError:
            with contextlib.suppress(UserError):
                self._close_file()
            raise

    def add(self, row: Row) -> None:
        """Adds the numbers of a row."""
        with report_io_errors(self._workdir):
            for name, value in _numbers(row).items():
                summary = self._tensorboard.summary.scalar(f"{row['split']}/{name}", value)
                event = self._tensorboard.proto.event_pb2.Event(
                    wall_time=time.time(), step=row["step"], summary=summary
                )
                self._writer.write_event(event)
            self._writer.flush()

    def sync(self) -> None:
        """Stores the events in a bucket, at most every EVENTS_SECONDS: an object is written as a whole."""
        if self._local == self._workdir or time.monotonic() - self._stored_at < EVENTS_SECONDS:
            return
        for path in self._local.iterdir():
            storage.upload_file(path, self._workdir / path.name)
        self._stored_at = time.monotonic()

    def close(self) -> None:
        """Stores all events."""
        with report_io_errors(self._workdir):
            try:
                self._writer.close()
            finally:
                self._close_file()
        if self._local != self._workdir:
            self._stored_at = -math.inf
            self.sync()
            shutil.rmtree(self._local)

    def _close_file(self) -> None:
        # tensorboardX 2.6.5 (2026-11) leaves its file open where a full disk takes no more. Python would try to write
        # the rest once more when it collects the file, and 3.13 prints that it cannot.
        with report_io_errors(self._workdir):
            self._writer._py_recordio_writer.close()


def _import_tensorboard() -> Any:
    """Returns tensorboardX, imported without PyTorch.

    Where PyTorch is installed, tensorboardX 2.6.5 (2026-11) imports it, to accept its tensors: 4 s, and 470 MB.
    """
    is_hidden = "torch" not in sys.modules
    if is_hidden:
        sys.modules["torch"] = None  # type: ignore[assignment]  # importing it then raises ImportError
    try:
        import tensorboardX.event_file_writer
        import tensorboardX.proto.event_pb2
        import tensorboardX.summary
    finally:
        if is_hidden:
            del sys.modules["torch"]
    return tensorboardX


def _numbers(row: Row) -> dict[str, int | float]:
    return {name: value for name, value in row.items() if name != "step" and isinstance(value, int | float)}


def _start_wandb(project: str, workdir: PurePath) -> Any:
    """Returns a run of Weights & Biases that belongs to the folder: a resumed run continues in the same one."""
    try:
        import wandb
    except ImportError as error:
        raise UserError(
            f"training.wandb is {project!r} and the package wandb is not installed; pip install 'vitx[wandb]'"
        ) from error
    folder = storage.absolute(workdir)
    identity = hashlib.sha256(str(folder).encode()).hexdigest()[:16]
    settings = wandb.Settings(console="off", silent=True)
    config = storage.read_json(workdir / "config.json")
    return wandb.init(
        project=project,
        name=folder.name,
        id=identity,
        resume="allow",
        dir=tempfile.gettempdir() if is_bucket(workdir) else str(workdir),
        config=config,
        settings=settings,
    )


def read_metrics(workdir: PurePath) -> list[Row]:
    """Returns the rows of a run's metrics.jsonl; a last line that a kill cut short is left out.

    Raises:
        UserError: another line is not a row.
    """
    path = storage.as_path(workdir) / "metrics.jsonl"
    rows = read_rows(path)
    for number, row in enumerate(rows, 1):
        _check_row(row, f"{path}, row {number}")
    return rows


def _check_row(row: Row, where: str) -> None:
    """Raises UserError where a row has no step or split, or a number that no float holds."""
    for name, kind, meaning in (("step", int, "number of a step"), ("split", str, "name of a split")):
        found = row.get(name)
        if not isinstance(found, kind) or isinstance(found, bool):
            raise UserError(f"{where}: {name!r} is {str(found)[:80]!r}; expected the {meaning}. Remove the row")
    for name, value in row.items():
        if isinstance(value, int) and abs(value) > MAX_NUMBER:
            raise UserError(f"{where}: {name!r} is {str(value)[:20]}...; expected at most {MAX_NUMBER}. Remove the row")


class Profiler:
    """Traces some steps with `jax.profiler`, for TensorBoard (with xprof) or Perfetto."""

    def __init__(self, folder: PurePath, steps: tuple[int, int] | None) -> None:
        """Prepares a trace.

        Args:
            folder: folder that the trace is written to.
            steps: first and last step of the trace; None for no trace.
        """
        self._folder, self._local, self._steps, self._running = folder, folder, steps or (0, 0), False

    def __enter__(self) -> "Profiler":
        return self

    def __exit__(self, *_: Any) -> None:
        if self._running:  # the run ended before the last step of the trace
            self._stop()

    def _stop(self) -> None:
        self._running = False
        jax.profiler.stop_trace()
        if is_bucket(self._folder):
            storage.upload_folder(self._local, self._folder)
            shutil.rmtree(self._local)
        log_info(f"wrote a profile to {self._folder}")

    def ends_at(self, step: int) -> bool:
        """Returns whether the trace ends with this step; the devices must finish the step first."""
        return self._running and step == self._steps[1]

    @contextlib.contextmanager
    def step(self, step: int) -> Iterator[None]:
        """Marks the time inside the `with` as the step's."""
        if step == self._steps[0]:
            if is_bucket(self._folder):
                self._local = Path(tempfile.mkdtemp(prefix="vitx-profile-"))
            jax.profiler.start_trace(self._local)
            self._running = True
        with jax.profiler.StepTraceAnnotation("train", step_num=step):
            yield
        if self.ends_at(step):
            self._stop()
