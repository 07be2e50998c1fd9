"""3D convolution, the unit of convolution and normalisation that CNNs consist of, and pooling.

In shapes: b batch, t h w the video or the kernel, c channels in (of a group, in a kernel), o channels out.
"""

import functools
from collections.abc import Callable
from typing import Literal

import jax.numpy as jnp
from flax import linen as nn
from jax import lax
from jaxtyping import Array, Float

from vitx.layers.convolution_cpu import convolve_2d_as_product, convolve_on_cpu
from vitx.layers.normalization import BatchNorm
from vitx.layers.types import DType, Triple, promote_to_float32

Video = Float[Array, "b t h w c"]
Implementation = Literal["auto", "reference", "cpu"]


def convolve(
    x: Video, kernel: Float[Array, "kt kh kw ci o"], stride: Triple, padding: Triple, groups: int
) -> Float[Array, "b to ho wo o"]:
    """Convolves by XLA's own operation: right for GPU and TPU, and the one that cost is counted on."""
    return lax.conv_general_dilated(
        x,
        kernel,
        stride,
        [(p, p) for p in padding],
        dimension_numbers=("NDHWC", "DHWIO", "NDHWC"),
        feature_group_count=groups,
    )


IMPLEMENTATIONS: dict[str, Callable[..., Array]] = {"auto": convolve, "reference": convolve, "cpu": convolve_on_cpu}
# Implementations for `nn.Conv` over the maps of one frame.
IMPLEMENTATIONS_2D: dict[str, Callable[..., Array]] = {
    "auto": lax.conv_general_dilated,
    "reference": lax.conv_general_dilated,
    "cpu": convolve_2d_as_product,
}


class Convolution(nn.Module):
    """A 3D convolution without bias, padded with zeros by half of the kernel on every side, as PyTorch pads.

    Kernels are initialised as in He et al. 2015 (arXiv:1502.01852, eq. 14, over the outputs).

    Attributes:
        width: output channels.
        kernel_size: (t, h, w).
        stride: (t, h, w).
        groups: number of groups of channels; as many as channels is a depthwise convolution.
        implementation: "reference" is XLA's own operation, "cpu" computes the same faster there, and "auto" stands for
            the one that `vitx.models.resolve_implementation` chooses, or XLA's own.
        dtype: type of the computations; parameters are float32.
    """

    width: int
    kernel_size: Triple = (1, 1, 1)
    stride: Triple = (1, 1, 1)
    groups: int = 1
    implementation: Implementation = "reference"
    dtype: DType = "float32"

    @nn.compact
    def __call__(self, x: Video) -> Float[Array, "b to ho wo o"]:
        shape = (*self.kernel_size, x.shape[-1] // self.groups, self.width)
        he = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
        kernel = self.param("kernel", he, shape, jnp.float32)
        x, kernel = nn.dtypes.promote_dtype(x, kernel, dtype=self.dtype)
        padding = tuple(size // 2 for size in self.kernel_size)
        return IMPLEMENTATIONS[self.implementation](x, kernel, self.stride, padding, self.groups)


class ConvolutionUnit(nn.Module):
    """Convolution, batch normalisation and, by default, a rectifier.

    A model creates one unit with the settings that all its units share, and `copy`s it with the settings of each.

    Attributes:
        width: output channels.
        kernel_size: (t, h, w).
        stride: (t, h, w).
        groups: number of groups of channels.
        relu: whether a rectifier follows.
        eps: added to the variance by the normalisation.
        momentum: weight of the batch's statistics in the new running ones.
        zero_init: whether the normalisation's scale starts at zero.
        norm_groups: number of parts of the batch with statistics of their own.
        implementation: implementation of the convolution.
        dtype: type of the computations; parameters are float32.
    """

    width: int = 64
    kernel_size: Triple = (1, 1, 1)
    stride: Triple = (1, 1, 1)
    groups: int = 1
    relu: bool = True
    eps: float = 1e-5
    momentum: float = 0.1
    zero_init: bool = False
    norm_groups: int = 1
    implementation: Implementation = "reference"
    dtype: DType = "float32"

    @nn.compact
    def __call__(self, x: Video, *, train: bool) -> Float[Array, "b to ho wo o"]:
        settings = (self.width, self.kernel_size, self.stride, self.groups, self.implementation, self.dtype)
        x = Convolution(*settings, name="conv")(x)
        x = BatchNorm(self.eps, self.momentum, self.zero_init, self.norm_groups, name="norm")(x, train=train)
        return nn.relu(x) if self.relu else x


def max_pool(x: Video, window: Triple, stride: Triple, *, padded: bool = True) -> Float[Array, "b to ho wo c"]:
    """Returns the largest values of windows, padded by half of a window on every side or not at all.

    Elementwise maxima along one axis after the other instead of XLA's windowed reduction, whose gradient takes several
    times as long on a CPU (JAX 0.10.2, 2026-11). Of equal values the first one gets the gradient, as there.

    Raises:
        ValueError: a window is larger than the padded maps.
    """
    for axis in (3, 2, 1):  # the last axis first, so that "first" is in the order of memory
        size, step = window[axis - 1], stride[axis - 1]
        sides = [(0, 0, 0)] * x.ndim
        sides[axis] = (size // 2, size // 2, 0) if padded else (0, 0, 0)
        x = lax.pad(x, jnp.array(-jnp.inf, x.dtype), sides)
        if x.shape[axis] < size:
            raise ValueError(f"maps of {x.shape[1:4]} are smaller than windows of {window}; expected larger clips")
        end = (x.shape[axis] - size) // step * step + 1
        x = functools.reduce(_first_largest, (lax.slice_in_dim(x, i, i + end, step, axis) for i in range(size)))
    return x


def _first_largest(first: Array, second: Array) -> Array:
    """Returns the elementwise maximum, NaN where one is; its gradient goes to the first of two equal values."""
    return jnp.where((second > first) | jnp.isnan(second), second, first)


def average_windows(x: Video, window: Triple | None) -> Float[Array, "b to ho wo c"]:
    """Returns averages, in float32 at least, of a window that slides by one.

    Args:
        x: feature maps.
        window: (t, h, w), cut to the size of the maps; None averages whole maps.
    """
    size = x.shape[1:4]
    t, h, w = size if window is None else map(min, window, size)
    return nn.avg_pool(promote_to_float32(x), (t, h, w), (1, 1, 1))
