"""VideoMAE: published counts, masks, a shorter sequence, settings that leave nothing to see or to predict."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vitx
from vitx.layers.masking import complement, count_visible_places, draw_tube_mask
from vitx.models.transformer import SIZES
from vitx.parameters import layer_numbers

SMALL = {"num_frames": 4, "image_size": 16, "tubelet_size": (2, 4, 4), "num_layers": 1}
SMALL |= {"hidden_size": 24, "num_heads": 2, "mlp_dim": 24}
DECODER = {"decoder_hidden_size": 12, "decoder_num_heads": 2, "decoder_mlp_dim": 12, "decoder_num_layers": 1}


def small(**fields):
    return vitx.create_model("videomae_b_16x2_pretrain", **(SMALL | DECODER | {"mask_ratio": 0.75} | fields))


@pytest.fixture(scope="module")
def video():
    return jax.random.normal(jax.random.key(3), (2, 4, 16, 16, 3))


@pytest.fixture(scope="module")
def variables(video):
    variables = jax.jit(small().init)(jax.random.key(0), video)
    return jax.tree.map(lambda x: x + 0.1 * jnp.sin(jnp.arange(x.size)).reshape(x.shape), variables)


# those of transformers on its meta device, and by its counter of operations
@pytest.mark.parametrize(
    ("name", "params", "gmacs"),
    [("s", 22_033_936, 56.878), ("b", 86_534_800, 180.345), ("l", 304_270_736, 596.833), ("h", 632_119_440, 1190.994)],
)
def test_classifiers_cost_what_those_of_transformers_do(name, params, gmacs):
    # blocks are alike, so two sizes of the stack give the cost of any
    few = [vitx.create_model(f"videomae_{name}_16x2", num_layers=layers) for layers in (1, 2)]
    one, two = (vitx.count_cost(model, model.input_shape) for model in few)
    more = SIZES[name]["num_layers"] - 1
    assert one.params + more * (two.params - one.params) == params
    assert round((one.macs + more * (two.macs - one.macs)) / 1e9, 3) == gmacs


def test_the_autoencoder_has_the_parameters_of_that_of_transformers():
    model = vitx.create_model("videomae_b_16x2_pretrain")
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, *model.input_shape)))
    params = sum(leaf.size for leaf in jax.tree.leaves(shapes))
    assert params == 94_209_408  # the authors' have a norm between encoder and decoder, 2 x 768 more
    with_norm = jax.eval_shape(
        model.copy(encoder_norm=True).init, jax.random.key(0), jnp.zeros((1, *model.input_shape))
    )
    assert sum(leaf.size for leaf in jax.tree.leaves(with_norm)) == params + 2 * 768


def test_a_tube_mask_hides_the_same_places_at_all_times():
    grid, num_places = (3, 4, 5), count_visible_places(0.9, (3, 4, 5))
    assert num_places == 2
    draw = jax.jit(lambda key: draw_tube_mask(key, grid, num_places))
    masks = np.stack([draw(jax.random.key(seed)) for seed in range(200)])
    assert (np.diff(masks) > 0).all() and masks.shape == (200, 6)
    places = masks.reshape(200, 3, 2) - 20 * np.arange(3)[:, None]
    assert (places == places[:, :1]).all()
    np.testing.assert_array_equal(draw(jax.random.key(7)), masks[7])
    counts = np.bincount(places[:, 0].ravel(), minlength=20)  # 20 of each are expected
    assert len(counts) == 20 and counts.min() > 5 and counts.max() < 40


@pytest.mark.parametrize(
    ("ratio", "places", "visible"), [(0.9, 196, 20), (0.75, 196, 49), (0.29, 100, 71), (0.7, 10, 3)]
)
def test_masked_places_are_rounded_down(ratio, places, visible):
    assert count_visible_places(ratio, (8, 1, places)) == visible


def test_indices_and_their_complement_are_all_tokens():
    keep = jnp.array([[5, 0], [2, 3]])
    np.testing.assert_array_equal(complement(keep, 6), [[1, 2, 3, 4], [0, 1, 4, 5]])


def test_the_encoder_sees_visible_tokens_alone(video, variables):
    model = small()
    visible = 8  # a quarter of 2 x 4 x 4
    keep = jnp.stack([model.draw_mask(jax.random.key(i)) for i in range(2)])
    assert keep.shape == (2, visible)
    tokens = jax.jit(lambda v: model.apply(variables, v, keep=keep, method="tokens"))
    encode = jax.jit(lambda x: model.apply(variables, x, method="encode"))
    assert encode(tokens(video)).shape == (2, visible, 24)

    # pixels of masked cubes change no prediction, and pixels of visible ones do
    predict = jax.jit(lambda v: model.apply(variables, v, keep=keep))
    assert predict(video).shape == (2, 32 - visible, 2 * 4 * 4 * 3)
    of_token = np.zeros((2, 32), bool)
    np.put_along_axis(of_token, np.asarray(keep), True, axis=1)
    is_visible = of_token.reshape(2, 2, 4, 4).repeat(2, 1).repeat(4, 2).repeat(4, 3)[..., None]
    np.testing.assert_array_equal(predict(jnp.where(is_visible, video, 7.0)), predict(video))
    assert not np.allclose(predict(jnp.where(is_visible, 7.0, video)), predict(video))


def test_cost_falls_with_the_masked_tokens():
    model = vitx.create_model("videomae_b_16x2_pretrain", num_layers=2, decoder_num_layers=1)
    encoder = vitx.create_model("videomae_b_16x2", num_layers=2)
    decoder = vitx.count_cost(model.copy(num_layers=1), model.input_shape).macs
    block = vitx.count_cost(model, model.input_shape).macs - decoder
    unmasked = vitx.count_cost(encoder, model.input_shape).macs
    unmasked -= vitx.count_cost(encoder.copy(num_layers=1), model.input_shape).macs
    assert block < 0.1 * unmasked  # 160 of 1,568 tokens, and attention falls with their square


@pytest.mark.parametrize("name", ["scan_layers", "remat_policy"])
def test_scanning_and_rematerialisation_change_no_prediction(name, video, variables):
    model = small()
    value = {"scan_layers": True, "remat_policy": "nothing_saveable"}[name]
    found, expected = (jax.jit(m.apply)(variables, video) for m in (model.copy(**{name: value}), model))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_the_decoder_stands_behind_the_encoder_in_layer_wise_learning_rates(variables):
    numbers = layer_numbers(variables["params"])
    assert set(jax.tree.leaves(numbers["embedding"])) == {0}
    assert set(jax.tree.leaves(numbers["encoder"])) == {1}
    assert set(jax.tree.leaves(numbers["decoder"])) == {2}
    assert set(jax.tree.leaves(numbers["to_pixels"])) == {3}


def test_an_attentive_probe_reads_all_tokens(video):
    model = vitx.create_model("videomae_b_16x2", num_classes=0, pooling="attention", **SMALL)
    variables = jax.jit(model.init)(jax.random.key(0), video)
    assert variables["params"].keys() == {"embedding", "encoder", "pooler"}
    features = jax.jit(model.apply)(variables, video)
    assert features.shape == (2, 24)
    gradient = jax.jit(jax.grad(lambda v: model.apply(variables, v)[0].sum()))(video)
    assert (np.abs(gradient[0]).reshape(2, 2, 4, 4, 4, 4, 3).max((1, 3, 5, 6)) > 0).all()
    assert not np.asarray(gradient[1]).any()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"mask_ratio": 1.0}, r"mask_ratio is 1\.0.*16 places"),
        ({"mask_ratio": 0.05}, r"mask_ratio is 0\.05"),  # less than one of 16 places
        ({"mask_ratio": -0.5}, r"mask_ratio is -0\.5"),
        ({"mask_ratio": float("nan")}, "mask_ratio is nan"),
        ({"tubelet_size": (3, 4, 4)}, r"\(3, 4, 4\).*num_frames"),
        ({"tubelet_size": (2, 5, 4)}, r"\(2, 5, 4\).*image_size"),
        ({"layouts": ("time", "space")}, "layouts.*time"),
        ({"sampled_frames": 2}, "sampled_frames is 2"),
        ({"decoder_num_heads": 5}, "decoder_hidden_size 12.*decoder_num_heads 5"),
        ({"decoder_num_layers": 0}, "decoder_num_layers is 0"),
    ],
)
def test_an_autoencoder_that_cannot_be_is_refused_when_it_is_created(fields, message):
    with pytest.raises(vitx.UserError, match=message):
        small(**fields)


def test_a_classifier_has_no_class_token():
    with pytest.raises(vitx.UserError, match="pooling"):
        vitx.create_model("videomae_b_16x2", pooling="class")
