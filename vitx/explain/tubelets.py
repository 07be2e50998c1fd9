"""Tubelets switched off and on: what a model predicts for a clip of which only some tubelets are kept.

A coalition is a set of tubelets that are kept; a value replaces all others. In shapes: t h w c the video, k
coalitions, m tubelets.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int

from vitx.console import progress_bar
from vitx.errors import UserError
from vitx.explain.options import is_whole_number
from vitx.explain.score import Clip, Target, Variables, class_score


@dataclasses.dataclass(frozen=True)
class Tubelets:
    """Tubelets of a clip, numbered time-major. The last ones are smaller where the clip is no multiple.

    Attributes:
        clip: (frames, height, width) of the clip.
        size: (frames, height, width) of a tubelet.
    """

    clip: tuple[int, int, int]
    size: tuple[int, int, int]

    @classmethod
    def divide(cls, clip: tuple[int, ...], size: Any, num_parts: int) -> "Tubelets":
        """Returns the tubelets of a size; None divides every axis into about `num_parts`.

        Raises:
            UserError: the size is not three whole numbers of at least 1.
        """
        size = tuple(math.ceil(length / num_parts) for length in clip) if size is None else size
        is_sequence = isinstance(size, tuple | list) and len(size) == 3
        if not is_sequence or not all(is_whole_number(length) and length >= 1 for length in size):
            raise UserError(
                f"tubelet is {size!r}; expected (frames, height, width) of at least 1 each, of a clip of "
                f"{' x '.join(map(str, clip))}"
            )
        return cls(tuple(clip), tuple(map(int, size)))

    @property
    def grid(self) -> tuple[int, int, int]:
        """Number of tubelets along (time, height, width)."""
        return tuple(math.ceil(length / part) for length, part in zip(self.clip, self.size, strict=True))

    @property
    def count(self) -> int:
        """Number of tubelets."""
        return math.prod(self.grid)

    def indices(self) -> Int[Array, "t h w"]:
        """Returns the index of the tubelet that every pixel belongs to."""
        t, h, w = (jnp.arange(length) // part for length, part in zip(self.clip, self.size, strict=True))
        return (t[:, None, None] * self.grid[1] + h[:, None]) * self.grid[2] + w

    def spread(self, values: Float[Array | np.ndarray, "m"]) -> Float[Array, "t h w"]:
        """Returns the value of every pixel: that of its tubelet."""
        return jnp.asarray(values)[self.indices()]


def score_coalitions(
    model: nn.Module,
    variables: Variables,
    video: Clip,
    target: Target,
    select: Callable[[Int[np.ndarray, "b"]], Bool[np.ndarray, "b m"]],
    count: int,
    *,
    tubelets: Tubelets,
    baseline: Any,
    batch_size: int,
) -> Float[np.ndarray, "k"]:
    """Returns the class's logit for the clip with the tubelets of each coalition alone.

    Args:
        model: any model.
        variables: its variables.
        video: one clip, normalised.
        target: what is explained.
        select: called with indices of coalitions; returns which tubelets each keeps. A function, because a table of
            all would have m x m entries for occlusion.
        count: number of coalitions.
        tubelets: the tubelets.
        baseline: value that replaces the other tubelets.
        batch_size: clips that are computed at once.
    """
    scores = []
    # inside `lax.map`, convolutions would use one core of a CPU (JAX 0.10.2, 2026-11)
    for start in progress_bar(range(0, count, batch_size), desc="explaining", unit=" batches", leave=False, delay=2):
        # the last coalition again where a batch is not full, so that all have one compiled program
        indices = np.minimum(np.arange(start, start + min(batch_size, count)), count - 1)
        batch = _score_batch(variables, video, target, select(indices), baseline, model=model, tubelets=tubelets)
        scores.append(np.asarray(batch))
    return np.concatenate(scores)[:count]


@functools.partial(jax.jit, static_argnames=("model", "tubelets"))
def _score_batch(
    variables: Variables,
    video: Clip,
    target: Target,
    kept: Bool[Array | np.ndarray, "b m"],
    baseline: Any,
    *,
    model: nn.Module,
    tubelets: Tubelets,
) -> Float[Array, "b"]:
    clips = jnp.where(kept[:, tubelets.indices(), None], video, baseline)
    return class_score(model, variables, clips, target)
