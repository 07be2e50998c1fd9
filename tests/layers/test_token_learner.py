"""TokenLearner and TokenFuser: against plain NumPy, class tokens, gradients, and settings that they cannot have."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

import vitx
from vitx.analysis.cost import count_cost
from vitx.layers.token_learner import FuseTokens, SelectTokens, TokenLearner
from vitx.layers.transformer import Encoder, EncoderBlock

SMALL = {"num_frames": 4, "image_size": 16, "tubelet_size": (2, 4, 4), "num_classes": 0}
SMALL |= {"hidden_size": 24, "num_layers": 3, "num_heads": 2, "mlp_dim": 24}
FRAMES = np.random.default_rng(0).normal(size=(2, 3, 4, 5, 6)).astype(np.float32)  # batch, times, height, width, size


def random_variables(module, *arrays, **settings):
    """Returns variables far from the initial ones; nothing is compiled."""
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(lambda *x: module.init(jax.random.key(0), *x, **settings), *arrays)
    return jax.tree.map(lambda leaf: 0.3 * rng.normal(size=leaf.shape).astype(leaf.dtype), shapes)


def gelu(x):
    return np.asarray(jax.nn.gelu(x, approximate=True))


def norm(x, p):
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6) * p["scale"] + p["bias"]


def mlp(x, p):
    hidden = gelu(norm(x, p["norm"]) @ p["hidden"]["kernel"] + p["hidden"]["bias"])
    return hidden @ p["out"]["kernel"] + p["out"]["bias"]


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def convolve(x, kernel):
    """A 3 x 3 convolution over a frame with zeros around it, place by place."""
    height, width, _ = x.shape
    padded = np.pad(x, ((1, 1), (1, 1), (0, 0)))
    out = np.zeros((height, width, kernel.shape[-1]))
    for i, j in np.ndindex(height, width):
        out[i, j] = np.einsum("abc,abco->o", padded[i : i + 3, j : j + 3], kernel)
    return out


def average_version_1(frame, p):
    maps = norm(frame, p["norm"])
    for i in range(4):
        maps = convolve(gelu(maps) if i else maps, p[f"conv_{i}"]["kernel"])
    maps = sigmoid(maps)
    return np.array([(frame * maps[..., i, None]).mean((0, 1)) for i in range(maps.shape[-1])])


def average_version_11(frame, p):
    tokens = frame.reshape(-1, frame.shape[-1])
    scores = np.exp(mlp(tokens, p["maps"]))
    return (scores / scores.sum(0)).T @ tokens


@pytest.mark.parametrize(("version", "average"), [("1", average_version_1), ("1.1", average_version_11)])
def test_learned_tokens_equal_averages_in_numpy(version, average):
    module = SelectTokens(3, version)
    variables = random_variables(module, jnp.asarray(FRAMES))
    found = jax.jit(module.apply)(variables, jnp.asarray(FRAMES))
    assert found.shape == (2, 3, 3, 6)
    p = jax.tree.map(np.asarray, variables["params"])
    for clip, time in np.ndindex(2, 3):
        np.testing.assert_allclose(found[clip, time], average(FRAMES[clip, time], p), rtol=1e-3, atol=1e-5)


def test_fused_tokens_equal_mixtures_in_numpy():
    original, learned = FRAMES.reshape(2, 3, 20, 6), FRAMES[:, :, :2, 0] + 1
    arrays = jnp.asarray(learned), jnp.asarray(original)
    variables, fuse = jax.jit(FuseTokens().init)(jax.random.key(0), *arrays), jax.jit(FuseTokens().apply)
    np.testing.assert_array_equal(fuse(variables, *arrays), original)  # before training
    variables = random_variables(FuseTokens(), *arrays)
    found = fuse(variables, *arrays)
    p = jax.tree.map(np.asarray, variables["params"])
    for clip, time in np.ndindex(2, 3):
        mixed = norm(learned[clip, time], p["norm"]).T @ p["mix"]["kernel"] + p["mix"]["bias"]
        weights = sigmoid(mlp(original[clip, time], p["weights"]))
        expected = original[clip, time] + weights @ norm(mixed.T, p["mix_norm"])
        np.testing.assert_allclose(found[clip, time], expected, rtol=1e-3, atol=1e-5)


def test_tokens_of_a_frame_come_from_that_frame_and_class_tokens_stay():
    encoder = Encoder(1, EncoderBlock(num_heads=2, mlp_dim=8), reducer=TokenLearner(2, 0))
    x = jax.random.normal(jax.random.key(0), (2, 1 + 3 * 4, 6))
    settings = {"grid": (3, 2, 2), "num_prefix": 1, "train": False}
    variables = random_variables(encoder, x, **settings)
    learner = {"params": variables["params"]["token_learner"]}
    learned = SelectTokens(2).apply(learner, x[:, 1:].reshape(2, 3, 2, 2, 6))
    tokens = jnp.concatenate([x[:, :1], learned.reshape(2, 6, 6)], axis=1)
    plain = Encoder(1, EncoderBlock(num_heads=2, mlp_dim=8))
    other = {"params": {k: v for k, v in variables["params"].items() if k != "token_learner"}}

    @jax.jit
    def encode_both(x, tokens):
        return encoder.apply(variables, x, **settings), plain.apply(other, tokens, **settings)

    found, expected = encode_both(x, tokens)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["vivit_b_16x2", "videomae_b_16x2", "vivit_b_16x2_fe"])
def test_models_learn_tokens_at_any_depth(name):
    video = jax.random.normal(jax.random.key(3), (2, 4, 16, 16, 3))
    settings = {
        "reducer.num_tokens": 3,
        "reducer.after_layer": 1,
        "reducer.version": "1",
        "reducer.fuse_after_layer": 3,
    }
    plain = vitx.create_model(name, **SMALL)
    model = vitx.configuration.override(plain, {"reducer": "TokenLearner", **settings})
    assert model.reducer == TokenLearner(3, 1, "1", 3)

    def loss(variables, model):
        return (model.apply(variables, video).astype(jnp.float32) ** 2).sum()

    for fields in ({}, {"dtype": "bfloat16", "remat_policy": "dots_saveable", "reducer": TokenLearner(3, 2)}):
        changed = model.copy(**fields)
        variables = random_variables(changed, video)
        tokens = jax.eval_shape(lambda x, model=changed: model.apply(x, video, method="tokens"), variables)
        encode = functools.partial(changed.apply, method="encode")
        encoded = jax.eval_shape(encode, variables, tokens).shape
        times, num_prefix = 2, changed.num_prefix * (2 if name.endswith("fe") else 1)
        assert encoded == (2, num_prefix + times * (3 if fields else 16), 24)
        gradients = jax.device_get(jax.jit(jax.grad(loss), static_argnums=1)(variables, changed))
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))
        own = gradients["params"]["spatial_encoder" if name.endswith("fe") else "encoder"]["token_learner"]
        # a bias of all places changes no softmax over them, so kernels alone must have a gradient
        assert all(abs(leaf).max() > 0 for path, leaf in flatten_dict(own).items() if path[-1] == "kernel")


def test_missing_tokens_are_refused():
    model = vitx.create_model("vivit_b_16x2", **SMALL, reducer=TokenLearner(3, 2))
    with pytest.raises(ValueError, match="20 tokens"):
        tokens = jax.ShapeDtypeStruct((1, 20, 24), jnp.float32)
        jax.eval_shape(lambda x: model.init(jax.random.key(0), x, method="encode"), tokens)


def test_cost_falls_behind_the_block_where_tokens_are_learnt():
    plain = vitx.create_model("vivit_b_16x2", **SMALL)
    model = plain.copy(reducer=TokenLearner(2, 1))
    one, all_blocks = (count_cost(plain.copy(num_layers=n), plain.input_shape).macs for n in (1, 3))
    block = (all_blocks - one) // 2
    assert block == 6 * 33 * 24**2 + 2 * 33**2 * 24
    few = 6 * 5 * 24**2 + 2 * 5**2 * 24
    learner = 32 * (24 * 64 + 64 * 2) + 32 * 2 * 24
    assert count_cost(model, model.input_shape).macs == one + learner + 2 * few
    assert model.reducer.count_tokens(model.grid, 1, 3) == (33, 5, 5, 5)
    assert TokenLearner(2, 1, fuse_after_layer=2).count_tokens(model.grid, 1, 3) == (33, 5, 33, 33)


@pytest.mark.parametrize(
    ("name", "reducer", "words"),
    [
        ("vivit_b_16x2", TokenLearner(16, 1), ["reducer.num_tokens", "16", "15"]),
        ("vivit_b_16x2", TokenLearner(0, 1), ["reducer.num_tokens", "0"]),
        ("vivit_b_16x2", TokenLearner(2, 3), ["reducer.after_layer", "3", "0 to 2"]),
        ("vivit_b_16x2", TokenLearner(2, -1), ["reducer.after_layer", "-1"]),
        ("vivit_b_16x2", TokenLearner(2, 1, fuse_after_layer=1), ["reducer.fuse_after_layer", "1", "2 to 3"]),
        ("vivit_b_16x2", TokenLearner(2, 1, fuse_after_layer=4), ["reducer.fuse_after_layer", "4", "2 to 3"]),
        ("vivit_b_16x2_fsa", TokenLearner(2, 0), ["reducer", "layout time", "joint"]),
        ("timesformer_b_16_divided", TokenLearner(2, 1), ["reducer", "layout time", "joint"]),
        ("vivit_b_16x2_fdp", TokenLearner(2, 2), ["reducer", "layout time_and_space", "joint"]),
    ],
)
def test_settings_that_a_model_cannot_have_are_refused_when_it_is_created(name, reducer, words):
    with pytest.raises(vitx.UserError) as error:
        vitx.create_model(name, **SMALL, reducer=reducer)
    assert all(word in str(error.value) for word in words), error.value
