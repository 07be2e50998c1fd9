"""The convolutional LSTM (Shi et al. 2015, arXiv:1506.04214): a cell, stacked cells, frames as maps of patches.

In shapes: b batch, h w c frames, rows columns maps of patches.
"""

from collections.abc import Sequence

import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn
from jaxtyping import Array, Float

from vitx.layers.convolution import IMPLEMENTATIONS_2D, Implementation
from vitx.layers.types import DType, promote_to_float32

Maps = Float[Array, "b rows columns _"]
State = tuple[Maps, Maps]  # of a cell: hidden state h and cell state c


class ConvLSTMCell(nn.Module):
    """One step of a convolutional LSTM (equation 3), padded with zeros.

    Peephole weights are one for each channel and gate, the same at all places: the parameter counts of the paper's
    table 1 say so, although equation 3 would allow one for each place.

    Attributes:
        width: channels of the state.
        input_kernel: height and width of the input-to-state kernel, odd.
        state_kernel: height and width of the state-to-state kernel, odd.
        peepholes: whether the gates see the cell state.
        bias: whether the gates have biases.
        forget_bias: constant added to the forget gate before its sigmoid.
        implementation: implementation of convolutions; "cpu" computes the same many times faster there.
        dtype: type of convolutions and of the hidden state; the cell state and all parameters are float32.
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
        """Returns the state after one more input; None if the cell has no input."""
        h, c = state
        gates = self.convolution(self.state_kernel, "state")(h)
        if x is not None:
            gates += self.convolution(self.input_kernel, "input")(x)
        gates = promote_to_float32(gates)
        if self.bias:
            gates += self.param("bias", nn.initializers.zeros, (4 * self.width,), jnp.float32)
        input_gate, forget_gate, cell_gate, output_gate = jnp.split(gates, 4, axis=-1)
        peepholes = jnp.zeros((3, self.width))
        if self.peepholes:
            peepholes = self.param("peepholes", nn.initializers.zeros, (3, self.width), jnp.float32)
        input_gate = nn.sigmoid(input_gate + peepholes[0] * c)
        forget_gate = nn.sigmoid(forget_gate + self.forget_bias + peepholes[1] * c)
        c = forget_gate * c + input_gate * jnp.tanh(cell_gate)
        # unlike the other gates, the output gate reads the new cell state
        output_gate = nn.sigmoid(output_gate + peepholes[2] * c)
        return (output_gate * jnp.tanh(c)).astype(self.dtype), c

    def convolution(self, size: int, name: str) -> nn.Conv:
        """Returns the convolution of one input for all gates, in the order input, forget, cell, output."""
        return nn.Conv(
            4 * self.width,
            (size, size),
            use_bias=False,
            kernel_init=nn.initializers.xavier_uniform(),
            dtype=self.dtype,
            conv_general_dilated=IMPLEMENTATIONS_2D[self.implementation],
            name=name,
        )


def zero_states(widths: Sequence[int], maps: tuple[int, int, int], dtype: DType) -> tuple[State, ...]:
    """Returns the states of cells of these widths before the first input; maps is (batch, height, width)."""
    cell_dtype = jnp.promote_types(dtype, jnp.float32)
    return tuple((jnp.zeros((*maps, width), dtype), jnp.zeros((*maps, width), cell_dtype)) for width in widths)


def step_cells(cells: Sequence[ConvLSTMCell], x: Maps | None, states: Sequence[State]) -> tuple[State, ...]:
    """Returns the states of stacked cells after one more input of the first; each hidden state is the next's input."""
    new_states = []
    for cell, state in zip(cells, states, strict=True):
        new_states.append(cell(x, state))
        x = new_states[-1][0]
    return tuple(new_states)


def to_patches(frames: Float[Array, "*b h w c"], patch: int) -> Float[Array, "*b rows columns pixels"]:
    """Returns frames as maps of patches: patch x patch pixels become the channels of one place."""
    return rearrange(frames, "... (h p) (w q) c -> ... h w (p q c)", p=patch, q=patch)


def from_patches(maps: Float[Array, "*b rows columns pixels"], patch: int) -> Float[Array, "*b h w c"]:
    """Inverts `to_patches`."""
    return rearrange(maps, "... h w (p q c) -> ... (h p) (w q) c", p=patch, q=patch)
