"""Run-length tokens (RLT, Choudhury et al. 2024, arXiv:2411.05222): tubelets that repeat the one before are left out.

A token stands for itself and for the tubelets of its place that follow and do not differ: a run. The clip's pixels
decide, so that nothing is computed for what is left out.

In shapes: b batch, n tokens, r sequences, l tokens of one, s its slots for tokens that are kept, m tokens that blocks
read, t times, p pixels of a tubelet, c colours, d width.
"""

import dataclasses
import math
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int

from vitx.configuration import register
from vitx.layers.attention_kernel import Bias
from vitx.layers.embeddings import gather_tokens
from vitx.layers.layouts import Grid
from vitx.layers.reducers import BlockContext, Reducer
from vitx.layers.types import promote_to_float32


class Runs(NamedTuple):
    """The runs of a batch of sequences, of one clip or several each, prefix tokens not included.

    Attributes:
        first: index of the first token of each run, in ascending order; unused slots repeat the last token's.
        used: True for slots that have a run.
        lengths: number of tokens that each run stands for; 0 in unused slots.
        owners: slot of the run that each token belongs to.
        num_dropped: number of runs that the budget had no slot for; each was added to the run before it.
    """

    first: Int[Array, "r s"]
    used: Bool[Array, "r s"]
    lengths: Int[Array, "r s"]
    owners: Int[Array, "r l"]
    num_dropped: Int[Array, "r"]


class Slots(NamedTuple):
    """State of the runs that is passed from block to block.

    Attributes:
        owners: slot of the run that each token belongs to.
        bias: hides unused slots, and other clips, from attention; prefix tokens come first.
    """

    owners: Int[Array, "r l"]
    bias: Float[Array, "r 1 _ m"]


def find_runs(
    tubelets: Float[Array, "b n p c"],
    grid: Grid,
    *,
    threshold: float = 0.0,
    budget: int | None = None,
    clips_per_sequence: int = 1,
) -> Runs:
    """Finds the runs of tubelets that differ from the one before by at most `threshold`.

    The difference is the mean over pixels and colours of the absolute difference. (The paper compares the first frame
    of one tubelet with the last of the next, which a change between the two can escape.)

    Args:
        tubelets: pixels of each token.
        grid: (t, h, w) of the tokens of a clip.
        threshold: greatest difference within a run.
        budget: number of slots for each clip; where there are more runs, those that begin with the greatest
            differences are kept, and those of the first frame in any case. None gives every token a slot.
        clips_per_sequence: number of consecutive clips that share a sequence and all of its slots.
    """
    places, num_tokens = grid[1] * grid[2], clips_per_sequence * math.prod(grid)
    slots = num_tokens if budget is None else clips_per_sequence * budget
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

    Shapes are static: a clip has `budget` slots, and unused ones are masked. After the last block every
    token gets the value of its run, so that the mean over all tokens is weighted by the runs' lengths.

    Attributes:
        threshold: greatest mean absolute difference within a run, in the units of the normalised video.
        budget: slots for the tokens of a clip; None has one for every token, which leaves out nothing to compute.
        length_embedding: whether a learned vector for the length of its run is added to each token; zero at first.
        clips_per_sequence: consecutive clips of a batch that are packed into one sequence, in which each attends to
            itself alone. They share their slots: one that changes much takes those that a still one leaves. A batch
            that it does not divide is packed by the greatest number that divides both.
    """

    needs_global_layout: ClassVar[bool] = True
    parameters: ClassVar[tuple[str, ...]] = ("length_embedding*",)
    may_drop: ClassVar[bool] = True

    threshold: float = 0.1
    budget: int | None = None
    length_embedding: bool = False
    clips_per_sequence: int = 1

    def __post_init__(self):
        if not self.threshold >= 0:
            raise ValueError(f"threshold is {self.threshold}; expected at least 0")
        if self.clips_per_sequence < 1:
            raise ValueError(f"clips_per_sequence is {self.clips_per_sequence}; expected at least 1")

    def count_tokens(self, grid: Grid, num_prefix: int, num_layers: int) -> tuple[int, ...]:
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
        return (*(num_prefix + slots for _ in range(num_layers)), num_prefix + num_tokens)

    def observe(self, tubelets: Float[Array, "b n p c"], grid: Grid) -> Runs:
        """See `Reducer`."""
        num_clips = math.gcd(len(tubelets), self.clips_per_sequence)
        return find_runs(tubelets, grid, threshold=self.threshold, budget=self.budget, clips_per_sequence=num_clips)

    def fraction_dropped(self, carry: Runs) -> Float[Array, "r"]:
        """See `Reducer`: runs that were added to the one before."""
        return carry.num_dropped / (carry.num_dropped + carry.used.sum(axis=1))

    def attention_bias(self, carry: Slots) -> Bias:
        """See `Reducer`: unused slots and other clips are not seen."""
        return carry.bias

    def before_block(
        self, x: Float[Array, "b n d"], carry: Runs | Slots | None, context: BlockContext
    ) -> tuple[Array, Slots]:
        """See `Reducer`: before the first block, tokens move to their slots.

        Raises:
            ValueError: the clip was not observed.
        """
        if isinstance(carry, Slots):
            return x, carry
        if carry is None:
            raise ValueError("found carry None in RunLengthTokens; expected the result of `observe(video)`")
        num_clips, num_tokens = len(x) // len(carry.first), x.shape[1] - context.num_prefix
        x = gather_tokens(_pack(x, num_clips, context.num_prefix), carry.first, num_clips * context.num_prefix)
        if self.length_embedding:
            options = {"embedding_init": nn.initializers.zeros, "dtype": x.dtype, "name": "length_embedding"}
            embedding = nn.Embed(context.grid[0] + 1, x.shape[-1], **options)
            x = x.at[:, num_clips * context.num_prefix :].add(embedding(carry.lengths))
        visible = jnp.pad(carry.used, ((0, 0), (num_clips * context.num_prefix, 0)), constant_values=True)[
            :, None, None
        ]
        if num_clips > 1:
            prefix_segments = jnp.broadcast_to(
                jnp.repeat(jnp.arange(num_clips), context.num_prefix), (len(x), num_clips * context.num_prefix)
            )
            segments = jnp.concatenate([prefix_segments, carry.first // num_tokens], axis=1)
            visible &= segments[:, None, :, None] == segments[:, None, None, :]
        return x, Slots(carry.owners, jnp.where(visible, 0.0, jnp.finfo(jnp.float32).min))

    def restore(self, x: Float[Array, "r m d"], carry: Slots, context: BlockContext) -> Float[Array, "b n d"]:
        """See `Reducer`."""
        num_clips = carry.owners.shape[1] // math.prod(context.grid)
        return _unpack(gather_tokens(x, carry.owners, num_clips * context.num_prefix), num_clips, context.num_prefix)


def _pack(x: Float[Array, "b n d"], num_clips: int, num_prefix: int) -> Float[Array, "r l d"]:
    """Returns the tokens of consecutive clips as one sequence, the prefix tokens of all of them first."""
    parts = (x[:, :num_prefix], x[:, num_prefix:])
    joined = [part.reshape(len(x) // num_clips, num_clips * part.shape[1], x.shape[-1]) for part in parts]
    return jnp.concatenate(joined, axis=1)


def _unpack(x: Float[Array, "r l d"], num_clips: int, num_prefix: int) -> Float[Array, "b n d"]:
    """Inverts `_pack`."""
    parts = (x[:, : num_clips * num_prefix], x[:, num_clips * num_prefix :])
    separated = [part.reshape(len(x) * num_clips, part.shape[1] // num_clips, x.shape[-1]) for part in parts]
    return jnp.concatenate(separated, axis=1)
