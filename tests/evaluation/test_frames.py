"""Metrics of predicted frames against NumPy, SSIM against SciPy and scikit-image (peers), the two baselines."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.ndimage import uniform_filter

from vitx.evaluation.frames import extrapolate_linearly, frame_metrics, repeat_last_frame, ssim


def random_frames(channels, seed=0):
    random = np.random.default_rng(seed)
    truth = random.uniform(0, 1, (2, 3, 9, 12, channels))
    predicted = truth + 0.3 * random.standard_normal(truth.shape)  # some of it below 0 and above 1
    return predicted, truth


def ssim_of_image(x, y, data_range):
    """Wang et al. 2004, equation 13, over windows of 7 x 7 inside a grey image, float64."""

    def local(image):
        return uniform_filter(image, 7)[3:-3, 3:-3]

    c1, c2, unbiased = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2, 49 / 48
    mx, my = local(x), local(y)
    vx, vy, vxy = (unbiased * (local(a * b) - local(a) * local(b)) for a, b in ((x, x), (y, y), (x, y)))
    return ((2 * mx * my + c1) * (2 * vxy + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2))).mean()


@pytest.mark.parametrize("channels", [1, 3])
def test_frame_metrics_match_the_definitions_of_the_published_tables(channels):
    predicted, truth = random_frames(channels)
    found = jax.jit(frame_metrics)(jnp.float32(predicted), jnp.float32(truth))
    for b, t in np.ndindex(2, 3):
        x, y = predicted[b, t], truth[b, t]
        clipped, p = np.clip(x, 0, 1), np.clip(x, 2**-20, 1 - 2**-20)
        expected = {
            "mse": ((x - y) ** 2).sum(),
            "mae": np.abs(x - y).sum(),
            "cross_entropy": -(y * np.log(p) + (1 - y) * np.log(1 - p)).sum(),
            "psnr": 10 * np.log10(1 / ((clipped - y) ** 2).mean()),
            "ssim": np.mean([ssim_of_image(clipped[..., c], y[..., c], 1) for c in range(channels)]),
            "ssim_openstl": np.mean([ssim_of_image(clipped[..., c], y[..., c], 2) for c in range(channels)]),
        }
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            np.testing.assert_allclose(found[name][b, t], value, rtol=1e-4, err_msg=name)


def test_perfect_prediction_has_the_best_value_of_every_metric():
    truth = jnp.float32(random_frames(1)[1].round())
    found = jax.jit(frame_metrics)(truth, truth)
    np.testing.assert_allclose(found["mse"], 0)
    np.testing.assert_allclose(found["psnr"], 100)
    np.testing.assert_allclose(found["ssim"], 1, rtol=1e-6)
    assert found["cross_entropy"].max() < 1e-3


def test_baselines_repeat_or_extrapolate_the_last_frames():
    context = jnp.asarray([0.9, 0.5, 0.3]).reshape(1, 3, 1, 1, 1)
    np.testing.assert_allclose(repeat_last_frame(context, 3).ravel(), [0.3, 0.3, 0.3])
    np.testing.assert_allclose(extrapolate_linearly(context, 3).ravel(), [0.1, 0, 0], atol=1e-6)
    np.testing.assert_allclose(extrapolate_linearly(1 - context, 3).ravel(), [0.9, 1, 1], atol=1e-6)


@pytest.mark.peers
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("data_range", "images"), [(1.0, "noise"), (2.0, "noise"), (1.0, "ink")])
def test_ssim_matches_scikit_image(channels, data_range, images):
    from skimage.metrics import structural_similarity

    predicted, truth = random_frames(channels)
    predicted = np.clip(predicted, 0, 1)
    if images == "ink":  # flat windows, where rounding shows
        predicted, truth = predicted * (predicted > 0.9), truth * (truth > 0.9)
    found = ssim(jnp.float32(predicted), jnp.float32(truth), data_range=data_range)
    for b, t in np.ndindex(2, 3):
        expected = structural_similarity(predicted[b, t], truth[b, t], data_range=data_range, channel_axis=-1)
        np.testing.assert_allclose(found[b, t], expected, atol=2e-5)
