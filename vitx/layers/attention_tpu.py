"""Attention for TPUs: splash attention, JAX's Pallas kernel, which never stores a matrix of scores.

A mesh divides batch and heads outside, in `vitx.layers.partition.attend`: a Pallas kernel computes on one device.

In shapes: b batch, q queries, k keys, d size of a head.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array

from vitx.layers.attention_kernel import Bias, Kernel, Keys, Mask, Queries

DTYPES = ("bfloat16", "float32")
# Block sizes of queries and of keys: multiples of the 128 lanes of a register. Larger blocks read keys less often,
# smaller ones pad less. BLOCKS and MIN_KEYS are judgements, not measured: XLA is good at the 196 tokens of a frame and
# at lines of time.
BLOCKS = (512, 384, 256)
MIN_KEYS = 1024


def attend_by_splash(q: Queries, k: Keys, v: Keys, *, mask: Mask = None, interpret: bool = False) -> Queries:
    """Computes softmax(q kᵀ / sqrt(d)) v by splash attention.

    Args:
        q: queries; padded to a multiple of the block.
        k: keys, padded likewise; the padding is masked.
        v: values.
        mask: True for the keys that all queries attend to; broadcasts to [b, 1, 1, k]. Every clip needs such a key.
        interpret: whether the kernel is interpreted, which any device can do, slowly.
    """
    (batch, queries, heads, head_dim), keys = q.shape, k.shape[1]
    q_block, k_block = choose_block(queries), choose_block(keys)
    valid = jnp.ones((batch, keys), bool) if mask is None else _to_valid_keys(mask, batch, keys)
    q = _to_heads_first((q * head_dim**-0.5).astype(q.dtype), q_block)
    k, v = (_to_heads_first(x, k_block) for x in (k, v))
    # queries attend within their segment, 0; keys that are padding or masked are in another
    segments = jnp.where(_pad(valid, k_block), 0, 1)
    kernel = _build_kernel(heads, q.shape[2], k.shape[2], q_block, k_block, interpret)
    out = jax.vmap(kernel)(q, k, v, segments)
    return out.swapaxes(1, 2)[:, :queries]


def choose_block(tokens: int) -> int:
    """Returns the block with the least padding, of several the largest."""
    return min(BLOCKS, key=lambda block: -tokens % block)


def find_obstacle(q: Queries, k: Keys, *, bias: Bias = None, mask: Mask = None) -> str | None:
    """Returns why splash attention cannot compute this attention, or None if it can."""
    if q.dtype.name not in DTYPES:
        return f"found dtype {q.dtype.name}; expected {' or '.join(DTYPES)}; set the model's dtype to bfloat16"
    if bias is not None:
        return "found a bias from the layout; expected none"
    if mask is not None and math.prod(mask.shape[-3:-1]) != 1:
        return f"found a mask {list(mask.shape)} from the layout; expected one for keys alone, [batch, 1, 1, keys]"
    return None


def supports(device: jax.Device) -> bool:
    """Returns whether a device is a TPU."""
    return device.platform == "tpu"


def _build_kernel(
    heads: int, queries: int, keys: int, q_block: int, k_block: int, interpret: bool
) -> Callable[..., Array]:
    """Returns the kernel of one clip: (q [heads, q, d], k, v, segments of the keys [k]) -> [heads, q, d]."""
    # imported here, since Pallas takes long to import and no other device needs it
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    # the fused backward kernel would store gradients of the queries once for each block of keys
    blocks = splash.BlockSizes(
        **dict.fromkeys(("block_q", "block_q_dkv", "block_q_dq"), q_block),
        **dict.fromkeys(("block_kv", "block_kv_compute", "block_kv_dkv", "block_kv_dkv_compute"), k_block),
        block_kv_dq=k_block,
    )
    mask = masks.MultiHeadMask([masks.FullMask((queries, keys))] * heads)
    kernel = splash.make_splash_mha_single_device(mask, block_sizes=blocks, interpret=interpret)

    def attend(q: Array, k: Array, v: Array, segments: Array) -> Array:
        return kernel(q, k, v, segment_ids=splash.SegmentIds(q=jnp.zeros(queries, jnp.int32), kv=segments))

    return attend


def _to_valid_keys(mask: Array, batch: int, keys: int) -> Array:
    return jnp.broadcast_to(mask.reshape(-1, mask.shape[-1]), (batch, keys))


def _pad(x: Array, block: int) -> Array:
    """Pads the tokens, the second axis, to a multiple of the block."""
    return jnp.pad(x, ((0, 0), (0, -x.shape[1] % block), *((0, 0),) * (x.ndim - 2)))


def _to_heads_first(x: Array, block: int) -> Array:
    return _pad(x, block).swapaxes(1, 2)


SPLASH = Kernel("splash attention", attend_by_splash, find_obstacle, MIN_KEYS, falls_back="tpu")
