"""The convolutional LSTM (Shi et al. 2015, arXiv:1506.04214): a cell, stacked cells, frames in patches."""

from collections.abc import Sequence

import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn
from jax import lax
from jaxtyping import Array, Float

from vitx.layers.convolution import DType, at_least_float32

Maps = Float[Array, "batch rows columns _"]
State = tuple[Maps, Maps]  # of a cell: what it shows (H) and what it keeps (C)


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
        dtype: of convolutions and of what the cell shows; what it keeps and all parameters are float32.
    """

    width: int
    input_kernel: int = 5
    state_kernel: int = 5
    peepholes: bool = True
    bias: bool = True
    forget_bias: float = 0.0
    dtype: DType = "float32"

    @nn.compact
    def __call__(self, x: Maps | None, state: State) -> State:
        """Returns the state after one more input; None where the cell has no input."""
        shown, kept = state
        gates = self.convolved(shown, "state_kernel", self.state_kernel)
        if x is not None:
            gates += self.convolved(x, "input_kernel", self.input_kernel)
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

    def convolved(self, x: Maps, name: str, size: int) -> Maps:
        """Returns the share of x in all four gates: input, forget, candidate, output."""
        glorot = nn.initializers.xavier_uniform()
        kernel = self.param(name, glorot, (size, size, x.shape[-1], 4 * self.width))
        x, kernel = nn.dtypes.promote_dtype(x, kernel, dtype=self.dtype)
        return lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


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
