"""Plans of clips: which frames of a video, and which boxes of them. Pure functions of times, sizes and draws.

Letters in shapes: n frames of a video, t frames of a clip, c clips.
"""

import math
from typing import Literal

import numpy as np
from jaxtyping import Float, Int

Box = Float[np.ndarray, "4"]
"""(top, left, height, width) of a part of a frame, in its pixels."""

Short = Literal["loop", "pad"]
"""How a video shorter than the clip fills it: it starts again from its first frame, or repeats its last frame."""


def sample_dense(
    num_frames: int, clip_frames: int, stride: int | float, start: float, short: Short = "loop"
) -> Int[np.ndarray, " t"]:
    """Returns the numbers of `clip_frames` frames, `stride` apart.

    Args:
        num_frames: frames of the video.
        clip_frames: frames of the clip.
        stride: distance between neighbours, in frames of the video; where it is no whole number, steps are rounded.
        start: position of the clip among those possible, in [0, 1]; 0.5 is the centre.
        short: how a video shorter than the clip fills it.
    """
    # A stride such as 1.1 reaches 10.999... where it should reach 11.
    steps = np.floor(stride * np.arange(clip_frames) + 1e-6).astype(int)
    # Valid first frames; `start` = 1 would index one past the last.
    num_starts = max(num_frames - int(steps[-1]), 1)
    indices = min(int(start * num_starts), num_starts - 1) + steps
    return indices % num_frames if short == "loop" else np.minimum(indices, num_frames - 1)


def sample_uniform(num_frames: int, clip_frames: int) -> Int[np.ndarray, " t"]:
    """Returns frame numbers evenly spread from the first frame to the last; a short video repeats some."""
    return np.linspace(0, num_frames - 1, clip_frames).round().astype(int)


def sample_segments(
    num_frames: int, clip_frames: int, positions: float | Float[np.ndarray, " t"]
) -> Int[np.ndarray, " t"]:
    """Returns one frame of each of `clip_frames` equal parts of the video (TSN, Wang et al. 2016, section 3.1).

    Args:
        num_frames: frames of the video.
        clip_frames: frames of the clip.
        positions: position of each frame inside its part, in [0, 1]; 0.5 is the middle.
    """
    indices = (np.arange(clip_frames) + positions) * num_frames / clip_frames
    return np.minimum(indices.astype(int), num_frames - 1)


def sample_at_rate(
    times: Float[np.ndarray, " n"], clip_frames: int, rate: float, start: float, short: Short = "loop"
) -> Int[np.ndarray, " t"]:
    """Returns the frames that are on the screen at `clip_frames` moments, 1 / `rate` seconds apart.

    Args:
        times: time at which each frame of the video appears, in seconds.
        clip_frames: frames of the clip.
        rate: frames per second of the clip, whatever the video's own; one frame may come twice.
        start: position of the clip among those possible, in [0, 1]; 0.5 is the centre.
        short: how a video shorter than the clip fills it.
    """
    gap = np.diff(times).mean() if len(times) > 1 else 1 / rate
    length = times[-1] - times[0] + gap  # the last frame stays as long as the others do
    moments = np.arange(clip_frames) / rate
    room = max(length - moments[-1] - min(gap, 1 / rate), 0.0)
    # A millionth of a gap later, so that rounding cannot select the previous frame.
    moments += start * room + gap * 1e-6
    wanted = times[0] + (moments % length if short == "loop" else moments)
    return np.searchsorted(times, wanted, side="right") - 1


def covering_starts(num_frames: int, clip_frames: int, stride: int | float, max_clips: int) -> Float[np.ndarray, " c"]:
    """Returns the starts of the smallest number of dense clips that cover a video.

    Args:
        num_frames: frames of the video.
        clip_frames: frames of a clip.
        stride: distance between neighbours, in frames of the video.
        max_clips: bound on the number of clips; a longer video gets so many, evenly spaced.

    Returns:
        Starts in [0, 1], as `sample_dense` takes them.
    """
    if num_frames == 1:  # a still has no frame rate, so its stride may not be a number
        return np.array([0.5])
    room = max(num_frames - 1 - (clip_frames - 1) * stride, 0)
    clips = min(1 + math.ceil(room / (clip_frames * stride) - 1e-6), max_clips)
    if clips == 1:
        return np.array([0.5])
    # Whole frames: the clips of a video lie on its frames, as those of one clip do.
    return np.linspace(0, room, clips).round() / room


def frames_between(times: Float[np.ndarray, " n"], begin: float, end: float) -> Int[np.ndarray, "_"]:
    """Returns the numbers of the frames shown from `begin` until before `end`, in seconds from the first frame.

    Where no frame begins in between, that is the frame on the screen at `begin`; the last frame has no known end, so
    nothing is shown after its beginning.
    """
    first, stop = np.searchsorted(times, [begin, end])
    if first == stop and 0 < first < len(times):
        first -= 1
    return np.arange(first, stop)


def crop_box(height: int, width: int, size: tuple[int, int], position: float, short_side: int | None = None) -> Box:
    """Returns a box of the shape of `size` inside a frame.

    Args:
        height: pixels of the frame.
        width: pixels of the frame.
        size: (height, width) that the box will be scaled to.
        position: place of the box along the side that it does not fill: 0 is the top or left end, 1 the other. A box
            that fills no side lies so along the longer side of the frame, and in the middle of the shorter one.
        short_side: length in pixels that the frame's shorter side is scaled to, of which the box is a part; None, and a
            length below that of the box, takes the largest box.
    """
    scale, rows, columns = max(size[0] / height, size[1] / width), position, position
    if short_side is not None and short_side / min(height, width) > scale:
        scale = short_side / min(height, width)
        rows, columns = (0.5, position) if height <= width else (position, 0.5)
    box_height, box_width = size[0] / scale, size[1] / scale
    return np.array([(height - box_height) * rows, (width - box_width) * columns, box_height, box_width])
