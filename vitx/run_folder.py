"""A run's folder on disk: whose it is, who writes it, and what a run keeps there.

config.json      the experiment: settings, versions; never executed
overview.md      parameters, mesh and cost, as printed when the run began
metrics.jsonl    one JSON object a line: step, split, metrics; new rows in a bucket lie in metrics/
checkpoints/     one folder a step, written in the background and renamed into place when complete
events.*         TensorBoard's view of metrics.jsonl
report.md        what the run learnt, with its pictures
predictions_*    outputs and labels of every example of an evaluated split
calibration.json temperatures by which logits are divided, where the run was calibrated
.lock            held by the process that writes
"""

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import PurePath
from typing import Any

from vitx import configuration, storage
from vitx.checkpoints import Checkpoints, DamagedCheckpointError, check_fields
from vitx.errors import UserError
from vitx.experiment import Experiment, load_config
from vitx.locks import FolderLock, lock_folder
from vitx.training.logs import read_metrics
from vitx.training.processes import is_first_process, sync_processes


def is_run(path: PurePath) -> bool:
    """Returns whether a folder is a run's: its config.json has vitx's format, not Hugging Face's."""
    if not storage.is_file(path / "config.json"):
        return False
    config = storage.read_json(path / "config.json")
    return isinstance(config, dict) and {"format", "experiment"} <= config.keys()


def check_may_train(workdir: PurePath, experiment: Experiment, *, extend: bool) -> Mapping[str, Any]:
    """Checks that an experiment may train in a folder; returns the record that it resumes from, {} for a new run.

    Args:
        workdir: the run's folder.
        experiment: settings of the run.
        extend: whether `training.steps` may be more than the run began with.

    Raises:
        UserError: the folder is neither new nor a run that differs in settings that may change on resume alone.
    """
    if is_first_process():
        _check_settings(workdir, experiment, extend=extend)
        read_metrics(workdir)  # a damaged row is reported before the work whose report needs it
    record = read_newest_record(workdir)
    check_record(workdir, record)
    return record


def _check_settings(workdir: PurePath, experiment: Experiment, *, extend: bool) -> None:
    """Raises UserError where the folder is another's, or its run has settings that no resume may change."""
    if storage.is_file(workdir):
        raise UserError(f"{workdir} is a file; --workdir takes a folder")
    if not storage.exists(workdir / "config.json"):
        foreign = [name for name in storage.names_in(workdir) if not name.startswith(".")]
        if foreign:
            raise UserError(
                f"{workdir} holds {', '.join(foreign[:5])} and no config.json, so it is not a run's folder; choose "
                "another --workdir"
            )
        return
    changed = different_settings(load_config(workdir).with_absolute_paths(), experiment)
    refused = {
        path: values for path, values in changed.items() if not configuration.is_mutable_on_resume(experiment, path)
    }
    if "training.steps" in refused and extend:
        old, new = refused.pop("training.steps")
        if new < old:
            raise UserError(f"training.steps is {new}; expected at least {old}, which {workdir} began with")
    if refused and any(map(str.isdecimal, storage.names_in(workdir / "checkpoints"))):
        hint = " --extend lets training.steps grow." if set(refused) == {"training.steps"} else ""
        raise UserError(
            f"{workdir} holds a run with other settings; choose another --workdir, or the same settings.{hint}",
            [f"{path}: {old!r} before, {new!r} now" for path, (old, new) in refused.items()],
        )


def different_settings(stored: Experiment, experiment: Experiment) -> dict[str, tuple[object, object]]:
    """Returns the settings in which an experiment differs from a run, without those that the data determines.

    Paths of the data are left out too, since it may have moved: `check_same_data` compares the data when it is opened.
    """
    changed = configuration.differences(stored, experiment)
    if changed.get("model.num_classes", (0, 0))[1] is None:  # taken from the data, which is compared when it is opened
        del changed["model.num_classes"]
    moved = [
        path
        for path, (old, _) in changed.items()
        if configuration.is_path(experiment, path) and (path.startswith("data.dataset.") or not _path_exists(old))
    ]
    return {path: values for path, values in changed.items() if path not in moved}


def check_same_data(
    workdir: PurePath, record: Mapping[str, Any], experiment: Experiment, found: str, *, extend: bool
) -> str:
    """Checks that a run is resumed on the videos that it began with, wherever they lie now, and with its classes.

    Args:
        workdir: the run's folder.
        record: record of its newest checkpoint, {} of a new run.
        experiment: settings of the run, with the number of classes of the data.
        found: fingerprint of the training videos.
        extend: see `check_may_train`.

    Returns:
        The fingerprint of the videos that the run began with. Videos that were added at the same path are allowed.

    Raises:
        UserError: the data has another number of classes, or another path holds other videos: the run would be
            another one.
    """
    if record and is_first_process():
        _check_settings(workdir, experiment, extend=extend)
    known = record.get("videos")
    if known in (None, found):
        return found
    trained = configuration.from_dict(record["config"], f"{workdir}/checkpoints")
    moved = {
        path: values
        for path, values in configuration.differences(trained, experiment).items()
        if path.startswith("data.dataset.") and configuration.is_path(experiment, path)
    }
    if moved:
        raise UserError(
            f"{workdir} was trained on other videos than those of the train split; choose another --workdir, or the "
            "path that its videos have moved to",
            [f"{path}: {old!r} before, {new!r} now" for path, (old, new) in moved.items()],
        )
    return known


def check_record(workdir: PurePath, record: Mapping[str, Any]) -> None:
    """Raises UserError where a checkpoint was not trained with the settings of the folder's config.json.

    Checkpoints of another run may have arrays of equal shapes, and other settings change what equal arrays mean.
    """
    if not record:  # a run without checkpoints
        return
    check_fields(record, {"label_names": dict}, f"a checkpoint in {workdir / 'checkpoints'}")
    for label, names in record["label_names"].items():
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise UserError(f"a checkpoint in {workdir / 'checkpoints'}: label_names of {label!r} are no list of names")
    if "config" not in record:
        return
    stored = load_config(workdir).with_absolute_paths()
    changed = different_settings(configuration.from_dict(record["config"], f"{workdir}/checkpoints"), stored)
    lines = [
        f"{path}: {trained!r} in the checkpoint, {here!r} in config.json"
        for path, (trained, here) in changed.items()
        # --extend changes the number of steps, and data may have moved, before the next checkpoint is saved.
        if not configuration.is_mutable_on_resume(stored, path)
        and path != "training.steps"
        and not configuration.is_path(stored, path)
    ]
    videos = storage.read_json(workdir / "config.json").get("videos")
    if videos and record.get("videos", videos) != videos:
        lines.append(f"videos: {record['videos']!r} in the checkpoint, {videos!r} in config.json")
    if lines:
        raise UserError(
            f"the checkpoints in {workdir / 'checkpoints'} are not of {workdir / 'config.json'}; put back the file, or "
            "the checkpoints, of this run",
            lines,
        )


def _path_exists(path: object) -> bool:
    return isinstance(path, str) and storage.exists(storage.as_path(path))


@contextlib.contextmanager
def lock_run(workdir: PurePath) -> Iterator[FolderLock]:
    """Creates the folder if it is missing, and locks it: two processes must not write one run.

    Raises:
        UserError: another process holds the folder, or it cannot be written.
    """
    if not is_first_process():  # the first process holds the lock for all
        sync_processes("locked")
        yield FolderLock()
        return
    with lock_folder(workdir, busy=f"{workdir} is in use by another vitx process; wait until it ends") as lock:
        sync_processes("locked")
        yield lock


def open_checkpoints(workdir: PurePath) -> Checkpoints:
    """Returns a run's checkpoints, to read.

    Raises:
        UserError: the run has no complete checkpoint.
    """
    folder = workdir / "checkpoints"
    if not storage.is_folder(folder):
        raise UserError(f"{workdir} has no checkpoints yet")
    checkpoints = Checkpoints(folder, read_only=True)
    if not checkpoints.steps():
        raise UserError(f"{folder} holds no complete checkpoint yet")
    return checkpoints


def read_newest_record(workdir: PurePath) -> Mapping[str, Any]:
    """Returns the record of the newest checkpoint that can be read, {} where there is none."""
    folder = workdir / "checkpoints"
    if not storage.is_folder(folder):
        return {}
    with Checkpoints(folder, read_only=True) as checkpoints, contextlib.suppress(DamagedCheckpointError):
        return checkpoints.newest_record()
    return {}
