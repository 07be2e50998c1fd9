"""Evaluation while a run trains: named validation sets, each with its own cadence."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from flax import linen as nn
from jax.sharding import NamedSharding

from vitx.configuration import register
from vitx.data.pipeline import Data
from vitx.data.sources import Dataset, Source
from vitx.errors import DivergedError
from vitx.evaluation.evaluate import evaluate
from vitx.evaluation.examples import accuracy_intervals
from vitx.evaluation.presentation import presenter_for
from vitx.tasks.task import Task
from vitx.training.logs import MetricsLog, log_info


@register
@dataclasses.dataclass(frozen=True)
class ValidationSet:
    """Another set that a run is evaluated on while it trains.

    Attributes:
        name: name of the set in metrics.jsonl; none of train, validation, test and spike.
        dataset: dataset of the set; None takes the experiment's.
        split: split of the dataset.
        every: steps between evaluations; 0 evaluates once, when training ends.
    """

    name: str
    dataset: Dataset | None = None
    split: str = "test"
    every: int = 0

    def __post_init__(self):
        if not self.name or self.name in ("train", "validation", "test", "spike"):
            raise ValueError(f"name is {self.name!r}; expected another name than train, validation, test and spike")
        if self.every < 0:
            raise ValueError(f"every is {self.every}; expected at least 0")

    def open(self, dataset: Dataset) -> Source:
        """Returns the set's examples; `dataset` is the experiment's."""
        return (self.dataset or dataset).open(self.split)


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Results of an evaluation on one set.

    Attributes:
        name: name of the set.
        step: step that was evaluated.
        views: clips x crops of each video.
        metrics: metrics by name.
        coverage: views and number of videos of the evaluation, as text.
        intervals: 95 % intervals of the metrics that are accuracies.
    """

    name: str
    step: int
    views: str
    metrics: dict[str, float | int]
    coverage: str
    intervals: dict[str, tuple[float, float]]


class Evaluator:
    """Evaluates variables on the validation sets, and records the results."""

    def __init__(
        self,
        *,
        model: nn.Module,
        task: Task,
        data: Data,
        sources: Mapping[str, Source],
        cadence: Mapping[str, int],
        sharding: NamedSharding,
        log: MetricsLog,
    ) -> None:
        """Prepares the evaluation.

        Args:
            model: the model.
            task: its task.
            data: settings that turn a source into batches.
            sources: {name of a set: its examples}.
            cadence: {name of a set: steps between evaluations; 0 for the last step only}.
            sharding: sharding of a batch.
            log: gets a row for each evaluation.
        """
        self._model, self._task, self._data = model, task, data
        self._sources, self._cadence, self._sharding, self._log = sources, cadence, sharding, log
        self._reported: dict[str, tuple[int, ...]] = {}  # unreadable videos of each set that were reported

    def list_due(self, step: int, *, last: bool) -> tuple[str, ...]:
        """Returns the names of the sets to evaluate after a step."""
        return tuple(name for name, every in self._cadence.items() if last or (every and step % every == 0))

    def select_known(self, names: Sequence[str]) -> tuple[str, ...]:
        """Returns those names that are names of sets: a resumed run may have other sets than before."""
        return tuple(name for name in self._cadence if name in names)

    def __call__(self, name: str, step: int, variables: Any) -> Evaluation:
        """Evaluates variables on one set.

        Raises:
            DivergedError: an output is not a number.
            RunError: no video of the set can be read.
        """
        predictions = evaluate(
            self._model, self._task, variables, self._data, self._sources[name], self._sharding, split=name
        )
        if any(np.isnan(output).any() for output in predictions.outputs.values()):
            raise DivergedError(f"step {step}: outputs of the model on {name} are not numbers")
        metrics = self._task.metrics(predictions)
        if predictions.unreadable != self._reported.get(name, ()):
            self._reported[name] = predictions.unreadable
            log_info(*predictions.describe_errors())
        intervals = accuracy_intervals(self._task, predictions, metrics)
        return Evaluation(name, step, predictions.views, metrics, predictions.coverage, intervals)

    def record(self, evaluation: Evaluation) -> None:
        """Writes an evaluation to metrics.jsonl and to the terminal."""
        row = {"views": evaluation.views, **evaluation.metrics}
        self._log.write(evaluation.step, evaluation.name, row)
        headline = presenter_for(self._task).headline(evaluation.metrics, evaluation.intervals)
        log_info(f"step {evaluation.step}: {evaluation.name} ({evaluation.coverage}) {headline}")
