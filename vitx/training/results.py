"""Steps in flight on the devices, and the record of their metrics when they are finished."""

import collections
import math
from typing import Any

import jax

from vitx.data.pipeline import decode_error
from vitx.errors import DivergedError, RunError
from vitx.training.logs import MetricsLog, log_info
from vitx.training.progress import WHOLE_STEP_METRICS, Progress

EXAMPLE_COLUMNS = ("index", "unreadable_index", "error")  # entries of a batch that a step returns with its metrics


class StepResults:
    """Steps that the devices work on; the metrics of each are recorded when it is collected.

    Asking for a step's metrics waits for the step. So that the devices always have the next one, a few steps stay in
    flight, and are collected only when a row, an evaluation or a checkpoint needs them.

    Attributes:
        last_was_finite: whether loss and gradient of the last collected step were finite.
    """

    def __init__(
        self, progress: Progress, log: MetricsLog, *, num_examples: int, max_unreadable: float, max_skipped: int
    ) -> None:
        """Begins with no step in flight.

        Args:
            progress: gets metrics, counters and spikes.
            log: gets rows of spikes.
            num_examples: examples of the training split.
            max_unreadable: fraction of the training examples that may be unreadable.
            max_skipped: steps that may be skipped.
        """
        self.last_was_finite = True
        self._progress, self._log = progress, log
        self._num_examples, self._max_unreadable = num_examples, max_unreadable
        self._max_skipped = max_skipped
        self._in_flight: collections.deque[tuple[int, Any, Any]] = collections.deque()

    def add(self, step: int, metrics: Any, examples: Any) -> None:
        """Adds a step that the devices have begun.

        Args:
            step: number of the step.
            metrics: the step's metrics, on the devices.
            examples: the `EXAMPLE_COLUMNS` of its batch, on the devices.
        """
        self._in_flight.append((step, metrics, examples))

    def collect(self, keep: int = 0) -> None:
        """Waits until at most `keep` steps are in flight, and records the others.

        Raises:
            RunError: too many videos are unreadable.
            DivergedError: too many steps were skipped, or the parameters are not finite.
        """
        while len(self._in_flight) > keep:
            step, metrics, examples = self._in_flight.popleft()
            metrics, examples = jax.device_get((metrics, examples))
            self._record_unreadable(examples["unreadable_index"], examples["error"])
            self._record_metrics(step, {name: float(value) for name, value in metrics.items()}, examples["index"])

    def _record_unreadable(self, indices: Any, errors: Any) -> None:
        progress = self._progress
        messages = {int(index): decode_error(error) for index, error in zip(indices, errors, strict=True) if index >= 0}
        progress.counters["replaced"] += int((indices >= 0).sum())
        for index in sorted(messages.keys() - progress.unreadable):
            progress.unreadable.add(index)
            log_info(f"another clip replaces one that cannot be read: {messages[index]}")
        if len(progress.unreadable) > self._max_unreadable * self._num_examples:
            found = len(progress.unreadable)
            raise RunError(
                f"{found} of {self._num_examples} training videos cannot be read so far; data.max_unreadable = "
                f"{self._max_unreadable:g} allows fewer, so training stopped. Repair or remove the files named above, "
                f"or allow more (--data.max_unreadable {min(2 * found / self._num_examples, 1):.2g}): the same command "
                "then resumes"
            )

    def _record_metrics(self, step: int, metrics: dict[str, float], index: Any) -> None:
        progress = self._progress
        self.last_was_finite = not metrics.pop("skipped")
        if not self.last_was_finite:
            progress.counters["skipped"] += 1
            log_info(f"skipped step {step}: loss {metrics['loss']}, gradient norm {metrics['gradient_norm']}")
        skipped = progress.counters["skipped"]
        if skipped > self._max_skipped or not math.isfinite(metrics["parameter_norm"]):
            values = ", ".join(f"{name.replace('_', ' ')} {metrics[name]}" for name in WHOLE_STEP_METRICS)
            raise DivergedError(f"step {step}: {values}; {skipped} steps were skipped so far (training.max_skipped)")
        if self.last_was_finite:
            progress.meter.add(metrics)
            if (median := progress.spikes.update(metrics["loss"])) is not None:
                spike = {"loss": metrics["loss"], "median": median, "examples": index.tolist()}
                self._log.write(step, "spike", spike)
                log_info(f"loss spike at step {step}: {metrics['loss']:.3f}, median {median:.3f}; see metrics.jsonl")
