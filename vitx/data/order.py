"""Order of training examples: shuffled, resampled by class, and repeated in a row."""

import dataclasses
import functools

import numpy as np
from jaxtyping import Float, Int


@dataclasses.dataclass(frozen=True, eq=False)  # compared by identity: arrays have no quick hash
class Order:
    """Order of a run's clips, a pure function of (seed, epoch).

    Attributes:
        seed: seed of the run.
        size: examples of the source, and draws of an epoch.
        num_repeats: clips of each drawn example in a row, with other draws of its augmentation (Hoffer et al. 2020).
        weights: sampling weight of each example; None draws each once an epoch.
    """

    seed: int
    size: int
    num_repeats: int = 1
    weights: Float[np.ndarray, " size"] | None = None

    def __getitem__(self, position: int) -> tuple[int, int, int]:
        """Returns (epoch, example, occurrence index in the epoch) of a run's clip at a position."""
        draw, repeat = divmod(position, self.num_repeats)
        epoch, place = divmod(draw, self.size)
        examples, occurrences = _draw_epoch(self, epoch)
        return epoch, int(examples[place]), int(occurrences[place]) * self.num_repeats + repeat


def class_weights(labels: Int[np.ndarray, " size"], power: float) -> Float[np.ndarray, " size"]:
    """Returns sampling weights with which a class of n examples is drawn in proportion to n**power.

    Kang et al. 2020, equation 1: power 1 leaves classes as frequent as they are, 1/2 is square-root resampling, 0 draws
    every class equally often. An example without a label (below 0) has the average weight.
    """
    is_labelled = labels >= 0
    counts = np.bincount(labels[is_labelled])
    weights = np.ones(len(labels))
    weights[is_labelled] = counts[labels[is_labelled]] ** (power - 1.0)
    weights[is_labelled] /= weights[is_labelled].mean() if is_labelled.any() else 1.0
    return weights


# At the end of an epoch, prefetch threads request clips of two epochs alternately: both stay cached.
@functools.lru_cache(maxsize=4)
def _draw_epoch(order: Order, epoch: int) -> tuple[Int[np.ndarray, " size"], Int[np.ndarray, " size"]]:
    """Returns the examples of an epoch, and the occurrence index of each in the epoch."""
    rng = np.random.default_rng((order.seed, epoch))
    shuffled = rng.permutation(order.size)
    if order.weights is None:
        return shuffled, np.zeros(order.size, int)
    # Systematic sampling: evenly spaced marks on the cumulative weights, examples of equal weight side by side. Each
    # example, and all classes of one size together, are then drawn as often as their weights ask, rounded up or down.
    shuffled = shuffled[np.argsort(order.weights[shuffled], kind="stable")]
    ends = np.cumsum(order.weights[shuffled])
    marks = (np.arange(order.size) + rng.uniform()) * ends[-1] / order.size
    rows = np.minimum(np.searchsorted(ends, marks, side="right"), order.size - 1)
    occurrences = np.arange(order.size) - np.searchsorted(rows, rows)
    reshuffled = rng.permutation(order.size)
    return shuffled[rows[reshuffled]], occurrences[reshuffled]
