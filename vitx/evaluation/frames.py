"""Metrics of predicted frames, with the conventions of the published Moving MNIST tables.

SSIM is our own, since the published tables use scikit-image's, with unbiased variances: dm_pix 0.4.5 (tried 2026-11)
has biased ones, and differs by 3e-5 on noise of 16 x 16 pixels even with a uniform window of 7 x 7.

Letters in shapes: b batch, t frames, h height, w width, c colour channels.
"""

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

Frames = Float[Array, "b t h w c"]
PerFrame = Float[Array, "b t"]

FRAME_METRICS = ("mse", "mae", "cross_entropy", "psnr", "ssim", "ssim_openstl")
WINDOW = 7  # height and width of SSIM's windows
EPSILON = 2.0**-20  # distance of a probability from 0 and 1 before its logarithm is taken; exact in float32
SUMMED = ("mse", "mae", "cross_entropy")  # summed over the pixels of a frame; a sequence's is the sum over its frames
LOWER_IS_BETTER = (*SUMMED, "loss")


def frame_metrics(predicted: Frames, truth: Frames) -> dict[str, PerFrame]:
    """Returns the metrics of every frame; pixels are in [0, 1].

    `mse` and `mae` are summed over pixels and channels, as in OpenSTL (arXiv:2306.11249) and the PredRNN papers;
    so is `cross_entropy`, in nats, as in Shi et al. 2015 (table 1, which sums over the whole sequence). `psnr` is in
    dB, at most 100. `ssim` is scikit-image's with the true data range of 1; `ssim_openstl` uses the range of 2 that
    scikit-image before 0.20 assumed for floats, and OpenSTL's tables with it. Pixels are clipped to [0, 1] for SSIM
    and PSNR.
    """
    clipped, axes = jnp.clip(predicted, 0, 1), (2, 3, 4)
    return {
        "mse": jnp.sum((predicted - truth) ** 2, axes),
        "mae": jnp.sum(jnp.abs(predicted - truth), axes),
        "cross_entropy": jnp.sum(cross_entropy(predicted, truth), axes),
        "psnr": -10 * jnp.log10(jnp.maximum(jnp.mean((clipped - truth) ** 2, axes), 1e-10)),
        "ssim": ssim(clipped, truth),
        "ssim_openstl": ssim(clipped, truth, data_range=2.0),
    }


def cross_entropy(predicted: Frames, truth: Frames) -> Frames:
    """Returns the binary cross-entropy of each pixel in nats; pixels are probabilities of ink."""
    p = jnp.clip(predicted, EPSILON, 1 - EPSILON)
    return -(truth * jnp.log(p) + (1 - truth) * jnp.log1p(-p))


def ssim(predicted: Frames, truth: Frames, *, data_range: float = 1.0) -> PerFrame:
    """Returns the structural similarity (Wang et al. 2004, equation 13), averaged over windows and channels.

    These are scikit-image's defaults: all windows of 7 x 7 inside the frame, uniform weights, unbiased variances,
    K1 = 0.01, K2 = 0.03.
    """
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    unbiased = WINDOW**2 / (WINDOW**2 - 1)

    def local_mean(x: Frames) -> Float[Array, "b t rows columns c"]:
        return nn.avg_pool(x, (1, WINDOW, WINDOW), (1, 1, 1))

    mean_x, mean_y = local_mean(predicted), local_mean(truth)
    var_x = unbiased * (local_mean(predicted * predicted) - mean_x * mean_x)
    var_y = unbiased * (local_mean(truth * truth) - mean_y * mean_y)
    covariance = unbiased * (local_mean(predicted * truth) - mean_x * mean_y)
    similarity = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    return jnp.mean(similarity / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2)), axis=(2, 3, 4))


def repeat_last_frame(context: Frames, horizon: int) -> Float[Array, "b horizon h w c"]:
    """Returns `horizon` copies of the last context frame."""
    return jnp.repeat(context[:, -1:], horizon, axis=1)


def extrapolate_linearly(context: Frames, horizon: int) -> Float[Array, "b horizon h w c"]:
    """Returns frames x_(t+1) = clip(2 x_t - x_(t-1), 0, 1), iterated; needs two context frames."""
    previous, last, frames = context[:, -2], context[:, -1], []
    for _ in range(horizon):
        previous, last = last, jnp.clip(2 * last - previous, 0, 1)
        frames.append(last)
    return jnp.stack(frames, axis=1)


BASELINES = {"copy": repeat_last_frame, "linear": extrapolate_linearly}
"""Predictions that need no model."""
