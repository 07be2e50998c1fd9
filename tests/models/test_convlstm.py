"""ConvLSTM networks: cost of every reference row, streams equal clips, errors."""

import functools
import importlib.util
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import vitx
from vitx.analysis.cost import count_cost
from vitx.models.convlstm import ConvLSTM
from vitx.models.forecaster import EncoderForecaster, NextFrameForecaster

spec = importlib.util.spec_from_file_location("cells", Path(__file__).parents[1] / "layers" / "test_convlstm.py")
cells = importlib.util.module_from_spec(spec)
spec.loader.exec_module(cells)

SMALL = {"widths": (4, 3), "input_kernel": 3, "state_kernel": 3, "patch": 2}
FORECASTERS = [
    EncoderForecaster(**SMALL, horizon=3, readout="last", output="linear"),
    EncoderForecaster(**SMALL, horizon=3, channels=3, feedback=True),
    NextFrameForecaster(**SMALL, horizon=3, peepholes=False, bias=False, forget_bias=1.0, output="linear"),
]


def some(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).uniform(0, 1, shape), jnp.float32)


def variables_for(model, channels):
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 2, 4, 4, channels)))
    return jax.tree.map(lambda leaf: leaf.astype(np.float32), cells.random_like(shapes))


def in_patches(kernel, channels, width):
    return kernel**2 * channels * 4 * width


@pytest.mark.parametrize(
    ("name", "params"),
    [
        ("5x5_256", 13_524_496),
        ("5x5_128_128", 10_042_896),
        ("5x5_128_64_64", 7_585_296),
        ("9x9_1x1_128_128", 11_550_224),
        ("9x9_1x1_128_64_64", 8_830_480),
        ("fc_2048_2048", 142_667_776),
    ],
)
def test_parameters_equal_table_1(name, params):
    """Shi et al., table 1; multiply-accumulates are every weight but peepholes and biases, at every place and step."""
    model = vitx.create_model(f"convlstm_forecaster_{name}")
    cost = count_cost(model, model.input_shape)
    assert cost.params == params
    widths, before = model.widths, (model.patch**2, *model.widths)
    pixels = model.patch**2 * (sum(widths) if model.readout == "all" else widths[0])
    steps = 10 * (64 // model.patch) ** 2
    kernels = sum(
        in_patches(model.input_kernel, before[i], w) + 2 * in_patches(model.state_kernel, w, w)
        for i, w in enumerate(widths)
    )
    unfolding = sum(in_patches(model.input_kernel, widths[i + 1], w) for i, w in enumerate(widths[:-1]))
    assert cost.macs == steps * (kernels + unfolding + pixels)


def test_openstls_network_has_its_published_cost():
    """11.676 M of its 15.084 M parameters are ever used; 19 steps from 10 frames to 10."""
    model = vitx.create_model("convlstm_forecaster_openstl_s")
    cost = count_cost(model, model.input_shape)
    assert cost.params == 11_675_648
    assert cost.macs / 1e9 == pytest.approx(56.79, rel=1e-3)
    assert cost.flops_xla is None  # XLA would count the loop's body once


@settings(max_examples=5, deadline=None)
@given(
    frames=st.integers(1, 5),
    rows=st.integers(1, 3),
    columns=st.integers(1, 3),
    batch=st.integers(1, 2),
    heads=st.sampled_from([4, 0, (("verb", 2), ("noun", 3))]),
)
def test_stream_equals_clip(frames, rows, columns, batch, heads):
    model = ConvLSTM(num_classes=heads, **SMALL)
    video, variables = some(batch, frames, 2 * rows, 2 * columns, 3), variables_for(model, 3)
    state = model.init_state(batch, video.shape[2:4])
    shapes = [leaf.shape for leaf in jax.tree.leaves(state)]
    step = jax.jit(lambda *given: model.apply(*given, method="step"))
    for i in range(frames):
        logits, state = step(variables, video[:, i], state)
        assert [leaf.shape for leaf in jax.tree.leaves(state)] == shapes
    whole = jax.jit(model.apply)(variables, video)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), logits, whole)


@pytest.mark.parametrize("model", FORECASTERS)
def test_streamed_forecasts_equal_those_of_the_clip(model):
    video, variables = some(2, 4, 6, 4, model.channels), variables_for(model, model.channels)
    step, call = jax.jit(lambda *given: model.apply(*given, method="step")), jax.jit(model.apply)
    state, forecasts = model.init_state(2, (6, 4)), []
    for i in range(4):
        forecast, state = step(variables, video[:, i], state)
        forecasts.append(forecast)
    for i in (0, 3):
        forecast, expected = forecasts[i], call(variables, video[:, : i + 1])
        assert forecast.shape == (2, 3, 6, 4, model.channels)
        np.testing.assert_allclose(forecast, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("model", FORECASTERS)
def test_forecasts_follow_equation_3(model):
    """Predictions equal numpy in float64, and continue from the true frame where teacher_forcing is True."""
    video, future = np.random.default_rng(3).uniform(0, 1, (2, 2, 3, 4, 6, model.channels))
    teacher_forcing = np.array([[True, False, True], [False, True, False]])
    params = cells.random_like(
        jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 2, 4, 4, model.channels)))["params"]
    )
    with jax.enable_x64(True):
        double = jax.jit(model.copy(dtype="float64").apply)
        found = jax.device_get(double({"params": params}, video, future=future, teacher_forcing=teacher_forcing))

    def stepped(name, x, states):
        after = []
        for i, state in enumerate(states):
            after.append(cells.equation_3(params[f"{name}_{i}"], x, *state, model.forget_bias))
            x = after[-1][0]
        return after

    def maps(frame):
        patches = frame.reshape(2, 2, 2, 3, 2, -1).transpose(0, 1, 3, 2, 4, 5)
        return patches.reshape(2, 2, 3, -1)

    has_encoder = isinstance(model, EncoderForecaster)
    states = [(np.zeros((2, 2, 3, width)),) * 2 for width in model.widths]
    for frame in video.swapaxes(0, 1)[: None if has_encoder else -1]:
        states = stepped("encoder" if has_encoder else "cell", maps(frame), states)
    states = states[::-1] if has_encoder else states
    frame = video[:, -1]
    for i in range(3):
        x = maps(frame) if model.feeds_back else None
        states = stepped("forecaster" if has_encoder else "cell", x, states)
        hidden = [h for h, _ in (states if model.readout == "all" else states[-1:])]
        out = np.concatenate(hidden, axis=-1) @ params["to_pixels"]["kernel"] + params["to_pixels"].get("bias", 0)
        out = out.reshape(2, 2, 3, 2, 2, -1).transpose(0, 1, 3, 2, 4, 5).reshape(2, 4, 6, -1)
        out = 1 / (1 + np.exp(-out)) if model.output == "sigmoid" else out
        np.testing.assert_allclose(found[:, i], out, rtol=0, atol=1e-12)
        frame = np.where(teacher_forcing[:, i, None, None, None], future[:, i], out)


@pytest.mark.parametrize("model", [ConvLSTM(num_classes=4, **SMALL), *FORECASTERS[:2]])
def test_implementations_compute_the_same(model):
    channels = getattr(model, "channels", 3)
    video, variables = some(2, 3, 6, 8, channels), variables_for(model, channels)
    expected = jax.jit(model.apply)(variables, video)
    found = jax.jit(model.copy(implementation="cpu").apply)(variables, video)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("convlstm_small", (1, 2, 8, 8, 1), r"= \[batch, 1 or more, height, width, 3\]"),
        ("convlstm_small", (1, 0, 8, 8, 3), r"video has shape \[1, 0, 8, 8, 3\]"),
        ("convlstm_forecaster_5x5_256", (1, 2, 8, 8, 3), r"= \[batch, 1 or more, height, width, 1\]"),
        ("convlstm_forecaster_5x5_256", (1, 2, 8, 10, 1), "8 x 10 pixels do not divide into patches of 4 x 4"),
        ("convlstm_forecaster_openstl_s", (1, 2, 9, 8, 1), "9 x 8 pixels do not divide into patches of 4 x 4"),
    ],
)
def test_unsupported_clip_raises(name, shape, message):
    model = vitx.create_model(name)
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(model.init, jax.random.key(0), jnp.zeros(shape))


@pytest.mark.parametrize("model", [ConvLSTM(num_classes=4, **SMALL), FORECASTERS[1]])
@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((6, 4, 3), r"frame has shape \[6, 4, 3\]; expected \[batch, height, width, 3\]"),
        ((1, 1, 6, 4, 3), r"frame has shape \[1, 1, 6, 4, 3\]; expected"),
        ((2, 6, 4, 3), r"state is of a batch of 1 and of 6 x 4 pixels; start with init_state\(2, \(6, 4\)\)"),
        ((1, 4, 4, 3), r"start with init_state\(1, \(4, 4\)\)"),
        ((1, 6, 2, 3), r"start with init_state\(1, \(6, 2\)\)"),
        ((1, 6, 5, 3), "6 x 5 pixels do not divide into patches of 2 x 2"),
        ((1, 6, 4, 1), r"= \[batch, 1 or more, height, width, 3\]"),
    ],
)
def test_frame_that_does_not_fit_the_state_raises(model, shape, message):
    state = model.init_state(1, (6, 4))
    step = functools.partial(model.apply, method="step")
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(step, variables_for(model, 3), jnp.zeros(shape), state)


def test_teacher_forcing_needs_true_frames():
    model = FORECASTERS[1]
    with pytest.raises(ValueError, match="future and teacher_forcing"):
        jax.eval_shape(model.apply, variables_for(model, 3), some(1, 2, 4, 4, 3), future=some(1, 3, 4, 4, 3))


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("convlstm_small", {"widths": ()}, "widths is ()"),
        ("convlstm_small", {"patch": 0}, "patch 0"),
        ("convlstm_small", {"state_kernel": 4}, "state_kernel is 4; expected an odd number"),
        ("convlstm_small", {"dropout_rate": 1.0}, "dropout_rate is 1.0"),
        ("convlstm_small", {"num_classes": -1}, "num_classes is -1"),
        ("convlstm_forecaster_5x5_256", {"horizon": 0}, "horizon is 0"),
        ("convlstm_forecaster_5x5_256", {"channels": 2}, "channels is 2; expected one of 1, 3"),
        ("convlstm_forecaster_5x5_256", {"input_kernel": -1}, "input_kernel is -1"),
    ],
)
def test_impossible_settings_raise_at_creation(name, fields, message):
    with pytest.raises(vitx.UserError) as error:
        vitx.create_model(name, **fields)
    assert message in str(error.value)
