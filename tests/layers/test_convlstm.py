"""The ConvLSTM cell: equation 3 of Shi et al. written out in numpy, its gradients by PyTorch, patches of frames."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.signal import correlate2d
from scipy.special import expit

from vitx.layers.convlstm import ConvLSTMCell, from_patches, to_patches, zero_states

CASES = [
    {"width": 3, "input_kernel": 5, "state_kernel": 3},
    {"width": 2, "input_kernel": 1, "state_kernel": 5, "forget_bias": 1.0},
    {"width": 2, "input_kernel": 3, "state_kernel": 1, "peepholes": False, "bias": False, "forget_bias": 0.5},
]


def random_like(shapes, seed=0):
    random = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: random.uniform(-1, 1, leaf.shape), shapes)


def correlate(x, kernel):
    """Every output channel as a sum of 2D correlations, padded with zeros, of one input channel each."""
    out = np.zeros((*x.shape[:3], kernel.shape[-1]))
    for b, i, o in np.ndindex(x.shape[0], x.shape[-1], kernel.shape[-1]):
        out[b, :, :, o] += correlate2d(x[b, :, :, i], kernel[:, :, i, o], mode="same")
    return out


def equation_3(params, x, h, c, forget_bias=0.0):
    """Shi et al., equation 3, one gate at a time."""
    width = h.shape[-1]

    def gate(number):
        part = slice(number * width, (number + 1) * width)
        total = correlate(h, params["state"]["kernel"][..., part])
        if x is not None:
            total = total + correlate(x, params["input"]["kernel"][..., part])
        return total + (params["bias"][part] if "bias" in params else 0)

    w_ci, w_cf, w_co = params.get("peepholes", np.zeros((3, width)))
    i = expit(gate(0) + w_ci * c)
    f = expit(gate(1) + forget_bias + w_cf * c)
    c = f * c + i * np.tanh(gate(2))
    o = expit(gate(3) + w_co * c)
    return o * np.tanh(c), c


@pytest.mark.parametrize("settings", CASES)
@pytest.mark.parametrize("has_input", [True, False])
def test_two_steps_follow_equation_3(settings, has_input):
    random, width = np.random.default_rng(1), settings["width"]
    h, c = random.uniform(-1, 1, (2, 2, 6, 7, width))
    inputs = random.uniform(-1, 1, (2, 2, 6, 7, 4)) if has_input else (None, None)
    with jax.enable_x64(True):
        cell = ConvLSTMCell(**settings, dtype="float64")
        params = random_like(jax.eval_shape(cell.init, jax.random.key(0), inputs[0], (h, c)))
        state = (jnp.asarray(h), jnp.asarray(c))
        for x in inputs:
            state = jax.jit(cell.apply)(params, x, state)
            h, c = equation_3(params["params"], x, h, c, settings.get("forget_bias", 0.0))
        found = jax.device_get(state)
    np.testing.assert_allclose(found[0], h, rtol=0, atol=1e-12)
    np.testing.assert_allclose(found[1], c, rtol=0, atol=1e-12)


def test_cell_state_is_float32_in_half_precision():
    cell = ConvLSTMCell(4, dtype="bfloat16")
    (state,) = zero_states((4,), (1, 6, 6), "bfloat16")
    x = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (1, 6, 6, 3)), jnp.float32)
    params = cell.init(jax.random.key(0), x, state)
    h, c = jax.jit(cell.apply)(params, x, state)
    assert (h.dtype, c.dtype) == (jnp.bfloat16, jnp.float32) == (state[0].dtype, state[1].dtype)
    exact, _ = jax.jit(ConvLSTMCell(4).apply)(params, x, zero_states((4,), (1, 6, 6), "float32")[0])
    np.testing.assert_allclose(h.astype(jnp.float32), exact, atol=0.02)


@pytest.mark.smoke
def test_patches_are_squares_of_the_frame_and_invert():
    frames = jnp.arange(2 * 4 * 6 * 3.0).reshape(2, 4, 6, 3)
    maps = to_patches(frames, 2)
    assert maps.shape == (2, 2, 3, 12)
    np.testing.assert_array_equal(maps[1, 1, 2].reshape(2, 2, 3), frames[1, 2:4, 4:6])
    np.testing.assert_array_equal(from_patches(maps, 2), frames)


@pytest.mark.peers
@pytest.mark.parametrize("settings", CASES)
def test_gradients_equal_those_of_pytorch(settings):
    """Gradients of a weighted sum of h and c after two steps, by parameters, inputs and state."""
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
    theirs, x, (h, c) = leaves[0]["params"], leaves[1], leaves[2]

    def convolve(maps, kernel):
        return torch.nn.functional.conv2d(
            maps.permute(0, 3, 1, 2), kernel.permute(3, 2, 0, 1), padding=kernel.shape[0] // 2
        ).permute(0, 2, 3, 1)

    peepholes = theirs.get("peepholes", torch.zeros(3, width))
    for frame in x:
        gates = convolve(frame, theirs["input"]["kernel"]) + convolve(h, theirs["state"]["kernel"])
        i, f, g, o = (gates + theirs.get("bias", torch.zeros(4 * width))).split(width, dim=-1)
        i, f = torch.sigmoid(i + peepholes[0] * c), torch.sigmoid(f + settings.get("forget_bias", 0) + peepholes[1] * c)
        c = f * c + i * torch.tanh(g)
        h = torch.sigmoid(o + peepholes[2] * c) * torch.tanh(c)
    total = (torch.stack([h, c]) * torch.tensor(weights)).sum()
    total.backward()
    np.testing.assert_allclose(value, total.item(), rtol=1e-12)
    jax.tree.map(lambda ours, leaf: np.testing.assert_allclose(ours, leaf.grad, rtol=1e-10, atol=1e-10), found, leaves)
