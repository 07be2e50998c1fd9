"""Optimisers and schedules as typed settings; Optax does the work."""

import dataclasses
from typing import Any

import jax
import optax

from vitx.configuration import register


@register
@dataclasses.dataclass(frozen=True)
class Schedule:
    """Linear warm-up, then a cosine to `end_factor` of the peak.

    Attributes:
        warmup: share of all steps that the warm-up takes, in [0, 1].
        end_factor: last learning rate as a share of the peak.
    """

    warmup: float = 0.1
    end_factor: float = 0.0

    def make(self, peak: float, steps: int) -> optax.Schedule:
        """Returns the learning rate as a function of the step."""
        warmup = round(self.warmup * steps)
        return optax.join_schedules(
            [
                optax.linear_schedule(peak / max(warmup, 1), peak, max(warmup - 1, 1)),
                optax.cosine_decay_schedule(peak, max(steps - warmup, 1), self.end_factor),
            ],
            [warmup],
        )


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """What all optimisers share.

    Attributes:
        peak_lr: learning rate after the warm-up.
        schedule: how the learning rate changes over the run.
        weight_decay: decoupled; applied to kernels only, never to biases, norms, positions and class tokens.
        clip_norm: largest global norm of the gradient; None does not clip.
    """

    peak_lr: float = 1e-3
    schedule: Schedule = Schedule()
    weight_decay: float = 0.0
    clip_norm: float | None = 1.0

    def make(self, steps: int) -> optax.GradientTransformation:
        """Returns the Optax transformation for a run of that many steps."""
        clip = [] if self.clip_norm is None else [optax.clip_by_global_norm(self.clip_norm)]
        rate = self.schedule.make(self.peak_lr, steps)
        decay = [optax.add_decayed_weights(self.weight_decay, mask=decayed)] if self.weight_decay else []
        return optax.chain(*clip, *self.direction(), *decay, optax.scale_by_learning_rate(rate))

    def direction(self) -> list[optax.GradientTransformation]:
        """Returns what turns a gradient into a step of unit learning rate."""
        raise NotImplementedError


@register
@dataclasses.dataclass(frozen=True)
class AdamW(Optimizer):
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019).

    Attributes:
        b1: decay of the mean of gradients.
        b2: decay of the mean of squared gradients.
        eps: added to the root of the latter.
        Others: as `Optimizer`.
    """

    weight_decay: float = 0.05
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8

    def direction(self) -> list[optax.GradientTransformation]:
        return [optax.scale_by_adam(self.b1, self.b2, self.eps)]


@register
@dataclasses.dataclass(frozen=True)
class SGD(Optimizer):
    """Stochastic gradient descent with momentum; its weight decay too is decoupled.

    Attributes:
        momentum: decay of the trace of gradients.
        nesterov: whether to look ahead.
        Others: as `Optimizer`.
    """

    peak_lr: float = 0.1
    momentum: float = 0.9
    nesterov: bool = False

    def direction(self) -> list[optax.GradientTransformation]:
        return [optax.trace(self.momentum, self.nesterov)]


def decayed(params: Any) -> Any:
    """Returns which parameters weight decay applies to: kernels."""
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == "kernel", params)
