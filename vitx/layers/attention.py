"""The one attention call, and the module around it that projects tokens to queries, keys and values."""

import functools
from typing import Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float

from vitx.layers.layouts import LAYOUTS, Grid
from vitx.layers.partition import attend, folded

DType = Literal["float32", "bfloat16"]


def weights(
    q: Float[Array, "batch queries heads head_dim"],
    k: Float[Array, "batch keys heads head_dim"],
    *,
    bias: Float[Array, "..."] | None = None,
    mask: Bool[Array, "..."] | None = None,
) -> Float[Array, "batch heads queries keys"]:
    """Attention probabilities softmax(q kᵀ / sqrt(head_dim) + bias), in float32 (Vaswani et al. 2017, eq. 1).

    `bias` (added to the scores) and `mask` (True where a query may attend) broadcast to the result's shape.
    """
    scores = jnp.einsum("bqhd,bkhd->bhqk", q, k, preferred_element_type=jnp.float32) * q.shape[-1] ** -0.5
    if bias is not None:
        scores += bias
    if mask is not None:
        scores = jnp.where(mask, scores, jnp.finfo(scores.dtype).min)
    return jax.nn.softmax(scores)


def core(
    q: Float[Array, "batch queries heads head_dim"],
    k: Float[Array, "batch keys heads head_dim"],
    v: Float[Array, "batch keys heads head_dim"],
    *,
    bias: Float[Array, "..."] | None = None,
    mask: Bool[Array, "..."] | None = None,
) -> Float[Array, "batch queries heads head_dim"]:
    """Scaled dot-product attention: the one call that every layout makes."""
    return jnp.einsum("bhqk,bkhd->bqhd", weights(q, k, bias=bias, mask=mask).astype(v.dtype), v)


class SelfAttention(nn.Module):
    """Multi-head self-attention of tokens on a (t, h, w) grid, each within the neighbourhood of a layout.

    The probabilities are sown under `intermediates/attention` when that collection is mutable.

    Attributes:
        num_heads: attention heads; must divide the tokens' width.
        layout: name of the layout (`vitx.layers.layouts.LAYOUTS`) that says which tokens see which.
        qkv_bias: whether the three input projections have a bias.
        zero_init: whether the output projection starts at zero, so that the branch around it starts as nothing.
        dtype: computations' type; parameters are float32.
    """

    num_heads: int
    layout: str = "joint"
    qkv_bias: bool = True
    zero_init: bool = False
    dtype: DType = "float32"

    @nn.compact
    def __call__(
        self, x: Float[Array, "*batch tokens width"], *, grid: Grid, prefix: int = 0, chunks: int = 1
    ) -> Float[Array, "*batch tokens width"]:
        width = x.shape[-1]
        dense = functools.partial(nn.Dense, width, dtype=self.dtype)
        project = functools.partial(dense, use_bias=self.qkv_bias, kernel_init=nn.initializers.xavier_uniform())
        heads = (*x.shape[:-1], self.num_heads, width // self.num_heads)
        q, k, v = (project(name=name)(x).reshape(heads) for name in ("query", "key", "value"))

        def recorded(q, k, v, *, bias=None, mask=None):
            self.sow("intermediates", "attention", weights(q, k, bias=bias, mask=mask))
            return core(q, k, v, bias=bias, mask=mask)

        if self.is_mutable_collection("intermediates"):
            out = folded(LAYOUTS[self.layout], recorded, q, k, v, grid=grid, prefix=prefix)
        else:
            out = attend(self.layout, core, q, k, v, grid=grid, prefix=prefix, chunks=chunks)
        kernel_init = nn.initializers.zeros if self.zero_init else nn.initializers.xavier_uniform()
        return dense(kernel_init=kernel_init, name="out")(out.reshape(x.shape))
