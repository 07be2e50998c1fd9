"""LIME and KernelSHAP: a linear model of the logit, fitted to clips of which only some tubelets are kept.

Both ask the model about coalitions of tubelets and fit by weighted least squares. They differ in which coalitions they
draw, how these are weighted, and what the solution must satisfy. In shapes: t h w the clip, k coalitions, m tubelets.
"""

import itertools
import math
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Bool, Float

from vitx.errors import UserError
from vitx.explain.options import check_counts, check_positive
from vitx.explain.score import Clip, Target, Variables
from vitx.explain.tubelets import Tubelets, score_coalitions

Coalitions = Bool[np.ndarray, "k m"]
Weights = Float[np.ndarray, "k"]

PARTS = 4  # along every axis: a linear model of 64 tubelets needs several hundred samples


def kernel_shap(
    model: nn.Module,
    variables: Variables,
    video: Clip,
    target: Target,
    *,
    tubelet: tuple[int, int, int] | None = None,
    baseline: float = 0.0,
    samples: int = 1024,
    seed: int = 0,
    batch_size: int = 16,
) -> Float[Array, "t h w"]:
    """Returns Shapley values of tubelets by KernelSHAP (Lundberg & Lee 2017, arXiv:1705.07874, theorem 2).

    The values of all tubelets sum to the difference of the logit between the clip and the baseline. They are exact
    where the samples cover all coalitions, 2^m - 2 for m tubelets.

    Args:
        model: any model.
        variables: its variables.
        video: one clip, normalised.
        target: what is explained.
        tubelet: (frames, height, width) of a tubelet; None divides every axis by about 4.
        baseline: value that replaces tubelets; 0 is the mean pixel of normalised clips.
        samples: largest number of coalitions; the clip and the baseline come on top. At least about four for each
            tubelet, since they are drawn in pairs and some are drawn twice.
        seed: draws the coalitions.
        batch_size: clips that are computed at once.

    Returns:
        The Shapley value of a tubelet, the same for all its pixels.
    """
    tubelets = _divide(video, tubelet, samples, seed)
    coalitions, weights = draw_shapley_coalitions(tubelets.count, samples, seed)
    _check_rank(coalitions, samples)
    nothing, everything = (np.full((1, tubelets.count), kept) for kept in (False, True))
    table = np.concatenate([coalitions, nothing, everything])
    scores = _score(model, variables, video, target, table, baseline, tubelets, batch_size)
    return tubelets.spread(fit_shapley(coalitions, weights, scores[:-2], *scores[-2:]).astype(np.float32))


def _check_rank(coalitions: Coalitions, samples: int) -> None:
    """Raises UserError if coalitions leave the Shapley values of some tubelets open, before the model is asked."""
    count = coalitions.shape[1]
    if np.linalg.matrix_rank(_subtract_mean(coalitions)) < count - 1:
        raise UserError(
            f"samples is {samples}, too few to determine the Shapley values of {count} tubelets; expected more, about "
            f"{4 * count}, or a larger size in tubelet"
        )


def lime(
    model: nn.Module,
    variables: Variables,
    video: Clip,
    target: Target,
    *,
    tubelet: tuple[int, int, int] | None = None,
    baseline: float = 0.0,
    samples: int = 1024,
    kernel_width: float = 0.25,
    ridge: float = 0.001,
    seed: int = 0,
    batch_size: int = 16,
) -> Float[Array, "t h w"]:
    """Returns the coefficients of LIME (Ribeiro et al. 2016, arXiv:1602.04938, equations 1 and 2), of all tubelets.

    A tubelet is kept with probability 1/2; the weight of a coalition is exp(-(distance / kernel_width)^2) for the
    cosine distance to the whole clip; the linear model has an intercept and a ridge penalty.

    Args:
        model: any model.
        variables: its variables.
        video: one clip, normalised.
        target: what is explained.
        tubelet: (frames, height, width) of a tubelet; None divides every axis by about 4.
        baseline: value that replaces tubelets; 0 is the mean pixel of normalised clips.
        samples: largest number of coalitions, at least that of tubelets; all 2^m where they are no more.
        kernel_width: cosine distance at which the weight of a coalition has fallen to 1/e.
        ridge: penalty of squared coefficients, for weights of coalitions that sum to 1.
        seed: draws the coalitions.
        batch_size: clips that are computed at once.

    Returns:
        The coefficient of a tubelet, the same for all its pixels.
    """
    check_positive(kernel_width=kernel_width, ridge=ridge)
    tubelets = _divide(video, tubelet, samples, seed)
    coalitions, weights = draw_lime_coalitions(tubelets.count, samples, seed, kernel_width)
    scores = _score(model, variables, video, target, coalitions, baseline, tubelets, batch_size)
    return tubelets.spread(fit_ridge(coalitions, weights, scores, ridge).astype(np.float32))


def _divide(video: Clip, tubelet: Any, samples: int, seed: int) -> Tubelets:
    tubelets = Tubelets.divide(video.shape[:3], tubelet, PARTS)
    check_counts(samples=samples)
    check_counts(0, seed=seed)
    if samples < tubelets.count:
        size = ", ".join(map(str, tubelets.size))
        raise UserError(
            f"samples is {samples}; expected at least the number of tubelets, {tubelets.count} of ({size}): increase "
            "samples or the size in tubelet"
        )
    return tubelets


def _score(
    model: nn.Module,
    variables: Variables,
    video: Clip,
    target: Target,
    coalitions: Coalitions,
    baseline: Any,
    tubelets: Tubelets,
    batch_size: int,
) -> Float[np.ndarray, "k"]:
    check_counts(batch_size=batch_size)
    settings = {"tubelets": tubelets, "baseline": baseline, "batch_size": batch_size}
    video, count = jnp.asarray(video), len(coalitions)
    scores = score_coalitions(model, variables, video, target, lambda i: coalitions[i], count, **settings)
    return scores.astype(np.float64)  # least squares of hundreds of unknowns lose digits


def draw_shapley_coalitions(count: int, samples: int, seed: int) -> tuple[Coalitions, Weights]:
    """Returns coalitions of some but not all tubelets, and the weight of each in the fit.

    All coalitions of s tubelets together have the weight 1 / (s (m - s)). The smallest and the largest ones, of which
    there are few, are taken whole while samples suffice. The others are drawn, each with its complement, which lowers
    the variance (Covert & Lee 2021, arXiv:2012.01536, section 3.3).
    """
    sizes = np.arange(1, count)
    size_weights = 1 / (sizes * (count - sizes))
    coalitions, weights = [np.zeros((0, count), bool)], [np.zeros(0)]
    for outer in range(count // 2):
        pair = sorted({outer, len(sizes) - 1 - outer})
        numbers = [math.comb(count, int(sizes[i])) for i in pair]
        expected = samples * size_weights[pair].sum() / size_weights.sum()  # samples that would have these sizes
        if sum(numbers) > expected * (1 + 1e-9):
            break
        for i, number in zip(pair, numbers, strict=True):
            coalitions.append(_all_of_size(count, int(sizes[i])))
            weights.append(np.full(number, size_weights[i] / number))
        size_weights[pair] = 0
        samples -= sum(numbers)
    if size_weights.any() and samples > 1:
        rng, half = np.random.default_rng(seed), samples // 2
        drawn = rng.choice(sizes, half, p=size_weights / size_weights.sum())
        kept = rng.random((half, count)).argsort(axis=1).argsort(axis=1) < drawn[:, None]
        coalitions += [kept, ~kept]
        weights.append(np.full(2 * half, size_weights.sum() / (2 * half)))
    return np.concatenate(coalitions), np.concatenate(weights)


def _all_of_size(count: int, size: int) -> Coalitions:
    members = np.array(list(itertools.combinations(range(count), size)))
    coalitions = np.zeros((len(members), count), bool)
    np.put_along_axis(coalitions, members, True, axis=1)
    return coalitions


def fit_shapley(
    coalitions: Coalitions, weights: Weights, scores: Float[np.ndarray, "k"], nothing: float, everything: float
) -> Float[np.ndarray, "m"]:
    """Returns the values that fit the scores best among those that sum to everything - nothing.

    Args:
        coalitions: see `draw_shapley_coalitions`.
        weights: weight of each coalition.
        scores: score of each coalition.
        nothing: score of no tubelets.
        everything: score of all tubelets.
    """
    equal = (everything - nothing) / coalitions.shape[1]
    # What is added to equal values must sum to 0. Rows without their mean see nothing else, and the solution of least
    # norm lies in the space of the rows: it sums to 0 without a constraint.
    rows, root = _subtract_mean(coalitions), np.sqrt(weights)
    residuals = scores - nothing - coalitions.sum(axis=1) * equal
    differences, *_ = np.linalg.lstsq(root[:, None] * rows, root * residuals)
    return equal + differences


def _subtract_mean(coalitions: Coalitions) -> Float[np.ndarray, "k m"]:
    return coalitions - coalitions.mean(axis=1, keepdims=True)


def draw_lime_coalitions(count: int, samples: int, seed: int, kernel_width: float = 0.25) -> tuple[Coalitions, Weights]:
    """Returns coalitions of independent tubelets, all of them where samples suffice, and their weights; see `lime`."""
    if 2**count <= samples:
        coalitions = np.array(list(itertools.product((False, True), repeat=count)))
    else:
        coalitions = np.random.default_rng(seed).random((samples, count)) < 0.5
    distances = 1 - np.sqrt(coalitions.mean(axis=1))  # cosine distance to ones
    exponents = -((distances / kernel_width) ** 2)
    return coalitions, np.exp(exponents - exponents.max())  # only ratios matter, and small ones may underflow


def fit_ridge(
    coalitions: Coalitions, weights: Weights, scores: Float[np.ndarray, "k"], ridge: float
) -> Float[np.ndarray, "m"]:
    """Returns the coefficients of a weighted ridge regression with an intercept; see `lime`."""
    weights = weights / weights.sum()
    rows = coalitions - weights @ coalitions
    weighted = rows.T * weights
    return np.linalg.solve(weighted @ rows + ridge * np.eye(rows.shape[1]), weighted @ (scores - weights @ scores))
