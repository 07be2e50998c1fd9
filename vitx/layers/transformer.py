"""The pre-norm Transformer encoder: MLP, stochastic depth, block and stack."""

import functools
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from vitx.layers.attention import DType, SelfAttention
from vitx.layers.layouts import Grid

Activation = Literal["gelu_tanh", "gelu"]
ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "gelu_tanh": functools.partial(jax.nn.gelu, approximate=True),
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
}


class StochasticDepth(nn.Module):
    """Drops a residual branch for whole rows of the batch with probability `rate`, rescaled by 1 / (1 - rate).

    Huang et al. 2016. Where frames are folded into the batch, each frame is dropped on its own.

    Attributes:
        rate: probability of dropping, in [0, 1).
    """

    rate: float = 0.0

    @nn.compact
    def __call__(self, x: Float[Array, "batch tokens width"], *, train: bool) -> Float[Array, "batch tokens width"]:
        if not train or self.rate == 0:
            return x
        keep = jax.random.bernoulli(self.make_rng("drop_path"), 1 - self.rate, (x.shape[0], 1, 1))
        return jnp.where(keep, x / (1 - self.rate), 0).astype(x.dtype)


class MlpBlock(nn.Module):
    """Two dense layers with an activation between.

    Attributes:
        mlp_dim: width of the hidden layer.
        activation: name in `ACTIVATIONS`.
        dropout_rate: after each layer.
        dtype: computations' type; parameters are float32.
    """

    mlp_dim: int
    activation: Activation = "gelu_tanh"
    dropout_rate: float = 0.0
    dtype: DType = "float32"

    @nn.compact
    def __call__(self, x: Float[Array, "batch tokens width"], *, train: bool) -> Float[Array, "batch tokens width"]:
        dense = functools.partial(
            nn.Dense,
            dtype=self.dtype,
            kernel_init=nn.initializers.xavier_uniform(),
            bias_init=nn.initializers.normal(1e-6),
        )
        dropout = nn.Dropout(self.dropout_rate, deterministic=not train)
        hidden = dropout(ACTIVATIONS[self.activation](dense(self.mlp_dim, name="hidden")(x)))
        return dropout(dense(x.shape[-1], name="out")(hidden))


class EncoderBlock(nn.Module):
    """Pre-norm block: x + attention(norm(x)), then x + mlp(norm(x)) (ViViT, eq. 2 and 3).

    Attributes:
        num_heads: attention heads.
        mlp_dim: width of the MLP's hidden layer.
        layout: which tokens attend to which.
        drop_path_rate: stochastic depth of both branches.
        dropout_rate: after attention and in the MLP.
        layer_norm_eps: added to the variance.
        activation: of the MLP.
        qkv_bias: whether query, key and value have a bias.
        dtype: computations' type; parameters are float32.
    """

    num_heads: int
    mlp_dim: int
    layout: str = "joint"
    drop_path_rate: float = 0.0
    dropout_rate: float = 0.0
    layer_norm_eps: float = 1e-6
    activation: Activation = "gelu_tanh"
    qkv_bias: bool = True
    dtype: DType = "float32"

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch tokens width"], *, grid: Grid, prefix: int = 0, train: bool
    ) -> Float[Array, "batch tokens width"]:
        norm = functools.partial(nn.LayerNorm, epsilon=self.layer_norm_eps, dtype=self.dtype)
        drop_path = StochasticDepth(self.drop_path_rate)

        attention = SelfAttention(self.num_heads, self.layout, self.qkv_bias, self.dtype, name="attention")
        branch = attention(norm(name="attention_norm")(x), grid=grid, prefix=prefix)
        branch = nn.Dropout(self.dropout_rate, deterministic=not train)(branch)
        x = x + drop_path(branch, train=train)

        mlp = MlpBlock(self.mlp_dim, self.activation, self.dropout_rate, self.dtype, name="mlp")
        return x + drop_path(mlp(norm(name="mlp_norm")(x), train=train), train=train)


class Encoder(nn.Module):
    """A stack of encoder blocks and a final layer norm.

    Attributes:
        num_layers: number of blocks, named block_0, block_1, ...
        block: what every block is like; its `drop_path_rate` is the last block's, growing linearly from 0.
    """

    num_layers: int
    block: EncoderBlock

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch tokens width"], *, grid: Grid, prefix: int = 0, train: bool
    ) -> Float[Array, "batch tokens width"]:
        for i in range(self.num_layers):
            rate = self.block.drop_path_rate * i / max(self.num_layers - 1, 1)
            x = self.block.copy(name=f"block_{i}", drop_path_rate=rate)(x, grid=grid, prefix=prefix, train=train)
        return nn.LayerNorm(epsilon=self.block.layer_norm_eps, dtype=self.block.dtype, name="norm")(x)
