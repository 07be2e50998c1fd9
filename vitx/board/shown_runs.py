"""The runs of a board: what their folders hold, as JSON data. Nothing is written into them."""

import functools
import threading
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import PurePath
from typing import Any

from vitx import storage
from vitx.ablations.comparison import compare_settings
from vitx.board.clips import SplitClips
from vitx.board.evaluated import EvaluatedSplit
from vitx.board.folders import ListedRun, find_runs, same_folder
from vitx.data.sources import SPLITS
from vitx.errors import UserError
from vitx.evaluation.calibration import FILE as CALIBRATION
from vitx.evaluation.calibration import load_calibration
from vitx.evaluation.examples import load_predictions, predictions_path
from vitx.evaluation.presentation import presenter_for
from vitx.evaluation.report import curve_points
from vitx.experiment import Experiment, load_config
from vitx.run_folder import check_record, read_newest_record
from vitx.run_parts import fit_to_record
from vitx.stores import is_bucket
from vitx.tasks.task import COUNT_METRICS, Supervised
from vitx.training.logs import read_metrics

RESCAN_SECONDS = 5.0  # between two looks for new runs, and in a bucket for new rows
QUIET_SECONDS = 300.0  # without a new row, a run that has not ended counts as stopped
MAX_EVALUATED = 8  # splits whose predictions are kept in memory

Row = Mapping[str, Any]


class ShownRuns:
    """The runs of a board, in an order that stays: a run is named by its place in it."""

    def __init__(self, paths: Sequence[str | PurePath]) -> None:
        """Finds the runs.

        Args:
            paths: folders of runs, of ablations, or that hold such.

        Raises:
            UserError: a folder is missing or holds no run.
        """
        self._paths = tuple(map(storage.as_path, paths))
        self._folders = find_runs(self._paths)
        self._scanned_at = time.monotonic()
        self._scanning, self._loading = threading.Lock(), threading.Lock()
        self._latest = _Latest()
        self._cached_split = functools.lru_cache(maxsize=MAX_EVALUATED)(_load_split)

    def __len__(self) -> int:
        return len(self._folders)

    def folder(self, index: int) -> ListedRun:
        """Returns the folder of a run.

        Raises:
            UserError: there is no such run.
        """
        if not 0 <= index < len(self._folders):
            raise UserError(f"found the run {index}; expected one of the {len(self._folders)} runs of the board")
        return self._folders[index]

    def overview(self) -> dict[str, Any]:
        """Returns a summary of every run, new ones included, and the settings that differ."""
        self._rescan()
        experiments, runs = {}, []
        for index, folder in enumerate(self._folders):
            about = {"index": index, "name": folder.name, "path": str(storage.absolute(folder.path))}
            try:
                experiment = self._experiment(folder)
                runs.append(about | summarise(experiment, self._rows(folder), _last_written(folder.path)))
                experiments[index] = experiment
            except (UserError, OSError) as error:
                runs.append(about | {"state": "unreadable", "error": str(error)})
        # Comparing takes a millisecond a run, and experiments are the same objects while their files stay as they are.
        settings = self._latest.get("settings", list(map(id, experiments.values())), lambda: _differences(experiments))
        return {"runs": runs, "settings": settings}

    def curves(self, index: int) -> dict[str, Any]:
        """Returns {"curves": {metric: {split: (step, value) pairs}}, "units": {metric: unit}} of a run."""
        folder = self.folder(index)
        curves = presenter_for(self._experiment(folder).task).curves
        points = curve_points(self._rows(folder), curves)
        return {"curves": points, "units": {name: curves[name.split("/")[-1]].strip("()") for name in points}}

    def evaluated_splits(self, index: int) -> dict[str, Any]:
        """Returns the splits whose predictions a run keeps, and the command that adds those of the test split."""
        path = self.folder(index).path
        splits = [split for split in SPLITS if storage.exists(predictions_path(path, split))]
        return {"splits": splits, "command": f"vitx evaluate {storage.absolute(path)}", "pictures": _pictures(path)}

    def picture(self, index: int, number: int) -> tuple[str, bytes]:
        """Returns (name, content) of a picture of a run's report.

        Raises:
            UserError: there is no such picture.
        """
        path = self.folder(index).path
        names = _pictures(path)
        if number >= len(names):
            raise UserError(f"found the picture {number}; the report of {path} has {len(names)}")
        return names[number], storage.read_bytes(path / names[number])

    def split(self, index: int, split: str) -> EvaluatedSplit:
        """Returns an evaluated split of a run.

        Raises:
            UserError: there are no predictions of it, or they cannot be read.
        """
        folder = self.folder(index)
        path = predictions_path(folder.path, split)
        if not storage.exists(path):
            raise UserError(
                f"{folder.name} has no predictions of its {split} split yet; "
                f"vitx evaluate {storage.absolute(folder.path)} --split {split} adds them"
            )
        with self._loading:  # the page asks for several parts of a split at once
            return self._cached_split(folder.path, split, (_version(path), _version(folder.path / CALIBRATION)))

    def _experiment(self, folder: ListedRun) -> Experiment:
        return self._latest.get(
            ("config", folder.path), _version(folder.path / "config.json"), lambda: load_config(folder.path)
        )

    def _rows(self, folder: ListedRun) -> list[Row]:
        return self._latest.get(
            ("rows", folder.path), _version(folder.path / "metrics.jsonl"), lambda: read_metrics(folder.path)
        )

    def _rescan(self) -> None:
        with self._scanning:
            if time.monotonic() - self._scanned_at < RESCAN_SECONDS:
                return
            known = {same_folder(folder.path) for folder in self._folders}
            try:
                found = find_runs(self._paths)
            except UserError:  # a folder was moved away: what is known stays in the list
                found = []
            self._folders += [folder for folder in found if same_folder(folder.path) not in known]
            self._scanned_at = time.monotonic()


class _Latest:
    """Values by key, each kept until its version changes."""

    def __init__(self) -> None:
        self._values: dict[Hashable, tuple[Any, Any]] = {}

    def get(self, key: Hashable, version: Any, create: Callable[[], Any]) -> Any:
        """Returns the value of a key, created anew where it is of another version."""
        known = self._values.get(key)
        if known is None or known[0] != version:
            known = self._values[key] = version, create()
        return known[1]


def summarise(experiment: Experiment, rows: Sequence[Row], written: float | None) -> dict[str, Any]:
    """Returns state, steps and main metrics of a run.

    Args:
        experiment: settings of the run.
        rows: rows of its metrics.jsonl.
        written: seconds since the last row, None where that is not known.
    """
    training, task = experiment.training, experiment.task
    trained = [i for i, row in enumerate(rows) if row["split"] == "train"]
    tested = [i for i, row in enumerate(rows) if row["split"] == "test" and "settings" not in row]
    best: Row | None = None
    for row in rows:
        value = row.get(training.monitor)
        if row["split"] != "validation" or "settings" in row or not isinstance(value, int | float):
            continue
        if best is None or task.is_better(training.monitor, value, best[training.monitor]):
            best = row
    step = max((row["step"] for row in rows), default=0)
    ended = step >= training.steps or training.patience is not None
    if tested and tested[-1] > max(trained, default=-1) and ended:
        state = "finished"
    elif not rows and written is None:
        state = "no rows yet"
    else:
        last = rows[trained[-1]] if trained else {}
        quiet = max(QUIET_SECONDS, 3 * training.log_every * (last.get("seconds_per_step") or 0))
        state = "training" if written is not None and written < quiet else "stopped"
    return {
        "state": state,
        "step": step,
        "steps": training.steps,
        "model": type(experiment.model).__name__,
        "task": type(task).__name__,
        "monitor": training.monitor,
        "best": _main_metrics(experiment, best),
        "test": _main_metrics(experiment, rows[tested[-1]] if tested else None),
    }


def _main_metrics(experiment: Experiment, row: Row | None) -> dict[str, Any] | None:
    """Returns the step of a row, and its metrics that the presenter's headline has, but for losses of single labels."""
    if row is None:
        return None
    formats, monitor = presenter_for(experiment.task).formats, experiment.training.monitor
    ignored = ("step", *COUNT_METRICS)

    def is_main(name: str) -> bool:
        return not formats or (name.split("/")[-1] in formats and not name.endswith("/loss"))

    metrics = {
        name: value
        for name, value in row.items()
        if isinstance(value, int | float) and name not in ignored and (is_main(name) or name == monitor)
    }
    return {"step": row["step"], "metrics": metrics}


def _differences(experiments: Mapping[int, Experiment]) -> list[dict[str, Any]]:
    """Returns [{"path", "values" by the run's place}] of the settings that differ."""
    if len(experiments) < 2:
        return []
    named = {str(index): experiment for index, experiment in experiments.items()}
    return [{"path": path, "values": values} for path, values in compare_settings(named).items()]


def _load_split(folder: PurePath, split: str, version: Any) -> EvaluatedSplit:
    step, predictions = load_predictions(predictions_path(folder, split))
    experiment, record = load_config(folder), read_newest_record(folder)
    if record:
        check_record(folder, record)
        experiment, names = fit_to_record(experiment, record, folder)
    else:  # its checkpoints were removed; classes have numbers then
        names = {label: tuple(map(str, range(x.shape[-1]))) for label, x in predictions.outputs.items()}
    learnt = (names if record else None) if isinstance(experiment.task, Supervised) else {}
    clips = SplitClips(experiment.data, split, predictions, learnt, str(folder))
    calibration = load_calibration(folder)
    is_fitted = calibration is not None and calibration.step == step
    return EvaluatedSplit(
        experiment, names, step, predictions, clips, calibration.temperatures if is_fitted else {}, version
    )


def _pictures(folder: PurePath) -> list[str]:
    return [name for name in storage.names_in(folder) if name.endswith((".png", ".gif"))]


def _version(path: PurePath) -> Any:
    """Returns what changes when a file changes; in a bucket, every few seconds."""
    if is_bucket(path):
        return time.monotonic() // RESCAN_SECONDS
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    return status.st_mtime_ns, status.st_size


def _last_written(folder: PurePath) -> float | None:
    """Returns the seconds since a run wrote its last row; None in a bucket, and where there is none."""
    version = None if is_bucket(folder) else _version(folder / "metrics.jsonl")
    return None if version is None else time.time() - version[0] / 1e9
