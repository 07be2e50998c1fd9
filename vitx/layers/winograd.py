"""Kernels of 3x3 pixels with fewer multiplications: Winograd's F(2x2, 3x3) (Lavin & Gray 2015, arXiv:1509.09308).

Squares of 4x4 pixels and the kernel are each transformed to 4x4 values, multiplied elementwise, and the products are
transformed to 2x2 outputs: 16 multiplications where a sum over the kernel has 36.

Where the transformed frames would not fit the cache, a loop takes one frame at a time, of one clip or, on a mesh of
several devices, of all clips, so that the batch stays divided.

In shapes: b batch, t h w the video or the kernel, c channels in, o channels out; y x the squares of a frame.
"""

import functools
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from vitx.layers.types import Triple

Video = Float[Array, "b t h w c"]
Kernel = Float[Array, "kt 3 3 c o"]
Grid = list[list[Array]]  # rows of a matrix whose elements are arrays, one element of all squares each

# Of section 4.1, where they are called B^T, G and A^T: for squares of pixels, for kernels, and for products.
PIXELS = np.array([[1.0, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]])
TAPS = np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]])
PRODUCTS = np.array([[1.0, 1, 1, 0], [0, 1, -1, -1]])

# Transformed frames of at most as many bytes are multiplied at once; see experiments/benchmarks/convolution.md.
MAX_BYTES, MAX_GRADIENT_BYTES = 28e6, 15e6


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def convolve_3x3(x: Video, kernel: Kernel, padding: Triple) -> Float[Array, "b to ho wo o"]:
    """Convolves with stride 1 by a kernel of 3x3 pixels and any number of frames.

    A value that is not finite makes outputs NaN within two pixels of it.

    Args:
        x: the video.
        kernel: the kernel.
        padding: zeros on either side of each axis.
    """
    return _convolve(x, kernel, padding)


def _convolve(x: Video, kernel: Kernel, padding: Triple) -> Float[Array, "b to ho wo o"]:
    time = len(kernel)
    sizes = zip(x.shape[1:4], padding, kernel.shape[:3], strict=True)
    frames, height, width = (size + 2 * p - k + 1 for size, p, k in sizes)
    x = _pad(x, padding, height, width)
    # The frames that an output sees lie side by side as channels.
    kernel = jnp.moveaxis(kernel, 0, 2).reshape(3, 3, -1, kernel.shape[-1])
    factors = _transform([list(row) for row in kernel], TAPS)

    def convolve(windows: Float[Array, "*b h w tc"]) -> Float[Array, "*b ho wo o"]:
        return _join(_transform(_zip_with(jnp.matmul, _transform(_split(windows, 4), PIXELS), factors), PRODUCTS))

    if _count_bytes(x, frames, time) <= MAX_BYTES:
        out = convolve(jnp.concatenate([x[:, i : i + frames] for i in range(time)], axis=-1))
    else:
        size = _count_clips_at_once(x)
        out = lax.map(
            lambda i: convolve(_window(x, i // frames * size, size, i % frames, time)),
            jnp.arange(len(x) // size * frames),
        )
        out = out.reshape(-1, frames, *out.shape[1:]).swapaxes(1, 2).reshape(len(x), frames, *out.shape[2:])
    return out[:, :, :height, :width]


def _forward(x: Video, kernel: Kernel, padding: Triple) -> tuple[Array, tuple[Video, Kernel]]:
    return _convolve(x, kernel, padding), (x, kernel)


def _backward(
    padding: Triple, residuals: tuple[Video, Kernel], gradient: Float[Array, "b to ho wo o"]
) -> tuple[Video, Kernel]:
    x, kernel = residuals
    full = tuple(k - 1 - p for k, p in zip(kernel.shape[:3], padding, strict=True))
    by_x = _convolve(gradient, jnp.swapaxes(kernel[::-1, ::-1, ::-1], 3, 4), full)
    return by_x, _kernel_gradient(x, gradient, len(kernel), padding)


convolve_3x3.defvjp(_forward, _backward)


def _kernel_gradient(x: Video, gradient: Float[Array, "b to ho wo o"], time: int, padding: Triple) -> Kernel:
    """Returns the gradient by the kernel: the transforms are linear, so each one's gradient is by its transpose."""
    channels, frames, outputs = x.shape[-1], gradient.shape[1], gradient.shape[-1]
    x = _pad(x, padding, *gradient.shape[2:4])
    gradient = _pad(gradient, (0, 0, 0), *gradient.shape[2:4])

    def multiply(windows: Float[Array, "*b h w tc"], gradients: Float[Array, "*b ho wo o"]) -> Grid:
        def sum_products(a: Float[Array, "*b y x tc"], b: Float[Array, "*b y x o"]) -> Float[Array, "tc o"]:
            return a.reshape(-1, a.shape[-1]).T @ b.reshape(-1, outputs)

        return _zip_with(
            sum_products, _transform(_split(windows, 4), PIXELS), _transform(_split(gradients, 2), PRODUCTS.T)
        )

    if _count_bytes(x, frames, time) <= MAX_GRADIENT_BYTES:
        total = multiply(jnp.concatenate([x[:, i : i + frames] for i in range(time)], axis=-1), gradient)
    else:
        size = _count_clips_at_once(x)

        def add_frame(total: Grid, i: Array) -> tuple[Grid, None]:
            clip, frame = i // frames * size, i % frames
            products = multiply(_window(x, clip, size, frame, time), _window(gradient, clip, size, frame, 1))
            return _zip_with(jnp.add, total, products), None

        zeros = [[jnp.zeros((time * channels, outputs), x.dtype)] * 4] * 4
        total = lax.scan(add_frame, zeros, jnp.arange(len(x) // size * frames))[0]
    taps = jnp.stack([jnp.stack(row) for row in _transform(total, TAPS.T)])
    return jnp.moveaxis(taps.reshape(3, 3, time, channels, outputs), 2, 0)


def _count_bytes(x: Video, frames: int, time: int) -> int:
    """Returns the memory of all transformed windows: four times that of their pixels."""
    return 4 * len(x) * frames * time * math.prod(x.shape[2:]) * x.dtype.itemsize


def _count_clips_at_once(x: Video) -> int:
    """Returns the number of clips in an iteration of a loop over frames."""
    return len(x) if jax.sharding.get_abstract_mesh().size > 1 else 1


def _pad(x: Video, padding: Triple, height: int, width: int) -> Float[Array, "b _ _ _ c"]:
    """Returns the video with zeros on either side, and one more row and column where an output size is odd."""
    time, *space = padding
    sides = [(p, p + size % 2) for p, size in zip(space, (height, width), strict=True)]
    return jnp.pad(x, ((0, 0), (time, time), *sides, (0, 0)))


def _window(x: Video, clip: Array, num_clips: int, frame: Array, num_frames: int) -> Float[Array, "_ h w tc"]:
    """Returns clips from `clip` on, their frames from `frame` on side by side as channels."""
    frames = lax.dynamic_slice(x, (clip, frame, 0, 0, 0), (num_clips, num_frames, *x.shape[2:]))
    return jnp.concatenate([frames[:, i] for i in range(num_frames)], axis=-1)


def _split(x: Float[Array, "*b h w c"], size: int) -> Grid:
    """Returns each element of all squares of a size; one begins at every second row and column."""
    rows, columns = (length - size + 2 for length in x.shape[-3:-1])
    return [[x[..., i : i + rows : 2, j : j + columns : 2, :] for j in range(size)] for i in range(size)]


def _join(grid: Grid) -> Float[Array, "*b h w o"]:
    """Returns the frames of which `_split` with size 2 gives this grid."""
    squares = jnp.stack([jnp.stack(row, axis=-2) for row in grid], axis=-4)
    *batch, y, _, x, _, channels = squares.shape
    return squares.reshape(*batch, 2 * y, 2 * x, channels)


def _transform(grid: Grid, matrix: np.ndarray) -> Grid:
    """Returns matrix @ grid @ matrix.T."""
    rows = [[_weigh(weights, column) for column in zip(*grid, strict=True)] for weights in matrix.tolist()]
    return [[_weigh(weights, row) for weights in matrix.tolist()] for row in rows]


def _weigh(weights: Sequence[float], arrays: Sequence[Array]) -> Array:
    """Returns a weighted sum; a weight of 0 or 1 costs nothing."""
    terms = [x if weight == 1 else weight * x for weight, x in zip(weights, arrays, strict=True) if weight]
    return functools.reduce(jnp.add, terms)


def _zip_with(function: Callable[[Array, Array], Array], first: Grid, second: Grid) -> Grid:
    return [[function(a, b) for a, b in zip(*rows, strict=True)] for rows in zip(first, second, strict=True)]
