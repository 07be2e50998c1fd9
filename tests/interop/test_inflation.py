"""Image ResNets as video networks: what an inflated network computes of a clip, and what becomes of every tensor."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vitx
from vitx.interop import cnn
from vitx.interop.fill import flatten_variables
from vitx.interop.images import FromImage
from vitx.interop.names import to_theirs
from vitx.interop.tensors import write_safetensors
from vitx.pretrained import start_from

SHALLOW = (1, 1, 1, 1)
NARROW = {"width": 8, "depths": SHALLOW}
SMALL_TRUNK = {"width": 8, "trunk.depths": SHALLOW}
IMAGE = vitx.create_model("tsn_r50", num_classes=7, **SMALL_TRUNK)
RULES = tuple(cnn.image_rules(IMAGE))


@functools.cache
def variables():
    random = np.random.default_rng(1)
    shapes = jax.eval_shape(IMAGE.init, jax.random.key(0), jnp.zeros((1, 1, 32, 32, 3)))

    def random_leaf(path, leaf):
        if path[-1].key == "kernel":
            return random.standard_normal(leaf.shape, np.float32) * np.float32((2 / np.prod(leaf.shape[:-1])) ** 0.5)
        low, high = (0.5, 1.5) if path[-1].key in ("var", "scale") else (-0.5, 0.5)
        return random.uniform(low, high, leaf.shape).astype(np.float32)

    return jax.tree_util.tree_map_with_path(random_leaf, shapes)


@pytest.fixture
def state_dict():
    """As torchvision and timm name it."""
    return to_theirs(flatten_variables(variables()), RULES) | {"bn1.num_batches_tracked": np.array(7.0, np.float32)}


@pytest.fixture
def load(tmp_path, state_dict):
    def load_inflated(name, inflation="central", tensors=state_dict, **fields):
        write_safetensors(tensors, tmp_path / "resnet50.safetensors", {})
        how = FromImage(inflation=inflation)
        return vitx.load_pretrained(tmp_path / "resnet50.safetensors", name, from_image=how, **fields)

    return load_inflated


def frames(number):
    return jnp.asarray(np.random.default_rng(2).standard_normal((1, number, 32, 64, 3)), jnp.float32)


@functools.cache
def image_features(number):
    """Of each of some frames, by the image network."""
    images = frames(number).swapaxes(0, 1)
    return np.asarray(jax.jit(IMAGE.copy(num_classes=0).apply)(variables(), images))


def features_over_time(loaded, clip):
    """The average of the last maps at each moment that they have."""
    model, variables = loaded
    apply_windows = jax.jit(functools.partial(model.copy(window=(1, 1, 2)).apply, train=False, method="windows"))
    return np.asarray(apply_windows(variables, clip))[0, :, 0, 0]


close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["c2d_r50", "i3d_r50", "slow_r50"])
def test_inflation_at_the_centre_of_a_still_clip_equals_the_image(name, load):
    still = jnp.repeat(frames(1), 4, axis=1)
    found = features_over_time(load(name, **NARROW), still)
    close(found, np.repeat(image_features(1), len(found), axis=0))


def test_inflation_at_the_centre_without_pooling_keeps_frames_independent(load):
    close(features_over_time(load("slow_r50", **NARROW), frames(3)), image_features(3))
    close(features_over_time(load("i3d_r50", pooled_frames=1, **NARROW), frames(3)), image_features(3))


@pytest.mark.parametrize(
    ("name", "clip", "reach"),
    [
        ("c2d_r50", 4, 0),  # no kernel extends over time
        ("slow_r50", 6, 2),  # one frame in each of two stages
        ("i3d_r50", 20, 4),  # two in the stem and one in a stage, then half of the frames, one in each of two stages
    ],
)
def test_even_inflation_of_a_still_clip_equals_the_image_away_from_padding(name, clip, reach, load):
    found = features_over_time(load(name, "average", **NARROW), jnp.repeat(frames(1), clip, axis=1))
    inside = found[reach : len(found) - reach]
    close(inside, np.repeat(image_features(1), len(inside), axis=0))
    for features in (*found[:reach], *found[len(found) - reach :]):
        assert np.abs(features - image_features(1)[0]).max() > 1e-2


def test_the_report_names_what_was_inflated_fresh_and_left(load, capsys):
    loaded = load("i3d_r50", **NARROW)
    assert set(loaded.report.inflated) == {
        "stem/conv/kernel",
        *(f"stage_{i}/block_0/conv_a/conv/kernel" for i in (1, 2, 3)),
    }
    assert loaded.report.loaded["stage_2/block_0/shortcut/norm/var"] == "layer2.0.downsample.1.running_var"
    assert set(loaded.report.fresh) == {"head/logits/kernel", "head/logits/bias"}
    assert set(loaded.report.left_over) == {"fc.weight", "fc.bias"}
    assert loaded.preprocessing.mean == (0.485, 0.456, 0.406) and loaded[0].num_classes == 400
    assert "inflated along time: stem/conv/kernel, " in capsys.readouterr().err


def test_tsn_loads_all_weights_of_the_image_network(load):
    loaded = load("tsn_r50", **SMALL_TRUNK)
    assert loaded[0].num_classes == 7 and not loaded.report.fresh and not loaded.report.left_over
    jax.tree.map(np.testing.assert_array_equal, loaded[1], variables())
    other = load("tsn_r50", num_classes=3, **SMALL_TRUNK)
    assert set(other.report.left_over) == {"fc.weight", "fc.bias"} and len(other.report.fresh) == 2
    bare = {name: x for name, x in to_theirs(flatten_variables(variables()), RULES).items() if "fc" not in name}
    assert load("tsn_r50", tensors=bare, **SMALL_TRUNK)[0].num_classes == 400


@pytest.mark.parametrize("name", ["lrcn_lstm_r50", "lrcn_gru_r50"])
def test_a_recurrent_network_gets_its_trunk_and_a_fresh_cell(name, load, tmp_path):
    loaded = load(name, hidden_size=6, **SMALL_TRUNK)
    assert {path.split("/")[0] for path in loaded.report.fresh} == {"recurrent", "head"}
    found, expected = flatten_variables(loaded[1]), flatten_variables(variables())
    for path in loaded.report.loaded:
        np.testing.assert_array_equal(found[path], expected[path])
    assert set(expected) - set(loaded.report.loaded) == {"head/logits/kernel", "head/logits/bias"}
    # as training starts from it
    model = loaded[0].copy(num_classes=(("verb", 2), ("noun", 3)))
    started = flatten_variables(start_from(tmp_path / "resnet50.safetensors", model)[0])
    np.testing.assert_array_equal(started["stem/conv/kernel"], expected["stem/conv/kernel"])
    assert started["head/noun/bias"].shape == (3,)


def without(part):
    return lambda weights: {name: x for name, x in weights.items() if part not in name}


@pytest.mark.parametrize(
    ("change", "name", "fields", "message"),
    [
        (
            dict,
            "slowfast_r50_8x8",
            {},
            "holds torchvision's or timm's resnet50 .* SlowFast is read from PyTorchVideo's",
        ),
        (dict, "cnn_small", {}, "FrameCNN of a PlainTrunk is read from runs of vitx"),
        (dict, "csn_r101", NARROW, r"layer1.0.conv2.weight has shape \[1, 3, 3, 8, 8\], expected \[3, 3, 3, 1, 8\]"),
        (dict, "tsn_r50", {}, r"conv1.weight has shape \[1, 7, 7, 3, 8\], expected \[1, 7, 7, 3, 64\]"),
        (without("running"), "i3d_r50", NARROW, "no statistics of batch normalisation"),
        (without("layer1.0.bn1.running_var"), "lrcn_gru_r50", SMALL_TRUNK, "missing stage_1/block_0/conv_a/norm/var"),
        (
            without("conv3"),
            "i3d_r50",
            NARROW,
            "bn1.bias.* BottleneckResNet is read from PyTorchVideo's .* or torchvision's",
        ),
        (lambda w: w | {"layer5.weight": w["fc.weight"]}, "slow_r50", NARROW, "unexpected layer5.weight"),
    ],
)
def test_a_state_dict_that_does_not_fit_is_refused(change, name, fields, message, load, state_dict):
    with pytest.raises(vitx.UserError, match=f"(?s){message}"):
        load(name, tensors=change(state_dict), **fields)
