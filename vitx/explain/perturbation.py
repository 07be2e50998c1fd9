"""Explanations that need nothing of a model but its outputs or gradients: integrated gradients and occlusion.

In shapes: t h w c the video.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int

from vitx.console import progress_bar
from vitx.explain.options import check_counts
from vitx.explain.score import Clip, Target, Variables, class_score
from vitx.explain.tubelets import Tubelets, score_coalitions

PARTS = 6  # along every axis: at most 216 tubelets, each covered once


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
    video = jnp.asarray(video)
    difference, total = video - baseline, jnp.zeros_like(video)
    # inside `lax.scan`, convolutions would use one core of a CPU (JAX 0.10.2, 2026-11)
    for step in progress_bar(range(steps), desc="gradients", leave=False, delay=2):
        at = baseline + (step + 0.5) / steps * difference
        total = jax.block_until_ready(total + _compute_gradient(variables, at, target, model=model))
    return jnp.sum(difference * total / steps, axis=-1)


@functools.partial(jax.jit, static_argnames="model")
def _compute_gradient(
    variables: Variables, video: Clip, target: Target, *, model: nn.Module
) -> Float[Array, "t h w c"]:
    return jax.grad(lambda x: class_score(model, variables, x[None], target)[0])(video)


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
    settings = {"tubelets": tubelets, "baseline": baseline, "batch_size": batch_size}

    def select_others(indices: Int[np.ndarray, "b"]) -> Bool[np.ndarray, "b m"]:
        return np.arange(tubelets.count) != indices[:, None]

    # index `count` covers nothing: the score of the whole clip
    scores = score_coalitions(
        model, variables, jnp.asarray(video), target, select_others, tubelets.count + 1, **settings
    )
    return tubelets.spread(scores[-1] - scores[:-1])
