"""Video bytes to arrays: open a video, plan which frames and boxes of it are wanted, read them.

    with open_video("clip.mp4") as video:
        frames = sample_uniform(len(video.times), 16)
        boxes = np.stack([crop_box(*video.upright_size(frames), (224, 224), place) for place in (0.0, 0.5, 1.0)])
        crops = video.read(frames, boxes, (224, 224))  # [3, 16, 224, 224, 3]

Frames are numbered in presentation order. A video is used in the thread that opened it; PyAV releases the GIL while it
works, so callers get parallelism from threads. Letters in shapes: t frames, h height, w width.
"""

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from types import MappingProxyType
from typing import Literal

import av
import numpy as np
from jaxtyping import UInt8

from vitx.data.container import DEFAULT_OPTIONS, MAX_SECONDS, ReadOptions, VideoError, VideoSource, open_container
from vitx.data.pyav_video import Indices, PyAVVideo
from vitx.data.torchcodec_video import TorchcodecVideo
from vitx.data.upright import SQUARE, pixel_aspect

__all__ = [
    "DECODERS",
    "Decoder",
    "ReadOptions",
    "VideoError",
    "VideoInfo",
    "VideoSource",
    "decode_frames",
    "describe",
    "open_video",
    "probe",
]

Decoder = Literal["pyav", "torchcodec"]

DECODERS: Mapping[Decoder, type[PyAVVideo]] = MappingProxyType({"pyav": PyAVVideo, "torchcodec": TorchcodecVideo})


@contextlib.contextmanager
def open_video(
    source: VideoSource,
    *,
    decoder: Decoder = "pyav",
    options: ReadOptions = DEFAULT_OPTIONS,
    seconds: float = MAX_SECONDS,
    motion: bool = False,
) -> Iterator[PyAVVideo]:
    """Opens a video and reads the times of its frames.

    Args:
        source: the file's bytes or its path.
        decoder: library that decodes.
        options: what is read of the file.
        seconds: time after which reading is given up.
        motion: whether pixels have a fourth channel, the codec's motion (`vitx.data.motion`); PyAV alone has it.

    Raises:
        VideoError: the video is unreadable, or has no motion. Errors inside the `with` block get the file's name, too.
    """
    with (
        open_container(source, seconds, options) as (container, stream),
        contextlib.closing(DECODERS[decoder](source, container, stream, seconds, options, motion)) as video,
    ):
        yield video


def decode_frames(
    source: VideoSource,
    frames: Indices,
    *,
    size: tuple[int, int] | None = None,
    decoder: Decoder = "pyav",
    options: ReadOptions = DEFAULT_OPTIONS,
) -> UInt8[np.ndarray, "t h w 3"]:
    """Decodes frames whose numbers are known beforehand.

    Args:
        source: the file's bytes or its path.
        frames: frame numbers from 0 in presentation order; any order, repeats allowed.
        size: (height, width) that the largest box at the centre of this shape is scaled to; None leaves frames as they
            are.
        decoder: library that decodes.
        options: what is read of the file.

    Raises:
        VideoError: the video is unreadable, or a wanted frame of it is.
        IndexError: a frame number is negative or not below the number of frames.
    """
    with open_video(source, decoder=decoder, options=options) as video:
        return video.read(frames, size=size)[0]


@dataclass(frozen=True)
class VideoInfo:
    """What a video holds.

    Attributes:
        codec: FFmpeg's name of the codec.
        num_frames: frames that decoding returns.
        fps: average frames per second.
        height: pixels, before any rotation.
        width: pixels, before any rotation.
        duration: seconds.
        pixel_aspect: width of a pixel in units of its height.
    """

    codec: str
    num_frames: int
    fps: float
    height: int
    width: int
    duration: float
    pixel_aspect: Fraction = SQUARE


def probe(source: VideoSource, *, options: ReadOptions = DEFAULT_OPTIONS) -> VideoInfo:
    """Reads a video's header and packets; decodes it only where those do not say which frames there are.

    Raises:
        VideoError: the video is unreadable.
    """
    with open_video(source, options=options) as video:
        return describe(video)


def describe(video: PyAVVideo) -> VideoInfo:
    """Returns what an open video holds."""
    container, stream, num_frames = video.container, video.stream, len(video.times)
    rate = stream.average_rate or stream.guessed_rate
    if stream.duration:
        duration = float(stream.duration * stream.time_base)
    elif container.duration:
        duration = container.duration / av.time_base
    else:
        duration = float(num_frames / rate) if rate else 0.0
    fps = float(rate) if rate else num_frames / duration if duration else 0.0
    name, aspect = stream.codec_context.name, pixel_aspect(stream)
    return VideoInfo(name, num_frames, fps, stream.height, stream.width, duration, aspect)
