"""Explanations that need nothing of a model but its outputs or gradients: integrated gradients and occlusion.

In shapes: t h w c the video.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from vitx.explain.options import check_counts
from vitx.explain.score import Clip, Target, Variables, class_score, reference_model
from vitx.explain.tubelets import Tubelets, map_coalitions

PARTS = 6  # along every axis: 216 tubelets, each covered once


def integrated_gradients(
    model: nn.Module,
    variables: Variables,
    video: Clip,
    target: Target,
    *,
    baseline: float = 0.0,
    steps: int = 32,
) -> Float[Array, "t h w"]:
    """Returns integrated gradients (Sundararajan et al. 2017, arXiv:1703.01365, equation 3), summed over channels.

    They sum to the difference of the logit between the clip and the baseline, up to the error of the integral.

    Args:
        model: any model.
        variables: its variables.
        video: one clip, normalised.
        target: what is explained.
        baseline: value of the clip that shows nothing; 0 is the mean pixel of normalised clips.
        steps: points on the line from the baseline to the clip, at the middle of equal parts.
    """
    check_counts(steps=steps)
    model = reference_model(model)
    return _integrate(variables, jnp.asarray(video), target, baseline, model=model, steps=steps)


@functools.partial(jax.jit, static_argnames=("model", "steps"))
def _integrate(
    variables: Variables, video: Clip, target: Target, baseline: Any, *, model: nn.Module, steps: int
) -> Float[Array, "t h w"]:
    difference = video - baseline

    def add_gradient(total: Array, fraction: Array) -> tuple[Array, None]:
        at = baseline + fraction * difference
        return total + jax.grad(lambda x: class_score(model, variables, x[None], target)[0])(at), None

    total, _ = jax.lax.scan(add_gradient, jnp.zeros_like(video), (jnp.arange(steps) + 0.5) / steps)
    return jnp.sum(difference * total / steps, axis=-1)


def occlusion(
    model: nn.Module,
    variables: Variables,
    video: Clip,
    target: Target,
    *,
    tubelet: tuple[int, int, int] | None = None,
    baseline: float = 0.0,
    batch_size: int = 16,
) -> Float[Array, "t h w"]:
    """Returns how much the logit falls when a tubelet is covered (Zeiler & Fergus 2014, arXiv:1311.2901, section 4.2).

    Args:
        model: any model.
        variables: its variables.
        video: one clip, normalised.
        target: what is explained.
        tubelet: (frames, height, width) that is covered at a time; None divides every axis by about 6.
        baseline: value that covers; 0 is the mean pixel of normalised clips.
        batch_size: clips that are computed at once.

    Returns:
        The fall, the same for all pixels of a tubelet. The last tubelets are smaller where the clip is no multiple.
    """
    check_counts(batch_size=batch_size)
    tubelets = Tubelets.divide(video.shape[:3], tubelet, PARTS)
    settings = {"model": reference_model(model), "tubelets": tubelets, "batch_size": batch_size}
    return _cover(variables, jnp.asarray(video), target, baseline, **settings)


@functools.partial(jax.jit, static_argnames=("model", "tubelets", "batch_size"))
def _cover(
    variables: Variables,
    video: Clip,
    target: Target,
    baseline: Any,
    *,
    model: nn.Module,
    tubelets: Tubelets,
    batch_size: int,
) -> Float[Array, "t h w"]:
    def score(clips: Array) -> Array:
        return class_score(model, variables, clips, target)

    def all_but(i: Array) -> Array:
        return jnp.arange(tubelets.count) != i

    settings = {"tubelets": tubelets, "baseline": baseline, "batch_size": batch_size}
    covered = map_coalitions(score, video, all_but, tubelets.count, **settings)
    return tubelets.spread(score(video[None])[0] - covered)
