"""Convolutional networks: exact cost, supported clips, equal implementations, heads, batch statistics, errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vitx
from vitx.analysis.cost import count_cost
from vitx.models.slowfast import slow_frames

NARROW = {"width": 8, "num_classes": 5}
ONE_BLOCK = NARROW | {"depths": (1, 1, 1, 1)}


def video(*shape):
    return jnp.asarray(np.random.default_rng(0).standard_normal((*shape, 3)), jnp.float32)


def random_variables(model, clip):
    """Variables of which none is zero or constant; variances are positive."""
    random = np.random.default_rng(1)
    shapes = jax.eval_shape(model.init, jax.random.key(0), clip)

    def some(path, leaf):
        low, high = (0.5, 1.5) if path[-1].key == "var" else (-0.5, 0.5)
        return jnp.asarray(random.uniform(low, high, leaf.shape), jnp.float32)

    return jax.tree_util.tree_map_with_path(some, shapes)


# parameters and units of 10⁹ multiply-accumulates, counted on torchvision and PyTorchVideo by PyTorch's operation
# counter; of slowfast_r50_4x16 as PyTorchVideo's model zoo and SlowFast's table 2 print them; of x3d_l the
# multiply-accumulates as the model zoo of SlowFast prints them. Second sizes of a network are slow tests.
COUNTED = [
    ("r3d_18", (16, 112), 33_371_472, 40.697),
    ("mc3_18", (16, 112), 11_695_440, 43.343),
    ("r2plus1d_18", (16, 112), 31_505_325, 40.519),
    ("s3d", (16, 224), 8_320_048, 17.979),
    ("c2d_r50", (8, 224), 24_327_632, 19.493),
    ("i3d_r50", (8, 224), 28_043_472, 28.408),
    ("slow_r50", (8, 224), 32_454_096, 41.741),
    pytest.param("slow_r50", (8, 256), 32_454_096, 54.521, marks=pytest.mark.slow),
    ("slowfast_r50_8x8", (32, 224), 34_566_488, 50.309),
    pytest.param("slowfast_r50_8x8", (32, 256), 34_566_488, 65.712, marks=pytest.mark.slow),
    ("slowfast_r101_8x8", (32, 256), 62_826_968, 125.908),
    ("csn_r101", (32, 256), 22_213_776, 73.757),
    ("r2plus1d_r50", (16, 256), 28_107_600, 75.148),
    ("x3d_xs", (4, 160), 3_794_274, 0.605),
    pytest.param("x3d_xs", (4, 182), 3_794_274, 0.844, marks=pytest.mark.slow),
    ("x3d_s", (13, 160), 3_794_274, 1.963),
    pytest.param("x3d_s", (13, 182), 3_794_274, 2.727, marks=pytest.mark.slow),
    ("x3d_m", (16, 224), 3_794_274, 4.732),
    pytest.param("x3d_m", (16, 256), 3_794_274, 6.186, marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("name", "clip", "params", "gmacs"), COUNTED)
def test_parameters_are_exact_and_macs_within_a_thousandth(name, clip, params, gmacs):
    frames, size = clip
    cost = count_cost(vitx.create_model(name), (frames, size, size, 3))
    assert cost.params == params
    assert cost.macs / 1e9 == pytest.approx(gmacs, rel=1e-3)


def test_cost_equals_published_numbers():
    slowfast = count_cost(vitx.create_model("slowfast_r50_4x16"), (32, 256, 256, 3))
    assert slowfast.params / 1e6 == pytest.approx(34.48, abs=0.005)
    assert slowfast.macs / 1e9 == pytest.approx(36.1, abs=0.05)
    x3d = count_cost(vitx.create_model("x3d_l"), (16, 312, 312, 3))
    assert x3d.params / 1e6 == pytest.approx(6.15, abs=0.005)
    assert x3d.macs / 1e9 == pytest.approx(18.37, abs=0.005)


@pytest.mark.parametrize(
    ("name", "fields", "shape"),
    [
        ("r2plus1d_18", ONE_BLOCK, (2, 8, 16, 19)),
        ("slowfast_r50_8x8", ONE_BLOCK, (2, 4, 32, 35)),
        ("r2plus1d_r50", ONE_BLOCK, (2, 5, 33, 32)),
        ("x3d_s", ONE_BLOCK, (2, 3, 33, 32)),
    ],
)
def test_implementations_compute_the_same(name, fields, shape):
    clip, model = video(*shape), vitx.create_model(name, **fields)
    variables = random_variables(model, clip)
    expected = jax.jit(model.apply)(variables, clip)
    found = jax.jit(model.copy(implementation="cpu").apply)(variables, clip)
    assert expected.shape == (2, 5)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


@pytest.mark.smoke
def test_logits_are_a_dictionary_of_heads_also_in_half_precision():
    clip = video(2, 1, 32, 32)
    model = vitx.create_model("slow_r50", **ONE_BLOCK | {"num_classes": (("verb", 3), ("noun", 4))})
    variables = random_variables(model, clip)
    logits = jax.jit(model.apply)(variables, clip)
    assert {name: value.shape for name, value in logits.items()} == {"verb": (2, 3), "noun": (2, 4)}
    pooled = model.copy(num_classes=0)
    found = jax.jit(lambda variables: pooled.apply(variables, clip))(variables)
    features = jax.jit(lambda variables: model.apply(variables, clip, method="features"))(variables)
    assert found.shape == (2, 8 * 32)
    np.testing.assert_array_equal(found, features)
    half = model.copy(dtype="bfloat16").apply
    for name, value in jax.jit(half)(variables, clip).items():
        assert value.dtype == jnp.float32
        np.testing.assert_allclose(value, logits[name], atol=0.05 * np.abs(logits[name]).max())


def test_dropout_and_statistics_of_the_batch_change_training_only():
    clip = video(3, 1, 33, 64)
    model = vitx.create_model("slow_r50", **ONE_BLOCK | {"dropout_rate": 0.5})
    variables = random_variables(model, clip)
    plain = jax.jit(model.copy(dropout_rate=0.0).apply)(variables, clip)
    np.testing.assert_array_equal(jax.jit(model.apply)(variables, clip), plain)

    @jax.jit
    def trained(seed):
        rngs = {"dropout": jax.random.key(seed)}
        return model.apply(variables, clip, train=True, rngs=rngs, mutable=["batch_stats"])

    (first, after), (second, again) = trained(0), trained(1)
    assert not np.allclose(first, second) and not np.allclose(first, plain)
    jax.tree.map(np.testing.assert_array_equal, after, again)
    assert jax.tree.structure(after["batch_stats"]) == jax.tree.structure(variables["batch_stats"])
    changed = jax.tree.map(lambda new, old: not np.allclose(new, old), after["batch_stats"], variables["batch_stats"])
    assert all(jax.tree.leaves(changed))


@pytest.mark.parametrize("frames", [8, 12, 32, 64])
def test_slow_pathway_sees_the_first_and_the_last_frame(frames):
    clip = jnp.arange(frames, dtype=jnp.float32).reshape(1, frames, 1, 1, 1)
    found = slow_frames(clip, 4).ravel()
    np.testing.assert_array_equal(found, np.floor(np.linspace(0, frames - 1, frames // 4) + 1e-9))


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("r3d_18", (2, 3, 8, 32, 32), r"video has shape \[2, 3, 8, 32, 32\]; expected .* = \[batch, frames, height"),
        ("r3d_18", (1, 7, 32, 32, 3), "strides over 8 x 16 x 16"),
        ("s3d", (1, 7, 64, 64, 3), "strides over 8 x 32 x 32"),
        ("c2d_r50", (1, 1, 64, 64, 3), "strides over 2 x "),
        ("csn_r101", (1, 4, 64, 64, 3), "strides over 8 x "),
        ("x3d_m", (1, 4, 64, 31, 3), r"video has shape \[1, 4, 64, 31, 3\]; X3D strides over 1 x 32 x 32"),
        ("slowfast_r50_4x16", (1, 4, 64, 64, 3), "strides over 8 x "),
        ("slowfast_r50_8x8", (1, 6, 64, 64, 3), "here 6, to be a multiple of 4"),
    ],
)
def test_unsupported_clip_raises(name, shape, message):
    model = vitx.create_model(name)
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(model.init, jax.random.key(0), jnp.zeros(shape))


def test_video_without_batch_axis_raises():
    with pytest.raises(ValueError, match=r"video has shape \[8, 32, 32, 3\]; expected \[batch, frames"):
        vitx.create_model("r3d_18").check_video(jnp.zeros((8, 32, 32, 3)))


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("r3d_18", {"width": 0}, "width is 0; expected at least 1"),
        ("r3d_18", {"depths": (2, 2)}, "expected a depth of at least 1 and kernels"),
        ("r3d_18", {"dropout_rate": 1.0}, "dropout_rate is 1.0"),
        ("s3d", {"width": 6}, "width is 6; expected a multiple of 4"),
        ("slowfast_r50_8x8", {"width": 12}, "width is 12; expected a multiple of beta, 8"),
        ("slow_r50", {"window": (0, 7, 7)}, "window is (0, 7, 7)"),
        ("slow_r50", {"num_frames": 8}, "there is no setting num_frames"),
        ("x3d_xs", {"num_classes": -1}, "num_classes is -1"),
    ],
)
def test_impossible_settings_raise_at_creation(name, fields, message):
    with pytest.raises(vitx.UserError) as error:
        vitx.create_model(name, **fields)
    assert message in str(error.value)
