"""Video classification by stacked convolutional LSTMs: a whole clip, or a stream of frames.

In shapes: b batch, t h w c the video, d width of features.
"""

from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from vitx.configuration import register, setting
from vitx.layers.convlstm import ConvLSTMCell, State, step_cells, to_patches, zero_states
from vitx.layers.convolution import Implementation
from vitx.layers.head import Head, NumClasses, check_classes
from vitx.layers.types import DType, Triple, promote_to_float32
from vitx.models.base import AnyShape, Logits
from vitx.models.streaming import RunningMean

States = tuple[State, ...]
ClipState = tuple[States, RunningMean]


def check_cells(model: Any) -> None:
    """Raises ValueError if stacked cells cannot have such `widths`, kernels and `patch`."""
    if not model.widths or min(model.widths) < 1 or model.patch < 1 or min(model.clip) < 1:
        raise ValueError(
            f"widths is {model.widths}, patch {model.patch} and clip {model.clip}; expected at least one cell and "
            "positive numbers"
        )
    for name in ("input_kernel", "state_kernel"):
        if getattr(model, name) % 2 != 1 or getattr(model, name) < 1:
            raise ValueError(f"{name} is {getattr(model, name)}; expected an odd number, so that maps keep their size")


def check_frames(video: Array, channels: int, patch: int) -> None:
    """Raises ValueError if a video is not [batch, frames, height, width, channels] of whole patches."""
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
    """Raises ValueError if a frame of a stream is not [batch, height, width, channels] of its states' sizes."""
    if frame.ndim != 4:
        raise ValueError(f"frame has shape {list(frame.shape)}; expected [batch, height, width, {channels}]")
    check_frames(frame[:, None], channels, patch)
    batch, height, width, _ = frame.shape
    streams, rows, columns, _ = states[0][0].shape
    if (batch, height, width) != (streams, rows * patch, columns * patch):
        raise ValueError(
            f"frame has shape {list(frame.shape)} and the state is of a batch of {streams} and of {rows * patch} x "
            f"{columns * patch} pixels; start with init_state({batch}, ({height}, {width}))"
        )


@register
class ConvLSTM(AnyShape, nn.Module):
    """Patches of frames, stacked cells, the average of the last hidden state over frames and places, head.

    Takes clips of any length and of any whole number of patches. A `StreamingModel`: `step` is one frame, and the
    state's size does not grow.

    Attributes:
        num_classes: an int; 0 for pooled features; (("verb", 97), ("noun", 300)) for a dictionary of logits.
        widths: channels of each cell's state.
        input_kernel: height and width of input-to-state kernels, odd.
        state_kernel: height and width of state-to-state kernels, odd.
        patch: height and width of the patches, in pixels.
        forget_bias: constant added to forget gates; above 0, cells remember from the start.
        dropout_rate: probability of dropout of the pooled features.
        clip: default input shape, (frames, height, width); used by `vitx cost`.
        implementation: implementation of convolutions, as in `VideoCNN`.
        dtype: type of the computations; parameters, cell states and pooled features are float32.
    """

    num_classes: NumClasses = setting(400, chosen_by_user=True)
    widths: tuple[int, ...] = (64, 64)
    input_kernel: int = 3
    state_kernel: int = 3
    patch: int = 4
    forget_bias: float = setting(1.0, changes_function=True)
    dropout_rate: float = setting(0.0, chosen_by_user=True)
    clip: Triple = setting((16, 64, 64), mutable_on_resume=True)
    implementation: Implementation = setting("auto", mutable_on_resume=True)
    dtype: DType = setting("float32", chosen_by_user=True)

    def __post_init__(self):
        check_classes(self.num_classes)
        check_cells(self)
        if not 0 <= self.dropout_rate < 1:
            raise ValueError(f"dropout_rate is {self.dropout_rate}; expected a probability in [0, 1)")
        super().__post_init__()

    def setup(self):
        kernels = {"input_kernel": self.input_kernel, "state_kernel": self.state_kernel}
        shared = {"forget_bias": self.forget_bias, "implementation": self.implementation, "dtype": self.dtype}
        self.cell = [ConvLSTMCell(width, **kernels, **shared) for width in self.widths]
        self.dropout = nn.Dropout(self.dropout_rate)
        self.head = Head(self.num_classes)

    def init_state(self, batch: int, size: tuple[int, int] | None = None) -> ClipState:
        """Returns (the cells' states, the average of the features) before the first frame.

        Args:
            batch: number of streams.
            size: (height, width) of frames in pixels; None takes that of `clip`.
        """
        height, width = size or self.clip[1:]
        states = zero_states(self.widths, (batch, height // self.patch, width // self.patch), self.dtype)
        return states, RunningMean.zeros(batch, self.widths[-1], jnp.promote_types(self.dtype, jnp.float32))

    def step(self, frame: Float[Array, "*b h w c"], state: ClipState) -> tuple[Logits, ClipState]:
        """Returns (logits of all frames so far, the state for the next frame).

        Raises:
            ValueError: the frame is not [batch, height, width, 3] of the state's batch and size.
        """
        check_frame(frame, state[0], 3, self.patch)
        states, mean = self.encode_frame(frame, state)
        return self.head(mean.mean), (states, mean)

    def encode_frame(self, frame: Float[Array, "b h w 3"], state: ClipState) -> ClipState:
        """Returns the state after one more frame."""
        states, mean = state
        states = step_cells(self.cell, to_patches(frame, self.patch), states)
        h, _ = states[-1]
        return states, mean.add(jnp.mean(promote_to_float32(h), axis=(1, 2))[:, None])

    def features(self, video: Float[Array, "b t h w c"], *, train: bool = False) -> Float[Array, "b d"]:
        """Returns one vector for each clip, which the head classifies.

        Raises:
            ValueError: the video is not [batch, frames, height, width, 3] of a whole number of patches.
        """
        check_frames(video, 3, self.patch)
        _, mean = scan_frames(self, video, self.init_state(len(video), video.shape[2:4]))
        return mean.mean

    def __call__(self, video: Float[Array, "b t h w c"], *, train: bool = False) -> Logits:
        return self.head(self.dropout(self.features(video), deterministic=not train))


def scan_frames(model: Any, video: Float[Array, "b t h w c"], state: Any) -> Any:
    """Returns the state of a model after the frames of a video, by its `encode_frame`."""

    def encode(model: Any, state: Any, frame: Array) -> tuple[Any, None]:
        return model.encode_frame(frame, state), None

    scan = nn.scan(encode, variable_broadcast="params", split_rngs={"params": False}, in_axes=1)
    return scan(model, state, video)[0]


VARIANTS: dict[str, nn.Module] = {
    "convlstm_small": ConvLSTM(widths=(32, 32)),
    "convlstm_base": ConvLSTM(widths=(128, 64, 64), input_kernel=5, state_kernel=5, clip=(16, 112, 112)),
}
