"""RandAugment (Cubuk et al. 2020) for clips: operations drawn at random, the same in every frame."""

import dataclasses
import re
from collections.abc import Callable
from typing import Any

import numpy as np

from vitx.configuration import register
from vitx.data import operations
from vitx.data.operations import Clip

Arguments = Callable[[float, int], tuple[Any, ...]]
"""Function from a strength, usually 0 to 1, and a sign to an operation's arguments."""


def _factor(strength: float, sign: int) -> tuple[float]:
    return (max(0.1, 1 + 0.9 * strength * sign),)


def _factor_autoaugment(strength: float, sign: int) -> tuple[float]:
    return (0.1 + 1.8 * strength,)


OPERATIONS: tuple[tuple[Callable[..., Clip], Arguments, Arguments | None], ...] = (
    (operations.autocontrast, lambda strength, sign: (), None),
    (operations.equalize, lambda strength, sign: (), None),
    (operations.invert, lambda strength, sign: (), None),
    (operations.rotate, lambda strength, sign: (30 * strength * sign,), None),
    (
        operations.posterize,
        lambda strength, sign: (max(4 - int(4 * strength), 0),),
        lambda strength, sign: (min(int(4 * strength), 8),),
    ),
    (
        operations.solarize,
        lambda strength, sign: (max(256 - int(256 * strength), 0),),
        lambda strength, sign: (min(int(256 * strength), 256),),
    ),
    (operations.solarize_add, lambda strength, sign: (min(int(110 * strength), 128),), None),
    (operations.saturation, _factor, _factor_autoaugment),
    (operations.contrast, _factor, _factor_autoaugment),
    (operations.brightness, _factor, _factor_autoaugment),
    (operations.sharpness, _factor, _factor_autoaugment),
    (operations.shear_x, lambda strength, sign: (0.3 * strength * sign,), None),
    (operations.shear_y, lambda strength, sign: (0.3 * strength * sign,), None),
    (operations.translate_x, lambda strength, sign: (0.45 * strength * sign,), None),
    (operations.translate_y, lambda strength, sign: (0.45 * strength * sign,), None),
)
"""The fifteen operations of timm's "rand": (operation, its arguments where every operation grows stronger with the
magnitude, its arguments in AutoAugment where those differ). AutoAugment's posterize and solarize are strongest at
magnitude 0, and its factors change nothing at magnitude 5."""


@register
@dataclasses.dataclass(frozen=True)
class RandAugment:
    """Applies operations drawn at random, one after the other.

    Attributes:
        layers: number of operations drawn.
        magnitude: strength of the operations; 10 is the strongest of AutoAugment's range.
        deviation: standard deviation of the magnitude, drawn for each operation; magnitudes are clipped to 0 to 10, or
            to `magnitude` where that is more.
        probability: probability that a drawn operation is applied.
        increasing: every operation grows stronger with the magnitude (timm's "inc1"); otherwise as in AutoAugment.
    """

    layers: int = 2
    magnitude: float = 9.0
    deviation: float = 0.0
    probability: float = 0.5
    increasing: bool = True

    def __post_init__(self):
        if self.layers < 0 or self.magnitude < 0 or self.deviation < 0 or not 0 <= self.probability <= 1:
            raise ValueError(
                f"layers is {self.layers}, magnitude {self.magnitude}, deviation {self.deviation} and probability "
                f"{self.probability}; expected no negative number, and a probability of at most 1"
            )

    def __call__(self, rng: np.random.Generator, clip: Clip) -> Clip:
        """Returns the clip with operations drawn and applied."""
        for number in rng.integers(len(OPERATIONS), size=self.layers):
            operation, increasing, autoaugment = OPERATIONS[number]
            # Every operation takes the same draws, applied or not, so that later draws do not depend on it.
            is_applied, sign = rng.uniform() < self.probability, 1 if rng.uniform() < 0.5 else -1
            magnitude = rng.normal(self.magnitude, self.deviation) if self.deviation else self.magnitude
            strength = float(np.clip(magnitude, 0, max(10.0, self.magnitude))) / 10
            if is_applied:
                arguments = increasing if self.increasing or autoaugment is None else autoaugment
                clip = operation(clip, *arguments(strength, sign))
        return clip

    @classmethod
    def from_timm(cls, text: str) -> "RandAugment":
        """Returns the operations that timm's string describes, such as "rand-m7-n4-mstd0.5-inc1".

        Raises:
            ValueError: the string is malformed, or asks for mmax or weights, which are not supported.
        """
        kind, *words = text.split("-")
        fields = {"increasing": False, "magnitude": 10.0}
        known = {"m": ("magnitude", float), "n": ("layers", int), "mstd": ("deviation", float)}
        known |= {"p": ("probability", float), "inc": ("increasing", lambda number: bool(int(number)))}
        for word in words:
            found = re.fullmatch(r"([a-z]+)([\d.]+)", word)
            if found is None or found[1] not in known:
                raise ValueError(f"found {word!r} in {text!r}; expected {', '.join(known)} with a number each")
            name, read = known[found[1]]
            fields[name] = read(found[2])
        if kind != "rand":
            raise ValueError(f"found {text!r}; expected rand-m7-n4-mstd0.5-inc1 and its like")
        return cls(**fields)
