"""An evaluated split of a run: metrics, tables, and the clips behind them, as JSON data."""

import dataclasses
import functools
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np

from vitx.board.clips import SplitClips
from vitx.errors import UserError
from vitx.evaluation.calibration import scale_logits
from vitx.evaluation.evaluate import Predictions
from vitx.evaluation.examples import accuracy_intervals, example_metric, is_correct
from vitx.evaluation.presentation import Presenter, presenter_for
from vitx.experiment import Experiment
from vitx.tasks.classification import Classification
from vitx.tasks.multilabel import MultiLabel
from vitx.tasks.task import Names, Task

MAX_CLIPS = 24  # clips of a list; the page has no room for more, and each is decoded
TOP = 5  # classes of an answer


@dataclasses.dataclass(frozen=True, eq=False)
class EvaluatedSplit:
    """Predictions of a run for a split, and where its clips come from.

    Attributes:
        experiment: settings of the run, with the fitted task.
        names: {label: names of its classes or values}.
        step: checkpoint of the predictions.
        predictions: predictions of every example.
        clips: the clips of the split.
        temperatures: {label: temperature by which its logits are divided}, of a calibrated run.
        version: what changes when the predictions or the calibration are written again.
    """

    experiment: Experiment
    names: Names
    step: int
    predictions: Predictions
    clips: SplitClips
    temperatures: Mapping[str, float] = dataclasses.field(default_factory=dict)
    version: Hashable = None

    @property
    def task(self) -> Task:
        """The task that the run has learnt."""
        return self.experiment.task

    @property
    def labels(self) -> tuple[str, ...]:
        """Labels of the data that the run predicts; ("",) of a run that learns without labels."""
        return tuple(self.predictions.labels) or ("",)

    def label(self, number: int) -> str:
        """Returns the label at a place.

        Raises:
            UserError: there is no such label.
        """
        if number >= len(self.labels):
            raise UserError(f"found the label {number}; expected one of {len(self.labels)}")
        return self.labels[number]

    def choose(self, label: int, class_number: int) -> tuple[str, str]:
        """Returns (label, class) at their places.

        Raises:
            UserError: there is no such label or class.
        """
        name = self.label(label)
        names = self.names.get(name, ())
        if class_number >= len(names):
            raise UserError(f"found the class {class_number} of {name!r}; expected one of {len(names)}")
        return name, names[class_number]

    @functools.cached_property
    def presenter(self) -> Presenter:
        """What presents results of the task."""
        return presenter_for(self.task)

    @functools.cached_property
    def tables(self) -> Mapping[str, Any]:
        """Tables of the presenter, such as "per_class" and "confusion"."""
        return self.presenter.tables(self.predictions, self.names)

    def overview(self) -> dict[str, Any]:
        """Returns metrics with their intervals, tables by class, and what could not be read."""
        metrics = self.task.metrics(self.predictions)
        intervals = accuracy_intervals(self.task, self.predictions, metrics)
        rows = [{"name": name, "value": value, "interval": intervals.get(name)} for name, value in metrics.items()]
        labels = [
            {
                "name": label,
                "classes": self.names.get(label, ()),
                "confusion": self.tables.get("confusion", {}).get(label),
                "per_class": self.tables.get("per_class", {}).get(label),
            }
            for label in self.labels
        ]
        return {
            "step": self.step,
            "coverage": self.predictions.coverage,
            "unreadable": self.predictions.list_errors(),
            "metrics": rows,
            "labels": labels,
            "per_frame": self.tables.get("per_frame"),
        }

    def mistakes(self, label: str) -> list[dict[str, Any]]:
        """Returns lists of clips: wrong ones in which the run was most confident, and those with the highest loss."""
        lists = []
        correct = is_correct(self.task, self.predictions, label)
        if correct is not None:
            wrong = np.flatnonzero(~correct & self._has_label(label))
            lists.append(self._list("Most confident mistakes", label, self._by_confidence(label, wrong)))
        metric = f"{label}/loss" if label else "loss"
        losses = example_metric(self.task, self.predictions, metric)
        if losses is not None:
            known = np.flatnonzero(~np.isnan(losses))
            lists.append(self._list(f"Highest {metric}", label, known[np.argsort(losses[known])[::-1]], losses))
        return lists

    def cell(self, label: str, true: int, predicted: int) -> dict[str, Any]:
        """Returns the clips behind a cell of a confusion matrix, the most confident first.

        Raises:
            UserError: the task has no such matrix, or the matrix no such cell.
        """
        counts = self.tables.get("confusion", {}).get(label)
        if counts is None:
            raise UserError(f"{type(self.task).__name__} has no confusion matrix of {label!r}")
        if max(true, predicted) >= len(counts):
            raise UserError(f"found the classes {true} and {predicted}; expected two below {len(counts)}")
        logits, labels = self.predictions.outputs[label], self.predictions.labels[label]
        rows = np.flatnonzero((labels == true) & (logits.argmax(axis=1) == predicted))
        names = self.names[label]
        return self._list(f"{names[true]} predicted as {names[predicted]}", label, self._by_confidence(label, rows))

    def example(self, index: int) -> dict[str, Any]:
        """Returns what is known of one clip: its name, its labels and the answer for each of them."""
        row, name, missing = self.row(index), f"example {index}", None
        try:
            name = self.clips.name(index)
            self.clips.example(index)
        except UserError as error:
            missing = str(error)
        true = {label: self._truth(label, row) for label in self.predictions.labels}
        # Pairs: JavaScript would sort the keys of an object that are numbers, such as digits.
        answer = {label: list(ranked.items()) for label, ranked in self._answer(row, TOP).items()}
        return {"index": index, "name": name, "missing": missing, "true": true, "answer": answer}

    def row(self, index: int) -> int:
        """Returns the row of an example in the predictions.

        Raises:
            UserError: the split has no such example that could be read.
        """
        (rows,) = np.nonzero(self.predictions.index == index)
        if not len(rows):
            raise UserError(
                f"found the clip {index}; expected one of the {len(self.predictions.index)} evaluated clips"
            )
        return int(rows[0])

    def _has_label(self, label: str) -> np.ndarray:
        return np.asarray(self.task.has_label(self.predictions.labels[label]))

    def _truth(self, label: str, row: int) -> str | None:
        value = self.predictions.labels[label][row] if self._has_label(label)[row] else None
        return describe_truth(self.task, self.names[label], value)

    def _answer(self, row: int, top: int) -> Mapping[str, Mapping[str, float]]:
        outputs = {label: values[row] for label, values in self.predictions.outputs.items()}
        return self.presenter.answer(scale_logits(outputs, self.temperatures), self.names, top)

    def _by_confidence(self, label: str, rows: np.ndarray) -> np.ndarray:
        """Returns rows in the order of the probability of their predicted class, highest first."""
        confidence = [next(iter(self._answer(row, 1)[label].values())) for row in rows.tolist()]
        return rows[np.argsort(confidence, kind="stable")[::-1]] if len(rows) else rows

    def _list(self, title: str, label: str, rows: np.ndarray, losses: Any = None) -> dict[str, Any]:
        clips = [
            self._card(int(row), label, None if losses is None else float(losses[row])) for row in rows[:MAX_CLIPS]
        ]
        return {"title": title, "total": len(rows), "clips": clips}

    def _card(self, row: int, label: str, loss: float | None) -> dict[str, Any]:
        card: dict[str, Any] = {"index": int(self.predictions.index[row]), "loss": loss}
        if label:
            correct = is_correct(self.task, self.predictions, label)
            card |= {
                "true": self._truth(label, row),
                "predicted": self.presenter.format_answer(self._answer(row, 1)[label]),
                "correct": None if correct is None else bool(correct[row]),
            }
        return card


@functools.singledispatch
def describe_truth(task: Task, names: Sequence[str], label: Any) -> str | None:
    """Returns the true label of an example as text; None where the example lacks it.

    Args:
        task: the task, whose class chooses how.
        names: names of the classes or values.
        label: class, or values; None for a missing one.
    """
    if label is None:
        return None
    return ", ".join(f"{name} {value:.4g}" for name, value in zip(names, label, strict=True))


@describe_truth.register
def _(task: Classification, names: Sequence[str], label: Any) -> str | None:
    return None if label is None else names[int(label)]


@describe_truth.register
def _(task: MultiLabel, names: Sequence[str], label: Any) -> str | None:
    return None if label is None else ", ".join(names[i] for i in np.flatnonzero(label > 0.5)) or "none"
