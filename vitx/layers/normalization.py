"""Batch normalisation, with gradients written by hand.

XLA's CPU backend computes the gradients that JAX derives in more passes over memory
(experiments/benchmarks/normalization.md). There is no forward mode: `jax.grad` and `jax.vjp` differentiate, `jax.jvp`
and `jax.jacfwd` raise.

In shapes: b batch, n values of a channel, c channels.
"""

import functools

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax
from jaxtyping import Array, Float

from vitx.layers.types import promote_to_float32

Channels = Float[Array, " c"]


class BatchNorm(nn.Module):
    """Batch normalisation (Ioffe & Szegedy 2015, arXiv:1502.03167, algorithm 1) as PyTorch computes it.

    Statistics are those of the global batch, over all axes but channels, in float32 at least. In training the running
    statistics move by `momentum` towards those of the batch, with the unbiased variance; evaluation normalises by the
    running ones. They are `mean` and `var` in the collection `batch_stats`, which no optimiser sees. If the collection
    `moments` is mutable, it receives the mean and the biased variance of the batch, for precise batch normalisation.

    Attributes:
        eps: added to the variance.
        momentum: weight of the batch's statistics in the new running ones.
        zero_init: whether the scale starts at zero, so that the branch that ends here starts as the identity.
        groups: number of equal parts of the batch, in order, each normalised by its own statistics, as recipes with
            statistics per device have it; the running statistics move towards the parts' average.
    """

    eps: float = 1e-5
    momentum: float = 0.1
    zero_init: bool = False
    groups: int = 1

    @nn.compact
    def __call__(self, x: Float[Array, "*b c"], *, train: bool) -> Float[Array, "*b c"]:
        channels = x.shape[-1:]
        scale_init = nn.initializers.zeros if self.zero_init else nn.initializers.ones
        scale = self.param("scale", scale_init, channels, jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, channels, jnp.float32)
        if not self.has_variable("batch_stats", "mean") and not self.is_mutable_collection("batch_stats"):
            raise ValueError(
                'found no statistics of batch normalisation; apply expects all that init returned, {"params": ..., '
                '"batch_stats": ...}, not the parameters alone'
            )
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, channels, jnp.float32)
        running_var = self.variable("batch_stats", "var", jnp.ones, channels, jnp.float32)
        values, scale, bias = nn.dtypes.promote_dtype(promote_to_float32(x), scale, bias)
        if not train:
            normalised = (values - running_mean.value) * (scale * lax.rsqrt(running_var.value + self.eps)) + bias
            return normalised.astype(x.dtype)
        if len(x) % self.groups:
            raise ValueError(
                f"found a batch of {len(x)}; expected a multiple of the {self.groups} groups of normalisation"
            )
        count = x.size // x.shape[-1] // self.groups
        if count == 1:
            raise ValueError(
                "found one value for each channel, of which batch normalisation cannot take statistics; train "
                "with more or larger clips"
            )
        if self.groups == 1:
            # without an axis of groups, with which gradients take three times as long on a CPU
            normalised, mean, var = normalize_batch(values, scale, bias, self.eps)
        else:
            normalize = jax.vmap(lambda x: normalize_batch(x, scale, bias, self.eps))
            normalised, mean, var = normalize(values.reshape(self.groups, -1, *x.shape[1:]))
        mean, var = (statistic.reshape(self.groups, -1) for statistic in (mean, var))
        if not self.is_initializing():
            batch_mean, batch_var = mean.mean(axis=0), var.mean(axis=0)
            running_mean.value += self.momentum * (batch_mean - running_mean.value)
            running_var.value += self.momentum * (batch_var * count / (count - 1) - running_var.value)
            newest = {"init_fn": lambda: None, "reduce_fn": lambda _, new: new}
            self.sow("moments", "mean", batch_mean, **newest)
            # variance of the whole batch: within groups and between their means
            self.sow("moments", "var", batch_var + mean.var(axis=0), **newest)
        return normalised.reshape(x.shape).astype(x.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def normalize_batch(
    x: Float[Array, "*b c"], scale: Channels, bias: Channels, eps: float
) -> tuple[Float[Array, "*b c"], Channels, Channels]:
    """Returns ((x - mean) / sqrt(variance + eps) * scale + bias, mean, variance), with statistics of all axes but c.

    All arguments have one type. Inside `jax.shard_map` all vary over the same axes of the mesh.
    """
    return _batch_forward(x, scale, bias, eps)[0]


def _batch_forward(
    x: Array, scale: Channels, bias: Channels, eps: float
) -> tuple[tuple[Array, Channels, Channels], tuple[Array, ...]]:
    count = x.size // x.shape[-1]
    mean = _sum_over_batch(x) / count
    var = _sum_over_batch(jnp.square(_merge_batch(x) - mean)) / count
    inverse = lax.rsqrt(var + eps)
    return ((x - mean) * (inverse * scale) + bias, mean, var), (x, scale, mean, inverse)


def _batch_backward(
    eps: float, saved: tuple[Array, ...], gradients: tuple[Array, Channels, Channels]
) -> tuple[Array, Channels, Channels]:
    x, scale, mean, inverse = saved
    gradient, mean_gradient, var_gradient = gradients
    count = x.size // x.shape[-1]
    scale_gradient = _sum_over_batch(_merge_batch(gradient) * (_merge_batch(x) - mean)) * inverse
    bias_gradient = _sum_over_batch(gradient)
    factor = scale * inverse
    # each value also changes the mean and the variance
    mean_term = (mean_gradient - factor * bias_gradient) / count
    var_term = (2 * var_gradient - factor * inverse * scale_gradient) / count
    return factor * gradient + (x - mean) * var_term + mean_term, scale_gradient, bias_gradient


normalize_batch.defvjp(_batch_forward, _batch_backward)


def _merge_batch(x: Float[Array, "*b c"]) -> Float[Array, "*n c"]:
    """Returns the values as a matrix, whose sums XLA computes faster on a CPU, and fuses with what only they read.

    On several devices the array stays as it is: axes that a mesh divides would be gathered to be merged.
    """
    return x if jax.sharding.get_abstract_mesh().size > 1 else x.reshape(-1, x.shape[-1])


def _sum_over_batch(x: Float[Array, "*b c"]) -> Channels:
    x = _merge_batch(x)
    return x.sum(axis=tuple(range(x.ndim - 1)))
