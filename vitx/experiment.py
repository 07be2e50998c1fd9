"""An experiment: one frozen dataclass composed of the parts; loaded by path, overridden by dotted path, saved."""

import dataclasses
import os
import runpy
import subprocess
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array

import vitx
from vitx import configuration
from vitx.configuration import register
from vitx.data.pipeline import Data
from vitx.errors import UserError, as_user_error, did_you_mean
from vitx.models import VARIANTS, create_model
from vitx.models.base import VideoModel, resize_position_tables
from vitx.storage import as_path, is_file, read_json, write_json
from vitx.stores import is_bucket
from vitx.tasks.classification import Classification
from vitx.tasks.task import Task
from vitx.training.loop import Training
from vitx.training.optimizers import AdamW, Optimizer

T = TypeVar("T")
FORMAT = 1
RUN_NAME = "<experiment>"  # __name__ inside an experiment file
SHAPE = ("num_frames", "image_size")  # settings of a clip that data and model share
DATA_SHAPE = tuple(f"data.{name}" for name in SHAPE)


@register
@dataclasses.dataclass(frozen=True)
class Experiment:
    """All settings of a run.

    Attributes:
        model: a Linen module, which is its own settings.
        data: dataset, sampling, augmentation and batches.
        task: what is learnt: loss, metrics, normalisation of pixels.
        optimizer: how parameters change.
        training: steps, seed, mesh, and cadence of logs, evaluations and checkpoints.
    """

    model: nn.Module
    data: Data
    task: Task = Classification()
    optimizer: Optimizer = AdamW()
    training: Training = Training()

    def __post_init__(self):
        if not isinstance(self.model, VideoModel):
            if None in (self.data.num_frames, self.data.image_size):
                raise ValueError(
                    f"{type(self.model).__name__} has no default clip; set data.num_frames and data.image_size"
                )
            return
        frames, *size, channels = self.model.input_shape
        needs_motion = channels == 4
        if self.data.motion not in (None, needs_motion):
            raise ValueError(
                f"data.motion is {self.data.motion} and the model takes clips of {channels} channels; set data.motion "
                "to None, which follows model.reducer"
            )
        shape = {"num_frames": self.data.num_frames or frames, "image_size": self.data.image_size or tuple(size)}
        data = dataclasses.replace(self.data, **shape, motion=needs_motion)
        object.__setattr__(self, "data", data)  # the class is frozen
        clip, expected = (data.num_frames, *data.image_size), (frames, *size)
        if self.model.needs_input_shape and clip == expected and data.crop_size != data.image_size:
            raise ValueError(
                f"data.eval_size is {data.eval_size} and the model takes {data.image_size} alone, since its positions "
                "have that size; set data.eval_size to None"
            )
        if self.model.needs_input_shape and clip != expected:
            raise ValueError(
                f"the data gives clips of {clip} (frames, height, width) and the model takes {expected}; "
                "set data.num_frames and data.image_size, or model.num_frames and model.image_size"
            )

    def override(self, changes: Mapping[str, Any]) -> "Experiment":
        """Returns the experiment with settings replaced: {"optimizer.peak_lr": 0.05}.

        A part is chosen by name: {"optimizer": "Lion", "model": "cnn_small"}; a model of another name keeps the classes
        and the clips of the experiment. Frames and size of a clip need to be set on one side only, data or model: the
        other side follows.
        """
        new_model = changes.get("model")
        variant = self._named_model(new_model)
        model = variant or (new_model if isinstance(new_model, nn.Module) else self.model)
        if isinstance(model, VideoModel):
            changes = {"data.motion": None} | dict(changes)
        if not isinstance(model, VideoModel) or not (model.needs_input_shape or variant):
            return configuration.override(self, changes)
        new_data = changes.get("data")
        set_in_data = [name for name in SHAPE if f"data.{name}" in changes or getattr(new_data, name, None) is not None]
        # The data decide a setting that is changed for them alone, and every one where a variant replaces the model.
        decided_by_data = [
            name for name in SHAPE if f"model.{name}" not in changes and (variant or name in set_in_data)
        ]
        if not decided_by_data:
            # The model decides the others: `__post_init__` replaces None by its values.
            from_model = {f"data.{name}": None for name in SHAPE if name not in set_in_data}
            return configuration.override(self, from_model | changes)
        data_changes = {path: value for path, value in changes.items() if path == "data" or path in DATA_SHAPE}
        data = configuration.override(_DataOnly(self.data), data_changes).data
        model_changes = {path: value for path, value in changes.items() if path.split(".")[0] == "model"}
        fields = {path.removeprefix("model."): value for path, value in model_changes.items() if path != "model"}
        with as_user_error(of="model"):
            model = model.with_input_shape(
                *(getattr(data, name) if name in decided_by_data else None for name in SHAPE), **fields
            )
        decided_by_model = [name for name in SHAPE if name not in decided_by_data and name not in set_in_data]
        data = dataclasses.replace(data, motion=None, **dict.fromkeys(decided_by_model))
        rest = {path: value for path, value in changes.items() if path not in model_changes}
        with as_user_error():  # frames or size may be given on both sides, and differ
            experiment = dataclasses.replace(self, model=model, data=data)
        return configuration.override(experiment, rest)

    def _named_model(self, value: Any) -> nn.Module | None:
        """Returns the variant that a value names, with the classes of this experiment's model, or None."""
        name = value[0] if isinstance(value, configuration.Words) and len(value) == 1 else value
        if not isinstance(name, str):
            return None
        if name not in VARIANTS and name not in configuration.part_names(nn.Module):
            raise UserError(f"model is {name!r}{did_you_mean(name, VARIANTS)} Expected a name that `vitx models` lists")
        if name not in VARIANTS:
            return None
        return create_model(name, num_classes=getattr(self.model, "num_classes", None))

    def init(self, key: Array) -> dict[str, Any]:
        """Returns the initial variables of the model; shapes alone under `jax.eval_shape`."""
        video = jax.ShapeDtypeStruct((1, self.data.num_frames, *self.data.image_size, self.data.channels), jnp.uint8)
        return dict(self.task.init(self.model, key, {"video": video}))

    def for_labels(self, label_names: Mapping[str, Sequence[str]]) -> "Experiment":
        """Returns the experiment with as many classes as the data has, where `model.num_classes` is None."""
        if getattr(self.model, "num_classes", 0) is not None:
            return self
        label = getattr(self.task, "label", None)
        if label is not None and label not in label_names:
            raise UserError(f"task.label is {label!r}; expected a label of the data: {', '.join(label_names)}")
        counts = {name: len(names) for name, names in label_names.items() if name == (label or name)}
        classes = next(iter(counts.values())) if len(counts) == 1 else tuple(counts.items())
        return dataclasses.replace(self, model=configuration.override(self.model, {"num_classes": classes}))

    def for_evaluation(self, changes: Mapping[str, Any]) -> "Experiment":
        """Returns the experiment of a trained run with other settings of its evaluation.

        Raises:
            UserError: a setting that weights depend on, or that has no effect on an evaluation.
        """
        of_model = {f"model.{name}" for name in configuration.names_marked(type(self.model), "mutable_in_evaluation")}
        without_effect = configuration.names_marked(Data, "training_only")
        allowed = [name for name in configuration.settings(self.data) if name not in without_effect]
        # learned positions are interpolated for other clips, fixed ones would name other places
        if getattr(self.model, "needs_input_shape", False) and not self.model.position_tables():
            allowed = [name for name in allowed if name not in SHAPE]
        for path in changes:
            part, _, rest = path.partition(".")
            if ".".join(path.split(".")[:2]) in of_model:
                continue
            of_mesh = path == "training.mesh" or path.startswith("training.mesh.")
            if not (part == "data" and rest.split(".")[0] in allowed) and not of_mesh:
                known = [f"data.{name}" for name in allowed]
                raise UserError(
                    f"{path} cannot change after training{did_you_mean(path, known)} Expected training.mesh or a "
                    f"setting of the data that an evaluation uses: {', '.join(known)}"
                )
        changed = self.override(changes)
        if changed.model != self.model:
            self._check_parameters(changed, sorted(path for path in changes if path.startswith("model.")))
        return changed.with_absolute_paths()

    def _check_parameters(self, changed: "Experiment", paths: Sequence[str]) -> None:
        def resized(key: Array) -> Mapping[str, Any]:
            return resize_position_tables(self.init(key), self.model, changed.model)

        trained, now = (jax.eval_shape(init, jax.random.key(0))["params"] for init in (resized, changed.init))
        if jax.tree.map(jnp.shape, trained) != jax.tree.map(jnp.shape, now):
            raise UserError(
                f"{' and '.join(paths)} would need parameters that were not trained; expected a value with which the "
                "model's parameters keep their names and shapes"
            )

    def with_absolute_paths(self) -> "Experiment":
        """Returns the experiment with its relative paths resolved here, so that they are found from anywhere."""
        return configuration.resolve_paths(self, _absolute_path)


@dataclasses.dataclass(frozen=True)
class _DataOnly:
    """Lets settings of the data be checked under their paths before there is a model that fits them."""

    data: Data


def _absolute_path(path: str) -> str:
    # the name of a model on a hub, which is no file, stays as it was typed
    found = as_path(path)
    if is_bucket(found) or not found.exists():
        return path
    plain = os.path.abspath(found)  # without "..", which means something else behind a link
    return plain if os.path.realpath(plain) == os.path.realpath(found) else str(found.absolute())


def load_experiment(path: str | Path) -> Experiment:
    """Returns the `experiment` that a Python file defines.

    Args:
        path: path of the file; in an experiment file, relative to that file.

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
    # The innermost experiment file on the stack is the one that calls; without one the path is relative to here.
    frames = (frame for frame, _ in traceback.walk_stack(None))
    callers = (frame.f_code.co_filename for frame in frames if frame.f_globals.get("__name__") == RUN_NAME)
    path = Path(next(callers, "")).parent / path
    if not path.is_file():
        raise UserError(f"there is no experiment file {path}")
    try:
        names = runpy.run_path(str(path), run_name=RUN_NAME)
    except UserError as error:
        raise error.within(str(path)) from error
    except Exception as error:
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
        where = f"{path}, line {lines[-1]}" if lines else getattr(error, "filename", None) or path
        raise UserError(f"{where}: {type(error).__name__}: {error}") from error
    if not isinstance(names.get(name), kind):
        raise UserError(f"{path} defines no `{name} = vitx.{kind.__name__}(...)`")
    return names[name]


def save_config(experiment: Experiment, path: PurePath, videos: str = "") -> None:
    """Writes config.json: the settings, the versions that they were run with, and the fingerprint of the videos."""
    versions = {"vitx": vitx.__version__, "jax": jax.__version__, "git": git_commit()}
    settings = configuration.to_dict(experiment)
    write_json(path, {"format": FORMAT, "versions": versions, "videos": videos, "experiment": settings})


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
