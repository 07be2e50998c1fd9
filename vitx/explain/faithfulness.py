"""Is an explanation true? Deletion and insertion curves, a randomisation check, localisation, the order of frames.

In shapes: t h w c the video, k points of a curve.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int
from scipy.stats import spearmanr

from vitx.errors import UserError
from vitx.explain.methods import relevance
from vitx.explain.score import Clip, Target, Variables

Relevance = Float[Array | np.ndarray, "t h w"]


@dataclasses.dataclass(frozen=True)
class Curves:
    """Probability of a class, of those that exclude one another, while the most relevant pixels disappear or appear.

    Attributes:
        fraction: fraction of the pixels that changed, from 0 to 1.
        deletion: probability while relevant pixels are replaced by the baseline; falls fast for a true explanation.
        insertion: probability while relevant pixels appear on the baseline; rises fast for a true explanation.
    """

    fraction: Float[np.ndarray, "k"]
    deletion: Float[np.ndarray, "k"]
    insertion: Float[np.ndarray, "k"]

    @property
    def deletion_area(self) -> float:
        """Area under the deletion curve; less is better."""
        return float(np.trapezoid(self.deletion, self.fraction))

    @property
    def insertion_area(self) -> float:
        """Area under the insertion curve; more is better."""
        return float(np.trapezoid(self.insertion, self.fraction))


def deletion_and_insertion(
    model: nn.Module,
    variables: Variables,
    video: Clip,
    target: Target,
    values: Relevance,
    *,
    points: int = 21,
    baseline: float = 0.0,
) -> Curves:
    """Returns deletion and insertion curves (Petsiuk et al. 2018, arXiv:1806.07421, section 4.1).

    Args:
        model: a model of classes that exclude one another.
        variables: its variables.
        video: one clip, normalised.
        target: the class that is explained.
        values: relevance of every pixel; those of equal relevance change in the order of the array.
        points: points of a curve.
        baseline: value that replaces pixels; 0 is the mean pixel of normalised clips.
    """
    order = np.argsort(-np.asarray(values), axis=None, kind="stable")
    rank = np.empty(order.size, np.int32)
    rank[order] = np.arange(order.size, dtype=np.int32)
    counts = np.linspace(0, order.size, points).round().astype(np.int32)
    video, ranks = jnp.asarray(video), jnp.asarray(rank.reshape(values.shape))

    def compute_both(count: np.int32) -> np.ndarray:
        return np.asarray(_delete_and_insert(variables, video, target, ranks, count, baseline, model=model), np.float32)

    deletion, insertion = np.stack([compute_both(count) for count in counts], axis=1)
    return Curves((counts / order.size).astype(np.float32), deletion, insertion)


@functools.partial(jax.jit, static_argnames="model")
def _delete_and_insert(
    variables: Variables,
    video: Clip,
    target: Target,
    rank: Int[Array, "t h w"],
    count: Any,
    baseline: Any,
    *,
    model: nn.Module,
) -> Float[Array, "2"]:
    """Returns the probability of the class without the first pixels, and with them alone."""
    first = (rank < count)[..., None]
    both = jnp.stack([jnp.where(first, baseline, video), jnp.where(first, video, baseline)])
    return _class_probability(variables, both, target, model=model)


def randomisation_check(
    model: nn.Module,
    variables: Variables,
    random_variables: Variables,
    video: Clip,
    target: Target,
    method: str,
    **options: Any,
) -> float:
    """Returns the rank correlation of an explanation with that of the same network without what it learnt.

    An explanation of what was learnt has a correlation near 0; one near 1 shows the video, not the model (Adebayo et
    al. 2018, arXiv:1810.03292, section 3).

    Args:
        model: a model of classes that exclude one another.
        variables: its variables.
        random_variables: other variables, such as `model.init` returns; heads that start at zero must be drawn, too.
        video: one clip, normalised.
        target: the class that is explained.
        method: name of the method.
        options: further arguments of the method.
    """
    maps = [relevance(model, x, video, target, method, **options)[1] for x in (variables, random_variables)]
    flat = [np.asarray(x, np.float64).ravel() for x in maps]
    if min(np.ptp(x) for x in flat) == 0:
        return 0.0  # a constant has no ranks
    return float(spearmanr(*flat).statistic)


def order_dependence(
    model: nn.Module, variables: Variables, video: Clip, target: Target, key: Array, *, shuffles: int = 8
) -> float:
    """Returns the probability of a class that is lost, on average, when the frames of a clip are shuffled.

    Args:
        model: a model of classes that exclude one another.
        variables: its variables.
        video: one clip, normalised.
        target: the class.
        key: draws the orders.
        shuffles: number of orders.
    """
    orders = [jax.random.permutation(k, len(video)) for k in jax.random.split(key, shuffles)]
    clips = jnp.stack([jnp.asarray(video), *(jnp.asarray(video)[order] for order in orders)])
    whole, *shuffled = np.asarray(_class_probability(variables, clips, target, model=model))
    return float(whole - np.mean(shuffled))


@functools.partial(jax.jit, static_argnames="model")
def _class_probability(
    variables: Variables, clips: Float[Array, "b t h w c"], target: Target, *, model: nn.Module
) -> Float[Array, "b"]:
    logits = target.of_head(model.apply(variables, clips, train=False))
    if logits.shape[-1] < 2:
        raise UserError("found a model with one output, whose probability is always 1; expected at least two classes")
    return jax.nn.softmax(logits)[:, target.index]


def localisation(values: Relevance, mask: Bool[np.ndarray, "t h w"]) -> float:
    """Returns how much denser relevance is on an object than elsewhere: 1 is chance, more is better.

    It is the fraction of the relevance that speaks for the class on the object, divided by the object's fraction of
    the clip.

    Args:
        values: relevance of every pixel.
        mask: whether a pixel belongs to the object.
    """
    positive = np.maximum(np.asarray(values, np.float64), 0)
    total, area = positive.sum(), mask.mean()
    return float(positive[mask].sum() / total / area) if total > 0 and area > 0 else 1.0


def random_like(variables: Variables, key: Array) -> Variables:
    """Returns variables whose parameters are drawn with the mean and the standard deviation of each array.

    Other collections, such as batch statistics, stay: a variance drawn at random may be negative.
    """
    leaves, tree = jax.tree.flatten(variables["params"])
    keys = jax.random.split(key, len(leaves))
    drawn = [jnp.mean(x) + jnp.std(x) * jax.random.normal(k, x.shape) for k, x in zip(keys, leaves, strict=True)]
    return {**variables, "params": jax.tree.unflatten(tree, drawn)}
