"""How near forecast frames are to the true ones, with the conventions of the published Moving MNIST tables."""

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

Frames = Float[Array, "batch frames height width channels"]
EachFrame = Float[Array, "batch frames"]

WINDOW = 7  # height and width of SSIM's windows
NEAREST = 2.0**-20  # to 0 or 1 that a probability comes before its logarithm is taken; exact in float32
SUMMED = ("mse", "mae", "cross_entropy")  # over the pixels of a frame; a sequence's is the sum over its frames
SMALL = (*SUMMED, "loss")  # of these less is better


def frame_figures(forecast: Frames, truth: Frames) -> dict[str, EachFrame]:
    """Returns figures of every frame; pixels are in [0, 1].

    `mse` and `mae` are summed over pixels and channels, as OpenSTL (arXiv:2306.11249) and the line of PredRNN print
    them; `cross_entropy` likewise, in nats, as Shi et al. 2015 (table 1, there over the whole sequence). `psnr` is in
    dB, at most 100. `ssim` is scikit-image's, for the range of 1 that the pixels have; `ssim_openstl` takes the range
    of 2 that scikit-image before 0.20 supposed of floats, and OpenSTL's tables with it. SSIM and PSNR are of pixels
    clipped to [0, 1].
    """
    clipped, axes = jnp.clip(forecast, 0, 1), (2, 3, 4)
    psnr = -10 * jnp.log10(jnp.maximum(jnp.mean((clipped - truth) ** 2, axes), 1e-10))
    return {
        "mse": jnp.sum((forecast - truth) ** 2, axes),
        "mae": jnp.sum(jnp.abs(forecast - truth), axes),
        "cross_entropy": jnp.sum(cross_entropy(forecast, truth), axes),
        "psnr": psnr,
        "ssim": ssim(clipped, truth),
        "ssim_openstl": ssim(clipped, truth, data_range=2.0),
    }


def cross_entropy(forecast: Frames, truth: Frames) -> Frames:
    """Returns each pixel's binary cross-entropy in nats: forecast and truth are probabilities of ink."""
    p = jnp.clip(forecast, NEAREST, 1 - NEAREST)
    return -(truth * jnp.log(p) + (1 - truth) * jnp.log1p(-p))


def ssim(forecast: Frames, truth: Frames, *, data_range: float = 1.0) -> EachFrame:
    """Structural similarity (Wang et al. 2004, equation 13), the mean over windows and channels.

    As scikit-image computes it by default: all windows of 7 x 7 inside the frame, weighted alike, with unbiased
    variances, K1 = 0.01, K2 = 0.03.
    """
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    unbiased = WINDOW**2 / (WINDOW**2 - 1)

    def local(x: Frames) -> Float[Array, "batch frames rows columns channels"]:
        return nn.avg_pool(x, (1, WINDOW, WINDOW), (1, 1, 1))

    mean_x, mean_y = local(forecast), local(truth)
    var_x, var_y = (unbiased * (local(x * x) - mean * mean) for x, mean in ((forecast, mean_x), (truth, mean_y)))
    covariance = unbiased * (local(forecast * truth) - mean_x * mean_y)
    likeness = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    return jnp.mean(likeness / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2)), axis=(2, 3, 4))


def copied(seen: Frames, horizon: int) -> Float[Array, "batch horizon height width channels"]:
    """Returns the last frame, over and over."""
    return jnp.repeat(seen[:, -1:], horizon, axis=1)


def extrapolated(seen: Frames, horizon: int) -> Float[Array, "batch horizon height width channels"]:
    """Returns clip(2 x_t - x_(t-1), 0, 1), and so on from what it gives; wants two frames."""
    before, last, frames = seen[:, -2], seen[:, -1], []
    for _ in range(horizon):
        before, last = last, jnp.clip(2 * last - before, 0, 1)
        frames.append(last)
    return jnp.stack(frames, axis=1)


BASELINES = {"copy": copied, "linear": extrapolated}
"""What needs no model: to repeat the last frame, and to go on linearly."""
