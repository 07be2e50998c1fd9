"""Run-length tokens (RLT, Choudhury et al. 2024, arXiv:2411.05222): tubelets that repeat the one before are left out.

A token stands for itself and for the tubelets of its place that follow and do not differ: a run. The clip's pixels
decide, so that nothing is computed for what is left out.

In shapes: b batch, n tokens, s slots for tokens that are kept, t times, p pixels of a tubelet, c colours, d width.
"""

import dataclasses
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int

from vitx.configuration import register
from vitx.layers.attention_kernel import Bias
from vitx.layers.embeddings import gather_tokens
from vitx.layers.layouts import Grid
from vitx.layers.reducers import Place, Reducer
from vitx.layers.types import promote_to_float32


class Runs(NamedTuple):
    """The runs of a batch of clips, prefix tokens not included.

    Attributes:
        first: index of the first token of each run, in ascending order; unused slots repeat the last token's.
        used: which slots hold a run.
        lengths: number of tokens that each run stands for; 0 in unused slots.
        owners: slot of the run that each token belongs to.
        num_dropped: number of runs that the budget had no slot for, and that were added to the run before.
    """

    first: Int[Array, "b s"]
    used: Bool[Array, "b s"]
    lengths: Int[Array, "b s"]
    owners: Int[Array, "b n"]
    num_dropped: Int[Array, "b"]


class Slots(NamedTuple):
    """What blocks remember of the runs.

    Attributes:
        owners: slot of the run that each token belongs to.
        bias: hides unused slots from attention; prefix tokens come first.
    """

    owners: Int[Array, "b n"]
    bias: Float[Array, "b m"]


def find_runs(
    tubelets: Float[Array, "b n p c"], grid: Grid, *, threshold: float = 0.0, budget: int | None = None
) -> Runs:
    """Finds the runs of tubelets that differ from the one before by at most `threshold`.

    The difference is the mean over pixels and colours of the absolute difference. (The paper compares the first frame
    of one tubelet with the last of the next, which a change between the two can escape.)

    Args:
        tubelets: pixels of each token.
        grid: (t, h, w) of the tokens.
        threshold: greatest difference within a run.
        budget: number of slots; where there are more runs, those that begin with the greatest differences are kept,
            and those of the first frame in any case. None has a slot for every token.
    """
    num_tokens = math.prod(grid)
    places, slots = grid[1] * grid[2], num_tokens if budget is None else budget
    x = promote_to_float32(tubelets).reshape(len(tubelets), grid[0], places, -1)
    change = jnp.abs(x[:, 1:] - x[:, :-1]).mean(axis=-1)
    change = jnp.pad(change, ((0, 0), (1, 0), (0, 0)), constant_values=jnp.inf).reshape(-1, num_tokens)
    is_first = change > threshold

    order = jnp.argsort(jnp.where(is_first, -change, jnp.inf), axis=1, stable=True)[:, :slots]
    used = jnp.arange(slots) < is_first.sum(axis=1, keepdims=True)
    first = jnp.sort(jnp.where(used, order, num_tokens), axis=1)

    kept = jax.vmap(lambda row: jnp.zeros(num_tokens, bool).at[row].set(True, mode="drop"))(first)
    times = jnp.where(kept, jnp.arange(num_tokens), 0).reshape(-1, grid[0], places)
    begins = jax.lax.cummax(times, axis=1).reshape(-1, num_tokens)  # token with which the run of each token begins
    owners = jnp.take_along_axis(jnp.cumsum(kept, axis=1) - 1, begins, axis=1)
    lengths = jax.vmap(lambda row: jnp.bincount(row, length=slots))(owners)
    return Runs(jnp.minimum(first, num_tokens - 1), used, lengths, owners, is_first.sum(axis=1) - kept.sum(axis=1))


@register
@dataclasses.dataclass(frozen=True)
class RunLengthTokens(Reducer):
    """The encoder reads one token for each run of tubelets that do not differ; see `find_runs`.

    Shapes are static: a clip has `budget` slots, and attention does not see unused ones. After the last block every
    token gets the value of its run, so that the mean over all tokens is weighted by the runs' lengths.

    Attributes:
        threshold: greatest mean absolute difference within a run, in the units of the normalised video.
        budget: slots for the tokens of a clip; None has one for every token, which leaves out nothing to compute.
        length_embedding: whether a learned vector for the length of its run is added to each token; zero at first.
    """

    threshold: float = 0.1
    budget: int | None = None
    length_embedding: bool = False

    def __post_init__(self):
        if not self.threshold >= 0:
            raise ValueError(f"threshold is {self.threshold}; expected at least 0")

    def count_tokens(self, grid: Grid, prefix: int, num_layers: int) -> tuple[int, ...]:
        """See `Reducer`."""
        num_tokens, places = math.prod(grid), grid[1] * grid[2]
        if grid[0] == 1:
            raise ValueError(
                "reducer is RunLengthTokens and the encoder reads every time index alone; expected several in one "
                "sequence, as in the layout joint: set reducer to None"
            )
        if self.budget is not None and not places <= self.budget <= num_tokens:
            raise ValueError(
                f"reducer.budget is {self.budget}; expected {places}, the tokens of the first time index, to "
                f"{num_tokens}, those of a clip"
            )
        slots = num_tokens if self.budget is None else self.budget
        return (*(prefix + slots for _ in range(num_layers)), prefix + num_tokens)

    def observe(self, tubelets: Float[Array, "b n p c"], grid: Grid) -> Runs:
        """See `Reducer`."""
        return find_runs(tubelets, grid, threshold=self.threshold, budget=self.budget)

    def attention_bias(self, carry: Slots) -> Bias:
        """See `Reducer`: unused slots are not seen."""
        return carry.bias[:, None, None, :]

    def before_block(self, x: Float[Array, "b n d"], carry: Runs | Slots | None, place: Place) -> tuple[Array, Slots]:
        """See `Reducer`: before the first block, tokens move to their slots.

        Raises:
            ValueError: the clip was not observed.
        """
        if isinstance(carry, Slots):
            return x, carry
        if carry is None:
            raise ValueError("RunLengthTokens has seen no clip; expected what `observe(video)` returns as `carry`")
        x = gather_tokens(x, carry.first, place.prefix)
        if self.length_embedding:
            options = {"embedding_init": nn.initializers.zeros, "dtype": x.dtype, "name": "length_embedding"}
            x = x.at[:, place.prefix :].add(nn.Embed(place.grid[0] + 1, x.shape[-1], **options)(carry.lengths))
        bias = jnp.where(carry.used, 0.0, jnp.finfo(jnp.float32).min)
        return x, Slots(carry.owners, jnp.pad(bias, ((0, 0), (place.prefix, 0))))

    def restore(self, x: Float[Array, "b m d"], carry: Slots, place: Place) -> Float[Array, "b n d"]:
        """See `Reducer`."""
        return gather_tokens(x, carry.owners, place.prefix)
