"""Tubelet embedding, attention, stochastic depth."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from vitx.layers import attention
from vitx.layers.embeddings import TubeletEmbedding
from vitx.layers.transformer import Encoder, EncoderBlock, stochastic_depth

pytestmark = pytest.mark.smoke


def test_tubelet_embedding_is_a_strided_3d_convolution():
    video = jax.random.normal(jax.random.key(0), (2, 6, 8, 12, 3))
    embedding = TubeletEmbedding(width=5, tubelet_size=(3, 4, 2))
    variables = embedding.init(jax.random.key(1), video)
    kernel, bias = variables["params"]["kernel"], jnp.arange(5.0)
    found = embedding.apply({"params": {"kernel": kernel, "bias": bias}}, video)
    expected = lax.conv_general_dilated(
        video, kernel, (3, 4, 2), "VALID", dimension_numbers=("NDHWC", "DHWIO", "NDHWC")
    )
    np.testing.assert_allclose(found, expected.reshape(2, -1, 5) + bias, atol=1e-5)


def test_attention_equals_its_formula_with_bias_and_mask():
    q, k, v = jax.random.normal(jax.random.key(0), (3, 2, 5, 3, 4))
    mask = jnp.tril(jnp.ones((5, 5), bool))
    bias = jax.random.normal(jax.random.key(1), (3, 5, 5))
    expected = np.zeros(q.shape)
    for b in range(2):
        for h in range(3):
            for i in range(5):
                score = np.exp([q[b, i, h] @ k[b, j, h] / 2 + bias[h, i, j] for j in range(i + 1)])
                expected[b, i, h] = (score / score.sum()) @ v[b, : i + 1, h]
    np.testing.assert_allclose(attention.core(q, k, v, bias=bias, mask=mask), expected, atol=1e-5)


def test_stochastic_depth_drops_clips_or_single_frames():
    x, key = jnp.ones((50, 6, 2, 3)), jax.random.key(0)
    clips = stochastic_depth(x, 0.5, key)
    assert {int(number) for number in jnp.unique(clips.sum(axis=(1, 2, 3)))} == {0, 2 * 36}
    frames = stochastic_depth(x, 0.5, key, per_frame=True).sum(axis=(2, 3))
    assert set(np.unique(frames)) == {0, 12} and len(np.unique(frames.sum(axis=1))) > 2


@pytest.mark.parametrize("rate", [0.25, 0.9])
def test_stochastic_depth_keeps_the_expectation(rate):
    y = stochastic_depth(jnp.ones((4000, 1, 1)), rate, jax.random.key(0))
    np.testing.assert_allclose(np.unique(y), [0, 1 / (1 - rate)], rtol=1e-6)
    assert abs(y.mean() - 1) < 5 * np.sqrt(rate / (1 - rate) / 4000)


def test_stochastic_depth_grows_linearly_over_the_blocks(monkeypatch):
    rates = []

    def call(self, x, *, drop_path_rate, **_):
        rates.append((self.name, drop_path_rate))
        return x

    monkeypatch.setattr(EncoderBlock, "__call__", call)
    encoder = Encoder(5, EncoderBlock(num_heads=1, mlp_dim=1), drop_path_rate=0.4)
    encoder.init(jax.random.key(0), jnp.zeros((1, 1, 2)), grid=(1, 1, 1), train=False)
    assert rates == [(f"block_{i}", 0.4 * i / 4) for i in range(5)]
