"""3D convolution that is fast on every platform, batch normalisation, and the unit of both that CNNs are made of."""

import functools
import itertools
import operator
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax
from jaxtyping import Array, Float

Triple = tuple[int, int, int]  # of frames, height, width
Implementation = Literal["auto", "reference", "cpu"]
# float64, under jax.enable_x64, takes rounding out of comparisons
DType = Literal["float32", "bfloat16", "float64"]


def output_size(size: Triple, kernel: Triple, stride: Triple, padding: Triple) -> Triple:
    """Returns how many windows fit along each axis, as PyTorch counts them."""
    t, h, w = ((n + 2 * p - k) // s + 1 for n, k, s, p in zip(size, kernel, stride, padding, strict=True))
    return t, h, w


def native(
    x: Float[Array, "batch frames height width channels"],
    kernel: Float[Array, "t h w channels_of_group width_out"],
    stride: Triple,
    padding: Triple,
    groups: int,
) -> Float[Array, "batch frames_out height_out width_px_out width_out"]:
    """The convolution that XLA has: right for GPU and TPU, and what cost is counted on."""
    return lax.conv_general_dilated(
        x,
        kernel,
        stride,
        [(p, p) for p in padding],
        dimension_numbers=("NDHWC", "DHWIO", "NDHWC"),
        feature_group_count=groups,
    )


def summed_over_time(
    x: Float[Array, "batch frames height width channels"],
    kernel: Float[Array, "t h w channels_of_group width_out"],
    stride: Triple,
    padding: Triple,
    groups: int,
) -> Float[Array, "batch frames_out height_out width_px_out width_out"]:
    """A sum of 2D convolutions, one for each frame of the kernel: XLA compiles them well for the CPU, 3D ones not."""
    batch = len(x)
    frames_out = output_size(x.shape[1:4], kernel.shape[:3], stride, padding)[0]
    x = jnp.pad(x, ((0, 0), (padding[0], padding[0]), (0, 0), (0, 0), (0, 0)))

    def plane(i: int) -> Float[Array, "batch_frames height_out width_px_out width_out"]:
        images = x[:, i : i + stride[0] * (frames_out - 1) + 1 : stride[0]]
        return lax.conv_general_dilated(
            images.reshape(batch * frames_out, *images.shape[2:]),
            kernel[i],
            stride[1:],
            [(p, p) for p in padding[1:]],
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=groups,
        )

    out = sum(map(plane, range(1, len(kernel))), start=plane(0))
    return out.reshape(batch, frames_out, *out.shape[1:])


def taps(kernel_size: Triple, stride: Triple, sizes: Triple) -> list[tuple[slice, slice, slice]]:
    """Returns, for each tap of a kernel in turn, the part of the padded video that it is multiplied with."""
    return [
        tuple(slice(i, i + s * (n - 1) + 1, s) for i, s, n in zip(place, stride, sizes, strict=True))
        for place in itertools.product(*map(range, kernel_size))
    ]


def shifted(
    x: Float[Array, "batch frames height width channels"],
    kernel: Float[Array, "t h w 1 channels"],
    stride: Triple,
    padding: Triple,
) -> Float[Array, "batch frames_out height_out width_px_out channels"]:
    """A depthwise convolution as a sum of shifted videos, each times one tap of the kernel."""
    sizes = output_size(x.shape[1:4], kernel.shape[:3], stride, padding)
    # the barriers keep XLA from computing what is before it once for each tap, and the sum once for each use
    x = lax.optimization_barrier(jnp.pad(x, ((0, 0), *((p, p) for p in padding), (0, 0))))
    weights = kernel.reshape(-1, kernel.shape[-1])
    products = (x[:, *part] * weights[i] for i, part in enumerate(taps(kernel.shape[:3], stride, sizes)))
    return lax.optimization_barrier(functools.reduce(operator.add, products))


def along_time(
    x: Float[Array, "batch frames height width channels"],
    kernel: Float[Array, "t 1 1 channels width_out"],
    stride: Triple,
    padding: Triple,
) -> Float[Array, "batch frames_out height_out width_px_out width_out"]:
    """A kernel that extends over time at most: a matrix product, or a 2D convolution over images of frames x pixels."""
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


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def depthwise(
    x: Float[Array, "batch frames height width channels"],
    kernel: Float[Array, "t h w 1 channels"],
    stride: Triple,
    padding: Triple,
) -> Float[Array, "batch frames_out height_out width_px_out channels"]:
    """`shifted`, whose gradient by the video is shifted again, and by the kernel summed frame by frame."""
    return shifted(x, kernel, stride, padding)


def _depthwise_forward(x: Array, kernel: Array, stride: Triple, padding: Triple) -> tuple[Array, tuple[Array, Array]]:
    return shifted(x, kernel, stride, padding), (x, kernel)


def _depthwise_backward(
    stride: Triple, padding: Triple, kept: tuple[Array, Array], gradient: Array
) -> tuple[Array, Array]:
    x, kernel = kept
    sides = [
        (size - 1 - p, there + p - 1 - (n - 1) * s, s - 1)
        for size, p, there, n, s in zip(
            kernel.shape[:3], padding, x.shape[1:4], gradient.shape[1:4], stride, strict=True
        )
    ]
    spread = lax.pad(gradient, jnp.zeros((), gradient.dtype), ((0, 0, 0), *sides, (0, 0, 0)))
    by_x = shifted(spread, kernel[::-1, ::-1, ::-1], (1, 1, 1), (0, 0, 0))
    x = jnp.pad(x, ((0, 0), *((p, p) for p in padding), (0, 0)))
    parts = taps(kernel.shape[:3], stride, (1, *gradient.shape[2:4]))

    def add(total: Array, frame: Array) -> tuple[Array, None]:
        frames = lax.dynamic_slice_in_dim(x, frame * stride[0], len(kernel), axis=1)
        rows = lax.dynamic_index_in_dim(gradient, frame, axis=1, keepdims=False)
        sums = [jnp.sum(frames[:, *part][:, 0] * rows, axis=(0, 1, 2)) for part in parts]
        return total + jnp.stack(sums).reshape(total.shape), None

    return by_x, lax.scan(add, jnp.zeros_like(kernel), jnp.arange(gradient.shape[1]))[0]


depthwise.defvjp(_depthwise_forward, _depthwise_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 3, 4))
def learnt_by_frames(
    form: Callable[[Array, Array, Triple, Triple], Array], x: Array, kernel: Array, stride: Triple, padding: Triple
) -> Array:
    """A form of convolution without groups, whose gradient by the kernel is a matrix product for each frame."""
    return form(x, kernel, stride, padding)


def _learnt_forward(
    form: Callable[..., Array], x: Array, kernel: Array, stride: Triple, padding: Triple
) -> tuple[Array, tuple[Array, Array]]:
    return form(x, kernel, stride, padding), (x, kernel)


def _learnt_backward(
    form: Callable[..., Array], stride: Triple, padding: Triple, kept: tuple[Array, Array], gradient: Array
) -> tuple[Array, Array]:
    x, kernel = kept
    _, by_x = jax.vjp(lambda x: form(x, kernel, stride, padding), x)
    return *by_x(gradient), kernel_gradient(x, gradient, kernel.shape, stride, padding)


learnt_by_frames.defvjp(_learnt_forward, _learnt_backward)


def kernel_gradient(
    x: Float[Array, "batch frames height width channels"],
    gradient: Float[Array, "batch frames_out height_out width_px_out width_out"],
    shape: tuple[int, int, int, int, int],
    stride: Triple,
    padding: Triple,
) -> Float[Array, "t h w channels width_out"]:
    """Returns the gradient by a kernel without groups, summed over frames: one frame's fit the cache, all together not.

    Of each frame it is a product of its windows in space and the gradients, side by side, of all frames that it served.
    """
    t, h, w, channels, width = shape
    frames, (_, frames_out, *size, _) = x.shape[1], gradient.shape
    x = jnp.pad(x, ((0, 0), (0, 0), *((p, p) for p in padding[1:]), (0, 0)))
    parts = taps((1, h, w), (1, *stride[1:]), (1, *size))
    after = frames + padding[0] - 1 - (frames_out - 1) * stride[0]
    sides = ((0, 0, 0), (t - 1 - padding[0], after, stride[0] - 1), *((0, 0, 0),) * 3)
    gradient = lax.pad(gradient, jnp.zeros((), gradient.dtype), sides)

    def add(total: Array, frame: Array) -> tuple[Array, None]:
        image = lax.dynamic_slice_in_dim(x, frame, 1, axis=1)
        windows = jnp.concatenate([image[:, *part][:, 0] for part in parts], axis=-1)
        served = lax.dynamic_slice_in_dim(gradient, frame, t, axis=1)
        return total + jnp.einsum("bhwi,bthwo->ito", windows, served), None

    total = lax.scan(add, jnp.zeros((h * w * channels, t, width), x.dtype), jnp.arange(frames))[0]
    # the first of the frames that were served saw this one through the kernel's last tap
    return jnp.moveaxis(total.reshape(h, w, channels, t, width)[..., ::-1, :], 3, 0)


def fast_on_cpu(
    x: Float[Array, "batch frames height width channels"],
    kernel: Float[Array, "t h w channels_of_group width_out"],
    stride: Triple,
    padding: Triple,
    groups: int,
) -> Float[Array, "batch frames_out height_out width_px_out width_out"]:
    """Shifted multiply-adds for a depthwise kernel, matrix products over pixels or time, else a sum of 2D convolutions.

    Half precision is computed as float32, in sums of many terms. Has no forward-mode derivatives.
    """
    dtype, x, kernel = x.dtype, at_least_float32(x), at_least_float32(kernel)
    flat = kernel.shape[1:3] == (1, 1) and padding[1:] == (0, 0)
    if groups == x.shape[-1] == kernel.shape[-1]:
        out = depthwise(x, kernel, stride, padding)
    elif groups > 1:
        out = summed_over_time(x, kernel, stride, padding, groups)
    else:
        form = along_time if flat else functools.partial(summed_over_time, groups=1)
        out = learnt_by_frames(form, x, kernel, stride, padding)
    return out.astype(dtype)


IMPLEMENTATIONS: dict[str, Callable[..., Array]] = {"auto": native, "reference": native, "cpu": fast_on_cpu}
FASTEST: dict[str, Implementation] = {"cpu": "cpu"}  # of the platforms where XLA's own is not


class Convolution(nn.Module):
    """A 3D convolution without bias, padded with zeros by half of the kernel on every side, as PyTorch pads.

    Kernels start as He et al. 2015 draw them (arXiv:1502.01852, eq. 14, over the outputs).

    Attributes:
        width: output channels.
        kernel_size: (t, h, w).
        stride: (t, h, w).
        groups: into which channels are split; as many as channels is a depthwise convolution.
        implementation: "reference" is XLA's own; "cpu" computes the same faster there. "auto" is whichever suits the
            devices: `vitx.models.on_device` settles it, and a model that nobody settled takes XLA's own.
        dtype: computations' type; parameters are float32.
    """

    width: int
    kernel_size: Triple = (1, 1, 1)
    stride: Triple = (1, 1, 1)
    groups: int = 1
    implementation: Implementation = "reference"
    dtype: DType = "float32"

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch frames height width_px channels"]
    ) -> Float[Array, "batch frames_out height_out width_px_out width"]:
        shape = (*self.kernel_size, x.shape[-1] // self.groups, self.width)
        he = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
        kernel = self.param("kernel", he, shape)
        x, kernel = nn.dtypes.promote_dtype(x, kernel, dtype=self.dtype)
        padding = tuple(size // 2 for size in self.kernel_size)
        return IMPLEMENTATIONS[self.implementation](x, kernel, self.stride, padding, self.groups)


class BatchNorm(nn.Module):
    """Batch normalisation (Ioffe & Szegedy 2015, arXiv:1502.03167, algorithm 1) as PyTorch computes it.

    Statistics are of the global batch, over all axes but channels, in float32 at least. While training the running
    ones move by `momentum` towards the batch's, of which the variance is unbiased; evaluation normalises by them.
    They are `mean` and `var` in the collection `batch_stats`, and no optimiser sees them. Where the collection
    `moments` is mutable it gets the mean and the plain variance of the batch, as precise batch normalisation wants.

    Attributes:
        eps: added to the variance.
        momentum: share of the batch's statistics in the new running ones.
        zero_init: whether the scale starts at zero, so that the branch that ends here starts as nothing.
        groups: equal parts of the batch, one after the other, each normalised by statistics of its own, as recipes of
            that many devices with statistics per device have it; the running ones move towards their average.
    """

    eps: float = 1e-5
    momentum: float = 0.1
    zero_init: bool = False
    groups: int = 1

    @nn.compact
    def __call__(self, x: Float[Array, "*batch channels"], *, train: bool) -> Float[Array, "*batch channels"]:
        channels = x.shape[-1:]
        scale_init = nn.initializers.zeros if self.zero_init else nn.initializers.ones
        scale = self.param("scale", scale_init, channels)
        bias = self.param("bias", nn.initializers.zeros, channels)
        if not self.has_variable("batch_stats", "mean") and not self.is_mutable_collection("batch_stats"):
            raise ValueError(
                'the statistics of batch normalisation are missing; apply takes all that init returned, {"params": '
                '..., "batch_stats": ...}, not the parameters alone'
            )
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, channels)
        running_var = self.variable("batch_stats", "var", jnp.ones, channels)
        values = at_least_float32(x)
        groups = self.groups if train else 1
        if len(x) % groups:
            raise ValueError(f"a batch of {len(x)} does not divide into {groups} groups of batch normalisation")
        values = values.reshape(groups, -1, *x.shape[1:])
        mean, var = running_mean.value, running_var.value
        if train:
            count = x.size // x.shape[-1] // groups
            if count == 1:
                raise ValueError(
                    "batch normalisation has one value for each channel to take statistics of; train with more or "
                    "larger clips"
                )
            axes = tuple(range(1, x.ndim))
            mean, var = jnp.mean(values, axes, keepdims=True), jnp.var(values, axes, keepdims=True)
            if not self.is_initializing():
                centre, spread = (jnp.mean(each.reshape(groups, -1), axis=0) for each in (mean, var))
                running_mean.value += self.momentum * (centre - running_mean.value)
                running_var.value += self.momentum * (spread * count / (count - 1) - running_var.value)
                newest = {"init_fn": lambda: None, "reduce_fn": lambda _, new: new}
                self.sow("moments", "mean", centre, **newest)
                self.sow("moments", "var", spread + jnp.var(mean.reshape(groups, -1), axis=0), **newest)
        normalised = (values - mean) * (scale * lax.rsqrt(var + self.eps)) + bias
        return normalised.reshape(x.shape).astype(x.dtype)


class ConvolutionUnit(nn.Module):
    """Convolution, batch normalisation, and unless told otherwise a rectifier.

    A model makes one with what all of its units share, and `copy`s it with what each has of its own.

    Attributes:
        width: output channels.
        kernel_size: (t, h, w).
        stride: (t, h, w).
        groups: into which channels are split.
        relu: whether the rectifier follows.
        eps: of the normalisation.
        momentum: of the normalisation's running statistics.
        zero_init: whether the normalisation's scale starts at zero.
        norm_groups: parts of the batch that are normalised apart.
        implementation: of the convolution.
        dtype: computations' type; parameters are float32.
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
    def __call__(
        self, x: Float[Array, "batch frames height width_px channels"], *, train: bool
    ) -> Float[Array, "batch frames_out height_out width_px_out width"]:
        settings = (self.width, self.kernel_size, self.stride, self.groups, self.implementation, self.dtype)
        x = Convolution(*settings, name="conv")(x)
        x = BatchNorm(self.eps, self.momentum, self.zero_init, self.norm_groups, name="norm")(x, train=train)
        return nn.relu(x) if self.relu else x


def at_least_float32(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """Returns half precision as float32."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def max_pool(
    x: Float[Array, "batch frames height width channels"], window: Triple, stride: Triple, *, padded: bool = True
) -> Float[Array, "batch frames_out height_out width_px_out channels"]:
    """Largest values of windows, padded by half of a window on every side or not at all."""
    if window == stride and not padded:
        return max_of_blocks(x, window)
    return nn.max_pool(x, window, stride, [(size // 2 if padded else 0,) * 2 for size in window])


def max_of_blocks(
    x: Float[Array, "batch frames height width channels"], size: Triple
) -> Float[Array, "batch frames_out height_out width_px_out channels"]:
    """Largest values of windows side by side; on a CPU the gradient of XLA's own takes five times as long."""
    for axis, step in enumerate(size, 1):
        whole = x.shape[axis] // step * step
        x = functools.reduce(jnp.maximum, (lax.slice_in_dim(x, i, whole, step, axis) for i in range(step)))
    return x


def average_windows(
    x: Float[Array, "batch frames height width channels"], window: Triple | None
) -> Float[Array, "batch t h w channels"]:
    """Averages of a window that slides by one, cut to what there is where it is larger; None takes all.

    float32 at least.
    """
    size = x.shape[1:4]
    t, h, w = size if window is None else map(min, window, size)
    return nn.avg_pool(at_least_float32(x), (t, h, w), (1, 1, 1))
