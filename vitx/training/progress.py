"""State of a run that is not arrays: sums of metrics, time, the best checkpoint. Every checkpoint holds it."""

import collections
import dataclasses
import os
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from vitx.analysis.cost import macs_of, to_reference
from vitx.analysis.devices import peak_flops
from vitx.checkpoints import check_fields
from vitx.errors import UserError, did_you_mean
from vitx.tasks.task import Task
from vitx.training.faults import LossSpikeDetector

RECORDED = {  # fields of a checkpoint's record, which may be missing in one of an older version
    "best": dict | None,
    "evaluations_since_best": int,
    "pending": list,
    "counters": dict,
    "unreadable": list,
    "metric_sums": dict | None,
    "losses": list,
    "first_loss": int | float | None,
    "began": int | float,
    "productive_seconds": int | float,
}
WHOLE_STEP_METRICS = ("loss", "gradient_norm", "parameter_norm")  # one value a step, not a sum over examples


class Meter:
    """Sums of metrics and of time over some steps.

    Attributes:
        sums: summed metrics; "collected" is the number of steps that they come from. A checkpoint keeps them.
        steps: number of steps that were timed.
        seconds: time of these steps.
        waited: seconds of it spent waiting for input.
        decoded: processor seconds of decoding, of all threads and workers.
    """

    def __init__(self, sums: Mapping[str, float] | None = None) -> None:
        self.sums: collections.Counter[str] = collections.Counter(sums or {})
        self.steps = 0
        self.seconds = self.waited = self.decoded = 0.0

    def add_time(self, seconds: float, waited: float, decoded: float) -> None:
        """Adds one step's seconds, those spent waiting for input, and the processor seconds of its decoding."""
        self.steps += 1
        self.seconds, self.waited, self.decoded = self.seconds + seconds, self.waited + waited, self.decoded + decoded

    def add(self, metrics: Mapping[str, float]) -> None:
        """Adds one step's metrics."""
        self.sums.update({**metrics, "collected": 1})

    def time_percentages(self) -> dict[str, float]:
        """Returns the percentages of the time spent waiting for input, and of the cores' time spent decoding."""
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        seconds = max(self.seconds, 1e-9)
        return {
            "input_wait_percent": 100 * self.waited / seconds,
            "decode_core_percent": 100 * self.decoded / seconds / cores,
        }

    def means(self) -> dict[str, float]:
        """Returns means over steps and over example weights; {} if all steps were skipped."""
        if not self.sums["collected"]:
            return {}
        per_step = {name: self.sums[name] / self.sums["collected"] for name in WHOLE_STEP_METRICS}
        per_example = {
            name: total / max(self.sums.get(f"{name.rpartition('/')[0]}/weight", self.sums["weight"]), 1e-9)
            for name, total in self.sums.items()
            if name not in (*per_step, "collected") and name.split("/")[-1] != "weight"
        }
        return per_step | per_example


class BestCheckpoint:
    """The best evaluation so far, and the number of evaluations since then.

    Attributes:
        evaluation: {"step", "metric", "value"} of the best evaluation; None before the first.
        num_since: number of evaluations since then.
    """

    def __init__(self, evaluation: dict[str, Any] | None = None, num_since: int = 0) -> None:
        self.evaluation, self.num_since = evaluation, num_since

    @property
    def step(self) -> int | None:
        """Step of the best checkpoint; None before the first evaluation."""
        return self.evaluation and self.evaluation["step"]

    def update(self, step: int, metric: str, value: float, is_better: Callable[[str, float, float], bool]) -> bool:
        """Adds an evaluation; returns whether it is the best so far."""
        previous = self.evaluation if self.evaluation and self.evaluation["metric"] == metric else None
        if previous is not None and not is_better(metric, value, previous["value"]):
            self.num_since += 1
            return False
        self.evaluation, self.num_since = {"step": step, "metric": metric, "value": value}, 0
        return True


@dataclasses.dataclass
class Progress:
    """State of a run that is not arrays; every checkpoint holds it as JSON.

    Attributes:
        best: best checkpoint so far.
        pending: names of the sets that the run was stopped before evaluating on after the current step.
        counters: "replaced" clips and "skipped" steps.
        unreadable: indices of the training examples that could not be read.
        meter: metrics since the last logged training row.
        spikes: detector of loss spikes, with the recent losses.
        began: time when the run began, in seconds of Unix time.
        productive_seconds: time in steps that count; steps that a restart takes again are counted once.
    """

    best: BestCheckpoint
    pending: tuple[str, ...]
    counters: collections.Counter[str]
    unreadable: set[int]
    meter: Meter
    spikes: LossSpikeDetector
    began: float
    productive_seconds: float

    @classmethod
    def from_record(cls, record: Mapping[str, Any], spike_deviations: float | None) -> "Progress":
        """Returns the progress in a checkpoint's record; an empty record gives that of a new run."""
        kinds = {name: kind for name, kind in RECORDED.items() if name in record}
        check_fields(record, kinds, "the record of the newest checkpoint")
        return cls(
            best=BestCheckpoint(record.get("best"), record.get("evaluations_since_best", 0)),
            pending=tuple(record.get("pending", ())),
            counters=collections.Counter(record.get("counters", {})),
            unreadable=set(record.get("unreadable", ())),
            meter=Meter(record.get("metric_sums")),
            spikes=LossSpikeDetector(spike_deviations, record.get("losses", ()), record.get("first_loss")),
            began=record.get("began", time.time()),
            productive_seconds=record.get("productive_seconds", 0.0),
        )

    def is_patience_exhausted(self, patience: int | None) -> bool:
        """Returns whether `patience` evaluations in a row were not better than the best."""
        return patience is not None and self.best.num_since >= patience

    def to_record(self) -> dict[str, Any]:
        """Returns JSON data for a checkpoint's record."""
        return {
            "best": self.best.evaluation,
            "evaluations_since_best": self.best.num_since,
            "pending": list(self.pending),
            "counters": dict(self.counters),
            "unreadable": sorted(self.unreadable),
            "metric_sums": dict(self.meter.sums),
            "losses": list(self.spikes.losses),
            "first_loss": self.spikes.first,
            "began": self.began,
            "productive_seconds": self.productive_seconds,
        }

    def next_row(self, batch_size: int, peak_steps: float | None) -> dict[str, float]:
        """Returns a row of training metrics, and begins the next one.

        Args:
            batch_size: clips of a batch.
            peak_steps: steps per second at the devices' peak; None where it is not known.
        """
        meter, self.meter = self.meter, Meter()
        speed = meter.steps / max(meter.seconds, 1e-9)
        row = meter.means() | {
            "clips_per_second": batch_size * speed,
            "seconds_per_step": meter.seconds / max(meter.steps, 1),
            **meter.time_percentages(),
        }
        if peak_steps is not None:
            row["mfu_percent"] = 100 * speed / peak_steps
        elapsed = max(time.time() - self.began, self.productive_seconds, 1e-9)
        row["goodput_percent"] = 100 * self.productive_seconds / elapsed
        row |= {name: self.counters[name] for name in ("replaced", "skipped")}
        return row | {"unreadable": len(self.unreadable)}


def check_monitor(monitor: str, metrics: Iterable[str]) -> None:
    """Raises UserError unless the monitored metric is one of the validation split's."""
    metrics = tuple(metrics)
    if monitor not in metrics:
        raise UserError(
            f"training.monitor is {monitor!r}{did_you_mean(monitor, metrics)} "
            f"The metrics of the validation split are {', '.join(metrics)}"
        )


def peak_steps_per_second(model: nn.Module, task: Task, variables: Any, batch: Any, devices: list[Any]) -> float | None:
    """Returns the training steps per second of devices at their peak, or None where that is not known.

    A step is three times the multiply-accumulates of its forward pass, two operations each; what is computed twice to
    save memory does not count (Chowdhery et al. 2022, appendix B: model FLOPs utilisation).

    Args:
        model: the model that is trained.
        task: its task.
        variables: shapes of the model's variables.
        batch: shapes of a batch.
        devices: all devices of the mesh.
    """
    peak = peak_flops(devices[0].device_kind)
    if peak is None:
        return None

    def forward(variables: Any, batch: Any) -> Any:
        return task.loss(to_reference(model), variables, batch, key=jax.random.key(0), step=jnp.int32(0), train=True)

    try:
        macs = macs_of(jax.make_jaxpr(forward)(variables, batch).jaxpr)
    except ValueError:  # a loop of unknown length
        return None
    return len(devices) * peak / (3 * 2 * macs)
