"""ViViT: the factorised encoder equals its definition; heads, sown attention, precision, errors."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

import vitx
from vitx.layers.embeddings import Positions, TubeletEmbedding
from vitx.layers.transformer import Encoder, EncoderBlock

SMALL = {
    "num_frames": 4,
    "image_size": (16, 24),
    "tubelet_size": (2, 8, 8),
    "hidden_size": 12,
    "num_layers": 2,
    "num_temporal_layers": 2,
    "num_heads": 3,
    "mlp_dim": 20,
    "num_classes": 5,
}


def random_variables(model, key=0):
    """Variables of which no tensor is zero or constant."""
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, *model.input_shape)))
    leaves, tree = jax.tree.flatten(shapes)
    keys = jax.random.split(jax.random.key(key), len(leaves))
    return tree.unflatten([0.3 * jax.random.normal(k, leaf.shape) for k, leaf in zip(keys, leaves, strict=True)])


def small(**fields):
    return vitx.create_model("vivit_b_16x2_fe", **(SMALL | fields))


def run(model, variables, *inputs, **options):
    """Applies a model in one compiled program."""
    return jax.jit(functools.partial(model.apply, **options))(variables, *inputs)


def video(batch=2, frames=4, height=16, width=24):
    return jax.random.normal(jax.random.key(1), (batch, frames, height, width, 3))


@pytest.mark.parametrize("pooling", ["class", "mean"])
@pytest.mark.parametrize("temporal", [0, 2])
def test_factorised_encoder_equals_two_plain_encoders(pooling, temporal):
    model = small(pooling=pooling, num_temporal_layers=temporal)
    variables, clip = random_variables(model), video()
    params = variables["params"]
    num_prefix = int(pooling == "class")

    def encoder(layers):
        return Encoder(layers, EncoderBlock(num_heads=3, mlp_dim=20))

    def pooled(x):
        return x[:, 0] if num_prefix else x.mean(axis=1)

    frames = []
    for t in range(2):  # each pair of frames alone, through an embedding and an encoder of its own
        tokens = TubeletEmbedding(12, (2, 8, 8)).apply({"params": params["embedding"]}, clip[:, 2 * t : 2 * t + 2])
        tokens = Positions(num_prefix).apply({"params": params["spatial_positions"]}, tokens)
        tokens = encoder(2).apply({"params": params["spatial_encoder"]}, tokens, grid=(1, 2, 3), train=False)
        frames.append(pooled(tokens))
    features = jnp.stack(frames, axis=1)
    if temporal:
        features = Positions(num_prefix).apply({"params": params["temporal_positions"]}, features)
        features = encoder(2).apply({"params": params["temporal_encoder"]}, features, grid=(2, 1, 1), train=False)
        features = pooled(features)
    else:
        features = features.mean(axis=1)
    head = params["head"]["logits"]
    np.testing.assert_allclose(run(model, variables, clip), features @ head["kernel"] + head["bias"], atol=1e-5)


def test_average_pool_baseline_ignores_the_order_of_tubelets():
    clip = video()
    swapped = jnp.concatenate([clip[:, 2:], clip[:, :2]], axis=1)
    average, factorised = small(num_temporal_layers=0), small()
    variables = random_variables(average)
    np.testing.assert_allclose(run(average, variables, clip), run(average, variables, swapped), atol=1e-5)
    variables = random_variables(factorised)
    assert not np.allclose(run(factorised, variables, clip), run(factorised, variables, swapped), atol=1e-3)


def test_logits_are_a_dictionary_of_heads_and_no_classes_give_features():
    model = small(num_classes=(("verb", 3), ("noun", 4)))
    logits = run(model, random_variables(model), video())
    assert {name: value.shape for name, value in logits.items()} == {"verb": (2, 3), "noun": (2, 4)}
    pooled = small(num_classes=0)
    variables = random_variables(pooled)
    np.testing.assert_array_equal(run(pooled, variables, video()), run(pooled, variables, video(), method="features"))


def test_attention_is_sown_when_asked_for():
    model = small()
    variables = random_variables(model)
    logits, sown = run(model, variables, video(), mutable="intermediates")
    np.testing.assert_array_equal(logits, run(model, variables, video()))
    maps = flatten_dict(sown["intermediates"], sep="/")
    assert maps["spatial_encoder/block_0/attention/attention"][0].shape == (4, 3, 7, 7)
    assert maps["temporal_encoder/block_1/attention/attention"][0].shape == (2, 3, 3, 3)
    for weights in jax.tree.leaves(maps):
        np.testing.assert_allclose(weights.sum(-1), 1, atol=1e-5)


def test_bfloat16_is_close_with_float32_parameters_and_logits():
    model, half = small(), small(dtype="bfloat16")
    variables = random_variables(model)
    logits = run(half, variables, video())
    assert logits.dtype == jnp.float32
    np.testing.assert_allclose(logits, run(model, variables, video()), atol=0.2, rtol=0.1)


def test_stochastic_depth_and_dropout_change_training_only():
    model = small(drop_path_rate=0.5, dropout_rate=0.1)
    variables = random_variables(model)
    rngs = {"dropout": jax.random.key(0), "drop_path": jax.random.key(1)}
    plain = run(small(), variables, video())
    np.testing.assert_array_equal(run(model, variables, video()), plain)
    assert not np.allclose(run(model, variables, video(), train=True, rngs=rngs), plain, atol=1e-2)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_heads": 5}, "hidden_size 12 is not divisible by num_heads 5"),
        (
            {"tubelet_size": (3, 8, 8)},
            "a tubelet of (3, 8, 8) (frames, height, width) does not divide a clip of (4, 16, 24)",
        ),
        ({"image_size": 20}, "does not divide a clip of (4, 20, 20)"),
        ({"num_layers": 0}, "num_layers is 0"),
        ({"num_temporal_layers": -1}, "num_temporal_layers is -1; expected at least 0"),
        ({"layouts": ("time", "spaces")}, "layouts is ('time', 'spaces'); expected different names out of joint, time"),
        ({"layouts": ()}, "layouts is (); expected different names"),
        ({"layouts": ("time_and_space",)}, "num_heads is 3; the layout time_and_space"),
        ({"hidden_size": 0}, "hidden_size is 0; expected at least 1"),
        ({"mlp_dim": -4}, "mlp_dim is -4"),
        ({"drop_path_rate": 1.0}, "drop_path_rate is 1.0; expected a probability in [0, 1)"),
        ({"dropout_rate": -0.1}, "dropout_rate is -0.1"),
        ({"layer_norm_eps": -1.0}, "layer_norm_eps is -1.0"),
        ({"num_classes": -3}, "num_classes is -3"),
        ({"num_classes": (("a", 3), ("a", 4))}, "of different names"),
        ({"num_classes": ()}, "num_classes is ()"),
        ({"sampled_frames": 5}, "sampled_frames is 5; expected 0 to num_frames, 4"),
        ({"remat_policy": "some"}, "remat_policy is 'some'; expected"),
        ({"num_head": 3}, "did you mean num_heads?"),
        ({"pooling": "max"}, "pooling is 'max'; expected one of 'class', 'mean'"),
    ],
)
def test_impossible_settings_raise_at_creation(fields, message):
    with pytest.raises(vitx.UserError) as error:
        small(**fields)
    assert message in str(error.value)


@pytest.mark.parametrize("shape", [(2, 4, 3, 16, 24), (2, 8, 16, 24, 3), (2, 4, 24, 16, 3)])
def test_video_of_another_shape_raises(shape):
    model = small()
    variables = random_variables(model)
    with pytest.raises(ValueError, match=r"\[batch, 4, 16, 24, 3\]"):
        run(model, variables, jnp.zeros(shape))


@pytest.mark.parametrize("name", ["vivit_b_16x2_fsa", "vivit_b_16x2_fdp"])
def test_models_3_and_4_have_no_class_token(name):
    with pytest.raises(vitx.UserError, match="set pooling to 'mean'"):
        vitx.create_model(name, pooling="class")


@pytest.mark.smoke
def test_variants_are_listed_by_name():
    assert vitx.list_models("vivit_b_16x2*") == [
        f"vivit_b_16x2{suffix}" for suffix in ("", "_avg", "_fdp", "_fe", "_fsa")
    ]
    assert len(vitx.list_models("vivit_*")) == 13 * 5 and "vivit_h_14x2" in vitx.list_models()
    attentions = ("axial", "divided", "joint", "local_global", "space")
    assert vitx.list_models("timesformer_*") == [
        *(f"timesformer_b_16_{name}" for name in attentions),
        "timesformer_hr",
        "timesformer_l",
    ]
    with pytest.raises(vitx.UserError, match="did you mean vivit_b_16x2_fe"):
        vitx.create_model("vivit_b_16x2_fee")
