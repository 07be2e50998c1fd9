"""What a run knows beside its arrays: sums of figures, time, the best; it travels with checkpoints."""

import collections
import dataclasses
import os
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from vitx.analysis.cost import macs_of, reference
from vitx.analysis.devices import peak_flops
from vitx.errors import UserError, closest
from vitx.tasks.task import Task
from vitx.training.faults import Spikes

NORMS = ("loss", "gradient_norm", "parameter_norm")  # figures of a whole step


class Meter:
    """Sums of figures and of time over some steps.

    Attributes:
        sums: of the steps' figures; with "looks", how many steps they are of. A checkpoint keeps them.
    """

    def __init__(self, sums: Mapping[str, float] | None = None) -> None:
        self.sums: collections.Counter[str] = collections.Counter(sums or {})
        self.steps = 0
        self.seconds = self.waited = self.decoded = 0.0

    def took(self, seconds: float, waited: float, decoded: float) -> None:
        """Adds the time of one step, that it waited for input, and that processors decoded for it."""
        self.steps += 1
        self.seconds, self.waited, self.decoded = self.seconds + seconds, self.waited + waited, self.decoded + decoded

    def add(self, figures: Mapping[str, float]) -> None:
        """Adds the figures of one step."""
        self.sums.update({**figures, "looks": 1})

    def shares(self) -> dict[str, float]:
        """Returns what share of the time went into waiting for input, and of the cores' into decoding, in percent."""
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        seconds = max(self.seconds, 1e-9)
        return {
            "input_wait_percent": 100 * self.waited / seconds,
            "decode_core_percent": 100 * self.decoded / seconds / cores,
        }

    def figures(self) -> dict[str, float]:
        """Returns means over steps and over weights; none of steps that were all skipped."""
        if not self.sums["looks"]:
            return {}
        per_step = {name: self.sums[name] / self.sums["looks"] for name in NORMS}
        means = {
            name: total / max(self.sums.get(f"{name.split('/')[0]}/weight", self.sums["weight"]), 1e-9)
            for name, total in self.sums.items()
            if name not in (*per_step, "looks") and name.split("/")[-1] != "weight"
        }
        return per_step | means


@dataclasses.dataclass
class Progress:
    """What a run knows beside its arrays.

    Attributes:
        best: {"step", "metric", "value"} of the best checkpoint, or None.
        stale: evaluations since then.
        evaluated: whether the step was evaluated, if it is to be; else the run was stopped before it could be.
        counters: "replaced" clips and "skipped" steps.
        unreadable: numbers of the training examples that could not be read.
        meter: figures since the last row of training figures.
        spikes: the last losses.
        began: when the run did, in seconds of Unix time.
        counted: seconds in steps that count; those that a restart takes again are counted once.
    """

    best: dict[str, Any] | None
    stale: int
    evaluated: bool
    counters: collections.Counter[str]
    unreadable: set[int]
    meter: Meter
    spikes: Spikes
    began: float
    counted: float

    @classmethod
    def of(cls, record: Mapping[str, Any], deviations: float | None) -> "Progress":
        """Returns what a checkpoint's record tells; that of a run which begins, for an empty one."""
        return cls(
            best=record.get("best"),
            stale=record.get("stale", 0),
            evaluated=record.get("evaluated", True),
            counters=collections.Counter(record.get("counters", {})),
            unreadable=set(record.get("unreadable", ())),
            meter=Meter(record.get("window")),
            spikes=Spikes(deviations, record.get("losses", ())),
            began=record.get("began", time.time()),
            counted=record.get("counted", 0.0),
        )

    def record(self) -> dict[str, Any]:
        """Returns JSON data for a checkpoint's record."""
        return {
            "best": self.best,
            "stale": self.stale,
            "evaluated": self.evaluated,
            "counters": dict(self.counters),
            "unreadable": sorted(self.unreadable),
            "window": dict(self.meter.sums),
            "losses": list(self.spikes.losses),
            "began": self.began,
            "counted": self.counted,
        }

    def judge(self, step: int, metric: str, value: float, better: Callable[[str, float, float], bool]) -> bool:
        """Returns whether a validation figure is the best so far, and remembers it."""
        old = self.best if self.best and self.best["metric"] == metric else None
        if old is not None and not better(metric, value, old["value"]):
            self.stale += 1
            return False
        self.best, self.stale = {"step": step, "metric": metric, "value": value}, 0
        return True

    def row(self, batch_size: int, peak_steps: float | None) -> dict[str, float]:
        """Returns a row of training figures, and begins the next.

        Args:
            peak_steps: steps per second that the devices' peak would be; None where it is not known.
        """
        meter, self.meter = self.meter, Meter()
        speed = meter.steps / max(meter.seconds, 1e-9)
        figures = meter.figures() | {"clips_per_second": batch_size * speed} | meter.shares()
        if peak_steps is not None:
            figures["mfu_percent"] = 100 * speed / peak_steps
        figures["goodput_percent"] = 100 * self.counted / max(time.time() - self.began, self.counted)
        return (
            figures
            | {name: self.counters[name] for name in ("replaced", "skipped")}
            | {"unreadable": len(self.unreadable)}
        )


def check_monitor(monitor: str, figures: Iterable[str]) -> None:
    """Raises UserError unless the monitored figure is one of the validation split's."""
    if monitor not in figures:
        raise UserError(
            f"training.monitor is {monitor!r}{closest(monitor, figures)} "
            f"The figures of the validation split are {', '.join(figures)}"
        )


def peak_steps(model: nn.Module, task: Task, variables: Any, batch: Any, devices: list[Any]) -> float | None:
    """Returns the training steps per second that devices at their peak would take, or None where it is not known.

    A step is three times the multiply-accumulates of its forward pass, two operations each; what is computed twice to
    save memory does not count (Chowdhery et al. 2022, appendix B: model FLOPs utilisation).

    Args:
        variables: abstract.
        batch: abstract.
    """
    peak = peak_flops(devices[0].device_kind)
    if peak is None:
        return None

    def forward(variables: Any, batch: Any) -> Any:
        return task.loss(reference(model), variables, batch, key=jax.random.key(0), step=jnp.int32(0), train=True)

    try:
        macs = macs_of(jax.make_jaxpr(forward)(variables, batch).jaxpr)
    except ValueError:  # a loop of unknown length
        return None
    return len(devices) * peak / (3 * 2 * macs)
