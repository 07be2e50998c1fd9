"""The pre-norm Transformer encoder: MLP, stochastic depth, block and stack.

In shapes: b batch, n tokens, d width.
"""

import functools
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from vitx.layers.attention import AttentionImplementation, SelfAttention
from vitx.layers.layouts import LAYOUTS, Grid
from vitx.layers.partition import HEADS, constrain_activations, merge_time, num_time_chunks, split_time
from vitx.layers.reducers import BlockContext, Carry, Reducer
from vitx.layers.types import DType

Tokens = Float[Array, "*b n d"]
Rate = float | Float[Array, ""]
Activation = Literal["gelu_tanh", "gelu"]
ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "gelu_tanh": functools.partial(jax.nn.gelu, approximate=True),
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
}

RematPolicy = Literal["nothing_saveable", "dots_saveable", "dots_with_no_batch_dims_saveable"]


def stochastic_depth(x: Tokens, rate: Rate, key: Array, *, per_frame: bool = False) -> Tokens:
    """Drops residual branches at random and rescales the others (Huang et al. 2016).

    Args:
        x: branch output, [batch, tokens, width], or [batch, frames, tokens, width].
        rate: probability of dropping a branch, in [0, 1).
        key: PRNG key.
        per_frame: drop the branch of each frame independently; by default that of a whole clip.

    Returns:
        An array like `x`. Branches that stay are divided by 1 - rate, so the expectation is unchanged.
    """
    independent = x.ndim - 2 if per_frame else 1
    keep = jax.random.bernoulli(key, 1 - rate, x.shape[:independent] + (1,) * (x.ndim - independent))
    return jnp.where(keep, x / (1 - rate), 0).astype(x.dtype)


class MlpBlock(nn.Module):
    """Two dense layers with an activation between.

    Attributes:
        mlp_dim: width of the hidden layer.
        activation: name in `ACTIVATIONS`.
        dropout_rate: probability of dropout after each layer.
        dtype: type of the computations; parameters are float32.
    """

    mlp_dim: int
    activation: Activation = "gelu_tanh"
    dropout_rate: float = 0.0
    dtype: DType = "float32"

    @nn.compact
    def __call__(self, x: Tokens, *, train: bool) -> Tokens:
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

    With several layouts, prefix tokens take part in the last attention only (TimeSformer, section 3). Several chunks
    of time are an axis after the batch's (`vitx.layers.partition`).

    Attributes:
        num_heads: attention heads.
        mlp_dim: width of the MLP's hidden layer.
        layouts: names of the layouts, one attention for each.
        dropout_rate: probability of dropout after attention and in the MLP.
        layer_norm_eps: added to the variance.
        activation: activation of the MLP; a name in `ACTIVATIONS`.
        qkv_bias: whether query, key and value have a bias.
        key_bias: whether the key has a bias too, if query and value have one.
        zero_init: whether the residual branch of every attention but the block's last starts at zero, by its dense
            layer if `projected`, otherwise by its output projection.
        projected: whether a dense layer follows every attention but the last (TimeSformer's temporal_fc).
        implementation: implementation of attention, see `SelfAttention`.
        dtype: type of the computations; parameters are float32.
    """

    num_heads: int
    mlp_dim: int
    layouts: tuple[str, ...] = ("joint",)
    dropout_rate: float = 0.0
    layer_norm_eps: float = 1e-6
    activation: Activation = "gelu_tanh"
    qkv_bias: bool = True
    key_bias: bool = True
    zero_init: bool = False
    projected: bool = False
    implementation: AttentionImplementation = "reference"
    dtype: DType = "float32"

    def __call__(
        self,
        x: Tokens,
        *,
        grid: Grid,
        num_prefix: int = 0,
        num_chunks: int = 1,
        train: bool,
        drop_path_rate: Rate = 0.0,
    ) -> Tokens:
        """Returns the tokens after the block."""
        options = {
            "grid": grid,
            "num_prefix": num_prefix,
            "num_chunks": num_chunks,
            "train": train,
            "drop_path_rate": drop_path_rate,
        }
        return self.forward_with_carry(x, **options)[0]

    @nn.compact
    def forward_with_carry(
        self,
        x: Tokens,
        carry: Carry = None,
        *,
        grid: Grid,
        num_prefix: int = 0,
        num_chunks: int = 1,
        train: bool,
        drop_path_rate: Rate = 0.0,
        reducer: Reducer | None = None,
        context: BlockContext | None = None,
    ) -> tuple[Float[Array, "*b _ d"], Carry]:
        """Returns (tokens after the block, carry); a reducer may leave fewer tokens.

        Args:
            x: the tokens; several chunks of time are an axis after the batch's.
            carry: what the reducer remembers from earlier blocks.
            grid: (t, h, w) of the tokens, of one chunk if there are several.
            num_prefix: number of prefix tokens.
            num_chunks: number of chunks of time into which a mesh divides a clip.
            train: whether dropout and stochastic depth apply.
            drop_path_rate: probability of dropping a branch.
            reducer: acts between the last attention and the MLP; None keeps all tokens.
            context: block and encoder that the reducer acts in.
        """
        norm = functools.partial(nn.LayerNorm, epsilon=self.layer_norm_eps, dtype=self.dtype)

        def drop_path(branch: Float[Array, "*b _ d"]) -> Float[Array, "*b _ d"]:
            if not train or (isinstance(drop_path_rate, float) and drop_path_rate == 0):
                return branch
            per_frame = x.ndim == 4 and num_chunks == 1  # chunks of time belong to one clip
            return stochastic_depth(branch, drop_path_rate, self.make_rng("drop_path"), per_frame=per_frame)

        bias = None if reducer is None else reducer.attention_bias(carry)
        for layout in self.layouts:
            is_last = layout == self.layouts[-1]
            name = "attention" if len(self.layouts) == 1 else f"{layout}_attention"
            num_skipped = 0 if is_last else num_prefix
            skipped, tokens = x[..., :num_skipped, :], x[..., num_skipped:, :]
            attention = SelfAttention(
                self.num_heads,
                layout,
                self.qkv_bias,
                self.key_bias,
                zero_init=self.zero_init and not self.projected and not is_last,
                implementation=self.implementation,
                dtype=self.dtype,
                name=name,
            )
            normalised = norm(name=f"{name}_norm")(tokens)
            options = {
                "num_prefix": num_prefix - num_skipped,
                "bias": None if bias is None else bias[..., num_skipped:],
            }
            branch, keys = attention.attend_with_keys(normalised, grid=grid, num_chunks=num_chunks, **options)
            branch = drop_path(nn.Dropout(self.dropout_rate, deterministic=not train)(branch))
            if self.projected and not is_last:
                # After stochastic depth, as in the authors' code: a dropped branch leaves the projection's bias.
                kernel_init = nn.initializers.zeros if self.zero_init else nn.initializers.xavier_uniform()
                project = nn.Dense(x.shape[-1], dtype=self.dtype, kernel_init=kernel_init, name=f"{layout}_dense")
                branch = project(branch)
            x = constrain_activations(jnp.concatenate([skipped, tokens + branch], axis=-2))

        if reducer is not None:
            x, carry = reducer.in_block(x, carry, keys, context)
        mlp = MlpBlock(self.mlp_dim, self.activation, self.dropout_rate, self.dtype, name="mlp")
        return constrain_activations(x + drop_path(mlp(norm(name="mlp_norm")(x), train=train))), carry


class Encoder(nn.Module):
    """A stack of encoder blocks and, by default, a final layer norm.

    Parameters are listed by block: block_0, block_1, ... Scanning stacks them inside the call only, so optimisers,
    checkpoints and averages never see the stack.

    Attributes:
        num_layers: number of blocks.
        block: settings of every block.
        drop_path_rate: stochastic depth of the last block, growing linearly from 0.
        scan_layers: whether the blocks are compiled once and looped over, instead of one by one.
        remat_policy: name of the policy in `jax.checkpoint_policies` for what the backward pass keeps; None keeps
            everything.
        final_norm: whether a layer norm follows the last block.
        reducer: what leaves out or merges tokens on the way; None keeps all.
    """

    num_layers: int
    block: EncoderBlock
    drop_path_rate: float = 0.0
    scan_layers: bool = False
    remat_policy: RematPolicy | None = None
    final_norm: bool = True
    reducer: Reducer | None = None

    @nn.compact
    def __call__(
        self,
        x: Tokens,
        *,
        grid: Grid,
        num_prefix: int = 0,
        train: bool,
        before_norm: Callable[[Array], Array] = lambda x: x,
        carry: Carry = None,
    ) -> Float[Array, "*_ d"]:
        """Returns the tokens after all blocks and the final norm, if there is one.

        Args:
            x: [batch, tokens, width], or [batch, times, tokens, width] if every time index is encoded alone;
                stochastic depth then drops each time index independently.
            grid: (t, h, w) of the tokens that attend to one another.
            num_prefix: number of prefix tokens.
            train: whether dropout and stochastic depth apply.
            before_norm: applied after the last block, before the final norm.
            carry: what the reducer has observed of the clip.
        """
        records_attention = self.is_mutable_collection("intermediates")
        rates = [self.drop_path_rate * i / max(self.num_layers - 1, 1) for i in range(self.num_layers)]
        needs_whole_clip = records_attention or self.reducer is not None
        num_chunks = 1 if needs_whole_clip else num_time_chunks([LAYOUTS[name] for name in self.block.layouts], x)
        if num_chunks > 1:
            x, grid = split_time(x, num_chunks, num_prefix), (grid[0] // num_chunks, *grid[1:])
        x = constrain_activations(x)
        arguments = {"grid": grid, "num_prefix": num_prefix, "num_chunks": num_chunks, "train": train}
        if self.reducer is not None:
            x = self._run_blocks_with_reducer(x, carry, rates, arguments)
        # A scan neither creates the parameters of single blocks nor sows their attention.
        elif self.scan_layers and not self.is_initializing() and not records_attention:
            x = self._scan_blocks(x, rates, arguments)
        else:
            for i, rate in enumerate(rates):
                block = self.block.copy(name=f"block_{i}")
                x = self._remat(functools.partial(EncoderBlock.__call__, drop_path_rate=rate, **arguments))(block, x)
        x = merge_time(x, num_prefix) if num_chunks > 1 else x
        x = before_norm(x)
        if not self.final_norm:
            return x
        return nn.LayerNorm(epsilon=self.block.layer_norm_eps, dtype=self.block.dtype, name="norm")(x)

    @nn.nowrap
    def _remat(self, run: Callable[..., Any]) -> Callable[..., Any]:
        if self.remat_policy is None:
            return run
        return nn.remat(run, policy=getattr(jax.checkpoint_policies, self.remat_policy))

    @nn.nowrap  # the reducer's modules are created here, in the scope of `__call__`
    def _run_blocks_with_reducer(self, x: Array, carry: Carry, rates: list[float], arguments: dict[str, Any]) -> Array:
        reducer, shape = self.reducer, {name: arguments[name] for name in ("grid", "num_prefix", "train")}
        for i, rate in enumerate(rates):
            context = BlockContext(i, self.num_layers, **shape)
            x, carry = reducer.before_block(x, carry, context)
            settings = arguments | {"drop_path_rate": rate, "reducer": reducer, "context": context}
            run = self._remat(functools.partial(EncoderBlock.forward_with_carry, **settings))
            x, carry = run(self.block.copy(name=f"block_{i}"), x, carry)
        return reducer.restore(x, carry, BlockContext(self.num_layers, self.num_layers, **shape))

    def _scan_blocks(self, x: Array, rates: list[float], arguments: dict[str, Any]) -> Array:
        blocks = [self.variables["params"][f"block_{i}"] for i in range(self.num_layers)]
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *blocks)
        rngs = ("dropout", "drop_path") if arguments["train"] else ()
        keys = {name: jax.random.split(self.make_rng(name), self.num_layers) for name in rngs if self.has_rng(name)}
        block = self.block.clone(parent=None, name=None)

        def body(x: Array, layer: tuple[Any, Any, Any]) -> tuple[Array, None]:
            params, rate, rngs = layer
            rate = rate if self.drop_path_rate else 0.0  # a static zero draws no random numbers
            return block.apply({"params": params}, x, rngs=rngs, drop_path_rate=rate, **arguments), None

        if self.remat_policy is not None:
            # a scan needs no barrier against common-subexpression elimination, which would only cost time
            policy = getattr(jax.checkpoint_policies, self.remat_policy)
            body = jax.checkpoint(body, policy=policy, prevent_cse=False)
        x, _ = jax.lax.scan(body, x, (stacked, jnp.asarray(rates), keys))
        return x
