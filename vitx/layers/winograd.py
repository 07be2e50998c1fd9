"""Kernels of 3x3 pixels with fewer multiplications: Winograd's F(2x2, 3x3) (Lavin & Gray 2015, arXiv:1509.09308).

Squares of 4x4 pixels and the kernel are each transformed to 4x4 places, multiplied place by place, and the products are
transformed to 2x2 outputs: 16 multiplications where a sum over the kernel has 36. Equation 8 has the matrices.

Where all transformed frames would not fit the cache, a loop takes one frame of one clip at a time; on a mesh of several
CPUs it gathers the clips of all of them.

In shapes: b batch, t h w the video or the kernel, c channels in, o channels out; y x the squares of a frame.
"""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from vitx.layers.types import Triple

Video = Float[Array, "b t h w c"]
Kernel = Float[Array, "kt 3 3 c o"]
Grid = list[list[Array]]  # an array for each place of a square, or for each tap of a kernel

PIXELS = np.array([[1.0, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]])
TAPS = np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]])
PRODUCTS = np.array([[1.0, 1, 1, 0], [0, 1, -1, -1]])

MAX_BYTES = 26e6  # of transformed frames that are multiplied at once; more is slower than frame by frame


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def convolve_3x3(x: Video, kernel: Kernel, padding: Triple) -> Float[Array, "b to ho wo o"]:
    """Convolves with stride 1 by a kernel of 3x3 pixels and any number of frames.

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

    if _fits(x, frames, time):
        out = convolve(jnp.concatenate([x[:, i : i + frames] for i in range(time)], axis=-1))
    else:
        out = lax.map(lambda i: convolve(_window(x, *divmod(i, frames), time)), jnp.arange(len(x) * frames))
        out = out.reshape(len(x), frames, *out.shape[1:])
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

    if _fits(x, frames, time):
        total = multiply(jnp.concatenate([x[:, i : i + frames] for i in range(time)], axis=-1), gradient)
    else:

        def add_frame(total: Grid, i: Array) -> tuple[Grid, None]:
            clip, frame = divmod(i, frames)
            return _zip_with(jnp.add, total, multiply(_window(x, clip, frame, time), gradient[clip, frame])), None

        zeros = [[jnp.zeros((time * channels, outputs), x.dtype)] * 4] * 4
        total = lax.scan(add_frame, zeros, jnp.arange(len(x) * frames))[0]
    taps = jnp.stack([jnp.stack(row) for row in _transform(total, TAPS.T)])
    return jnp.moveaxis(taps.reshape(3, 3, time, channels, outputs), 2, 0)


def _fits(x: Video, frames: int, time: int) -> bool:
    """Returns whether all transformed frames may be in memory at once: four times the pixels of each window."""
    return 4 * len(x) * frames * time * x[0, 0].size * x.dtype.itemsize <= MAX_BYTES


def _pad(x: Video, padding: Triple, height: int, width: int) -> Float[Array, "b _ _ _ c"]:
    """Returns the video with zeros on either side, and one more row and column where an output size is odd."""
    time, *space = padding
    sides = [(p, p + size % 2) for p, size in zip(space, (height, width), strict=True)]
    return jnp.pad(x, ((0, 0), (time, time), *sides, (0, 0)))


def _window(x: Video, clip: Array, frame: Array, time: int) -> Float[Array, "h w tc"]:
    """Returns the frames that one output sees, side by side as channels."""
    seen = lax.dynamic_slice(x, (clip, frame, 0, 0, 0), (1, time, *x.shape[2:]))[0]
    return jnp.concatenate(list(seen), axis=-1)


def _split(x: Float[Array, "*b h w c"], size: int) -> Grid:
    """Returns the pixel at each place of a square, of all squares; one begins at every second row and column."""
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
