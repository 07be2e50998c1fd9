"""Tubelets switched off and on: what a model says of a clip of which only some tubelets are kept.

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

from vitx.errors import UserError
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
        if not is_sequence or any(not isinstance(length, int) or length < 1 for length in size):
            raise UserError(
                f"tubelet is {size!r}; expected (frames, height, width) of at least 1 each, of a clip of "
                f"{' x '.join(map(str, clip))}"
            )
        return cls(tuple(clip), tuple(size))

    @property
    def grid(self) -> tuple[int, int, int]:
        """Number of tubelets along (time, height, width)."""
        return tuple(math.ceil(length / part) for length, part in zip(self.clip, self.size, strict=True))

    @property
    def count(self) -> int:
        """Number of tubelets."""
        return math.prod(self.grid)

    def numbers(self) -> Int[Array, "t h w"]:
        """Returns the number of the tubelet that every pixel belongs to."""
        t, h, w = (jnp.arange(length) // part for length, part in zip(self.clip, self.size, strict=True))
        return (t[:, None, None] * self.grid[1] + h[:, None]) * self.grid[2] + w

    def spread(self, values: Float[Array | np.ndarray, "m"]) -> Float[Array, "t h w"]:
        """Returns the value of every pixel: that of its tubelet."""
        return jnp.asarray(values)[self.numbers()]


def map_coalitions(
    score: Callable[[Float[Array, "b t h w c"]], Float[Array, "b"]],
    video: Clip,
    kept: Callable[[Array], Bool[Array, "m"]],
    count: int,
    *,
    tubelets: Tubelets,
    baseline: Any,
    batch_size: int,
) -> Float[Array, "k"]:
    """Returns the score of the clip with the tubelets of each coalition alone; for use in a compiled function.

    Args:
        score: called with clips; returns one number for each.
        video: one clip.
        kept: called with the number of a coalition; returns which tubelets it keeps. A function, because a table of
            all would have m x m entries for occlusion.
        count: number of coalitions.
        tubelets: the tubelets.
        baseline: value that replaces the other tubelets.
        batch_size: clips that are computed at once.
    """
    numbers = tubelets.numbers()

    def score_one(i: Array) -> Array:
        return score(jnp.where(kept(i)[numbers][..., None], video, baseline)[None])[0]

    return jax.lax.map(score_one, jnp.arange(count), batch_size=batch_size)


@functools.partial(jax.jit, static_argnames=("model", "tubelets", "batch_size"))
def score_coalitions(
    variables: Variables,
    video: Clip,
    target: Target,
    coalitions: Bool[Array | np.ndarray, "k m"],
    baseline: Any,
    *,
    model: nn.Module,
    tubelets: Tubelets,
    batch_size: int,
) -> Float[Array, "k"]:
    """Returns the class's logit for each coalition of a table; see `map_coalitions`."""
    settings = {"tubelets": tubelets, "baseline": baseline, "batch_size": batch_size}
    table = jnp.asarray(coalitions)
    return map_coalitions(
        lambda clips: class_score(model, variables, clips, target), video, lambda i: table[i], len(table), **settings
    )
