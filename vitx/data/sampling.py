"""Which frames of a video make a clip."""

import numpy as np
from jaxtyping import Float, Int


def dense(num_frames: int, clip_frames: int, stride: int, start: float) -> Int[np.ndarray, "clip_frames"]:
    """Returns the indices of `clip_frames` frames, `stride` apart, inside a video of `num_frames`.

    Args:
        num_frames: frames of the video.
        clip_frames: frames wanted.
        stride: distance between neighbours, in frames of the video.
        start: where the clip starts, as a share in [0, 1] of the places where it can; 0.5 is the centre.

    A video shorter than the clip is played again from its start.
    """
    room = max(num_frames - (clip_frames - 1) * stride, 1)
    first = min(int(start * room), room - 1)
    return (first + stride * np.arange(clip_frames)) % num_frames


def within(times: Float[np.ndarray, " frames"], begin: float, end: float) -> Int[np.ndarray, "_"]:
    """Returns the numbers of the frames shown from `begin` until before `end`, in seconds from the first frame.

    Where none begins in between, the one that is on the screen at `begin`, if the video lasts so long.
    """
    first, stop = np.searchsorted(times, [begin, end])
    if first == stop and 0 < first < len(times):
        first -= 1
    return np.arange(first, stop)
