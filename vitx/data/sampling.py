"""Which frames of a video, and which part of them, make a clip."""

import math
from typing import Literal

import numpy as np
from jaxtyping import Float, Int

Box = tuple[float, float, float, float]
"""(top, left, height, width) of a part of a frame, in its pixels."""

Short = Literal["loop", "pad"]
"""A video shorter than the clip is played again from its start, or stands still at its last frame."""


def dense(
    num_frames: int, clip_frames: int, stride: int | float, start: float, short: Short = "loop"
) -> Int[np.ndarray, "clip_frames"]:
    """Returns the indices of `clip_frames` frames, `stride` apart, inside a video of `num_frames`.

    Args:
        num_frames: frames of the video.
        clip_frames: frames wanted.
        stride: distance between neighbours, in frames of the video; where it is no whole number, steps are rounded.
        start: where the clip starts, as a share in [0, 1] of the places where it can; 0.5 is the centre.
        short: what becomes of a video shorter than the clip.
    """
    steps = np.floor(stride * np.arange(clip_frames) + 1e-6).astype(int)
    room = max(num_frames - int(steps[-1]), 1)
    indices = min(int(start * room), room - 1) + steps
    return indices % num_frames if short == "loop" else np.minimum(indices, num_frames - 1)


def uniform(num_frames: int, clip_frames: int) -> Int[np.ndarray, "clip_frames"]:
    """Returns `clip_frames` indices evenly spread from the first frame to the last; some come twice if need be."""
    return np.linspace(0, num_frames - 1, clip_frames).round().astype(int)


def covering(num_frames: int, clip_frames: int, stride: int | float, most: int) -> Float[np.ndarray, " clips"]:
    """Returns the starts of as few dense clips as leave no frames out but those within a stride.

    Args:
        num_frames: frames of the video.
        clip_frames: frames of a clip.
        stride: distance between neighbours, in frames of the video.
        most: clips; a longer video gets as many, evenly spaced.

    Returns:
        Starts as shares in [0, 1] of the places where a clip can start, as `dense` takes them.
    """
    if num_frames == 1:  # of no rate, so that its stride may be no number
        return np.array([0.5])
    room = max(num_frames - 1 - (clip_frames - 1) * stride, 0)
    clips = min(1 + math.ceil(room / (clip_frames * stride) - 1e-6), most)
    if clips == 1:
        return np.array([0.5])
    return np.linspace(0, room, clips).round() / room


def at_rate(
    times: Float[np.ndarray, " frames"], clip_frames: int, rate: float, start: float, short: Short = "loop"
) -> Int[np.ndarray, "clip_frames"]:
    """Returns the frames that are on the screen at `clip_frames` moments, 1 / `rate` seconds apart.

    Args:
        times: when each frame of the video appears, in seconds.
        clip_frames: frames wanted.
        rate: of the clip, in frames per second, whatever the video's own; one frame may come twice.
        start: where the clip starts, as a share in [0, 1] of the places where it can; 0.5 is the centre.
        short: what becomes of a video shorter than the clip.
    """
    gap = np.diff(times).mean() if len(times) > 1 else 1 / rate
    length = times[-1] - times[0] + gap  # the last frame stays as long as the others do
    moments = np.arange(clip_frames) / rate
    room = max(length - moments[-1] - min(gap, 1 / rate), 0.0)
    moments += start * room + gap * 1e-6
    wanted = times[0] + (moments % length if short == "loop" else moments)
    return np.searchsorted(times, wanted, side="right") - 1


def segments(
    num_frames: int, clip_frames: int, places: float | Float[np.ndarray, "clip_frames"]
) -> Int[np.ndarray, "clip_frames"]:
    """Returns one frame of each of `clip_frames` equal parts of the video (TSN, Wang et al. 2016, section 3.1).

    Args:
        num_frames: frames of the video.
        clip_frames: frames wanted.
        places: where in its part each is, as shares in [0, 1]; 0.5 is the middle.
    """
    spots = (np.arange(clip_frames) + places) * num_frames / clip_frames
    return np.minimum(spots.astype(int), num_frames - 1)


def within(times: Float[np.ndarray, " frames"], begin: float, end: float) -> Int[np.ndarray, "_"]:
    """Returns the numbers of the frames shown from `begin` until before `end`, in seconds from the first frame.

    Where none begins in between, the one that is on the screen at `begin`, if the video lasts so long.
    """
    first, stop = np.searchsorted(times, [begin, end])
    if first == stop and 0 < first < len(times):
        first -= 1
    return np.arange(first, stop)


def slid_box(height: int, width: int, size: tuple[int, int], place: float) -> Box:
    """Returns the largest (top, left, height, width) of the shape of `size` inside a frame.

    Args:
        height: pixels of the frame.
        width: likewise.
        size: (height, width) that the box will be scaled to.
        place: where the box is along the side that it does not fill: 0 is the top or left end, 1 the other.
    """
    scale = max(size[0] / height, size[1] / width)
    tall, wide = size[0] / scale, size[1] / scale
    return (height - tall) * place, (width - wide) * place, tall, wide
