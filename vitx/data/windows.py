"""Sliding windows over a video, and the clips of each window, read in one pass of the decoder.

Letters in shapes: n frames of a video, s frames of a window, t frames of a clip, v views, h height, w width,
c channels.
"""

import contextlib
import dataclasses
import math
import re
from collections.abc import Iterator, Sequence
from typing import Literal, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Int, UInt8

from vitx.data.container import ReadOptions, VideoError, VideoSource
from vitx.data.pipeline import Data
from vitx.data.pyav_video import PyAVVideo
from vitx.data.sampling import frames_between
from vitx.errors import UserError

Unit = Literal["seconds", "frames"]
Duration = str | int | float
"""Seconds, "4s" or 4, or frames, "32f"."""

Times = Float[np.ndarray, " n"]  # the time of every frame of a video in seconds
MAX_SECONDS = 24 * 3600.0
"""Time after which a long video is given up: its windows are read while the model computes, so both count."""

ROUNDING = 1e-6  # seconds; frames are at least a hundred times further apart
_DURATION = re.compile(r"(\d+(?:\.\d+)?|\.\d+)\s*(s|f|)")


@dataclasses.dataclass(frozen=True)
class Window:
    """A part of a video.

    Attributes:
        start: seconds from the first frame.
        end: seconds from the first frame.
        frames: numbers of the frames in it.
    """

    start: float
    end: float
    frames: Int[np.ndarray, " s"]


@dataclasses.dataclass(frozen=True)
class SlidingWindows:
    """Windows of one length at equal distances, which cover a video from its first frame to its last.

    Attributes:
        length: length of a window.
        stride: distance from the start of a window to that of the next.
        unit: unit of both.
    """

    length: float
    stride: float
    unit: Unit = "seconds"

    @classmethod
    def parse(cls, length: Duration, stride: Duration | None = None) -> "SlidingWindows":
        """Returns the windows that words describe: "4s" or "4" is in seconds, "32f" in frames.

        Args:
            length: length of a window.
            stride: distance from one window to the next; None is half a window.

        Raises:
            UserError: a word is no duration above 0, the units differ, or the stride exceeds the length and would leave
                parts of the video out.
        """
        size, unit = _parse_duration(length, "length")
        step, step_unit = (size / 2, unit) if stride is None else _parse_duration(stride, "stride")
        if unit == "frames" and stride is None:
            step = max(size // 2, 1)
        if step_unit != unit:
            raise UserError(f"windows have a length of {length} and a stride of {stride}; expected both in one unit")
        if step > size:
            raise UserError(
                f"windows have a length of {length} and a stride of {stride}; expected a stride of at most the length, "
                "which leaves no part of a video out"
            )
        return cls(size, step, unit)

    def __str__(self) -> str:
        return f"{self.length:g}{self.unit[0]}, every {self.stride:g}{self.unit[0]}"

    def plan(self, times: Times) -> list[Window]:
        """Returns the windows of a video; the last one ends with it, and a video shorter than a window is one window.

        Args:
            times: time at which each frame appears, in seconds from the first.
        """
        end = video_seconds(times)
        if self.unit == "frames":
            length, count = int(self.length), len(times)
            ends = np.append(times, end)
            firsts = _starts(count, length, int(self.stride)).astype(int)
            return [
                Window(float(ends[first]), float(ends[min(first + length, count)]), np.arange(first, count)[:length])
                for first in firsts
            ]
        bounds = [(start, min(start + self.length, end)) for start in _starts(end, self.length, self.stride).tolist()]
        # Multiples of a stride are rounded: a frame that appears at the start of a window belongs to it.
        return [Window(start, stop, frames_between(times, start - ROUNDING, stop - ROUNDING)) for start, stop in bounds]


def whole_video(times: Times) -> list[Window]:
    """Returns one window that is the whole video."""
    return [Window(0.0, video_seconds(times), np.arange(len(times)))]


def video_seconds(times: Times) -> float:
    """Returns the duration of a video in seconds: its last frame stays as long as the others do on average."""
    gap = float(np.diff(times).mean()) if len(times) > 1 else 0.04  # a still has no rate; 25 frames a second is usual
    return float(times[-1]) + gap


@runtime_checkable
class ClipReader(Protocol):
    """How the clips of a model are read: which frames of a window, and which pixels of a frame.

    Attributes:
        num_frames: frames of a clip.
        reading: what is read of a file.
    """

    num_frames: int
    reading: ReadOptions

    def open(self, source: VideoSource, seconds: float) -> contextlib.AbstractContextManager[PyAVVideo]:
        """Opens a video."""

    def plan(self, times: Times, segment: Int[np.ndarray, " s"]) -> Int[np.ndarray, " clips_t"]:
        """Returns the frame numbers of all clips of a segment, one clip after the other."""

    def read_each(self, video: PyAVVideo, frames: Sequence[int]) -> Iterator[UInt8[np.ndarray, "crops h w c"]]:
        """Yields the crops of each of these frames, whose numbers are in order."""

    def order_views(self, crops: UInt8[np.ndarray, "crops clips_t h w c"]) -> UInt8[np.ndarray, "v t h w c"]:
        """Returns the crops of all clips' frames as views."""


@dataclasses.dataclass(frozen=True)
class EvaluationReader:
    """Reads clips as the evaluation of a run does; a `ClipReader`.

    Attributes:
        data: settings of decoding and views.
    """

    data: Data

    @property
    def num_frames(self) -> int:
        """Frames of a clip."""
        return self.data.num_frames

    @property
    def reading(self) -> ReadOptions:
        """What is read of a file."""
        return self.data.reading

    def open(self, source: VideoSource, seconds: float) -> contextlib.AbstractContextManager[PyAVVideo]:
        """Opens a video with the run's decoder."""
        return self.data.open_video(source, seconds)

    def plan(self, times: Times, segment: Int[np.ndarray, " s"]) -> Int[np.ndarray, " clips_t"]:
        """See `Data.plan_views`."""
        return self.data.plan_views(times, segment)

    def read_each(self, video: PyAVVideo, frames: Sequence[int]) -> Iterator[UInt8[np.ndarray, "crops h w c"]]:
        """Yields the crops of each of these frames."""
        return video.read_each(frames, self.data.eval_boxes(video.upright_size(frames)), self.data.crop_size)

    def order_views(self, crops: UInt8[np.ndarray, "crops clips_t h w c"]) -> UInt8[np.ndarray, "v t h w c"]:
        """See `Data.order_views`."""
        return self.data.order_views(crops)


def read_windows(
    reader: ClipReader, video: PyAVVideo, windows: Sequence[Window]
) -> Iterator[UInt8[np.ndarray, "v t h w c"]]:
    """Yields the views of each window; decodes the video once, and holds the frames of one window.

    Args:
        reader: how clips are read.
        video: an open video.
        windows: windows of it, in order.

    Raises:
        VideoError: a window has fewer frames than a clip, or a frame cannot be decoded.
    """
    for window in windows if len(windows) > 1 else ():  # one window is the video itself, which may be short
        if len(window.frames) < reader.num_frames:
            raise VideoError(
                f"found a window of {len(window.frames)} frames at {window.start:.2f} s, expected at least "
                f"{reader.num_frames}, which the model needs; choose longer windows"
            )
    plans = [reader.plan(video.times, window.frames) for window in windows]
    wanted = np.unique(np.concatenate(plans)).tolist()
    # Frames are dropped when neither this window nor a later one shows them.
    needed_from = np.minimum.accumulate([plan.min() for plan in reversed(plans)])[::-1]
    decoded = zip(wanted, reader.read_each(video, wanted), strict=True)
    held: dict[int, np.ndarray] = {}
    for plan, first in zip(plans, needed_from, strict=True):
        held = {index: crops for index, crops in held.items() if index >= first}
        last = int(plan.max())
        while last not in held:
            index, crops = next(decoded)
            held[index] = crops
        yield reader.order_views(np.stack([held[index] for index in plan.tolist()], axis=1))


def _starts(
    total: int | float, length: int | float, stride: int | float
) -> Float[np.ndarray, " _"] | Int[np.ndarray, " _"]:
    """Returns the starts of windows that cover [0, total]; the last one is moved back to end with it."""
    room = total - length
    if room <= 0:
        return np.zeros(1)
    # Frames do not appear at exact multiples of a second: what is left of a window must be more than rounding.
    starts = stride * np.arange(math.floor(room / stride + 1e-6) + 1)
    return starts if room - starts[-1] < 1e-3 * min(stride, 1.0) else np.append(starts, room)


def _parse_duration(word: Duration, name: str) -> tuple[float, Unit]:
    found = _DURATION.fullmatch(str(word).strip())
    value = float(found[1]) if found else 0.0
    unit: Unit = "frames" if found and found[2] == "f" else "seconds"
    if not value > 0 or (unit == "frames" and value != int(value)):
        raise UserError(
            f"found a {name} of windows of {word!r}; expected seconds such as 4s, or whole frames such as 32f"
        )
    return value, unit
