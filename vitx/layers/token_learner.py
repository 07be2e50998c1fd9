"""TokenLearner and TokenFuser (Ryoo et al. 2021, arXiv:2106.11297): a few learned tokens in place of each frame's.

In shapes: b batch (and times, where every time index is encoded alone), t h w the grid, n tokens, p places of a frame,
s learned tokens of a frame, d width.
"""

import dataclasses
import functools
import math
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from vitx.configuration import register
from vitx.layers.layouts import Grid
from vitx.layers.reducers import BlockContext, Reducer
from vitx.layers.types import DType, promote_to_float32

MLP_DIM = 64  # width of the hidden layer of the authors' MLPs


class PlaceWeights(nn.Module):
    """A layer norm and an MLP that give every place of a frame a score for each learned token.

    Attributes:
        num_tokens: learned tokens of a frame.
        dtype: type of the computations; parameters are float32.
    """

    num_tokens: int
    dtype: DType = "float32"

    @nn.compact
    def __call__(self, x: Float[Array, "*b p d"]) -> Float[Array, "*b p s"]:
        dense = functools.partial(nn.Dense, dtype=self.dtype, kernel_init=nn.initializers.xavier_uniform())
        x = nn.LayerNorm(dtype=self.dtype, name="norm")(x)
        return dense(self.num_tokens, name="out")(jax.nn.gelu(dense(MLP_DIM, name="hidden")(x)))


class SelectTokens(nn.Module):
    """Every learned token is an average of a frame's tokens, weighted by a map that is computed from them.

    Attributes:
        num_tokens: learned tokens of a frame.
        version: "1", convolutions and a sigmoid; "1.1", an MLP and a softmax. See `TokenLearner`.
        dtype: type of the computations; parameters are float32.
    """

    num_tokens: int
    version: Literal["1", "1.1"] = "1.1"
    dtype: DType = "float32"

    @nn.compact
    def __call__(self, x: Float[Array, "*b h w d"]) -> Float[Array, "*b s d"]:
        *leading, height, width, _ = x.shape
        tokens = x.reshape(*leading, height * width, -1)
        if self.version == "1.1":
            scores = PlaceWeights(self.num_tokens, self.dtype, name="maps")(tokens)
            weights = jax.nn.softmax(promote_to_float32(scores), axis=-2)
        else:
            maps = nn.LayerNorm(dtype=self.dtype, name="norm")(x)
            for i in range(4):
                maps = jax.nn.gelu(maps) if i else maps
                maps = nn.Conv(self.num_tokens, (3, 3), use_bias=False, dtype=self.dtype, name=f"conv_{i}")(maps)
            scores = maps.reshape(*leading, height * width, self.num_tokens)
            # the paper averages over places (equation 1); the authors' code sums, a constant factor more
            weights = jax.nn.sigmoid(promote_to_float32(scores)) / (height * width)
        return jnp.einsum("...ps,...pd->...sd", weights.astype(x.dtype), tokens)


class FuseTokens(nn.Module):
    """Adds to every place of a frame a mixture of learned tokens (section 2.3); adds nothing before training.

    Attributes:
        dtype: type of the computations; parameters are float32.
    """

    dtype: DType = "float32"

    @nn.compact
    def __call__(self, learned: Float[Array, "*b s d"], original: Float[Array, "*b p d"]) -> Float[Array, "*b p d"]:
        norm = functools.partial(nn.LayerNorm, dtype=self.dtype)
        num_tokens = learned.shape[-2]
        mixed = jnp.swapaxes(norm(name="norm")(learned), -1, -2)
        mixed = nn.Dense(num_tokens, dtype=self.dtype, kernel_init=nn.initializers.zeros, name="mix")(mixed)
        mixed = norm(name="mix_norm")(jnp.swapaxes(mixed, -1, -2))
        scores = PlaceWeights(num_tokens, self.dtype, name="weights")(original)
        weights = jax.nn.sigmoid(promote_to_float32(scores)).astype(original.dtype)
        return original + jnp.einsum("...ps,...sd->...pd", weights, mixed)


@register
@dataclasses.dataclass(frozen=True)
class TokenLearner(Reducer):
    """From one block on, a frame has `num_tokens` learned tokens in place of those of its grid.

    Version "1" is that of the paper: a layer norm, four convolutions over the frame with a channel for each learned
    token, and a sigmoid give the weights of averages (equation 1). "1.1" is that of the authors' later code: an MLP at
    each place, and a softmax over places. Prefix tokens stay as they are.

    Attributes:
        num_tokens: learned tokens of a frame; of a time index, if tubelets have several frames.
        after_layer: number of blocks that read all tokens, before TokenLearner.
        version: "1" or "1.1".
        fuse_after_layer: number of blocks after which a TokenFuser restores the tokens of the grid; None never does.
    """

    parameters: ClassVar[tuple[str, ...]] = ("token_learner/*", "token_fuser/*")

    num_tokens: int
    after_layer: int
    version: Literal["1", "1.1"] = "1.1"
    fuse_after_layer: int | None = None

    def count_tokens(self, grid: Grid, num_prefix: int, num_layers: int) -> tuple[int, ...]:
        """See `Reducer`."""
        places = grid[1] * grid[2]
        if not 0 < self.num_tokens < places:
            raise ValueError(
                f"reducer.num_tokens is {self.num_tokens}; expected 1 to {places - 1}, fewer than the {places} tokens "
                "of a frame"
            )
        if not 0 <= self.after_layer < num_layers:
            raise ValueError(
                f"reducer.after_layer is {self.after_layer}; expected 0 to {num_layers - 1}, so that a block follows"
            )
        end = num_layers + 1 if self.fuse_after_layer is None else self.fuse_after_layer
        if self.fuse_after_layer is not None and not self.after_layer < end <= num_layers:
            raise ValueError(
                f"reducer.fuse_after_layer is {self.fuse_after_layer}; expected {self.after_layer + 1} to "
                f"{num_layers}, after reducer.after_layer, or None"
            )
        few, all_tokens = num_prefix + grid[0] * self.num_tokens, num_prefix + math.prod(grid)
        return tuple(few if self.after_layer <= i < end else all_tokens for i in range(num_layers + 1))

    def before_block(
        self, x: Float[Array, "*b n d"], carry: Array | None, context: BlockContext
    ) -> tuple[Array, Array | None]:
        """See `Reducer`; what is remembered are the tokens of the grid, for the fuser."""
        if context.layer == self.fuse_after_layer:
            return self._fuse(x, carry, context), None
        if context.layer != self.after_layer:
            return x, carry
        t, h, w = context.grid
        *leading, num_tokens, width = x.shape
        if num_tokens != context.num_prefix + t * h * w:
            raise ValueError(
                f"found {num_tokens} tokens before TokenLearner; expected all {context.num_prefix + t * h * w}"
            )
        frames = x[..., context.num_prefix :, :].reshape(*leading, t, h, w, width)
        learned = SelectTokens(self.num_tokens, self.version, dtype=x.dtype.name, name="token_learner")(frames)
        learned = learned.reshape(*leading, t * self.num_tokens, width)
        remembered = None if self.fuse_after_layer is None else x[..., context.num_prefix :, :]
        return jnp.concatenate([x[..., : context.num_prefix, :], learned], axis=-2), remembered

    def restore(self, x: Float[Array, "*b m d"], carry: Array | None, context: BlockContext) -> Array:
        """See `Reducer`."""
        return self._fuse(x, carry, context) if context.layer == self.fuse_after_layer else x

    def _fuse(self, x: Array, original: Array, context: BlockContext) -> Array:
        t, h, w = context.grid
        *leading, _, width = x.shape
        learned = x[..., context.num_prefix :, :].reshape(*leading, t, self.num_tokens, width)
        frames = original.reshape(*leading, t, h * w, width)
        fused = FuseTokens(dtype=x.dtype.name, name="token_fuser")(learned, frames)
        return jnp.concatenate([x[..., : context.num_prefix, :], fused.reshape(original.shape)], axis=-2)
