"""Integrated gradients and occlusion agree with captum on the same network and the same clip.

The network is ours in both: PyTorch calls it through a function whose gradient JAX computes. Needs the extra peers.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.explain.conftest import TARGET
from vitx.explain.perturbation import integrated_gradients, occlusion
from vitx.explain.score import class_score

pytestmark = pytest.mark.peers


@pytest.fixture(params=["vivit_ti_16x2_fe", "cnn"])
def network(request, transformer, cnn):
    return cnn if request.param == "cnn" else transformer(request.param)


@pytest.fixture
def in_torch(network):
    """The class's logit as a function of a PyTorch batch [batch, t, h, w, c]."""
    torch = pytest.importorskip("torch")
    score = jax.jit(lambda clips: class_score(*network, clips, TARGET))

    class Score(torch.autograd.Function):
        @staticmethod
        def forward(context, clips):
            out, context.pull_back = jax.vjp(score, jnp.asarray(clips.detach().numpy()))
            return torch.from_numpy(np.array(out))

        @staticmethod
        def backward(context, gradient):
            (of_clips,) = context.pull_back(jnp.asarray(gradient.numpy()))
            return torch.from_numpy(np.array(of_clips))

    return Score.apply


@pytest.fixture
def attr():
    return pytest.importorskip("captum.attr")


def test_integrated_gradients_agree(network, in_torch, attr, video):
    """Last run: 2026-11-26, captum 0.9.0, PyTorch 2.13: passed."""
    torch = pytest.importorskip("torch")
    clip = torch.from_numpy(np.array(video))[None]
    method = attr.IntegratedGradients(in_torch)
    expected = method.attribute(clip, n_steps=64, method="riemann_middle", internal_batch_size=16)
    found = integrated_gradients(*network, video, TARGET, steps=64)
    np.testing.assert_allclose(found, expected.numpy()[0].sum(-1), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("tubelet", [(2, 8, 8), (2, 6, 16)])
def test_occlusion_agrees(network, in_torch, attr, video, tubelet):
    """Last run: 2026-11-26, captum 0.9.0, PyTorch 2.13: passed."""
    torch = pytest.importorskip("torch")
    clip, window = torch.from_numpy(np.array(video))[None], (*tubelet, 3)
    expected = attr.Occlusion(in_torch).attribute(clip, sliding_window_shapes=window, strides=window, baselines=0)
    found = occlusion(*network, video, TARGET, tubelet=tubelet)
    np.testing.assert_allclose(found, expected.numpy()[0, ..., 0], rtol=1e-3, atol=1e-5)
