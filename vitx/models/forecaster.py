"""ConvLSTM forecasters: frames in, the frames after them out."""

from typing import Literal

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float

from vitx.configuration import mutable_on_resume, register, setting
from vitx.layers.convlstm import ConvLSTMCell, advance, blank_states, patched, unpatched
from vitx.layers.convolution import DType, Implementation, Triple, at_least_float32
from vitx.models.convlstm import States, check_cells, check_frame, check_frames, over_frames

Frame = Float[Array, "batch height width channels"]
Forecast = Float[Array, "batch horizon height width channels"]


class Forecaster(nn.Module):
    """What forecasters share: stacked cells have `seen` frames, and from their state the next are `guessed`.

    Takes clips of any length and of any whole number of patches. As a stream, `step` takes in one frame and says what
    comes after it; the state's size does not grow.

    Attributes:
        widths: channels of each cell's state, from the cell that sees the frames on.
        input_kernel: height and width of input-to-state kernels, odd.
        state_kernel: height and width of state-to-state kernels, odd.
        patch: height and width of the patches that cells see and make, in pixels.
        horizon: frames to forecast.
        channels: of frames: 1 for grey, 3 for colours.
        peepholes: whether the gates see what the cell keeps.
        bias: whether cells and output have biases.
        forget_bias: added to forget gates; above 0, cells remember from the start.
        readout: cells whose states the output is made of, by a kernel of 1 x 1.
        output: "sigmoid" keeps pixels in [0, 1], "linear" leaves them.
        clip: (frames, height, width) of the input that cost is counted of.
        implementation: of convolutions, as in `VideoCNN`.
        dtype: computations' type; parameters, what cells keep and forecasts are float32.
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
    clip: Triple = mutable_on_resume((10, 64, 64))
    implementation: Implementation = mutable_on_resume("auto")
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
        """Whether each frame of a forecast is made from the one before it, and not from the state alone."""
        raise NotImplementedError

    def seen(self, frame: Frame, state: States) -> States:
        """Returns the state after one more frame."""
        raise NotImplementedError

    def start(self, frame: Frame, state: States) -> States:
        """Returns what a forecast starts with, given the last frame and the state before it."""
        raise NotImplementedError

    def guessed(self, frame: Frame, state: States) -> tuple[Frame, States]:
        """Returns (the frame after this one, the state that goes with it)."""
        raise NotImplementedError

    def init_state(self, batch: int, size: tuple[int, int] | None = None) -> States:
        """Returns the state before the first frame.

        Args:
            batch: streams side by side.
            size: (height, width) of frames in pixels; None is that of `clip`.
        """
        height, width = size or self.clip[1:]
        return blank_states(self.widths, (batch, height // self.patch, width // self.patch), self.dtype)

    def step(self, frame: Float[Array, "*batch height width channels"], state: States) -> tuple[Forecast, States]:
        """Returns (forecast of the frames after this one, state after it).

        Raises:
            ValueError: the frame is no [batch, height, width, channels] of the state's batch and size.
        """
        check_frame(frame, state, self.channels, self.patch)
        return self.forecast(frame, state), self.seen(frame, state)

    def __call__(
        self,
        video: Float[Array, "batch frames height width channels"],
        *,
        train: bool = False,
        future: Forecast | None = None,
        given: Bool[Array, "batch horizon"] | None = None,
    ) -> Forecast:
        """Returns the frames after the video; pixels are in [0, 1].

        Args:
            train: changes nothing: forecasters draw nothing at random themselves.
            future: the true frames, for scheduled sampling (Bengio et al. 2015, arXiv:1506.03099).
            given: whether the forecaster, having made a frame of the future, goes on from the true one instead.

        Raises:
            ValueError: the video is no [batch, frames, height, width, channels], or no whole number of patches; or one
                of `future` and `given` is there without the other.
        """
        check_frames(video, self.channels, self.patch)
        if (future is None) != (given is None):
            raise ValueError("future and given go together: the true frames, and where to go on from them")
        state = over_frames(self, video[:, :-1], self.init_state(len(video), video.shape[2:4]))
        return self.forecast(video[:, -1], state, future, given)

    def forecast(
        self,
        frame: Frame,
        state: States,
        future: Forecast | None = None,
        given: Bool[Array, "batch horizon"] | None = None,
    ) -> Forecast:
        """Returns the frames after this one, given the state before it; the others as in a call."""

        def each(
            model: Forecaster, carry: tuple[Array, States], truth: tuple[Array, Array] | None
        ) -> tuple[tuple[Array, States], Array]:
            guess, state = model.guessed(*carry)
            if truth is None:
                return (guess, state), guess
            frame, given = truth
            return (jnp.where(given[:, None, None, None], frame, guess), state), guess

        truth = None if future is None else (future, given)
        scan = nn.scan(
            each, variable_broadcast="params", split_rngs={"params": False}, in_axes=1, out_axes=1, length=self.horizon
        )
        return scan(self, (frame, self.start(frame, state)), truth)[1]

    def stacked(self, widths: tuple[int, ...]) -> list[ConvLSTMCell]:
        """Returns cells of these widths."""
        kernels = (self.input_kernel, self.state_kernel)
        shared = (self.peepholes, self.bias, self.forget_bias, self.implementation, self.dtype)
        return [ConvLSTMCell(width, *kernels, *shared) for width in widths]

    def made(self) -> nn.Dense:
        """Returns the layer that makes the pixels of a patch."""
        return nn.Dense(self.patch**2 * self.channels, use_bias=self.bias, dtype=self.dtype)

    def pixels(self, state: States) -> Frame:
        """Returns the frame that cells of this state show."""
        shown = [shown for shown, _ in (state if self.readout == "all" else state[-1:])]
        frame = at_least_float32(unpatched(self.to_pixels(jnp.concatenate(shown, axis=-1)), self.patch))
        return nn.sigmoid(frame) if self.output == "sigmoid" else frame


@register
class EncoderForecaster(Forecaster):
    """Cells that encode the frames, and cells that take over their states, last first, and unfold the future.

    Section 3.2 and figure 3 of Shi et al. 2015 (arXiv:1506.04214), where the forecaster has no input. With one it is
    the conditional decoder of Srivastava et al. 2015 (arXiv:1502.04681, section 2.3).

    Attributes:
        feedback: whether the forecaster sees the frame before the one that it makes.
        Others: as `Forecaster`.
    """

    feedback: bool = False

    def setup(self):
        self.encoder = self.stacked(self.widths)
        self.forecaster = self.stacked(self.widths[::-1])
        self.to_pixels = self.made()

    @property
    def feeds_back(self) -> bool:
        """Whether each frame of a forecast is made from the one before it, and not from the state alone."""
        return self.feedback

    def seen(self, frame: Frame, state: States) -> States:
        """Returns the state after one more frame."""
        return advance(self.encoder, patched(frame, self.patch), state)

    def start(self, frame: Frame, state: States) -> States:
        """Returns what a forecast starts with, given the last frame and the state before it."""
        return self.seen(frame, state)[::-1]

    def guessed(self, frame: Frame, state: States) -> tuple[Frame, States]:
        """Returns (the frame after this one, the state that goes with it)."""
        state = advance(self.forecaster, patched(frame, self.patch) if self.feedback else None, state)
        return self.pixels(state), state


@register
class NextFrameForecaster(Forecaster):
    """One stack of cells that makes the next frame from each, and goes on from what it has made.

    The ConvLSTM of the benchmarks after Shi et al., such as OpenSTL's (arXiv:2306.11249), which has no peepholes and
    no biases.
    """

    def setup(self):
        self.cell = self.stacked(self.widths)
        self.to_pixels = self.made()

    @property
    def feeds_back(self) -> bool:
        """Whether each frame of a forecast is made from the one before it, and not from the state alone."""
        return True

    def seen(self, frame: Frame, state: States) -> States:
        """Returns the state after one more frame."""
        return advance(self.cell, patched(frame, self.patch), state)

    def start(self, frame: Frame, state: States) -> States:
        """Returns what a forecast starts with, given the last frame and the state before it."""
        return state

    def guessed(self, frame: Frame, state: States) -> tuple[Frame, States]:
        """Returns (the frame after this one, the state that goes with it)."""
        state = self.seen(frame, state)
        return self.pixels(state), state


# named as table 1 of Shi et al.: input-to-state kernel, state-to-state kernel where it differs, widths
VARIANTS: dict[str, Forecaster] = {
    "convlstm_forecaster_5x5_256": EncoderForecaster(widths=(256,)),
    "convlstm_forecaster_5x5_128_128": EncoderForecaster(widths=(128, 128)),
    "convlstm_forecaster_5x5_128_64_64": EncoderForecaster(widths=(128, 64, 64)),
    "convlstm_forecaster_9x9_1x1_128_128": EncoderForecaster(widths=(128, 128), input_kernel=9, state_kernel=1),
    "convlstm_forecaster_9x9_1x1_128_64_64": EncoderForecaster(widths=(128, 64, 64), input_kernel=9, state_kernel=1),
    # a fully connected LSTM is a convolutional one of a single place
    "convlstm_forecaster_fc_2048_2048": EncoderForecaster(
        widths=(2048, 2048), input_kernel=1, state_kernel=1, patch=64, readout="last"
    ),
    "convlstm_forecaster_openstl_s": NextFrameForecaster(
        widths=(128,) * 4, peepholes=False, bias=False, forget_bias=1.0, readout="last", output="linear"
    ),
}
