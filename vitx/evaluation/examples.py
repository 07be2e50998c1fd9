"""Predictions of every example, kept beside a run, and the metrics of single examples that paired tests need."""

import functools
import io
import json
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy.special import log_softmax

from vitx import storage, strict_json
from vitx.errors import UserError
from vitx.evaluation.evaluate import Predictions
from vitx.interop.tensors import read_npz
from vitx.tasks.classification import Classification
from vitx.tasks.frame_prediction import FramePrediction
from vitx.tasks.masked_prediction import MaskedPrediction
from vitx.tasks.multilabel import MultiLabel
from vitx.tasks.regression import Regression
from vitx.tasks.task import Supervised, Task

ACCURACIES = ("top1", "top5")  # metrics of which an example is right or wrong


def predictions_path(workdir: PurePath, split: str) -> PurePath:
    """Returns the path of a run's predictions for a split."""
    return workdir / f"predictions_{split}.npz"


def save_predictions(path: PurePath, step: int, predictions: Predictions) -> None:
    """Writes predictions, without pickled objects.

    Args:
        path: path of the file.
        step: checkpoint that they come from.
        predictions: predictions of a split.
    """
    about = {"step": step, "views": predictions.views, "errors": predictions.errors}
    arrays = {f"outputs/{name}": values for name, values in predictions.outputs.items()}
    arrays |= {f"labels/{name}": values for name, values in predictions.labels.items()}
    unreadable = np.asarray(predictions.unreadable, np.int32)
    file = io.BytesIO()
    np.savez_compressed(
        file, about=np.array(strict_json.dumps(about)), index=predictions.index, unreadable=unreadable, **arrays
    )
    storage.write_bytes(path, file.getvalue())


def load_predictions(path: PurePath) -> tuple[int, Predictions]:
    """Returns (checkpoint, predictions) that `save_predictions` wrote.

    Raises:
        UserError: the file is damaged or hostile.
    """
    try:
        return _parse_predictions(read_npz(path, storage.read_bytes(path)))
    except (UserError, KeyError, TypeError, ValueError, AttributeError) as error:
        reason = str(error) if isinstance(error, UserError) else f"{path} cannot be read: {error}"
        command = f"vitx evaluate {storage.absolute(path.parent)} --split {path.stem.removeprefix('predictions_')}"
        raise UserError(f"{reason}; {command} writes it again") from error


def _parse_predictions(arrays: Mapping[str, np.ndarray]) -> tuple[int, Predictions]:
    about = json.loads(arrays["about"].item())

    def under(prefix: str) -> dict[str, np.ndarray]:
        return {name.removeprefix(prefix): value for name, value in arrays.items() if name.startswith(prefix)}

    predictions = Predictions(
        outputs=under("outputs/"),
        labels=under("labels/"),
        index=arrays["index"],
        unreadable=tuple(arrays["unreadable"].tolist()),
        views=about["views"],
        errors=tuple(about["errors"]),
    )
    lengths = {len(x) for x in (predictions.index, *predictions.outputs.values(), *predictions.labels.values())}
    if len(lengths) > 1:
        raise ValueError("its arrays are of different numbers of examples")
    return about["step"], predictions


def example_metric(task: Task, predictions: Predictions, name: str) -> Float[np.ndarray, "n"] | None:
    """Returns a metric of each example, NaN where it has none, or None for a metric that is no mean over examples.

    Args:
        task: the task that was learnt.
        predictions: predictions of a split.
        name: name of the metric, such as "motion/top1"; its values have the metric's unit.
    """
    return _mean_parts(task, predictions, name, task.metrics(predictions).get(name))


def _mean_parts(
    task: Task, predictions: Predictions, name: str, whole: float | int | None
) -> Float[np.ndarray, "n"] | None:
    """Returns what `example_metric` does, given the metric of all examples."""
    values = _example_metric(task, predictions, name)
    if values is None or np.isnan(values).all():
        return None
    # A subclass may define a metric of the same name otherwise.
    is_mean = whole is not None and np.isclose(np.nanmean(values), whole, rtol=1e-3, atol=1e-3)
    return values if is_mean else None


def accuracy_interval(name: str, values: Float[np.ndarray, "n"]) -> tuple[float, float] | None:
    """Returns the 95 % Wilson interval of an accuracy in percent, or None for another metric.

    Unlike a bootstrap or a normal interval it is sound for few examples: 3 of 3 right is 43.8 to 100 %.

    Args:
        name: name of the metric, such as "motion/top1".
        values: 100 for each example that is right, 0 for the others, NaN for those that do not count.
    """
    from scipy.stats import binomtest  # slow to import, and no training step needs it

    known = values[~np.isnan(values)]
    # A task of somebody's own may call something else top1.
    if name.rpartition("/")[2] not in ACCURACIES or not len(known) or not np.isin(known, (0, 100)).all():
        return None
    low, high = binomtest(int((known == 100).sum()), len(known)).proportion_ci(0.95, method="wilson")
    return 100 * float(low), 100 * float(high)


def accuracy_intervals(
    task: Task, predictions: Predictions, metrics: Mapping[str, float | int]
) -> dict[str, tuple[float, float]]:
    """Returns {name: 95 % interval, in percent} of the metrics that are accuracies; see `accuracy_interval`.

    Args:
        task: the task that was learnt.
        predictions: predictions of a split.
        metrics: metrics of the predictions.
    """
    intervals = {}
    for name, whole in metrics.items():
        values = _mean_parts(task, predictions, name, whole)
        if values is not None and (interval := accuracy_interval(name, values)):
            intervals[name] = interval
    return intervals


@functools.singledispatch
def _example_metric(task: Task, predictions: Predictions, name: str) -> Any:
    return None


@_example_metric.register
def _(task: Classification, predictions: Predictions, name: str) -> Any:
    label, _, metric = name.rpartition("/")
    if name == "action/top1" and task.action:
        # NaN where a label is missing stays NaN
        return np.min([_example_metric(task, predictions, f"{part}/top1") for part in task.action], axis=0)
    if label not in predictions.outputs or metric not in ("loss", *ACCURACIES):
        return None
    logits, labels = predictions.outputs[label].astype(np.float64), predictions.labels[label]
    valid = np.asarray(task.has_label(labels))
    rows, known = np.arange(len(labels)), np.where(valid, labels, 0)
    if metric == "loss":
        values = -log_softmax(logits, axis=1)[rows, known]
    elif metric == "top1":
        values = 100.0 * (logits.argmax(axis=1) == known)
    else:
        values = 100.0 * ((logits > logits[rows, known][:, None]).sum(axis=1) < 5)
    return np.where(valid, values, np.nan)


@_example_metric.register
def _(task: Regression, predictions: Predictions, name: str) -> Any:
    label, _, metric = name.rpartition("/")
    if label not in predictions.outputs or metric not in ("loss", "mae"):
        return None
    errors = predictions.outputs[label] - predictions.labels[label]
    values = (np.square(errors) if metric == "loss" else np.abs(errors)).mean(axis=1)
    return np.where(np.asarray(task.has_label(predictions.labels[label])), values, np.nan)


@_example_metric.register
def _(task: MultiLabel, predictions: Predictions, name: str) -> Any:
    label, _, metric = name.rpartition("/")
    if label not in predictions.outputs or metric != "loss":
        return None
    logits, labels = predictions.outputs[label].astype(np.float64), predictions.labels[label]
    return (np.logaddexp(0, logits) - logits * labels).mean(axis=1)  # NaN where the label is missing


@_example_metric.register(FramePrediction)
@_example_metric.register(MaskedPrediction)
def _(task: Task, predictions: Predictions, name: str) -> Any:
    values = predictions.outputs.get(name)
    return None if values is None else values.reshape(len(values), -1).mean(axis=1)


def is_correct(task: Task, predictions: Predictions, label: str) -> Any:
    """Returns whether each example's class is predicted, or None for a task without classes."""
    if not isinstance(task, Supervised):
        return None
    values = _example_metric(task, predictions, f"{label}/top1")
    return None if values is None else values == 100
