"""In which order training sees its examples: shuffled, as often as their classes ask, several times in a row."""

import dataclasses
import functools

import numpy as np
from jaxtyping import Float, Int


@dataclasses.dataclass(frozen=True, eq=False)  # compared by identity: arrays have no quick hash
class Order:
    """A pure function of (seed, epoch).

    Attributes:
        seed: of the run.
        size: examples of the source, and draws of an epoch.
        repeats: times that each comes in a row, with other draws of its augmentation (Hoffer et al. 2020).
        weights: how often each is drawn, in proportion; None is each once an epoch.
    """

    seed: int
    size: int
    repeats: int = 1
    weights: Float[np.ndarray, " size"] | None = None

    def __getitem__(self, position: int) -> tuple[int, int, int]:
        """Returns (epoch, example, which time in the epoch it comes) of one of all clips that a run sees."""
        drawn, repeat = divmod(position, self.repeats)
        epoch, place = divmod(drawn, self.size)
        examples, times = _epoch(self, epoch)
        return epoch, int(examples[place]), int(times[place]) * self.repeats + repeat


def class_weights(labels: Int[np.ndarray, " size"], power: float) -> Float[np.ndarray, " size"]:
    """Returns how often each example is drawn so that a class of n examples comes in proportion to n**power.

    Kang et al. 2020, equation 1: 1 is as they are, 1/2 square-root resampling, 0 every class equally often. An
    example without a label (below 0) is drawn as often as the average one.
    """
    there = labels >= 0
    counts = np.bincount(labels[there])
    weights = np.ones(len(labels))
    weights[there] = counts[labels[there]] ** (power - 1.0)
    weights[there] /= weights[there].mean() if there.any() else 1.0
    return weights


@functools.lru_cache(maxsize=4)
def _epoch(order: Order, epoch: int) -> tuple[Int[np.ndarray, " size"], Int[np.ndarray, " size"]]:
    """Returns the examples of an epoch, and the how-manieth time each of them comes."""
    rng = np.random.default_rng((order.seed, epoch))
    shuffled = rng.permutation(order.size)
    if order.weights is None:
        return shuffled, np.zeros(order.size, int)
    # Systematic: evenly spaced marks on the sum of weights, classes of one size together, so that each of them and each
    # example comes as often as it should, rounded up or down.
    shuffled = shuffled[np.argsort(order.weights[shuffled], kind="stable")]
    ends = np.cumsum(order.weights[shuffled])
    marks = (np.arange(order.size) + rng.uniform()) * ends[-1] / order.size
    rows = np.minimum(np.searchsorted(ends, marks, side="right"), order.size - 1)
    times = np.arange(order.size) - np.searchsorted(rows, rows)
    again = rng.permutation(order.size)
    return shuffled[rows[again]], times[again]
