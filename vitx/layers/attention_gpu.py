"""Attention for NVIDIA GPUs: cuDNN's flash attention, which never stores a matrix of scores.

In shapes: b batch, q queries, k keys, d size of a head.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array

from vitx.layers.attention_kernel import Bias, Kernel, Keys, Mask, Queries

DTYPES = ("bfloat16", "float16")
MAX_HEAD_DIM = 128  # supported on every GPU of cuDNN's attention; Hopper and later support 256
HEAD_DIM_MULTIPLE = 8
# A kernel's tile holds at least 64 keys, so a shorter sequence computes mostly padding. An estimate, not measured.
MIN_KEYS = 64
MIN_COMPUTE_CAPABILITY = 8.0


def attend_by_cudnn(q: Queries, k: Keys, v: Keys) -> Queries:
    """Computes softmax(q kᵀ / sqrt(d)) v by cuDNN."""
    # JAX 0.10 to 0.12 refuse gradients of an odd number of tokens, the usual one with a class token
    padded = [_pad_to_even(x) for x in (q, k, v)]
    lengths = {}
    if padded[0].shape != q.shape or padded[1].shape != k.shape:
        lengths = {
            "query_seq_lengths": jnp.full(len(q), q.shape[1], jnp.int32),
            "key_value_seq_lengths": jnp.full(len(k), k.shape[1], jnp.int32),
        }
    out = jax.nn.dot_product_attention(*padded, implementation="cudnn", **lengths)
    return out[:, : q.shape[1]]


def find_obstacle(q: Queries, k: Keys, *, bias: Bias = None, mask: Mask = None) -> str | None:
    """Returns why cuDNN cannot compute this attention, or None if it can."""
    head_dim = q.shape[-1]
    if q.dtype.name not in DTYPES:
        return f"found dtype {q.dtype.name}; expected {' or '.join(DTYPES)}; set the model's dtype to bfloat16"
    if head_dim > MAX_HEAD_DIM or head_dim % HEAD_DIM_MULTIPLE:
        return (
            f"found head size {head_dim}; expected a multiple of {HEAD_DIM_MULTIPLE} up to {MAX_HEAD_DIM}; change "
            "hidden_size or num_heads"
        )
    for name, option in (("bias", bias), ("mask", mask)):
        # cuDNN would need the whole array [b, heads, q, k], stored and differentiated, which the kernel avoids.
        if option is not None:
            return f"found a {name} from the layout; expected none"
    return None


def supports(device: jax.Device) -> bool:
    """Returns whether a device is a GPU whose cuDNN has flash attention: NVIDIA's Ampere or later."""
    capability = str(getattr(device, "compute_capability", ""))  # "9.0"; AMD's are names such as "gfx942"
    return device.platform == "gpu" and capability[:1].isdigit() and float(capability) >= MIN_COMPUTE_CAPABILITY


def _pad_to_even(x: Array) -> Array:
    return jnp.pad(x, ((0, 0), (0, x.shape[1] % 2), (0, 0), (0, 0)))


CUDNN = Kernel("cuDNN's flash attention", attend_by_cudnn, find_obstacle, MIN_KEYS, falls_back="gpu")
