"""2D networks over frames: stream and clip are one, consensus and cells are what their definitions say."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import vitx
from vitx.analysis.cost import count_cost
from vitx.models import VARIANTS
from vitx.models.frames import LRCN, FrameCNN, PlainTrunk, ResNetTrunk, average_grid
from vitx.models.streaming import StreamingModel

SMALL = {"num_classes": 5, "width": 4, "trunk": PlainTrunk(2)}
READER = SMALL | {"hidden_size": 6, "grid": (2, 1)}
MODELS = {
    "average": FrameCNN(**SMALL),
    "lstm": LRCN(**READER, recurrence="lstm"),
    "gru": LRCN(**READER, recurrence="gru", pooling="last"),
    "heads": LRCN(**READER | {"num_classes": (("verb", 3), ("noun", 4))}, recurrence="gru"),
}


def video(*shape):
    return jnp.asarray(np.random.default_rng(0).standard_normal((*shape, 3)), jnp.float32)


@functools.cache
def variables_of(name):
    """Of which none is zero or constant; variances are positive."""
    random = np.random.default_rng(1)
    shapes = jax.eval_shape(MODELS[name].init, jax.random.key(0), video(1, 2, 8, 9))

    def some(path, leaf):
        low, high = (0.5, 1.5) if path[-1].key == "var" else (-0.8, 0.8)
        return jnp.asarray(random.uniform(low, high, leaf.shape), jnp.float32)

    return jax.tree_util.tree_map_with_path(some, shapes)


@functools.cache
def compiled(name, method):
    return jax.jit(functools.partial(MODELS[name].apply, method=method), static_argnames="train")


def close(found, expected):
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5), found, expected)


@settings(max_examples=12, deadline=None)
@given(name=st.sampled_from(sorted(MODELS)), frames=st.integers(1, 4), batch=st.integers(1, 2))
def test_stream_equals_the_clip_so_far(name, frames, batch):
    model, variables, clip = MODELS[name], variables_of(name), video(batch, frames, 8, 9)
    state = model.init_state(batch)
    shapes = [(x.shape, x.dtype) for x in jax.tree.leaves(state)]
    for i in range(frames):
        logits, after = compiled(name, "step")(variables, clip[:, i], state)
        assert [(x.shape, x.dtype) for x in jax.tree.leaves(after)] == shapes
        state = after
        if i + 1 in (1, frames):
            close(logits, compiled(name, "__call__")(variables, clip[:, : i + 1]))


@pytest.mark.parametrize("name", MODELS)
def test_a_clip_is_a_scan_of_steps(name):
    model, variables, clip = MODELS[name], variables_of(name), video(2, 7, 8, 9)

    def step(state, frame):
        logits, state = model.apply(variables, frame, state, method="step")
        return state, logits

    _, logits = jax.lax.scan(step, model.init_state(2), clip.swapaxes(0, 1))
    close(jax.tree.map(lambda x: x[-1], logits), compiled(name, "__call__")(variables, clip))


@pytest.mark.parametrize(("name", "dtype"), [("average", "bfloat16"), ("lstm", "float64"), ("gru", "bfloat16")])
def test_other_precisions_stream_too(name, dtype):
    model = MODELS[name].copy(dtype=dtype)
    clip = video(1, 3, 8, 9)
    expected = compiled(name, "__call__")(variables_of(name), clip)
    with jax.enable_x64(dtype == "float64"):
        variables = jax.tree.map(lambda x: x.astype("float64"), variables_of(name)) if dtype == "float64" else None
        variables, state = variables or variables_of(name), model.init_state(1)
        step = jax.jit(functools.partial(model.apply, method="step"))
        for i in range(3):
            logits, state = step(variables, clip[:, i], state)
        assert logits.dtype == jnp.float32
        bound = 0.05 if dtype == "bfloat16" else 1e-4
        np.testing.assert_allclose(logits, expected, atol=bound * np.abs(expected).max())


def test_average_ignores_the_order_of_frames():
    clip, variables = video(2, 5, 8, 9), variables_of("average")
    apply = compiled("average", "__call__")
    found = apply(variables, clip)
    frames = jax.vmap(lambda frame: apply(variables, frame[:, None]), in_axes=1)(clip)
    close(found, frames.mean(0))
    close(apply(variables, clip[:, ::-1]), found)


@pytest.mark.parametrize("name", ["lstm", "gru"])
def test_recurrent_network_sees_order_and_place(name):
    clip, variables = video(2, 5, 8, 9), variables_of(name)
    apply = compiled(name, "__call__")
    found = apply(variables, clip)
    assert np.abs(apply(variables, clip[:, ::-1]) - found).max() > 1e-3
    assert np.abs(apply(variables, clip[:, :, ::-1]) - found).max() > 1e-3


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def lstm(weights, x, state):
    c, h = state

    def gate(k):
        return x @ weights[f"i{k}"]["kernel"] + h @ weights[f"h{k}"]["kernel"] + weights[f"h{k}"]["bias"]

    i, f, g, o = map(gate, "ifgo")
    c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
    return c, sigmoid(o) * np.tanh(c)


def gru(weights, x, state):
    _, h = state

    def both(k):
        return x @ weights[f"i{k}"]["kernel"] + weights[f"i{k}"]["bias"], h @ weights[f"h{k}"]["kernel"]

    r, z = sigmoid(sum(both("r"))), sigmoid(sum(both("z")))
    of_input, of_memory = both("n")
    n = np.tanh(of_input + r * (of_memory + weights["hn"]["bias"]))
    return None, (1 - z) * n + z * h


@pytest.mark.parametrize(("name", "cell"), [("lstm", lstm), ("gru", gru)])
@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_recurrence_follows_its_equations(name, cell, pooling):
    model, variables, clip = MODELS[name].copy(pooling=pooling), variables_of(name), video(2, 4, 8, 9)
    maps = compiled(name, "maps")(variables, clip, train=False)
    inputs = np.asarray(average_grid(maps, model.grid), np.float64).reshape(2, 4, -1)
    weights = jax.tree.map(np.float64, variables["params"])
    state, outputs = (np.zeros((2, 6)), np.zeros((2, 6))), []
    for i in range(4):
        state = cell(weights["recurrent"]["cell"], inputs[:, i], state)
        outputs.append(state[1])
    features = np.mean(outputs, axis=0) if pooling == "mean" else outputs[-1]
    head = weights["head"]["logits"]
    close(model.apply(variables, clip), features @ head["kernel"] + head["bias"])


@pytest.mark.parametrize(("size", "grid"), [((4, 6), (2, 3)), ((5, 7), (2, 3)), ((3, 2), (3, 2)), ((7, 4), (1, 1))])
def test_grid_has_the_averages_of_its_parts(size, grid):
    maps = np.random.default_rng(0).standard_normal((2, 3, *size, 4)).astype(np.float32)
    found = average_grid(jnp.asarray(maps), grid)
    rows, columns = (np.cumsum([0, *(n // k + (i < n % k) for i in range(k))]) for n, k in zip(size, grid, strict=True))
    for i, j in np.ndindex(*grid):
        part = maps[:, :, rows[i] : rows[i + 1], columns[j] : columns[j + 1]]
        np.testing.assert_allclose(found[:, :, i, j], part.mean((2, 3)), rtol=1e-5, atol=1e-6)


@pytest.mark.smoke
def test_recurrent_and_averaging_models_stream_and_others_do_not():
    streaming = {name for name, model in VARIANTS.items() if isinstance(model, StreamingModel)}
    assert {"cnn_small", "tsn_r50", "lrcn_lstm_small", "lrcn_gru_r50", "convlstm_small"} <= streaming
    assert not {"r3d_18", "vivit_b_16x2", "slow_r50"} & streaming


def test_resnet_50_has_the_parameters_and_cost_of_the_original():
    """torchvision prints 25,557,032 parameters and 4.089 units of 10⁹ multiply-accumulates."""
    cost = count_cost(vitx.create_model("tsn_r50", num_classes=1000), (1, 224, 224, 3))
    assert cost.params == 25_557_032 and round(cost.macs / 1e9, 3) == 4.089


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        (
            "cnn_small",
            (1, 2, 7, 32, 3),
            "FrameCNN strides over 1 x 8 x 8",
        ),
        ("cnn_small", (1, 2, 32, 32, 1), r"expected \[batch, frames, height, width, channels\]"),
        ("cnn_small", (1, 0, 32, 32, 3), "strides over 1 x 8 x 8"),
        ("tsn_r50", (1, 3, 64, 31, 3), "strides over 1 x 32 x 32"),
        ("lrcn_lstm_small", (1, 2, 32, 23, 3), "LRCN strides over 1 x 24 x 24"),
        ("lrcn_gru_r50", (1, 2, 31, 32, 3), "LRCN strides over 1 x 32 x 32"),
    ],
)
def test_unsupported_clip_raises(name, shape, message):
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(vitx.create_model(name).init, jax.random.key(0), jnp.zeros(shape))


@pytest.mark.parametrize(
    ("shape", "batch", "message"),
    [
        ((8, 9, 3), 1, r"frame has shape \[8, 9, 3\]; expected \[batch, height, width, 3\]"),
        ((1, 1, 8, 9, 3), 1, r"frame has shape \[1, 1, 8, 9, 3\]; expected"),
        ((1, 4, 9, 3), 1, "strides over 1 x 8 x 4"),
        ((2, 8, 9, 3), 1, r"the state is of a batch of 1; start with init_state\(2\)"),
    ],
)
def test_frame_that_does_not_fit_the_state_raises(shape, batch, message):
    model = MODELS["lstm"]
    with pytest.raises(ValueError, match=message):
        model.apply(variables_of("lstm"), jnp.zeros(shape), model.init_state(batch), method="step")


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("cnn_small", {"trunk.stages": 0}, "stages is 0; expected at least 1"),
        ("cnn_small", {"num_frames": 8}, "there is no setting num_frames"),
        ("tsn_r50", {"trunk.depths": (3, 4, 0, 3)}, "expected at least one block for every stage"),
        ("lrcn_lstm_r50", {"grid": (0, 1)}, "hidden_size is 256 and grid (0, 1)"),
        ("lrcn_gru_r50", {"recurrence": "rnn"}, "expected one of 'lstm', 'gru'"),
    ],
)
def test_impossible_settings_raise_at_creation(name, fields, message):
    with pytest.raises(vitx.UserError) as error:
        vitx.create_model(name, **fields)
    assert message in str(error.value)


def test_trunks_know_the_width_of_their_maps():
    for trunk, size in ((PlainTrunk(1), 4), (PlainTrunk(3), 8), (ResNetTrunk((1, 1, 1, 1)), 32)):
        model = FrameCNN(width=2, trunk=trunk, num_classes=0)
        assert (model.trunk.stride, size) in ((2, 4), (8, 8), (32, 32))
        features = jax.eval_shape(model.init_with_output, jax.random.key(0), jnp.zeros((1, 1, size, size, 3)))[0]
        assert features.shape == (1, trunk.channels(2))


@pytest.mark.peers
@pytest.mark.parametrize("recurrence", ["lstm", "gru"])
@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_logits_and_gradients_equal_those_of_pytorch(recurrence, pooling):
    """A twin of PyTorch's convolutions, norms, pooling, LSTM or GRU, and linear layer; float64, while training."""
    import torch
    from torch import nn

    model = LRCN(num_classes=5, width=4, hidden_size=6, recurrence=recurrence, pooling=pooling, dtype="float64")
    trunk = [(nn.Conv2d(i, o, 3, padding=1, bias=False), nn.BatchNorm2d(o)) for i, o in ((3, 4), (4, 8), (8, 16))]
    cell = {"lstm": nn.LSTM, "gru": nn.GRU}[recurrence](16, 6, batch_first=True)
    head = nn.Linear(6, 5)
    modules = nn.ModuleList([*(nn.ModuleList(stage) for stage in trunk), cell, head]).double()
    torch.manual_seed(0)
    for parameter in modules.parameters():
        nn.init.uniform_(parameter, -0.6, 0.6)
    clip, labels = video(3, 5, 17, 16), np.array([1, 4, 0])

    x = torch.tensor(np.float64(clip)).flatten(0, 1).permute(0, 3, 1, 2)
    for conv, norm in trunk:
        x = torch.max_pool2d(torch.relu(norm(conv(x))), 2)
    outputs, _ = cell(x.mean((2, 3)).unflatten(0, (3, 5)))
    logits = head(outputs.mean(1) if pooling == "mean" else outputs[:, -1])
    nn.functional.cross_entropy(logits, torch.tensor(labels)).backward()

    def ours(values, joined):
        """What `values` gives of each parameter, in our names and shapes; two biases are `joined` where we have one."""
        found = {}
        for i, (conv, norm) in enumerate(trunk, 1):
            block = {"conv": {"kernel": values(conv.weight).permute(2, 3, 1, 0)[None]}}
            found[f"stage_{i}"] = {
                "block_0": block | {"norm": {"scale": values(norm.weight), "bias": values(norm.bias)}}
            }
        gates = {"lstm": "ifgo", "gru": "rzn"}[recurrence]
        parts = [
            values(x).chunk(len(gates))
            for x in (cell.weight_ih_l0, cell.weight_hh_l0, cell.bias_ih_l0, cell.bias_hh_l0)
        ]
        cells = {}
        for gate, of_input, of_memory, input_bias, memory_bias in zip(gates, *parts, strict=True):
            cells[f"i{gate}"], cells[f"h{gate}"] = {"kernel": of_input.T}, {"kernel": of_memory.T}
            if recurrence == "lstm":  # one bias for both
                cells[f"h{gate}"]["bias"] = joined(input_bias, memory_bias)
            elif gate == "n":
                cells["in"]["bias"], cells["hn"]["bias"] = input_bias, memory_bias
            else:
                cells[f"i{gate}"]["bias"] = joined(input_bias, memory_bias)
        found["recurrent"] = {"cell": cells}
        found["head"] = {"logits": {"kernel": values(head.weight).T, "bias": values(head.bias)}}
        return jax.tree.map(lambda x: x.detach().numpy(), found)

    def loss(params, statistics):
        logits, _ = model.apply({"params": params, **statistics}, clip, train=True, mutable=["batch_stats"])
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean(), logits

    params = ours(lambda parameter: parameter, joined=torch.add)
    # the gradient by a part of a sum is the gradient by the sum
    gradients = ours(lambda parameter: parameter.grad, joined=lambda one, _: one)
    with jax.enable_x64(True):
        statistics = {"batch_stats": model.init(jax.random.key(0), clip)["batch_stats"]}
        found, here = jax.jit(jax.grad(loss, has_aux=True))(params, statistics)
        jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-7), found, gradients)
        np.testing.assert_allclose(here, logits.detach(), rtol=1e-5, atol=1e-6)
