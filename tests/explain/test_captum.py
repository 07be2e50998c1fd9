"""Integrated gradients, occlusion, KernelSHAP and LIME agree with captum on the same network and the same clip.

The network is ours in both: PyTorch calls it through a function whose gradient JAX computes. Needs the extra peers.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.explain.conftest import TARGET
from vitx.explain.perturbation import integrated_gradients, occlusion
from vitx.explain.score import class_score
from vitx.explain.surrogates import draw_lime_coalitions, kernel_shap, lime
from vitx.explain.tubelets import Tubelets

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

    return lambda *inputs: Score.apply(*inputs)  # captum 0.9 asks for a signature, which torch 2.14's `apply` lacks


@pytest.fixture
def attr():
    return pytest.importorskip("captum.attr")


def test_integrated_gradients_agree(network, in_torch, attr, video):
    torch = pytest.importorskip("torch")
    clip = torch.from_numpy(np.array(video))[None]
    method = attr.IntegratedGradients(in_torch)
    expected = method.attribute(clip, n_steps=64, method="riemann_middle", internal_batch_size=16)
    found = integrated_gradients(*network, video, TARGET, steps=64)
    np.testing.assert_allclose(found, expected.numpy()[0].sum(-1), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("tubelet", [(2, 8, 8), (2, 6, 16)])
def test_occlusion_agrees(network, in_torch, attr, video, tubelet):
    torch = pytest.importorskip("torch")
    clip, window = torch.from_numpy(np.array(video))[None], (*tubelet, 3)
    expected = attr.Occlusion(in_torch).attribute(clip, sliding_window_shapes=window, strides=window, baselines=0)
    found = occlusion(*network, video, TARGET, tubelet=tubelet)
    np.testing.assert_allclose(found, expected.numpy()[0, ..., 0], rtol=1e-3, atol=1e-5)


TUBELETS = Tubelets((4, 24, 32), (2, 12, 32))  # 4 of them


def test_kernel_shap_comes_near(network, in_torch, attr, video):
    """captum draws its coalitions; with 14 of them, thousands of draws come within some percent of all."""
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    clip, features = torch.from_numpy(np.array(video))[None], torch.from_numpy(np.array(TUBELETS.indices()))
    settings = {"feature_mask": features[None, ..., None], "baselines": 0, "n_samples": 3000}
    expected = attr.KernelShap(in_torch).attribute(clip, perturbations_per_eval=100, **settings).numpy()[0, ..., 0]
    found = np.asarray(kernel_shap(*network, video, TARGET, tubelet=TUBELETS.size))
    np.testing.assert_allclose(found, expected, atol=0.05 * np.abs(found).max())


def test_lime_agrees_on_the_same_coalitions(network, in_torch, attr, video):
    torch = pytest.importorskip("torch")
    linear_model = pytest.importorskip("captum._utils.models.linear_model")
    coalitions, weights = draw_lime_coalitions(TUBELETS.count, 16, seed=0)
    clip, features = torch.from_numpy(np.array(video))[None], np.array(TUBELETS.indices())
    remaining = [torch.from_numpy(kept.astype(np.float32))[None] for kept in coalitions]
    weight_of = dict(zip(map(bytes, coalitions), weights / weights.sum(), strict=True))

    def draw(original, **_):
        while remaining:
            yield remaining.pop(0)

    method = attr.LimeBase(
        in_torch,
        linear_model.SkLearnRidge(alpha=0.001),
        similarity_func=lambda original, changed, kept, **_: weight_of[bytes(kept[0].numpy() > 0.5)],
        perturb_func=draw,
        perturb_interpretable_space=True,
        from_interp_rep_transform=lambda kept, original, **_: original * kept[0][torch.from_numpy(features)][..., None],
        to_interp_rep_transform=None,
    )
    expected = method.attribute(clip, n_samples=16).numpy().ravel()
    found = np.asarray(lime(*network, video, TARGET, tubelet=TUBELETS.size, samples=16))
    np.testing.assert_allclose(found, expected[features], rtol=1e-3, atol=1e-4)
