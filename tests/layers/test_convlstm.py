"""The ConvLSTM cell: equation 3 of Shi et al. written out in numpy, its gradients by PyTorch, patches of frames."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.signal import correlate2d
from scipy.special import expit

from vitx.layers.convlstm import ConvLSTMCell, blank_states, patched, unpatched

CASES = [
    {"width": 3, "input_kernel": 5, "state_kernel": 3},
    {"width": 2, "input_kernel": 1, "state_kernel": 5, "forget_bias": 1.0},
    {"width": 2, "input_kernel": 3, "state_kernel": 1, "peepholes": False, "bias": False, "forget_bias": 0.5},
]


def random_like(shapes, seed=0):
    random = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: random.uniform(-1, 1, leaf.shape), shapes)


def correlated(x, kernel):
    """Every output channel as a sum of 2D correlations, padded with zeros, of one input channel each."""
    out = np.zeros((*x.shape[:3], kernel.shape[-1]))
    for b, i, o in np.ndindex(x.shape[0], x.shape[-1], kernel.shape[-1]):
        out[b, :, :, o] += correlate2d(x[b, :, :, i], kernel[:, :, i, o], mode="same")
    return out


def equation_3(params, x, hidden, kept, forget_bias=0.0):
    """Shi et al., equation 3, one gate at a time."""
    width = hidden.shape[-1]

    def gate(number):
        part = slice(number * width, (number + 1) * width)
        total = correlated(hidden, params["state"]["kernel"][..., part])
        if x is not None:
            total = total + correlated(x, params["input"]["kernel"][..., part])
        return total + (params["bias"][part] if "bias" in params else 0)

    w_ci, w_cf, w_co = params.get("peepholes", np.zeros((3, width)))
    i = expit(gate(0) + w_ci * kept)
    f = expit(gate(1) + forget_bias + w_cf * kept)
    kept = f * kept + i * np.tanh(gate(2))
    o = expit(gate(3) + w_co * kept)
    return o * np.tanh(kept), kept


@pytest.mark.parametrize("settings", CASES)
@pytest.mark.parametrize("has_input", [True, False])
def test_two_steps_are_equation_3(settings, has_input):
    random, width = np.random.default_rng(1), settings["width"]
    hidden, kept = random.uniform(-1, 1, (2, 2, 6, 7, width))
    inputs = random.uniform(-1, 1, (2, 2, 6, 7, 4)) if has_input else (None, None)
    with jax.enable_x64(True):
        cell = ConvLSTMCell(**settings, dtype="float64")
        params = random_like(jax.eval_shape(cell.init, jax.random.key(0), inputs[0], (hidden, kept)))
        state = (jnp.asarray(hidden), jnp.asarray(kept))
        for x in inputs:
            state = jax.jit(cell.apply)(params, x, state)
            hidden, kept = equation_3(params["params"], x, hidden, kept, settings.get("forget_bias", 0.0))
        found = jax.device_get(state)
    np.testing.assert_allclose(found[0], hidden, rtol=0, atol=1e-12)
    np.testing.assert_allclose(found[1], kept, rtol=0, atol=1e-12)


def test_half_precision_keeps_its_memory_in_single():
    cell = ConvLSTMCell(4, dtype="bfloat16")
    (state,) = blank_states((4,), (1, 6, 6), "bfloat16")
    x = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (1, 6, 6, 3)), jnp.float32)
    params = cell.init(jax.random.key(0), x, state)
    shown, kept = jax.jit(cell.apply)(params, x, state)
    assert (shown.dtype, kept.dtype) == (jnp.bfloat16, jnp.float32) == (state[0].dtype, state[1].dtype)
    exact, _ = jax.jit(ConvLSTMCell(4).apply)(params, x, blank_states((4,), (1, 6, 6), "float32")[0])
    np.testing.assert_allclose(shown.astype(jnp.float32), exact, atol=0.02)


@pytest.mark.smoke
def test_patches_are_squares_of_the_frame_and_come_back():
    frames = jnp.arange(2 * 4 * 6 * 3.0).reshape(2, 4, 6, 3)
    maps = patched(frames, 2)
    assert maps.shape == (2, 2, 3, 12)
    np.testing.assert_array_equal(maps[1, 1, 2].reshape(2, 2, 3), frames[1, 2:4, 4:6])
    np.testing.assert_array_equal(unpatched(maps, 2), frames)


@pytest.mark.peers
@pytest.mark.parametrize("settings", CASES)
def test_gradients_are_those_of_torch(settings):
    """Of a weighted sum of both parts of the state after two steps, by parameters, inputs and state."""
    import torch

    random, width = np.random.default_rng(2), settings["width"]
    state, inputs = random.uniform(-1, 1, (2, 2, 6, 7, width)), random.uniform(-1, 1, (2, 2, 6, 7, 4))
    weights = random.uniform(-1, 1, state.shape)

    with jax.enable_x64(True):
        cell = ConvLSTMCell(**settings, dtype="float64")
        params = random_like(jax.eval_shape(cell.init, jax.random.key(0), inputs[0], tuple(state)))

        def ours(params, inputs, state):
            after = cell.apply(params, inputs[1], cell.apply(params, inputs[0], tuple(state)))
            return (jnp.stack(after) * weights).sum()

        value, found = jax.jit(jax.value_and_grad(ours, argnums=(0, 1, 2)))(params, inputs, jnp.asarray(state))

    leaves = jax.tree.map(lambda leaf: torch.tensor(leaf, requires_grad=True), (params, inputs, state))
    theirs, x, (hidden, kept) = leaves[0]["params"], leaves[1], leaves[2]

    def convolved(maps, kernel):
        return torch.nn.functional.conv2d(
            maps.permute(0, 3, 1, 2), kernel.permute(3, 2, 0, 1), padding=kernel.shape[0] // 2
        ).permute(0, 2, 3, 1)

    looks = theirs.get("peepholes", torch.zeros(3, width))
    for frame in x:
        gates = convolved(frame, theirs["input"]["kernel"]) + convolved(hidden, theirs["state"]["kernel"])
        i, f, g, o = (gates + theirs.get("bias", torch.zeros(4 * width))).split(width, dim=-1)
        i, f = torch.sigmoid(i + looks[0] * kept), torch.sigmoid(f + settings.get("forget_bias", 0) + looks[1] * kept)
        kept = f * kept + i * torch.tanh(g)
        hidden = torch.sigmoid(o + looks[2] * kept) * torch.tanh(kept)
    total = (torch.stack([hidden, kept]) * torch.tensor(weights)).sum()
    total.backward()
    np.testing.assert_allclose(value, total.item(), rtol=1e-12)
    jax.tree.map(lambda ours, leaf: np.testing.assert_allclose(ours, leaf.grad, rtol=1e-10, atol=1e-10), found, leaves)
