"""Forms of convolution that XLA compiles well for CPUs, where its own 3D convolutions are several times slower.

`convolve_on_cpu` computes what `lax.conv_general_dilated` does, with the same gradients; the measurements are in
experiments/benchmarks/convolution.md (XLA of JAX 0.10.2, 2026-11).

In shapes: b batch, t h w the video or the kernel, c channels in (of a group, in a kernel), o channels out.
"""

import functools
import itertools
import math
import operator
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from vitx.layers.types import Triple, promote_to_float32
from vitx.layers.winograd import convolve_3x3

Video = Float[Array, "b t h w c"]
Form = Callable[[Array, Array, Triple, Triple], Array]

MIN_CHANNELS, MIN_PIXELS = 32, 256  # with fewer, the transforms of Winograd's algorithm cost more than they save


def convolve_on_cpu(
    x: Video, kernel: Float[Array, "kt kh kw ci o"], stride: Triple, padding: Triple, groups: int
) -> Float[Array, "b to ho wo o"]:
    """Convolves by the form that suits the kernel. Has no forward-mode derivatives.

    A depthwise kernel is multiplied by shifted videos, a kernel along time is a matrix product, one of 3x3 pixels goes
    by Winograd's algorithm where that pays, and any other is a sum of 2D convolutions. Half precision is computed as
    float32, since these forms add many terms.
    """
    dtype, x, kernel = x.dtype, promote_to_float32(x), promote_to_float32(kernel)
    is_temporal = kernel.shape[1:3] == (1, 1) and padding[1:] == (0, 0)
    if groups == x.shape[-1] == kernel.shape[-1]:
        out = convolve_depthwise(x, kernel, stride, padding)
    elif groups > 1:
        out = sum_2d_convolutions(x, kernel, stride, padding, groups)
    elif suits_winograd(x, kernel, stride, padding):
        out = convolve_3x3(x, kernel, padding)
    else:
        form = convolve_along_time if is_temporal else functools.partial(sum_2d_convolutions, groups=1)
        out = convolve_with_framewise_gradient(form, x, kernel, stride, padding)
    return out.astype(dtype)


def suits_winograd(x: Video, kernel: Float[Array, "kt kh kw c o"], stride: Triple, padding: Triple) -> bool:
    """Returns whether `convolve_3x3` computes the convolution, and saves more than its transforms cost."""
    computes = kernel.shape[1:3] == (3, 3) and stride == (1, 1, 1) and padding[0] < len(kernel) and max(padding[1:]) < 3
    pixels = len(x) * math.prod(output_size(x.shape[1:4], kernel.shape[:3], stride, padding))
    return computes and min(kernel.shape[3:]) >= MIN_CHANNELS and pixels >= MIN_PIXELS


def output_size(size: Triple, kernel: Triple, stride: Triple, padding: Triple) -> Triple:
    """Returns the number of windows along each axis, as PyTorch counts them."""
    t, h, w = ((n + 2 * p - k) // s + 1 for n, k, s, p in zip(size, kernel, stride, padding, strict=True))
    return t, h, w


def tap_slices(kernel_size: Triple, stride: Triple, sizes: Triple) -> list[tuple[slice, slice, slice]]:
    """Returns the part of the padded video that each tap of a kernel is multiplied with."""
    return [
        tuple(slice(i, i + s * (n - 1) + 1, s) for i, s, n in zip(tap, stride, sizes, strict=True))
        for tap in itertools.product(*map(range, kernel_size))
    ]


def sum_2d_convolutions(
    x: Video, kernel: Float[Array, "kt kh kw ci o"], stride: Triple, padding: Triple, groups: int
) -> Float[Array, "b to ho wo o"]:
    """Convolves by a sum of 2D convolutions, one for each frame of the kernel."""
    batch = len(x)
    frames_out = output_size(x.shape[1:4], kernel.shape[:3], stride, padding)[0]
    x = jnp.pad(x, ((0, 0), (padding[0], padding[0]), (0, 0), (0, 0), (0, 0)))

    def convolve_frame(i: int) -> Array:
        images = x[:, i : i + stride[0] * (frames_out - 1) + 1 : stride[0]]
        return lax.conv_general_dilated(
            images.reshape(batch * frames_out, *images.shape[2:]),
            kernel[i],
            stride[1:],
            [(p, p) for p in padding[1:]],
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=groups,
        )

    out = sum(map(convolve_frame, range(1, len(kernel))), start=convolve_frame(0))
    return out.reshape(batch, frames_out, *out.shape[1:])


def convolve_along_time(
    x: Video, kernel: Float[Array, "kt 1 1 ci o"], stride: Triple, padding: Triple
) -> Float[Array, "b to ho wo o"]:
    """Convolves along time at most: a matrix product, or a 2D convolution over images of frames x pixels."""
    if len(kernel) == 1:
        return x[:, :: stride[0], :: stride[1], :: stride[2]] @ kernel[0, 0, 0]
    x = x[:, :, :: stride[1], :: stride[2]]
    out = lax.conv_general_dilated(
        x.reshape(*x.shape[:2], -1, x.shape[-1]),
        kernel[:, :, 0],
        (stride[0], 1),
        [(padding[0], padding[0]), (0, 0)],
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    return out.reshape(*out.shape[:2], *x.shape[2:4], out.shape[-1])


def sum_shifted_videos(
    x: Video, kernel: Float[Array, "kt kh kw 1 c"], stride: Triple, padding: Triple
) -> Float[Array, "b to ho wo c"]:
    """Convolves depthwise by a sum of shifted videos, each times one tap of the kernel."""
    sizes = output_size(x.shape[1:4], kernel.shape[:3], stride, padding)
    # Without these barriers XLA fuses the previous layers into every tap, and the sum into every use of it.
    x = lax.optimization_barrier(jnp.pad(x, ((0, 0), *((p, p) for p in padding), (0, 0))))
    weights = kernel.reshape(-1, kernel.shape[-1])
    products = (x[:, *part] * weights[i] for i, part in enumerate(tap_slices(kernel.shape[:3], stride, sizes)))
    return lax.optimization_barrier(functools.reduce(operator.add, products))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def convolve_depthwise(
    x: Video, kernel: Float[Array, "kt kh kw 1 c"], stride: Triple, padding: Triple
) -> Float[Array, "b to ho wo c"]:
    """Convolves as `sum_shifted_videos` does, and takes gradients in the same form.

    The gradient by the video is a sum of shifted videos, too, and that by the kernel is computed frame by frame.
    """
    return sum_shifted_videos(x, kernel, stride, padding)


def _depthwise_forward(x: Array, kernel: Array, stride: Triple, padding: Triple) -> tuple[Array, tuple[Array, Array]]:
    return sum_shifted_videos(x, kernel, stride, padding), (x, kernel)


def _depthwise_backward(
    stride: Triple, padding: Triple, residuals: tuple[Array, Array], gradient: Array
) -> tuple[Array, Array]:
    x, kernel = residuals
    # the gradient by the video is a convolution of the gradient, dilated by the stride, with the kernel reversed
    sides = [
        (k - 1 - p, size + p - 1 - (size_out - 1) * s, s - 1)
        for k, p, size, size_out, s in zip(
            kernel.shape[:3], padding, x.shape[1:4], gradient.shape[1:4], stride, strict=True
        )
    ]
    dilated = lax.pad(gradient, jnp.zeros((), gradient.dtype), ((0, 0, 0), *sides, (0, 0, 0)))
    by_x = sum_shifted_videos(dilated, kernel[::-1, ::-1, ::-1], (1, 1, 1), (0, 0, 0))

    x = jnp.pad(x, ((0, 0), *((p, p) for p in padding), (0, 0)))
    parts = tap_slices(kernel.shape[:3], stride, (1, *gradient.shape[2:4]))

    def add_frame(total: Array, frame: Array) -> tuple[Array, None]:
        frames = lax.dynamic_slice_in_dim(x, frame * stride[0], len(kernel), axis=1)
        rows = lax.dynamic_index_in_dim(gradient, frame, axis=1, keepdims=False)
        sums = [jnp.sum(frames[:, *part][:, 0] * rows, axis=(0, 1, 2)) for part in parts]
        return total + jnp.stack(sums).reshape(total.shape), None

    return by_x, lax.scan(add_frame, jnp.zeros_like(kernel), jnp.arange(gradient.shape[1]))[0]


convolve_depthwise.defvjp(_depthwise_forward, _depthwise_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 3, 4))
def convolve_with_framewise_gradient(form: Form, x: Array, kernel: Array, stride: Triple, padding: Triple) -> Array:
    """Convolves by a form without groups, whose gradient by the kernel is `kernel_gradient`."""
    return form(x, kernel, stride, padding)


def _framewise_forward(
    form: Form, x: Array, kernel: Array, stride: Triple, padding: Triple
) -> tuple[Array, tuple[Array, Array]]:
    return form(x, kernel, stride, padding), (x, kernel)


def _framewise_backward(
    form: Form, stride: Triple, padding: Triple, residuals: tuple[Array, Array], gradient: Array
) -> tuple[Array, Array]:
    x, kernel = residuals
    _, by_x = jax.vjp(lambda x: form(x, kernel, stride, padding), x)
    return *by_x(gradient), kernel_gradient(x, gradient, kernel.shape, stride, padding)


convolve_with_framewise_gradient.defvjp(_framewise_forward, _framewise_backward)


def kernel_gradient(
    x: Video,
    gradient: Float[Array, "b to ho wo o"],
    shape: tuple[int, int, int, int, int],
    stride: Triple,
    padding: Triple,
) -> Float[Array, "kt kh kw ci o"]:
    """Returns the gradient by a kernel without groups, summed over frames: one frame fits the cache, all frames do not.

    For each frame it is a matrix product of the frame's windows with the gradients, side by side, of all output frames
    that saw it.
    """
    t, h, w, channels, width = shape
    frames, (_, frames_out, *size, _) = x.shape[1], gradient.shape
    x = jnp.pad(x, ((0, 0), (0, 0), *((p, p) for p in padding[1:]), (0, 0)))
    parts = tap_slices((1, h, w), (1, *stride[1:]), (1, *size))
    after = frames + padding[0] - 1 - (frames_out - 1) * stride[0]
    sides = ((0, 0, 0), (t - 1 - padding[0], after, stride[0] - 1), *((0, 0, 0),) * 3)
    gradient = lax.pad(gradient, jnp.zeros((), gradient.dtype), sides)

    def add_frame(total: Array, frame: Array) -> tuple[Array, None]:
        image = lax.dynamic_slice_in_dim(x, frame, 1, axis=1)
        windows = jnp.concatenate([image[:, *part][:, 0] for part in parts], axis=-1)
        outputs = lax.dynamic_slice_in_dim(gradient, frame, t, axis=1)
        return total + jnp.einsum("bhwi,bthwo->ito", windows, outputs), None

    total = lax.scan(add_frame, jnp.zeros((h * w * channels, t, width), x.dtype), jnp.arange(frames))[0]
    # time is reversed: the first output frame that saw this frame saw it through the kernel's last tap
    return jnp.moveaxis(total.reshape(h, w, channels, t, width)[..., ::-1, :], 3, 0)


def convolve_2d_as_product(
    x: Float[Array, "b h w c"], kernel: Float[Array, "kh kw c o"], *_: Any, **__: Any
) -> Float[Array, "b h w o"]:
    """Convolves maps by one matrix product of shifted maps side by side, which XLA compiles well inside a loop.

    Takes the arguments of `lax.conv_general_dilated` as `nn.Conv` passes them, and supposes stride 1 and zero padding
    that keeps the size.
    """
    tall, wide, channels, _ = kernel.shape
    rows, columns = x.shape[1:3]
    padded = jnp.pad(x, ((0, 0), (tall // 2, tall // 2), (wide // 2, wide // 2), (0, 0)))
    shifted = [padded[:, i : i + rows, j : j + columns] for i, j in np.ndindex(tall, wide)]
    return jnp.concatenate(shifted, axis=-1) @ kernel.reshape(tall * wide * channels, -1)
