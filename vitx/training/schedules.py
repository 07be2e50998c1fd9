"""How the learning rate changes over a run: a linear warm-up, the schedule's own curve, an optional cooldown.

Optax provides the curves. Its `cosine_onecycle_schedule` and `warmup_cosine_decay_schedule` count their phases in other
ways (the former interpolates in absolute steps, the latter begins at a rate of 0), so phases are joined here.
"""

import dataclasses

import jax.numpy as jnp
import optax

from vitx.configuration import register


@dataclasses.dataclass(frozen=True)
class Schedule:
    """What all schedules share; steps are counted from 0, and step k takes the rate at k.

    Attributes:
        warmup: fraction of all steps that the warm-up takes, in [0, 1].
        cooldown: fraction of all steps, the last ones, in which the rate is multiplied by a line from 1 to 0.
    """

    warmup: float = 0.1
    cooldown: float = 0.0

    def __post_init__(self):
        if not (0 <= self.warmup <= 1 and 0 <= self.cooldown <= 1 and self.warmup + self.cooldown <= 1):
            raise ValueError(
                f"warmup is {self.warmup} and cooldown {self.cooldown}; expected fractions that add up to at most 1"
            )

    def build(self, peak: float, steps: int) -> optax.Schedule:
        """Returns the learning rate as a function of the step."""
        warmup, cooldown = round(self.warmup * steps), round(self.cooldown * steps)
        rate = optax.join_schedules([self.warm_up(peak, warmup), self.decay(peak, warmup, steps)], [warmup])
        if not cooldown:
            return rate
        return lambda step: rate(step) * jnp.clip((steps - step) / cooldown, 0, 1)

    def warm_up(self, peak: float, warmup: int) -> optax.Schedule:
        """Returns the rate of the warm-up, which takes that many steps."""
        return optax.linear_schedule(peak / max(warmup, 1), peak, max(warmup - 1, 1))

    def decay(self, peak: float, warmup: int, steps: int) -> optax.Schedule:
        """Returns the rate as a function of the steps since the warm-up of a run of `steps`."""
        raise NotImplementedError


@register
@dataclasses.dataclass(frozen=True)
class Cosine(Schedule):
    """Half a cosine from the peak to `end_factor` of it (Loshchilov and Hutter 2017).

    Attributes:
        end_factor: last learning rate as a fraction of the peak.
        See `Schedule` for inherited fields.
    """

    end_factor: float = 0.0

    def decay(self, peak: float, warmup: int, steps: int) -> optax.Schedule:
        return optax.cosine_decay_schedule(peak, max(steps - warmup, 1), self.end_factor)


@register
@dataclasses.dataclass(frozen=True)
class OneCycle(Cosine):
    """Half a cosine up in the warm-up, half a cosine down after it (Smith and Topin 2018; momentum stays).

    Attributes:
        start_factor: first learning rate as a fraction of the peak.
        See `Cosine` for inherited fields.
    """

    warmup: float = 0.3
    end_factor: float = 4e-6
    start_factor: float = 0.04

    def warm_up(self, peak: float, warmup: int) -> optax.Schedule:
        fall = optax.cosine_decay_schedule(1.0, max(warmup, 1))
        return lambda step: peak * (1 - (1 - self.start_factor) * fall(step))


@register
@dataclasses.dataclass(frozen=True)
class Constant(Schedule):
    """The peak to the end; with a cooldown, the warm-up-stable-decay schedule (Zhai et al. 2022, Hu et al. 2024)."""

    def decay(self, peak: float, warmup: int, steps: int) -> optax.Schedule:
        return optax.constant_schedule(peak)


@register
@dataclasses.dataclass(frozen=True)
class Milestones(Schedule):
    """The peak, multiplied by a factor at each milestone: "step" schedules.

    Attributes:
        milestones: rising fractions of all steps: (11 / 15, 14 / 15) is after 11 and 14 epochs of 15.
        factor: factor on the rate at each milestone.
        See `Schedule` for inherited fields.
    """

    milestones: tuple[float, ...] = (0.5, 0.75)
    factor: float = 0.1

    def __post_init__(self):
        super().__post_init__()
        if list(self.milestones) != sorted({fraction for fraction in self.milestones if self.warmup <= fraction <= 1}):
            raise ValueError(
                f"milestones are {self.milestones}; expected rising fractions of the run after its warm-up"
            )

    def decay(self, peak: float, warmup: int, steps: int) -> optax.Schedule:
        # Not `optax.piecewise_constant_schedule`: of two milestones that round to one step, its dictionary keeps one.
        falls = [round(fraction * steps) - warmup for fraction in self.milestones]
        return lambda step: peak * self.factor ** sum(step >= fall for fall in falls)


@register
@dataclasses.dataclass(frozen=True)
class InverseSquareRoot(Schedule):
    """The peak times sqrt(t / (t + steps since the warm-up)); needs no end (Vaswani et al. 2017).

    Attributes:
        timescale: t, in steps; None is the length of the warm-up, as in the paper.
        See `Schedule` for inherited fields.
    """

    timescale: int | None = None

    def __post_init__(self):
        super().__post_init__()
        if self.timescale is not None and self.timescale < 1:
            raise ValueError(f"timescale is {self.timescale}; expected at least 1 step, or None")

    def decay(self, peak: float, warmup: int, steps: int) -> optax.Schedule:
        timescale = max(warmup, 1) if self.timescale is None else self.timescale
        return lambda step: peak * jnp.sqrt(timescale / (timescale + jnp.maximum(step, 0)))
