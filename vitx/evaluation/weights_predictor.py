"""Predictions of many videos with pretrained weights, through the preprocessing that came with them.

Letters in shapes: b batch, v views, t frames of a clip, h height, w width; n frames of a video, s of a segment.
"""

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int, UInt8

from vitx.data.container import DEFAULT_OPTIONS, ReadOptions, VideoError, VideoSource
from vitx.data.decoding import open_video
from vitx.data.pyav_video import PyAVVideo
from vitx.errors import UserError
from vitx.evaluation.predictor import Predictor
from vitx.evaluation.presentation import presenter_for
from vitx.interop.load import Pretrained
from vitx.interop.predict import check_head, class_names, for_first_device
from vitx.interop.preprocessing import Preprocessing
from vitx.tasks.classification import Classification


@dataclasses.dataclass(frozen=True)
class PreprocessedReader:
    """Reads one clip of each segment, before its pixels are normalised; a `vitx.data.windows.ClipReader`.

    Attributes:
        preprocessing: preprocessing that came with the weights.
        reading: what is read of a file.
    """

    preprocessing: Preprocessing
    reading: ReadOptions = DEFAULT_OPTIONS

    @property
    def num_frames(self) -> int:
        """Frames of a clip."""
        return self.preprocessing.num_frames

    def open(self, source: VideoSource, seconds: float) -> contextlib.AbstractContextManager[PyAVVideo]:
        """Opens a video."""
        return open_video(source, options=self.reading, seconds=seconds)

    def plan(self, times: Float[np.ndarray, " n"], segment: Int[np.ndarray, " s"]) -> Int[np.ndarray, " t"]:
        """Returns the frame numbers of the clip of a segment."""
        return segment[self.preprocessing.indices(len(segment))]

    def read_each(self, video: PyAVVideo, frames: Sequence[int]) -> Iterator[UInt8[np.ndarray, "1 h w 3"]]:
        """Yields each of these frames, scaled and cropped.

        Raises:
            VideoError: a frame would be too large when scaled.
        """
        for frame in video.read_each(frames):
            try:
                yield self.preprocessing.fit(frame)
            except UserError as error:  # of this file alone, which stops no other
                raise VideoError(str(error)) from error

    def order_views(self, crops: UInt8[np.ndarray, "1 t h w 3"]) -> UInt8[np.ndarray, "1 t h w 3"]:
        """Returns the clip as the only view."""
        return crops


def weights_predictor(pretrained: Pretrained) -> Predictor:
    """Returns what predicts videos with pretrained weights.

    Raises:
        UserError: the model has no head.
    """
    preprocessing, model = check_head(pretrained), for_first_device(pretrained.model)

    @jax.jit
    def apply(variables, clips):
        outputs = model.apply(variables, clips, train=False)
        return dict(outputs) if isinstance(outputs, Mapping) else {"class": outputs}

    def compute(
        clips: UInt8[np.ndarray, "b 1 t h w 3"], views: Int[np.ndarray, "b"]
    ) -> dict[str, Float[np.ndarray, "b _"]]:
        outputs = apply(pretrained.variables, preprocessing.normalise(clips[:, 0]))
        return {head: np.asarray(values, np.float32) for head, values in outputs.items()}

    clip = jnp.zeros((1, preprocessing.num_frames, *preprocessing.size, 3))
    shapes = jax.eval_shape(apply, pretrained.variables, clip)
    names = class_names(pretrained, {head: shape.shape[-1] for head, shape in shapes.items()})
    return Predictor(PreprocessedReader(preprocessing), compute, names, presenter_for(Classification()))
