"""An experiment: one frozen dataclass composed of the parts; loaded by path, overridden by dotted path, saved."""

import dataclasses
import inspect
import runpy
import subprocess
import traceback
from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import Any, TypeVar

import jax
from flax import linen as nn

import vitx
from vitx import configuration
from vitx.configuration import register
from vitx.data.pipeline import Data
from vitx.errors import UserError
from vitx.models.base import VideoModel
from vitx.storage import as_path, is_file, read_json, write_json
from vitx.tasks.classification import Classification
from vitx.tasks.task import Task
from vitx.training.loop import Training
from vitx.training.optimizers import AdamW, Optimizer

T = TypeVar("T")
FORMAT = 1
RUN_NAME = "<experiment>"  # __name__ inside an experiment file


@register
@dataclasses.dataclass(frozen=True)
class Experiment:
    """Everything that a run is.

    Attributes:
        model: a Linen module, which is its own settings.
        data: the dataset and how it becomes batches.
        task: what is learnt: loss, metrics, normalisation of pixels.
        optimizer: how parameters change.
        training: how long and how the run trains.
    """

    model: nn.Module
    data: Data
    task: Task = Classification()
    optimizer: Optimizer = AdamW()
    training: Training = Training()

    def __post_init__(self):
        if not isinstance(self.model, VideoModel) or not self.model.needs_input_shape:
            return
        clip, expected = (self.data.num_frames, *self.data.image_size), self.model.input_shape[:3]
        if clip != expected:
            raise ValueError(
                f"the data gives clips of {clip} (frames, height, width) and the model takes {expected}; "
                "set data.num_frames and data.image_size, or model.num_frames and model.image_size"
            )

    def override(self, changes: Mapping[str, Any]) -> "Experiment":
        """Returns the experiment with settings replaced: {"optimizer.peak_lr": 0.05}."""
        return configuration.override(self, changes)


def load_experiment(path: str | Path) -> Experiment:
    """Returns the `experiment` that a Python file defines.

    Args:
        path: of the file; in an experiment file, relative to that file.

    Raises:
        UserError: no such file, the file raises, or it defines no experiment.
    """
    return load_object(path, "experiment", Experiment)


def load_object(path: str | Path, name: str, kind: type[T]) -> T:
    """Executes a Python file that describes experiments; returns one of the objects that it defines.

    Args:
        path: path of the file; in another such file, relative to that file.
        name: name of the object.
        kind: its class.

    Raises:
        UserError: no such file, the file raises, or it defines no such object.
    """
    asking = (frame.filename for frame in inspect.stack() if frame.frame.f_globals.get("__name__") == RUN_NAME)
    path = Path(next(asking, "")).parent / path
    if not path.is_file():
        raise UserError(f"there is no experiment file {path}")
    try:
        names = runpy.run_path(str(path), run_name=RUN_NAME)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except Exception as error:
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
        where = f"{path}, line {lines[-1]}" if lines else getattr(error, "filename", None) or path
        raise UserError(f"{where}: {type(error).__name__}: {error}") from error
    if not isinstance(names.get(name), kind):
        raise UserError(f"{path} defines no `{name} = vitx.{kind.__name__}(...)`")
    return names[name]


def save_config(experiment: Experiment, path: PurePath) -> None:
    """Writes config.json: the settings, with the versions that they were run with."""
    versions = {"vitx": vitx.__version__, "jax": jax.__version__, "git": git_commit()}
    write_json(path, {"format": FORMAT, "versions": versions, "experiment": configuration.to_dict(experiment)})


def load_config(workdir: str | PurePath) -> Experiment:
    """Returns the experiment of a run's folder; executes nothing that lies there.

    Raises:
        UserError: not a run's folder, or a config.json that this version cannot read.
    """
    path = as_path(workdir) / "config.json"
    if not is_file(path):
        raise UserError(f"{workdir} is not a run's folder: it has no config.json")
    data = read_json(path)
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        found = data.get("format") if isinstance(data, dict) else None
        raise UserError(f"{path} has format {found!r}; this vitx reads {FORMAT}")
    experiment = configuration.from_dict(data.get("experiment"), str(path))
    if not isinstance(experiment, Experiment):
        raise UserError(f"{path} does not describe an experiment")
    return experiment


def git_commit() -> str | None:
    """Returns the commit of this checkout; None where vitx is installed without its history."""
    root = Path(__file__).parents[1]
    command = ["git", "-C", str(root), "rev-parse", "--show-toplevel", "HEAD"]
    try:
        top, commit = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    except (OSError, subprocess.CalledProcessError, ValueError):
        return None
    return commit if Path(top) == root else None
