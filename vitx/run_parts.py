"""What a run consists of when it starts or is loaded: the examples of its splits, its variables, its mesh."""

import dataclasses
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

import jax

from vitx import configuration
from vitx.checkpoints import Checkpoints, abstract_state
from vitx.data.aligned import align_classes, open_split
from vitx.data.labels import check_labels
from vitx.data.sources import Source
from vitx.errors import UserError
from vitx.experiment import Experiment
from vitx.interop.fill import check_values
from vitx.training.logs import log_info
from vitx.training.sharding import Mesh, state_shardings


def open_sources(
    experiment: Experiment, learnt: Mapping[str, tuple[str, ...]] | None = None, model: str = ""
) -> dict[str, Source]:
    """Returns {split: its examples} of every set that training reads; opening a dataset may build it.

    Args:
        experiment: the settings.
        learnt: {label: names of its classes} of a run that is resumed: classes of the data get its order.
        model: name of that run in messages.

    Raises:
        UserError: a dataset cannot be opened, or has other classes than the run that is resumed.
    """
    data, settings = experiment.data, experiment.training
    sources = {split: open_split(data.dataset, split, learnt, model) for split in ("train", "validation")}
    notes = dict.fromkeys(note for source in sources.values() for note in getattr(source, "notes", ()))
    for note in notes:
        log_info(f"dataset: {note}")
    # Classes have one order in all sets, that of the run or of the training split.
    expected = learnt if learnt is not None else _select_predicted(experiment, sources["train"].label_names)
    for extra in settings.validation_sets:
        source = extra.open(data.dataset)
        check_labels(source, f"the set {extra.name}")
        sources[extra.name] = align_classes(source, expected, f"the set {extra.name}", model or "the train split")
    return sources


def learnt_classes(experiment: Experiment, record: Mapping[str, Any]) -> dict[str, tuple[str, ...]] | None:
    """Returns {label: names of its classes} that a run which is resumed predicts, or None for a new run."""
    if "label_names" not in record:
        return None
    return _select_predicted(experiment, {label: tuple(names) for label, names in record["label_names"].items()})


def _select_predicted(experiment: Experiment, label_names: Mapping[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
    """Returns the labels that the experiment's model predicts, with their classes; a forecaster predicts none."""
    output_names = experiment.task.output_names(experiment.for_labels(label_names).model, label_names)
    return {label: names for label, names in output_names.items() if label in label_names}


def fit_to_record(
    experiment: Experiment, record: Mapping[str, Any], workdir: PurePath
) -> tuple[Experiment, dict[str, tuple[str, ...]]]:
    """Returns (experiment with its fitted task, names of its outputs), from the record of a checkpoint.

    Args:
        experiment: settings in the run's config.json.
        record: record of a checkpoint that `check_record` has accepted.
        workdir: the run's folder, for messages.
    """
    if "task" in record:
        task = configuration.from_dict(record["task"], str(workdir))
        experiment = dataclasses.replace(experiment, task=task)
    label_names = {label: tuple(names) for label, names in record["label_names"].items()}
    return experiment, experiment.task.output_names(experiment.model, label_names)


def restore_variables(
    checkpoints: Checkpoints, step: int, experiment: Experiment, mesh: jax.sharding.Mesh
) -> dict[str, Any]:
    """Returns the variables of one checkpoint, averaged ones where the run keeps an average."""
    shapes = jax.eval_shape(experiment.init, jax.random.key(0))
    part = "ema" if experiment.training.ema_decay is not None else "variables"
    state, _ = checkpoints.restore(step, {part: abstract_state(shapes, state_shardings(shapes, mesh))})
    check_values(state[part], f"checkpoint {checkpoints.directory / str(step)}")
    return state[part]


def choose_mesh(experiment: Experiment) -> jax.sharding.Mesh:
    """Returns the mesh of the training where it fits the devices here.

    Where it does not fit, the devices divide the batch, and the parameters too if the training divided them.
    """
    mesh, batch = experiment.training.mesh, jax.device_count()  # a batch of this size divides over any mesh
    try:
        return mesh.build(batch, experiment.model)
    except UserError:
        return (Mesh() if mesh.fsdp == 1 else Mesh(data=1, fsdp=-1)).build(batch)
