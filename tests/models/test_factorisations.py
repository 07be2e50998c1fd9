"""Models of one encoder equal their definition by masked joint attention in numpy and float64; tokens and encode."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import erf

import vitx

SMALL = {
    "num_frames": 4,
    "image_size": (16, 24),
    "tubelet_size": (1, 4, 8),
    "hidden_size": 12,
    "num_layers": 2,
    "num_heads": 2,
    "mlp_dim": 20,
    "num_classes": 5,
}


def dense(x, p):
    return x @ p["kernel"] + p["bias"]


def norm(x, p):
    mean, variance = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    return (x - mean) / np.sqrt(variance + 1e-6) * p["scale"] + p["bias"]


def gelu(x):
    return x * (1 + erf(x / np.sqrt(2))) / 2


def gelu_tanh(x):
    return x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))) / 2


def tokens_of(clip, p, tubelet):
    t, h, w = tubelet
    rows = []
    for place in np.ndindex(clip.shape[1] // t, clip.shape[2] // h, clip.shape[3] // w):
        i, j, k = (slice(step * at, step * (at + 1)) for step, at in zip(tubelet, place, strict=True))
        rows.append(np.einsum("bthwc,thwcd->bd", clip[:, i, j, k], p["kernel"]) + p["bias"])
    return np.stack(rows, axis=1)


def block(x, p, model, num_prefix, masked_attention, activation, grid):
    def attend(x, p, layout, num_prefix):
        heads = (*x.shape[:2], model.num_heads, x.shape[2] // model.num_heads)
        q, k, v = (dense(x, p[name]).reshape(heads) for name in ("query", "key", "value"))
        return dense(masked_attention(layout, q, k, v, grid, num_prefix).reshape(x.shape), p["out"])

    for layout in model.layouts[:-1]:
        branch = attend(norm(x[:, num_prefix:], p[f"{layout}_attention_norm"]), p[f"{layout}_attention"], layout, 0)
        if f"{layout}_dense" in p:
            branch = dense(branch, p[f"{layout}_dense"])
        x = np.concatenate([x[:, :num_prefix], x[:, num_prefix:] + branch], axis=1)
    last = model.layouts[-1]
    name = "attention" if len(model.layouts) == 1 else f"{last}_attention"
    x = x + attend(norm(x, p[f"{name}_norm"]), p[name], last, num_prefix)
    hidden = activation(dense(norm(x, p["mlp_norm"]), p["mlp"]["hidden"]))
    return x + dense(hidden, p["mlp"]["out"])


def run(model, variables, *inputs, **options):
    """Applies a model in one compiled program."""
    return jax.jit(functools.partial(model.apply, **options))(variables, *inputs)


def random_inputs(model):
    shape = (2, *model.input_shape)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros(shape))
    leaves, tree = jax.tree.flatten(shapes)
    rng = np.random.default_rng(0)
    variables = tree.unflatten([jnp.asarray(0.3 * rng.standard_normal(leaf.shape), jnp.float32) for leaf in leaves])
    return variables, jnp.asarray(rng.standard_normal(shape), jnp.float32)


@pytest.mark.parametrize("pooling", ["class", "mean"])
@pytest.mark.parametrize(
    "name",
    [
        "vivit_b_16x2",
        "vivit_b_16x2_fsa",
        "vivit_b_16x2_fdp",
        "timesformer_b_16_joint",
        "timesformer_b_16_divided",
        "timesformer_b_16_local_global",
        "timesformer_b_16_axial",
    ],
)
def test_model_equals_masked_joint_attention(name, pooling, masked_attention):
    if pooling == "class" and name.endswith(("_fsa", "_fdp")):
        pytest.skip("models 3 and 4 have no class token")
    model = vitx.create_model(name, pooling=pooling, **SMALL)
    variables, clip = random_inputs(model)
    p, grid, num_prefix = jax.tree.map(np.float64, variables["params"]), model.grid, model.num_prefix
    x = tokens_of(np.float64(clip), p["embedding"], model.tubelet_size)
    positions = p["positions"]["positions"]
    if "time_positions" in p["positions"]:
        space, time = positions[:, num_prefix:], p["positions"]["time_positions"]
        grid_positions = (time[:, :, None] + space[:, None]).reshape(1, -1, space.shape[-1])
        positions = np.concatenate([positions[:, :num_prefix], grid_positions], axis=1)
    if num_prefix:
        x = np.concatenate([np.repeat(p["positions"]["class_token"], len(x), axis=0), x], axis=1)
    x = x + positions
    activation = {"gelu": gelu, "gelu_tanh": gelu_tanh}[model.activation]
    for i in range(model.num_layers):
        x = block(x, p["encoder"][f"block_{i}"], model, num_prefix, masked_attention, activation, grid)
    x = norm(x, p["encoder"]["norm"])
    features = x[:, 0] if num_prefix else x.mean(axis=1)
    expected = dense(features, p["head"]["logits"])
    np.testing.assert_allclose(run(model, variables, clip), expected, rtol=2e-4, atol=2e-4)


def test_timesformer_space_sees_frames_alone_and_averages_before_the_norm():
    model = vitx.create_model("timesformer_b_16_space", **SMALL)
    variables, clip = random_inputs(model)
    shuffled = run(model, variables, clip[:, jnp.array([2, 0, 3, 1])])
    np.testing.assert_allclose(run(model, variables, clip), shuffled, rtol=1e-4, atol=1e-4)
    # one frame repeated is an image model on that frame, which is the joint one on a clip of one frame
    still = jnp.repeat(clip[:, :1], 4, axis=1)
    joint = vitx.create_model("timesformer_b_16_joint", **(SMALL | {"num_frames": 1}))
    positions = variables["params"]["positions"] | {"time_positions": jnp.zeros((1, 1, 12))}
    image = {"params": {**variables["params"], "positions": positions}}
    np.testing.assert_allclose(run(model, variables, still), run(joint, image, still[:, :1]), rtol=1e-4, atol=1e-4)


def test_zero_initialisation_is_of_the_first_attention_only():
    model = vitx.create_model("vivit_b_16x2_fsa", zero_init=True, **SMALL)
    clip = jax.random.normal(jax.random.key(1), (1, 4, 16, 24, 3))
    p = jax.jit(model.init)(jax.random.key(0), clip)["params"]["encoder"]["block_0"]
    zero = {name for name, dense in p["time_attention"].items() if not dense["kernel"].any()}
    assert zero == {"out"} and all(dense["kernel"].any() for dense in p["space_attention"].values())
    divided = vitx.create_model("timesformer_b_16_divided", **SMALL)
    p = jax.jit(divided.init)(jax.random.key(0), clip)["params"]["encoder"]["block_0"]
    assert not p["time_dense"]["kernel"].any() and p["time_attention"]["out"]["kernel"].any()


@pytest.mark.parametrize(
    "name", ["vivit_b_16x2", "vivit_b_16x2_fe", "timesformer_b_16_divided", "timesformer_b_16_space"]
)
def test_keep_selects_tokens_of_the_grid(name):
    model = vitx.create_model(name, **SMALL)
    variables, clip = random_inputs(model)
    t, h, w = model.grid
    tokens = run(model, variables, clip, method="tokens")
    num_prefix = tokens.shape[1] - t * h * w
    assert num_prefix == (t if name.endswith(("_fe", "_space")) else 1)
    keep = jnp.array([[5, 0, 7], [1, 2, 3]])
    visible = run(model, variables, clip, keep=keep, method="tokens")
    np.testing.assert_array_equal(visible[:, :num_prefix], tokens[:, :num_prefix])
    for row in range(2):
        np.testing.assert_array_equal(visible[row, num_prefix:], tokens[row, num_prefix:][keep[row]])


@pytest.mark.parametrize("name", ["vivit_b_16x2", "timesformer_b_16_divided"])
def test_features_are_pooled_encoded_tokens(name):
    model = vitx.create_model(name, **SMALL)
    variables, clip = random_inputs(model)
    tokens = run(model, variables, clip, method="tokens")
    encoded = run(model, variables, tokens, method="encode")
    assert encoded.shape == tokens.shape
    np.testing.assert_allclose(run(model, variables, clip, method="features"), encoded[:, 0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["vivit_b_16x2_avg", "timesformer_b_16_space"])
def test_encoded_frames_are_those_of_their_image(name):
    model = vitx.create_model(name, **SMALL)
    variables, clip = random_inputs(model)
    encoded = run(model, variables, run(model, variables, clip, method="tokens"), method="encode")
    image = model.with_input_shape(1)
    frame = run(image, variables, run(image, variables, clip[:, 2:3], method="tokens"), method="encode")
    assert encoded.shape == (2, 4 * (1 + 12), 12) and frame.shape == (2, 1 + 12, 12)
    np.testing.assert_allclose(encoded[:, 2], frame[:, 0], rtol=1e-4, atol=1e-4)  # class token of the third frame
    np.testing.assert_allclose(encoded[:, 4 + 24 : 4 + 36], frame[:, 1:], rtol=1e-4, atol=1e-4)


def test_only_global_layouts_encode_some_of_the_tokens():
    keep = jnp.array([[5, 0, 7], [1, 2, 3]])
    for name in ("vivit_b_16x2", "timesformer_b_16_divided", "vivit_b_16x2_fe"):
        model = vitx.create_model(name, **SMALL)
        variables, clip = random_inputs(model)
        tokens = run(model, variables, clip, keep=keep, method="tokens")
        if name == "vivit_b_16x2":
            assert run(model, variables, tokens, method="encode").shape == (2, 4, 12)
        else:
            with pytest.raises(ValueError, match=r"found \d tokens.*expected all"):
                run(model, variables, tokens, method="encode")


def test_uniform_frame_sampling_embeds_evenly_spaced_frames():
    fields = SMALL | {"num_frames": 8}
    model = vitx.create_model("vivit_b_16x2", sampled_frames=2, **fields)
    variables, clip = random_inputs(model)
    alone = vitx.create_model("vivit_b_16x2", **(fields | {"num_frames": 2}))
    np.testing.assert_array_equal(run(model, variables, clip), run(alone, variables, clip[:, jnp.array([2, 6])]))


@pytest.mark.smoke
def test_sinusoidal_positions_are_fixed_and_distinct():
    model = vitx.create_model("vivit_b_16x2", position_kind="sinusoidal", **SMALL)
    variables, clip = random_inputs(model)
    assert set(variables["params"]["positions"]) == {"class_token"}
    still = jnp.zeros_like(clip)
    tokens = run(model, variables, still, method="tokens")[0, 1:]
    table = tokens - tokens[0] + np.array([0, 1] * 6)  # the first position is sin 0, cos 0, ...
    np.testing.assert_allclose(table[:, 0], np.sin(np.arange(len(table))), atol=1e-5)
    np.testing.assert_allclose(table[:, 3], np.cos(np.arange(len(table)) / 10000 ** (2 / 12)), atol=1e-5)
