"""The pre-norm Transformer encoder: MLP, stochastic depth, block and stack."""

import functools
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from vitx.layers.attention import DType, SelfAttention
from vitx.layers.layouts import LAYOUTS, Grid
from vitx.layers.partition import HEADS, constrain_activations, merge_time, num_time_chunks, split_time

Activation = Literal["gelu_tanh", "gelu"]
ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "gelu_tanh": functools.partial(jax.nn.gelu, approximate=True),
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
}


REMATERIALISATION: dict[str, Callable[..., bool] | None] = {
    "all": None,
    "all_but_products": jax.checkpoint_policies.dots_saveable,
    "all_but_projections": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}


def stochastic_depth(
    x: Float[Array, "*batch tokens width"], rate: float | Float[Array, ""], key: Array, rows: int = 1
) -> Float[Array, "*batch tokens width"]:
    """Drops whole rows of the batch with probability `rate`, and divides the others by 1 - rate.

    Huang et al. 2016, rescaled so that the expectation stays.

    Args:
        rows: leading axes whose elements are dropped on their own: 1 drops clips, 2 their times.
    """
    keep = jax.random.bernoulli(key, 1 - rate, x.shape[:rows] + (1,) * (x.ndim - rows))
    return jnp.where(keep, x / (1 - rate), 0).astype(x.dtype)


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
    def __call__(self, x: Float[Array, "*batch tokens width"], *, train: bool) -> Float[Array, "*batch tokens width"]:
        dense = functools.partial(
            nn.Dense,
            dtype=self.dtype,
            kernel_init=nn.initializers.xavier_uniform(),
            bias_init=nn.initializers.normal(1e-6),
        )
        dropout = nn.Dropout(self.dropout_rate, deterministic=not train)
        hidden = dropout(
            ACTIVATIONS[self.activation](constrain_activations(dense(self.mlp_dim, name="hidden")(x), HEADS))
        )
        return dropout(dense(x.shape[-1], name="out")(hidden))


class EncoderBlock(nn.Module):
    """Pre-norm block: x + attention(norm(x)) for each layout in turn, then x + mlp(norm(x)) (ViViT, eq. 2 and 3).

    With several layouts prefix tokens take part in the last attention only (TimeSformer, section 3). `chunks` of time,
    where there are several, are an axis after the batch's (`vitx.layers.partition`).

    Attributes:
        num_heads: attention heads.
        mlp_dim: width of the MLP's hidden layer.
        layouts: which tokens attend to which, one attention after the other.
        dropout_rate: after attention and in the MLP.
        layer_norm_eps: added to the variance.
        activation: of the MLP.
        qkv_bias: whether query, key and value have a bias.
        zero_init: whether every attention but the last starts as nothing: its last projection is zero.
        projected: whether a dense layer follows every attention but the last (TimeSformer's temporal_fc).
        dtype: computations' type; parameters are float32.
    """

    num_heads: int
    mlp_dim: int
    layouts: tuple[str, ...] = ("joint",)
    dropout_rate: float = 0.0
    layer_norm_eps: float = 1e-6
    activation: Activation = "gelu_tanh"
    qkv_bias: bool = True
    zero_init: bool = False
    projected: bool = False
    dtype: DType = "float32"

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "*batch tokens width"],
        *,
        grid: Grid,
        prefix: int = 0,
        chunks: int = 1,
        train: bool,
        drop_path_rate: float | Float[Array, ""] = 0.0,
    ) -> Float[Array, "*batch tokens width"]:
        norm = functools.partial(nn.LayerNorm, epsilon=self.layer_norm_eps, dtype=self.dtype)

        def drop_path(branch: Float[Array, "*batch _ width"]) -> Float[Array, "*batch _ width"]:
            if not train or (isinstance(drop_path_rate, float) and drop_path_rate == 0):
                return branch
            rows = x.ndim - 2 if chunks == 1 else 1  # chunks are of one clip
            return stochastic_depth(branch, drop_path_rate, self.make_rng("drop_path"), rows)

        for layout in self.layouts:
            last = layout == self.layouts[-1]
            name = "attention" if len(self.layouts) == 1 else f"{layout}_attention"
            split = 0 if last else prefix
            ahead, tokens = x[..., :split, :], x[..., split:, :]
            attention = SelfAttention(
                num_heads=self.num_heads,
                layout=layout,
                qkv_bias=self.qkv_bias,
                zero_init=self.zero_init and not self.projected and not last,
                dtype=self.dtype,
                name=name,
            )
            seen = {"grid": grid, "prefix": prefix - split, "chunks": chunks}
            branch = attention(norm(name=f"{name}_norm")(tokens), **seen)
            branch = drop_path(nn.Dropout(self.dropout_rate, deterministic=not train)(branch))
            if self.projected and not last:
                kernel_init = nn.initializers.zeros if self.zero_init else nn.initializers.xavier_uniform()
                branch = nn.Dense(x.shape[-1], dtype=self.dtype, kernel_init=kernel_init, name=f"{layout}_dense")(
                    branch
                )
            x = constrain_activations(jnp.concatenate([ahead, tokens + branch], axis=-2))

        mlp = MlpBlock(self.mlp_dim, self.activation, self.dropout_rate, self.dtype, name="mlp")
        return constrain_activations(x + drop_path(mlp(norm(name="mlp_norm")(x), train=train)))


class Encoder(nn.Module):
    """A stack of encoder blocks and a final layer norm.

    Parameters are always those of the blocks one by one, block_0, block_1, ...; to scan over the blocks they are
    stacked on the way, so that optimisers, checkpoints and averages never see the stack.

    Attributes:
        num_layers: number of blocks.
        block: what every block is like.
        drop_path_rate: stochastic depth of the last block, growing linearly from 0.
        scan_layers: whether the blocks are compiled once and looped over, instead of one after the other.
        rematerialise: what backward passes compute again instead of keeping: a name in `REMATERIALISATION`.
    """

    num_layers: int
    block: EncoderBlock
    drop_path_rate: float = 0.0
    scan_layers: bool = False
    rematerialise: str | None = None

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "*batch tokens width"],
        *,
        grid: Grid,
        prefix: int = 0,
        train: bool,
        before_norm: Callable[[Array], Array] = lambda x: x,
    ) -> Float[Array, "*_ width"]:
        """`before_norm` is applied between the last block and the final norm.

        Where the times of clips are apart, [batch, times, tokens, width], each is dropped on its own by stochastic
        depth.
        """
        recording = self.is_mutable_collection("intermediates")
        rates = [self.drop_path_rate * i / max(self.num_layers - 1, 1) for i in range(self.num_layers)]
        chunks = 1 if recording else num_time_chunks([LAYOUTS[name] for name in self.block.layouts], x)
        if chunks > 1:
            x, grid = split_time(x, chunks, prefix), (grid[0] // chunks, *grid[1:])
        x = constrain_activations(x)
        arguments = {"grid": grid, "prefix": prefix, "chunks": chunks, "train": train}
        # one by one where parameters are made, or attention is recorded for each block
        if self.scan_layers and not self.is_initializing() and not recording:
            x = self._scanned(x, rates, arguments)
        else:
            for i, rate in enumerate(rates):
                block = self.block.copy(name=f"block_{i}")
                run = functools.partial(EncoderBlock.__call__, drop_path_rate=rate, **arguments)
                if self.rematerialise is not None:
                    run = nn.remat(run, policy=REMATERIALISATION[self.rematerialise])
                x = run(block, x)
        x = merge_time(x, prefix) if chunks > 1 else x
        return nn.LayerNorm(epsilon=self.block.layer_norm_eps, dtype=self.block.dtype, name="norm")(before_norm(x))

    def _scanned(self, x: Array, rates: list[float], arguments: dict[str, Any]) -> Array:
        blocks = [self.variables["params"][f"block_{i}"] for i in range(self.num_layers)]
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *blocks)
        rngs = ("dropout", "drop_path") if arguments["train"] else ()
        keys = {name: jax.random.split(self.make_rng(name), self.num_layers) for name in rngs if self.has_rng(name)}
        block = self.block.clone(parent=None, name=None)

        def body(x: Array, layer: tuple[Any, Any, Any]) -> tuple[Array, None]:
            params, rate, rngs = layer
            rate = rate if self.drop_path_rate else 0.0
            return block.apply({"params": params}, x, rngs=rngs, drop_path_rate=rate, **arguments), None

        if self.rematerialise is not None:
            body = jax.checkpoint(body, policy=REMATERIALISATION[self.rematerialise], prevent_cse=False)
        x, _ = jax.lax.scan(body, x, (stacked, jnp.asarray(rates), keys))
        return x
