"""Explanations that need nothing of a model but its outputs or gradients: integrated gradients and occlusion.

In shapes: t h w c the video.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int

from vitx.explain.score import Clip, Target, Variables, class_score, reference_model


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
    tubelet = tubelet or tuple(math.ceil(size / 6) for size in video.shape[:3])
    settings = {"model": reference_model(model), "tubelet": tubelet, "batch_size": batch_size}
    return _cover(variables, jnp.asarray(video), target, baseline, **settings)


@functools.partial(jax.jit, static_argnames=("model", "tubelet", "batch_size"))
def _cover(
    variables: Variables,
    video: Clip,
    target: Target,
    baseline: Any,
    *,
    model: nn.Module,
    tubelet: tuple[int, int, int],
    batch_size: int,
) -> Float[Array, "t h w"]:
    grid = tuple(math.ceil(size / part) for size, part in zip(video.shape[:3], tubelet, strict=True))
    number = tubelet_numbers(video.shape[:3], grid, tubelet)

    def covered_score(i: Array) -> Array:
        covered = jnp.where((number == i)[..., None], baseline, video)
        return class_score(model, variables, covered[None], target)[0]

    whole = class_score(model, variables, video[None], target)[0]
    return (whole - jax.lax.map(covered_score, jnp.arange(math.prod(grid)), batch_size=batch_size))[number]


def tubelet_numbers(shape: tuple[int, ...], grid: tuple[int, ...], tubelet: tuple[int, ...]) -> Int[Array, "t h w"]:
    """Returns the number of the tubelet that every pixel belongs to, time-major."""
    t, h, w = (jnp.arange(size) // part for size, part in zip(shape, tubelet, strict=True))
    return (t[:, None, None] * grid[1] + h[:, None]) * grid[2] + w
