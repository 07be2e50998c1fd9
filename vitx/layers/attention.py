"""Scaled dot-product attention, its implementations by platform, and the module that projects tokens for it.

In shapes: b batch, n tokens, q queries, k keys, d size of a token or of a head, e of a head's values.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from vitx.errors import UserError
from vitx.layers import attention_cpu, attention_gpu, attention_tpu
from vitx.layers.attention_kernel import Bias, Keys, Mask, Queries, log_once
from vitx.layers.layouts import LAYOUTS, Core, Grid
from vitx.layers.partition import attend, attend_locally
from vitx.layers.types import DType

AttentionImplementation = Literal["auto", "reference", "cpu", "gpu", "tpu", "cudnn", "splash"]


def attention_weights(q: Queries, k: Keys, *, bias: Bias = None, mask: Mask = None) -> Float[Array, "b heads q k"]:
    """Computes softmax(q kᵀ / sqrt(d) + bias), in float32 at least (Vaswani et al. 2017, eq. 1).

    Args:
        q: queries.
        k: keys.
        bias: added to the scores; broadcasts to the result's shape.
        mask: True where a query may attend; broadcasts to the result's shape.
    """
    dtype = jnp.promote_types(q.dtype, jnp.float32)
    scores = jnp.einsum("bqhd,bkhd->bhqk", q, k, preferred_element_type=dtype) * q.shape[-1] ** -0.5
    if bias is not None:
        scores += bias
    if mask is not None:
        # the smallest finite number: a row that is masked everywhere gets equal weights instead of NaN
        scores = jnp.where(mask, scores, jnp.finfo(scores.dtype).min)
    return jax.nn.softmax(scores)


def core(
    q: Queries, k: Keys, v: Float[Array, "b k heads e"], *, bias: Bias = None, mask: Mask = None
) -> Float[Array, "b q heads e"]:
    """Computes scaled dot-product attention, as every layout does inside. See `attention_weights` for the arguments."""
    return jnp.einsum("bhqk,bkhd->bqhd", attention_weights(q, k, bias=bias, mask=mask).astype(v.dtype), v)


def core_cpu(q: Queries, k: Keys, v: Keys, *, bias: Bias = None, mask: Mask = None) -> Queries:
    """Computes what `core` does, faster on CPUs.

    `core` itself computes very short sequences, those with a mask, and those with a bias unless it is one number for
    each key and the queries are float32; `attention_cpu.attend_on_cpu` computes the others.
    """
    num_scores = q.shape[1] * k.shape[1]
    is_key_bias = bias is not None and bias.shape[1:] == (1, 1, k.shape[1]) and q.dtype == jnp.float32
    can_use_blocks = mask is None and (bias is None or is_key_bias)
    if not can_use_blocks and num_scores >= attention_cpu.MIN_SCORES_WITH_GRADIENTS:
        found = f"a bias {list(bias.shape)} in {q.dtype.name}" if mask is None else "a mask"
        log_once(
            f"attention stores all its scores: found {found}; expected no mask, and a bias of one number for each key, "
            "in float32"
        )
    if not can_use_blocks or num_scores < attention_cpu.MIN_SCORES_AT_ONCE:
        return core(q, k, v, bias=bias, mask=mask)
    if bias is not None:
        q, k = attention_cpu.append_bias(q, k, bias)
    return attention_cpu.attend_on_cpu(q, k, v)


@dataclasses.dataclass(frozen=True)
class Implementation:
    """A way to compute attention; all compute the same.

    Attributes:
        core: the attention call.
        supports: whether a device can run it.
        needs: description of the devices that can run it.
        check_vma: whether `jax.shard_map` checks along which axes of the mesh results vary. JAX's Pallas kernels do not
            declare it (0.10 to 0.12).
    """

    core: Core
    supports: Callable[[jax.Device], bool] = lambda device: True
    needs: str = "any"
    check_vma: bool = True


_ON_GPU = {"supports": attention_gpu.supports, "needs": "an NVIDIA GPU of compute capability 8.0 or later"}
_ON_TPU = {"supports": attention_tpu.supports, "needs": "a TPU", "check_vma": False}
IMPLEMENTATIONS: dict[AttentionImplementation, Implementation] = {
    "auto": Implementation(core),
    "reference": Implementation(core),
    "cpu": Implementation(core_cpu),
    "gpu": Implementation(attention_gpu.CUDNN.prefer(core), **_ON_GPU),
    "tpu": Implementation(attention_tpu.SPLASH.prefer(core), **_ON_TPU),
    "cudnn": Implementation(attention_gpu.CUDNN.force(), **_ON_GPU),
    "splash": Implementation(attention_tpu.SPLASH.force(), **_ON_TPU),
}


def choose_implementation(name: AttentionImplementation, device: jax.Device) -> AttentionImplementation:
    """Returns the implementation for a device: the one of its platform for "auto", otherwise `name`.

    A line is logged where the platform has an implementation that this device cannot run.

    Raises:
        UserError: the device cannot run `name`.
    """
    if name == "auto":
        native = IMPLEMENTATIONS.get(device.platform)
        if native and native.supports(device):
            return device.platform
        if native:
            log_once(f"attention is computed by XLA: found the device {device.device_kind}; expected {native.needs}")
        return "reference"
    if not IMPLEMENTATIONS[name].supports(device):
        raise UserError(
            f"found the device {device.device_kind} (platform {device.platform}) with implementation {name!r}; "
            f"expected {IMPLEMENTATIONS[name].needs}; set implementation to 'auto'"
        )
    return name


class SelfAttention(nn.Module):
    """Multi-head self-attention of tokens on a (t, h, w) grid, each within the neighbourhood that a layout defines.

    The probabilities are sown under `intermediates/attention` when that collection is mutable. A layout's own
    parameters stand beside the four projections.

    Attributes:
        num_heads: attention heads; must divide the tokens' width.
        layout: name of the layout in `vitx.layers.layouts.LAYOUTS`.
        qkv_bias: whether the three input projections have a bias.
        key_bias: whether keys have a bias too, if queries and values have one. It adds the same number to all scores
            of a query, so it changes no output.
        zero_init: whether the output projection starts at zero, so that the branch around it starts as the identity.
        implementation: name in `IMPLEMENTATIONS`. "reference" is two products and a softmax. "cpu", "gpu" and "tpu"
            compute the same faster and in less memory on their platform, and fall back to the reference by themselves.
            "cudnn" and "splash" are the kernels of GPU and TPU, or an error. "auto" is replaced by
            `vitx.models.resolve_implementation`, and until then computes the reference.
        dtype: type of the computations; parameters are float32.
    """

    num_heads: int
    layout: str = "joint"
    qkv_bias: bool = True
    key_bias: bool = True
    zero_init: bool = False
    implementation: AttentionImplementation = "reference"
    dtype: DType = "float32"

    def __call__(
        self, x: Float[Array, "*b n d"], *, grid: Grid, num_prefix: int = 0, num_chunks: int = 1
    ) -> Float[Array, "*b n d"]:
        """Returns the tokens after attention; see `attend_with_keys` for the arguments."""
        return self.attend_with_keys(x, grid=grid, num_prefix=num_prefix, num_chunks=num_chunks)[0]

    @nn.compact
    def attend_with_keys(
        self, x: Float[Array, "*b n d"], *, grid: Grid, num_prefix: int = 0, num_chunks: int = 1, bias: Bias = None
    ) -> tuple[Float[Array, "*b n d"], Float[Array, "*b n heads _"]]:
        """Returns (tokens after attention, their keys).

        Args:
            x: the tokens; several chunks of time are an axis after the batch's.
            grid: (t, h, w) of the tokens, of one chunk if there are several.
            num_prefix: number of prefix tokens.
            num_chunks: number of chunks of time into which a mesh divides a clip (`vitx.layers.partition`).
            bias: added to the scores, [*b, 1, 1 or queries, keys]; for layouts in which all tokens attend to all.
        """
        width, layout = x.shape[-1], LAYOUTS[self.layout]
        head_dim = width // self.num_heads
        dense = functools.partial(nn.Dense, width, dtype=self.dtype)
        project = functools.partial(dense, kernel_init=nn.initializers.xavier_uniform())
        heads = (*x.shape[:-1], self.num_heads, head_dim)
        use_bias = {"query": self.qkv_bias, "key": self.qkv_bias and self.key_bias, "value": self.qkv_bias}
        qkv = [project(use_bias=flag, name=name)(x).reshape(heads) for name, flag in use_bias.items()]
        # The grid of the whole clip: parameters are the same however a mesh divides time.
        clip_grid = (grid[0] * num_chunks, *grid[1:])
        declared = layout.parameters(grid=clip_grid, num_prefix=num_prefix, num_heads=self.num_heads, head_dim=head_dim)
        parameters = {name: self.param(name, parameter.init, parameter.shape) for name, parameter in declared.items()}

        def attend_and_sow(q, k, v, *, bias=None, mask=None):
            self.sow("intermediates", "attention", attention_weights(q, k, bias=bias, mask=mask))
            return core(q, k, v, bias=bias, mask=mask)

        options = {"grid": grid, "num_prefix": num_prefix, "parameters": parameters, "bias": bias}
        if self.is_mutable_collection("intermediates"):
            # outside the mesh's shard_map, in which nothing can be sown
            out = attend_locally(layout, attend_and_sow, *qkv, **options)
        else:
            chosen = IMPLEMENTATIONS[self.implementation]
            out = attend(layout, chosen.core, *qkv, num_chunks=num_chunks, check_vma=chosen.check_vma, **options)
        kernel_init = nn.initializers.zeros if self.zero_init else nn.initializers.xavier_uniform()
        return dense(kernel_init=kernel_init, name="out")(out.reshape(x.shape)), qkv[1]
