"""Models that can read a video as it arrives, one frame at a time, at constant memory.

In shapes: b batch, t h w c the video, d width.
"""

from typing import Any, Protocol, runtime_checkable

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from vitx.models.base import Logits
from vitx.models.cnn import VideoCNN


@runtime_checkable
class StreamingModel(Protocol):
    """A model whose clip is a scan of `step`: after the last frame the logits are those of the clip.

    `step` needs variables, so call `model.apply(variables, frame, state, method="step")`, always in evaluation mode;
    `init_state` needs none, and is called on the model itself.
    """

    def init_state(self, batch: int) -> Any:
        """Returns the state before the first frame of `batch` videos: a pytree whose shapes no step changes."""

    def step(self, frame: Float[Array, "b h w 3"], state: Any) -> tuple[Any, Any]:
        """Returns (logits of all frames so far, the state for the next frame)."""


class StreamingCNN(VideoCNN):
    """A network that goes from frame to frame with a state: clip and stream are one function. A `StreamingModel`."""

    def init_state(self, batch: int) -> Any:
        """Returns the state before the first frame of `batch` videos."""
        raise NotImplementedError

    def advance(self, video: Float[Array, "b t h w 3"], state: Any, *, train: bool) -> tuple[Float[Array, "b d"], Any]:
        """Returns (features of all frames so far, including this video; the state after them)."""
        raise NotImplementedError

    def features(self, video: Float[Array, "b t h w c"], *, train: bool = False) -> Float[Array, "b d"]:
        """See `VideoCNN.features`."""
        self.check_video(video)
        features, _ = self.advance(video, self.init_state(len(video)), train=train)
        return features

    def step(self, frame: Float[Array, "*b h w c"], state: Any) -> tuple[Logits, Any]:
        """Returns (logits of all frames so far, the state for the next frame), in evaluation mode.

        Args:
            frame: [batch, height, width, 3].
            state: result of `init_state` or of the previous step.

        Raises:
            ValueError: the frame has another shape, is too small, or is of another number of videos than the state.
        """
        if frame.ndim != 4:
            raise ValueError(f"frame has shape {list(frame.shape)}; expected [batch, height, width, 3]")
        video = frame[:, None]
        self.check_video(video)
        (batch,) = {len(leaf) for leaf in jax.tree.leaves(state) if leaf.ndim}
        if batch != len(frame):
            raise ValueError(
                f"frame has shape {list(frame.shape)} and the state is of a batch of {batch}; start with "
                f"init_state({len(frame)})"
            )
        features, state = self.advance(video, state, train=False)
        return self.head(features), state


@flax.struct.dataclass
class RunningMean:
    """The average of the features of all frames so far.

    Attributes:
        frames: number of frames.
        mean: average of their features.
    """

    frames: Int[Array, ""]
    mean: Float[Array, "b d"]

    @classmethod
    def zeros(cls, batch: int, hidden: int, dtype: Any) -> "RunningMean":
        """Returns the average before the first frame."""
        return cls(jnp.zeros((), jnp.int32), jnp.zeros((batch, hidden), dtype))

    def add(self, features: Float[Array, "b t d"]) -> "RunningMean":
        """Returns the average with more frames."""
        frames = self.frames + features.shape[1]
        # the mean moves by the difference: a sum over a long stream would lose digits
        return RunningMean(frames, self.mean + jnp.sum(features - self.mean[:, None], axis=1) / frames)
