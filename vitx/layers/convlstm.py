"""The convolutional LSTM (Shi et al. 2015, arXiv:1506.04214): a cell, stacked cells, frames in patches."""

from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import linen as nn
from jax import lax
from jaxtyping import Array, Float

from vitx.layers.convolution import DType, Implementation, at_least_float32

Maps = Float[Array, "batch rows columns _"]
State = tuple[Maps, Maps]  # of a cell: what it shows (H) and what it keeps (C)


def as_product(
    x: Maps, kernel: Float[Array, "tall wide _ width_out"], *_: Any, **__: Any
) -> Float[Array, "batch rows columns width_out"]:
    """A convolution as one matrix product of shifted maps side by side.

    In a loop XLA compiles this well for the CPU, and convolutions not. Has the arguments of
    `lax.conv_general_dilated` as `nn.Conv` gives them, stride 1 and zeros that keep the size supposed.
    """
    tall, wide, channels, _ = kernel.shape
    rows, columns = x.shape[1:3]
    padded = jnp.pad(x, ((0, 0), (tall // 2, tall // 2), (wide // 2, wide // 2), (0, 0)))
    shifted = [padded[:, i : i + rows, j : j + columns] for i, j in np.ndindex(tall, wide)]
    return jnp.concatenate(shifted, axis=-1) @ kernel.reshape(tall * wide * channels, -1)


NATIVE = lax.conv_general_dilated
IMPLEMENTATIONS: dict[str, Callable[..., Array]] = {"auto": NATIVE, "reference": NATIVE, "cpu": as_product}


class ConvLSTMCell(nn.Module):
    """One step of a convolutional LSTM (equation 3), padded with zeros; one peephole for each channel and gate.

    A peephole for each channel, the same at all places, is what the parameters that the paper's table 1 counts say.

    Attributes:
        width: channels of the state.
        input_kernel: height and width of the input-to-state kernel, odd.
        state_kernel: height and width of the state-to-state kernel, odd.
        peepholes: whether the gates see what the cell keeps.
        bias: whether the gates have biases.
        forget_bias: added to the forget gate before its sigmoid; a constant.
        implementation: of convolutions; "cpu" computes the same many times faster there.
        dtype: of convolutions and of what the cell shows; what it keeps and all parameters are float32.
    """

    width: int
    input_kernel: int = 5
    state_kernel: int = 5
    peepholes: bool = True
    bias: bool = True
    forget_bias: float = 0.0
    implementation: Implementation = "reference"
    dtype: DType = "float32"

    @nn.compact
    def __call__(self, x: Maps | None, state: State) -> State:
        """Returns the state after one more input; None where the cell has no input."""
        shown, kept = state
        gates = self.convolution(self.state_kernel, "state")(shown)
        if x is not None:
            gates += self.convolution(self.input_kernel, "input")(x)
        gates = at_least_float32(gates)
        if self.bias:
            gates += self.param("bias", nn.initializers.zeros, (4 * self.width,))
        take, forget, candidate, show = jnp.split(gates, 4, axis=-1)
        looks = jnp.zeros((3, self.width))
        if self.peepholes:
            looks = self.param("peepholes", nn.initializers.zeros, (3, self.width))
        take = nn.sigmoid(take + looks[0] * kept)
        forget = nn.sigmoid(forget + self.forget_bias + looks[1] * kept)
        kept = forget * kept + take * jnp.tanh(candidate)
        show = nn.sigmoid(show + looks[2] * kept)
        return (show * jnp.tanh(kept)).astype(self.dtype), kept

    def convolution(self, size: int, name: str) -> nn.Conv:
        """Returns what gives the share of its input in all four gates: input, forget, candidate, output."""
        glorot = nn.initializers.xavier_uniform()
        how = IMPLEMENTATIONS[self.implementation]
        settings = {"use_bias": False, "kernel_init": glorot, "dtype": self.dtype, "conv_general_dilated": how}
        return nn.Conv(4 * self.width, (size, size), **settings, name=name)


def blank_states(widths: Sequence[int], maps: tuple[int, int, int], dtype: DType) -> tuple[State, ...]:
    """Returns what cells of these widths have before the first input, zeros; maps is (batch, height, width)."""
    kept = jnp.promote_types(dtype, jnp.float32)
    return tuple((jnp.zeros((*maps, width), dtype), jnp.zeros((*maps, width), kept)) for width in widths)


def advance(cells: Sequence[ConvLSTMCell], x: Maps | None, states: Sequence[State]) -> tuple[State, ...]:
    """Returns the states of stacked cells after one more input of the first; each shows the next what it has."""
    after = []
    for cell, state in zip(cells, states, strict=True):
        after.append(cell(x, state))
        x = after[-1][0]
    return tuple(after)


def patched(
    frames: Float[Array, "*batch height width channels"], patch: int
) -> Float[Array, "*batch rows columns pixels"]:
    """Returns frames as maps of patches: patch x patch pixels become channels of one place."""
    return rearrange(frames, "... (h p) (w q) c -> ... h w (p q c)", p=patch, q=patch)


def unpatched(
    maps: Float[Array, "*batch rows columns pixels"], patch: int
) -> Float[Array, "*batch height width channels"]:
    """Inverse of `patched`."""
    return rearrange(maps, "... h w (p q c) -> ... (h p) (w q) c", p=patch, q=patch)
