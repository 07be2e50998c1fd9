"""Video bytes to arrays: open a video, plan which frames and boxes of it are wanted, read them.

    with open_video("clip.mp4") as video:
        frames = sample_uniform(len(video.times), 16)
        boxes = np.stack([crop_box(*video.upright_size(frames), (224, 224), place) for place in (0.0, 0.5, 1.0)])
        crops = video.read(frames, boxes, (224, 224))  # [3, 16, 224, 224, 3]

Frames are numbered in presentation order. A video is used in the thread that opened it; PyAV releases the GIL while it
works, so callers get parallelism from threads. Letters in shapes: t frames, h height, w width.
"""

import contextlib
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

import av
import numpy as np
from jaxtyping import UInt8

from vitx.data.container import MAX_SECONDS, VideoError, VideoSource, index_frames, open_container
from vitx.data.pyav_video import Indices, PyAVVideo
from vitx.data.torchcodec_video import TorchcodecVideo

__all__ = ["DECODERS", "Decoder", "VideoError", "VideoInfo", "VideoSource", "decode_frames", "open_video", "probe"]

Decoder = Literal["pyav", "torchcodec"]

DECODERS: Mapping[Decoder, type[PyAVVideo]] = MappingProxyType({"pyav": PyAVVideo, "torchcodec": TorchcodecVideo})


@contextlib.contextmanager
def open_video(source: VideoSource, *, decoder: Decoder = "pyav", seconds: float = MAX_SECONDS) -> Iterator[PyAVVideo]:
    """Opens a video and reads the times of its frames.

    Args:
        source: the file's bytes or its path.
        decoder: library that decodes.
        seconds: time after which reading is given up.

    Raises:
        VideoError: the video is unreadable. Errors inside the `with` block get the file's name, too.
    """
    with (
        open_container(source, seconds) as (container, stream),
        contextlib.closing(DECODERS[decoder](source, container, stream, seconds)) as video,
    ):
        yield video


def decode_frames(
    source: VideoSource, frames: Indices, *, size: tuple[int, int] | None = None, decoder: Decoder = "pyav"
) -> UInt8[np.ndarray, "t h w 3"]:
    """Decodes frames whose numbers are known beforehand.

    Args:
        source: the file's bytes or its path.
        frames: frame numbers from 0 in presentation order; any order, repeats allowed.
        size: (height, width) that the largest box at the centre of this shape is scaled to; None leaves frames as they
            are.
        decoder: library that decodes.

    Raises:
        VideoError: the video is unreadable, or a wanted frame of it is.
        IndexError: a frame number is negative or not below the number of frames.
    """
    with open_video(source, decoder=decoder) as video:
        return video.read(frames, size=size)[0]


@dataclass(frozen=True)
class VideoInfo:
    """Contents of a video's header.

    Attributes:
        codec: FFmpeg's name of the codec.
        num_frames: frames that decoding returns, counted.
        fps: average frames per second.
        height: pixels, before any rotation.
        width: pixels, before any rotation.
        duration: seconds.
    """

    codec: str
    num_frames: int
    fps: float
    height: int
    width: int
    duration: float


def probe(source: VideoSource) -> VideoInfo:
    """Reads a video's header, and its packets too where the header does not list the frames; decodes nothing.

    Raises:
        VideoError: the video is unreadable.
    """
    with open_container(source) as (container, stream):
        if stream.frames and len(stream.index_entries):
            num_frames = sum(not entry.is_discard for entry in stream.index_entries)
        else:
            num_frames = len(index_frames(container, stream, time.monotonic() + MAX_SECONDS).pts)
        rate = stream.average_rate or stream.guessed_rate
        if stream.duration:
            duration = float(stream.duration * stream.time_base)
        elif container.duration:
            duration = container.duration / av.time_base
        else:
            duration = float(num_frames / rate) if rate else 0.0
        fps = float(rate) if rate else num_frames / duration if duration else 0.0
        return VideoInfo(stream.codec_context.name, num_frames, fps, stream.height, stream.width, duration)
