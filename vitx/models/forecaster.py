"""ConvLSTM forecasters: context frames in, the frames after them out.

In shapes: b batch, t h w c the video, horizon the predicted frames.
"""

from typing import Literal

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float

from vitx.configuration import register, setting
from vitx.layers.convlstm import ConvLSTMCell, from_patches, step_cells, to_patches, zero_states
from vitx.layers.convolution import Implementation
from vitx.layers.types import DType, Triple, promote_to_float32
from vitx.models.base import AnyShape
from vitx.models.convlstm import States, check_cells, check_frame, check_frames, scan_frames

Frame = Float[Array, "b h w c"]
Forecast = Float[Array, "b horizon h w c"]


class Forecaster(AnyShape, nn.Module):
    """What forecasters share: stacked cells encode the context frames, and from their state the next are decoded.

    Takes clips of any length and of any whole number of patches. As a stream, `step` reads one frame and predicts the
    frames after it; the state's size does not grow.

    Attributes:
        widths: channels of each cell's state, from the cell that reads the frames on.
        input_kernel: height and width of input-to-state kernels, odd.
        state_kernel: height and width of state-to-state kernels, odd.
        patch: height and width in pixels of the patches that cells read and write.
        horizon: number of frames to predict.
        channels: channels of frames: 1 for grey, 3 for colours.
        peepholes: whether the gates see the cell state.
        bias: whether cells and output have biases.
        forget_bias: constant added to forget gates; above 0, cells remember from the start.
        readout: cells whose hidden states the output layer reads, by a kernel of 1 x 1.
        output: "sigmoid" keeps pixels in [0, 1], "linear" leaves them.
        clip: default shape of the context, (frames, height, width); used by `vitx cost`.
        implementation: implementation of convolutions, as in `VideoCNN`.
        dtype: type of the computations; parameters, cell states and predictions are float32.
    """

    widths: tuple[int, ...] = (64, 64)
    input_kernel: int = 5
    state_kernel: int = 5
    patch: int = 4
    horizon: int = setting(10, chosen_by_user=True)
    channels: Literal[1, 3] = 1
    peepholes: bool = True
    bias: bool = True
    forget_bias: float = setting(0.0, changes_function=True)
    readout: Literal["all", "last"] = "all"
    output: Literal["sigmoid", "linear"] = setting("sigmoid", changes_function=True)
    clip: Triple = setting((10, 64, 64), mutable_on_resume=True)
    implementation: Implementation = setting("auto", mutable_on_resume=True)
    dtype: DType = setting("float32", chosen_by_user=True)

    def __post_init__(self):
        check_cells(self)
        if self.horizon < 1:
            raise ValueError(f"horizon is {self.horizon}; expected at least 1 frame to forecast")
        super().__post_init__()

    def setup(self):
        raise NotImplementedError

    @property
    def feeds_back(self) -> bool:
        """Whether every predicted frame depends on the frame before it, and not on the state alone."""
        raise NotImplementedError

    def encode_frame(self, frame: Frame, state: States) -> States:
        """Returns the state after one more context frame."""
        raise NotImplementedError

    def start(self, frame: Frame, state: States) -> States:
        """Returns the state that decoding starts from, given the last context frame and the state before it."""
        raise NotImplementedError

    def decode_frame(self, frame: Frame, state: States) -> tuple[Frame, States]:
        """Returns (the frame after this one, the state after it)."""
        raise NotImplementedError

    def init_state(self, batch: int, size: tuple[int, int] | None = None) -> States:
        """Returns the state before the first frame.

        Args:
            batch: number of streams.
            size: (height, width) of frames in pixels; None takes that of `clip`.
        """
        height, width = size or self.clip[1:]
        return zero_states(self.widths, (batch, height // self.patch, width // self.patch), self.dtype)

    def step(self, frame: Float[Array, "*b h w c"], state: States) -> tuple[Forecast, States]:
        """Returns (prediction of the frames after this one, state after it).

        Raises:
            ValueError: the frame is not [batch, height, width, channels] of the state's batch and size.
        """
        check_frame(frame, state, self.channels, self.patch)
        return self.forecast(frame, state), self.encode_frame(frame, state)

    def __call__(
        self,
        video: Float[Array, "b t h w c"],
        *,
        train: bool = False,
        future: Forecast | None = None,
        teacher_forcing: Bool[Array, "b horizon"] | None = None,
    ) -> Forecast:
        """Returns the frames after the video; pixels are in [0, 1].

        Args:
            video: context frames.
            train: changes nothing, since forecasters draw no random numbers.
            future: the ground truth, for scheduled sampling (Bengio et al. 2015, arXiv:1506.03099).
            teacher_forcing: True where decoding continues from the true frame instead of the predicted one.

        Raises:
            ValueError: the video is not [batch, frames, height, width, channels] of a whole number of patches; or one
                of `future` and `teacher_forcing` is missing.
        """
        check_frames(video, self.channels, self.patch)
        if (future is None) != (teacher_forcing is None):
            raise ValueError("expected both future and teacher_forcing, or neither; found one of them")
        state = scan_frames(self, video[:, :-1], self.init_state(len(video), video.shape[2:4]))
        return self.forecast(video[:, -1], state, future, teacher_forcing)

    def forecast(
        self,
        frame: Frame,
        state: States,
        future: Forecast | None = None,
        teacher_forcing: Bool[Array, "b horizon"] | None = None,
    ) -> Forecast:
        """Returns the frames after this one, given the state before it; see `__call__` for the other arguments."""

        def decode(
            model: Forecaster, carry: tuple[Array, States], truth: tuple[Array, Array] | None
        ) -> tuple[tuple[Array, States], Array]:
            predicted, state = model.decode_frame(*carry)
            if truth is None:
                return (predicted, state), predicted
            true_frame, forced = truth
            return (jnp.where(forced[:, None, None, None], true_frame, predicted), state), predicted

        truth = None if future is None else (future, teacher_forcing)
        scan = nn.scan(
            decode,
            variable_broadcast="params",
            split_rngs={"params": False},
            in_axes=1,
            out_axes=1,
            length=self.horizon,
        )
        return scan(self, (frame, self.start(frame, state)), truth)[1]

    def new_cells(self, widths: tuple[int, ...]) -> list[ConvLSTMCell]:
        """Returns stacked cells of these widths."""
        kernels = (self.input_kernel, self.state_kernel)
        shared = (self.peepholes, self.bias, self.forget_bias, self.implementation, self.dtype)
        return [ConvLSTMCell(width, *kernels, *shared) for width in widths]

    def new_output_layer(self) -> nn.Dense:
        """Returns the layer that computes the pixels of a patch."""
        return nn.Dense(self.patch**2 * self.channels, use_bias=self.bias, dtype=self.dtype)

    def read_out(self, output_layer: nn.Dense, state: States) -> Frame:
        """Returns the frame that the output layer reads from the hidden states."""
        hidden = [h for h, _ in (state if self.readout == "all" else state[-1:])]
        frame = promote_to_float32(from_patches(output_layer(jnp.concatenate(hidden, axis=-1)), self.patch))
        return nn.sigmoid(frame) if self.output == "sigmoid" else frame


@register
class EncoderForecaster(Forecaster):
    """Cells that encode the frames, and cells that start from their states, last first, and decode the future.

    Section 3.2 and figure 3 of Shi et al. 2015 (arXiv:1506.04214), where the forecaster has no input. With one it is
    the conditional decoder of Srivastava et al. 2015 (arXiv:1502.04681, section 2.3).

    Attributes:
        feedback: whether the forecaster reads the frame before the one that it predicts.
        See `Forecaster` for inherited fields.
    """

    feedback: bool = False

    def setup(self):
        self.encoder = self.new_cells(self.widths)
        self.forecaster = self.new_cells(self.widths[::-1])
        self.to_pixels = self.new_output_layer()

    @property
    def feeds_back(self) -> bool:
        """See `Forecaster`."""
        return self.feedback

    def encode_frame(self, frame: Frame, state: States) -> States:
        """See `Forecaster`."""
        return step_cells(self.encoder, to_patches(frame, self.patch), state)

    def start(self, frame: Frame, state: States) -> States:
        """See `Forecaster`."""
        return self.encode_frame(frame, state)[::-1]

    def decode_frame(self, frame: Frame, state: States) -> tuple[Frame, States]:
        """See `Forecaster`."""
        state = step_cells(self.forecaster, to_patches(frame, self.patch) if self.feedback else None, state)
        return self.read_out(self.to_pixels, state), state


@register
class NextFrameForecaster(Forecaster):
    """One stack of cells that predicts the next frame from each frame, and continues from its own predictions.

    The ConvLSTM of the benchmarks after Shi et al., such as OpenSTL's (arXiv:2306.11249), which has no peepholes and
    no biases.
    """

    def setup(self):
        self.cell = self.new_cells(self.widths)
        self.to_pixels = self.new_output_layer()

    @property
    def feeds_back(self) -> bool:
        """See `Forecaster`."""
        return True

    def encode_frame(self, frame: Frame, state: States) -> States:
        """See `Forecaster`."""
        return step_cells(self.cell, to_patches(frame, self.patch), state)

    def start(self, frame: Frame, state: States) -> States:
        """See `Forecaster`."""
        return state

    def decode_frame(self, frame: Frame, state: States) -> tuple[Frame, States]:
        """See `Forecaster`."""
        state = self.encode_frame(frame, state)
        return self.read_out(self.to_pixels, state), state


# Names as in table 1 of Shi et al.: input-to-state kernel, state-to-state kernel if it differs, widths
VARIANTS: dict[str, Forecaster] = {
    "convlstm_forecaster_5x5_256": EncoderForecaster(widths=(256,)),
    "convlstm_forecaster_5x5_128_128": EncoderForecaster(widths=(128, 128)),
    "convlstm_forecaster_5x5_128_64_64": EncoderForecaster(widths=(128, 64, 64)),
    "convlstm_forecaster_9x9_1x1_128_128": EncoderForecaster(widths=(128, 128), input_kernel=9, state_kernel=1),
    "convlstm_forecaster_9x9_1x1_128_64_64": EncoderForecaster(widths=(128, 64, 64), input_kernel=9, state_kernel=1),
    # a fully connected LSTM is a convolutional one with a single place
    "convlstm_forecaster_fc_2048_2048": EncoderForecaster(
        widths=(2048, 2048), input_kernel=1, state_kernel=1, patch=64, readout="last"
    ),
    "convlstm_forecaster_openstl_s": NextFrameForecaster(
        widths=(128,) * 4, peepholes=False, bias=False, forget_bias=1.0, readout="last", output="linear"
    ),
}
