"""Means over seeds, and paired tests of differences over seeds and test clips.

Letters in shapes: s seeds, n test clips, r resamples.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from scipy import stats

RESAMPLES = 2000
MAX_DRAWS = 2**24  # counts of one chunk of resamples, to bound memory
LEVEL = 0.05  # of significance; intervals cover 1 - LEVEL


@dataclasses.dataclass(frozen=True)
class Difference:
    """A difference between two rows in one metric.

    Attributes:
        row: name of the row.
        reference: name of the row that it is compared with.
        column: name of the metric.
        mean: mean of the row minus that of the reference.
        low: lower bound of the 95 % interval; None where nothing can be tested.
        high: upper bound of the interval.
        p: p-value, two-sided, with Holm's correction for the rows that are compared.
        basis: what was resampled or paired.
    """

    row: str
    reference: str
    column: str
    mean: float
    low: float | None
    high: float | None
    p: float | None
    basis: str

    @property
    def is_significant(self) -> bool:
        """Whether the corrected p-value is below `LEVEL`."""
        return self.p is not None and self.p < LEVEL

    @property
    def verdict(self) -> str:
        """The result in words."""
        if self.p is None:
            return "not tested"
        return "significant" if self.is_significant else "no significant difference"


def mean_and_deviation(values: Sequence[float]) -> tuple[float, float | None]:
    """Returns (mean, sample standard deviation); a single value has no deviation."""
    array = np.asarray(values, np.float64)
    return float(array.mean()), float(array.std(ddof=1)) if len(array) > 1 else None


def bootstrap_mean(
    values: Float[np.ndarray, "s n"], *, resamples: int = RESAMPLES, seed: int = 0
) -> Float[np.ndarray, "r"]:
    """Returns bootstrap resamples of the mean over seeds and clips.

    Seeds and clips are both drawn with replacement: a clip keeps its values of all seeds, since these share its
    difficulty. With one seed only clips are drawn.

    Args:
        values: metric of each clip with each seed, NaN where a clip has none.
        resamples: number of resamples.
        seed: seed of the draws.
    """
    generator = np.random.default_rng(seed)
    num_seeds, num_clips = values.shape
    valid = ~np.isnan(values)
    filled, means = np.where(valid, values, 0.0), []
    for first in range(0, resamples, chunk := max(MAX_DRAWS // num_clips, 1)):
        count = min(chunk, resamples - first)
        seeds = generator.multinomial(num_seeds, np.full(num_seeds, 1 / num_seeds), count)
        clips = generator.multinomial(num_clips, np.full(num_clips, 1 / num_clips), count)
        sums = ((clips @ filled.T) * seeds).sum(axis=1)
        weights = ((clips @ valid.T.astype(np.float64)) * seeds).sum(axis=1)
        means.append(sums / np.maximum(weights, 1e-9))
    return np.concatenate(means)


def interval(values: Float[np.ndarray, "s n"]) -> tuple[float, float]:
    """Returns the 95 % bootstrap interval of a mean over seeds and clips."""
    low, high = np.percentile(bootstrap_mean(values), (100 * LEVEL / 2, 100 - 100 * LEVEL / 2))
    return float(low), float(high)


def compare_clips(
    row: str, reference: str, column: str, values: Float[np.ndarray, "s n"], theirs: Float[np.ndarray, "s n"]
) -> Difference:
    """Tests a difference by the paired bootstrap over seeds and clips.

    Args:
        row: name of the row.
        reference: name of the other row.
        column: name of the metric.
        values: metric of each clip with each seed.
        theirs: those of the reference, with the same seeds and clips.
    """
    pairs = values - theirs
    resampled = bootstrap_mean(pairs)
    low, high = np.percentile(resampled, (100 * LEVEL / 2, 100 - 100 * LEVEL / 2))
    # Each tail counts one more than was seen, so that no p-value is zero (Davison and Hinkley 1997, section 4.2).
    tails = [(1 + (resampled <= 0).sum()) / (1 + RESAMPLES), (1 + (resampled >= 0).sum()) / (1 + RESAMPLES)]
    seeds = f"{len(pairs)} seeds" if len(pairs) > 1 else "1 seed"
    basis = f"paired bootstrap over {pairs.shape[1]} clips and {seeds}"
    return Difference(
        row,
        reference,
        column,
        float(np.nanmean(pairs)),
        float(low),
        float(high),
        min(2 * float(min(tails)), 1.0),
        basis,
    )


def compare_seeds(
    row: str, reference: str, column: str, values: Sequence[float], theirs: Sequence[float]
) -> Difference:
    """Tests a difference of a metric that is no mean over clips by the paired t-test over seeds.

    Args:
        row: name of the row.
        reference: name of the other row.
        column: name of the metric.
        values: the metric with each seed.
        theirs: those of the reference, with the same seeds.
    """
    pairs = np.asarray(values, np.float64) - np.asarray(theirs, np.float64)
    mean = float(pairs.mean())
    if len(pairs) < 2 or np.ptp(pairs) == 0:
        return Difference(row, reference, column, mean, None, None, None, f"{len(pairs)} seeds")
    test = stats.ttest_1samp(pairs, 0.0)
    low, high = test.confidence_interval(1 - LEVEL)
    basis = f"paired t-test over {len(pairs)} seeds"
    return Difference(row, reference, column, mean, float(low), float(high), float(test.pvalue), basis)


def correct_for_rows(differences: Sequence[Difference]) -> list[Difference]:
    """Returns differences with p-values multiplied as Holm (1979) does, separately for each column."""
    corrected = list(differences)
    for column in dict.fromkeys(difference.column for difference in differences):
        tested = [i for i, d in enumerate(differences) if d.column == column and d.p is not None]
        largest = 0.0
        for rank, place in enumerate(sorted(tested, key=lambda i: differences[i].p)):
            largest = max(largest, min((len(tested) - rank) * differences[place].p, 1.0))
            corrected[place] = dataclasses.replace(differences[place], p=largest)
    return corrected
