"""A run's folder on disk: whose it is, who writes it, and what a run keeps there.

config.json      the experiment: settings, versions; never executed
overview.md      parameters, mesh and cost, as printed when the run began
metrics.jsonl    one object a line: step, split, metrics
checkpoints/     one folder a step, written in the background and renamed into place when complete
events.*         TensorBoard's view of metrics.jsonl
report.md        what the run learnt, with its pictures
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import filelock

from vitx import configuration
from vitx.checkpoints import Checkpoints
from vitx.errors import UserError
from vitx.experiment import Experiment, load_config
from vitx.storage import read_json
from vitx.training.processes import is_first_process, sync_processes


def is_run(path: Path) -> bool:
    """Returns whether a folder is a run's: its config.json has vitx's format, not Hugging Face's."""
    if not (path / "config.json").is_file():
        return False
    config = read_json(path / "config.json")
    return isinstance(config, dict) and {"format", "experiment"} <= config.keys()


def check_may_train(workdir: Path, experiment: Experiment, *, extend: bool) -> None:
    """Checks that an experiment may train in a folder.

    Args:
        workdir: the run's folder.
        experiment: settings of the run.
        extend: whether `training.steps` may be more than the run began with.

    Raises:
        UserError: the folder is neither new nor a run that differs in settings that may change on resume alone.
    """
    if workdir.exists() and not workdir.is_dir():
        raise UserError(f"{workdir} is a file; --workdir takes a folder")
    if not (workdir / "config.json").exists():
        foreign = sorted(path.name for path in workdir.glob("[!.]*")) if workdir.exists() else []
        if foreign:
            raise UserError(
                f"{workdir} holds {', '.join(foreign[:5])} and no config.json, so it is not a run's folder; choose "
                "another --workdir"
            )
        return
    changed = configuration.differences(load_config(workdir), experiment)
    refused = {
        path: values for path, values in changed.items() if not configuration.is_mutable_on_resume(experiment, path)
    }
    if "training.steps" in refused and extend:
        old, new = refused.pop("training.steps")
        if new < old:
            raise UserError(f"training.steps is {new}; expected at least {old}, which {workdir} began with")
    if refused and any(workdir.glob("checkpoints/[0-9]*")):
        hint = " --extend lets training.steps grow." if set(refused) == {"training.steps"} else ""
        lines = "".join(f"\n  {path}: {old!r} there, {new!r} here" for path, (old, new) in refused.items())
        raise UserError(
            f"{workdir} holds a run with other settings; choose another --workdir, or the same settings.{hint}{lines}"
        )


@contextlib.contextmanager
def lock_run(workdir: Path) -> Iterator[None]:
    """Creates the folder if need be and locks it: two processes must not write one run.

    Raises:
        UserError: another process holds the folder, or it cannot be written.
    """
    if not is_first_process():  # the first process holds the lock for all
        sync_processes("locked")
        yield
        return
    lock = filelock.FileLock(workdir / ".lock")
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except filelock.Timeout:
        raise UserError(f"{workdir} is in use by another vitx process; wait until it ends") from None
    except OSError as error:
        raise UserError(f"{workdir} cannot be written: {error.strerror or error}; choose another --workdir") from error
    sync_processes("locked")
    try:
        yield
    finally:
        lock.release()


def open_checkpoints(workdir: Path) -> Checkpoints:
    """Returns a run's checkpoints, to read.

    Raises:
        UserError: there is none that is complete.
    """
    folder = workdir / "checkpoints"
    if not folder.is_dir():
        raise UserError(f"{workdir} has no checkpoints yet")
    checkpoints = Checkpoints(folder, read_only=True)
    if not checkpoints.steps():
        raise UserError(f"{folder} holds no complete checkpoint yet")
    return checkpoints
