"""Video classification by stacked convolutional LSTMs: a whole clip, or a stream of frames."""

from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from vitx.configuration import mutable_on_resume, register, setting
from vitx.layers.convlstm import ConvLSTMCell, State, advance, blank_states, patched
from vitx.layers.convolution import DType, Implementation, Triple, at_least_float32
from vitx.layers.head import Head, NumClasses, check_classes
from vitx.models.streaming import RunningMean

States = tuple[State, ...]
ClipState = tuple[States, RunningMean]


def check_cells(model: Any) -> None:
    """Raises ValueError unless stacked cells can have such `widths`, kernels and `patch`."""
    if not model.widths or min(model.widths) < 1 or model.patch < 1 or min(model.clip) < 1:
        raise ValueError(
            f"widths is {model.widths}, patch {model.patch} and clip {model.clip}; expected at least one cell and "
            "nothing less than 1"
        )
    for name in ("input_kernel", "state_kernel"):
        if getattr(model, name) % 2 != 1 or getattr(model, name) < 1:
            raise ValueError(f"{name} is {getattr(model, name)}; expected an odd number, so that maps keep their size")


def check_frames(video: Array, channels: int, patch: int) -> None:
    """Raises ValueError unless a video is [batch, frames, height, width, channels] of whole patches."""
    if video.ndim != 5 or video.shape[-1] != channels or video.shape[1] < 1:
        raise ValueError(
            f"video has shape {list(video.shape)}; expected [batch, frames, height, width, channels] "
            f"= [batch, 1 or more, height, width, {channels}]"
        )
    height, width = video.shape[2:4]
    if height % patch or width % patch or not height * width:
        raise ValueError(
            f"video has shape {list(video.shape)}; its {height} x {width} pixels do not divide into patches of "
            f"{patch} x {patch}: set the size, or the model's patch"
        )


def check_frame(frame: Array, states: States, channels: int, patch: int) -> None:
    """Raises ValueError unless a frame of a stream is [batch, height, width, channels] as its states have them."""
    if frame.ndim != 4:
        raise ValueError(f"frame has shape {list(frame.shape)}; expected [batch, height, width, {channels}]")
    check_frames(frame[:, None], channels, patch)
    batch, height, width, _ = frame.shape
    streams, rows, columns, _ = states[0][0].shape
    if (batch, height, width) != (streams, rows * patch, columns * patch):
        raise ValueError(
            f"frame has shape {list(frame.shape)} and the state is of a batch of {streams} and of {rows * patch} x "
            f"{columns * patch} pixels; it begins as init_state({batch}, ({height}, {width}))"
        )


@register
class ConvLSTM(nn.Module):
    """Patches of frames, stacked cells, the average over frames and places of what the last cell shows, head.

    Takes clips of any length and of any whole number of patches. As a stream, `step` is one frame and `init_state`
    what comes before the first; the state's size does not grow.

    Attributes:
        num_classes: an int; 0 for pooled features; (("verb", 97), ("noun", 300)) for a dictionary of logits.
        widths: channels of each cell's state.
        input_kernel: height and width of input-to-state kernels, odd.
        state_kernel: height and width of state-to-state kernels, odd.
        patch: height and width of the patches, in pixels.
        forget_bias: added to forget gates; above 0, cells remember from the start.
        dropout_rate: of the pooled features.
        clip: (frames, height, width) that cost is counted of.
        implementation: of convolutions, as in `VideoCNN`.
        dtype: computations' type; parameters, what cells keep and pooled features are float32.
    """

    num_classes: NumClasses = setting(400, chosen_by_user=True)
    widths: tuple[int, ...] = (64, 64)
    input_kernel: int = 3
    state_kernel: int = 3
    patch: int = 4
    forget_bias: float = setting(1.0, changes_function=True)
    dropout_rate: float = setting(0.0, chosen_by_user=True)
    clip: Triple = mutable_on_resume((16, 64, 64))
    implementation: Implementation = mutable_on_resume("auto")
    dtype: DType = setting("float32", chosen_by_user=True)

    def __post_init__(self):
        check_classes(self.num_classes)
        check_cells(self)
        if not 0 <= self.dropout_rate < 1:
            raise ValueError(f"dropout_rate is {self.dropout_rate}; expected a share from 0 to less than 1")
        super().__post_init__()

    def setup(self):
        kernels = {"input_kernel": self.input_kernel, "state_kernel": self.state_kernel}
        shared = {"forget_bias": self.forget_bias, "implementation": self.implementation, "dtype": self.dtype}
        self.cell = [ConvLSTMCell(width, **kernels, **shared) for width in self.widths]
        self.dropout = nn.Dropout(self.dropout_rate)
        self.head = Head(self.num_classes)

    def position_tables(self) -> dict:
        """Returns {}: a convolution needs no positions, and takes other shapes as it is."""
        return {}

    def init_state(self, batch: int, size: tuple[int, int] | None = None) -> ClipState:
        """Returns (the cells' states, the average of no features), both of no frame yet.

        Args:
            batch: streams side by side.
            size: (height, width) of frames in pixels; None is that of `clip`.
        """
        height, width = size or self.clip[1:]
        states = blank_states(self.widths, (batch, height // self.patch, width // self.patch), self.dtype)
        return states, RunningMean.of_nothing(batch, self.widths[-1], jnp.promote_types(self.dtype, jnp.float32))

    def step(
        self, frame: Float[Array, "*batch height width channels"], state: ClipState
    ) -> tuple[Float[Array, "batch outputs"] | dict[str, Float[Array, "batch _"]], ClipState]:
        """Returns (logits of all frames so far, the state for the next).

        Raises:
            ValueError: the frame is no [batch, height, width, 3] of the state's batch and size.
        """
        check_frame(frame, state[0], 3, self.patch)
        states, mean = self.seen(frame, state)
        return self.head(mean.mean), (states, mean)

    def seen(self, frame: Float[Array, "batch height width 3"], state: ClipState) -> ClipState:
        """Returns the state after one more frame."""
        states, mean = state
        states = advance(self.cell, patched(frame, self.patch), states)
        shown, _ = states[-1]
        return states, mean.add(jnp.mean(at_least_float32(shown), axis=(1, 2))[:, None])

    def features(
        self, video: Float[Array, "batch frames height width channels"], *, train: bool = False
    ) -> Float[Array, "batch hidden"]:
        """Returns one vector for each clip: what the head classifies.

        Raises:
            ValueError: the video is no [batch, frames, height, width, 3], or no whole number of patches.
        """
        check_frames(video, 3, self.patch)
        _, mean = over_frames(self, video, self.init_state(len(video), video.shape[2:4]))
        return mean.mean

    def __call__(
        self, video: Float[Array, "batch frames height width channels"], *, train: bool = False
    ) -> Float[Array, "batch outputs"] | dict[str, Float[Array, "batch _"]]:
        return self.head(self.dropout(self.features(video), deterministic=not train))


def over_frames(model: Any, video: Float[Array, "batch frames height width channels"], state: Any) -> Any:
    """Returns the state of a model after it has `seen` a video, one frame after the other."""

    def each(model: Any, state: Any, frame: Array) -> tuple[Any, None]:
        return model.seen(frame, state), None

    scan = nn.scan(each, variable_broadcast="params", split_rngs={"params": False}, in_axes=1)
    return scan(model, state, video)[0]


VARIANTS: dict[str, nn.Module] = {
    "convlstm_small": ConvLSTM(widths=(32, 32)),
    "convlstm_base": ConvLSTM(widths=(128, 64, 64), input_kernel=5, state_kernel=5, clip=(16, 112, 112)),
}
