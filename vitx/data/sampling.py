"""Which frames of a video make a clip, and how a frame is made to fit."""

import av
import numpy as np
from av.video.reformatter import Interpolation, VideoReformatter
from jaxtyping import Int, UInt8


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


def centre_fit(
    frames: UInt8[np.ndarray, "frames _ _ 3"], size: tuple[int, int]
) -> UInt8[np.ndarray, "frames height width 3"]:
    """Scales frames (bilinear) until they just cover `size` = (height, width), and crops the centre."""
    height, width = size
    old_height, old_width = frames.shape[1:3]
    scale = max(height / old_height, width / old_width)
    new_height, new_width = max(round(old_height * scale), height), max(round(old_width * scale), width)
    if (new_height, new_width) != (old_height, old_width):
        reformatter = VideoReformatter()
        frames = np.stack(
            [
                reformatter.reformat(
                    av.VideoFrame.from_ndarray(frame, "rgb24"),
                    new_width,
                    new_height,
                    interpolation=Interpolation.BILINEAR,
                ).to_ndarray()
                for frame in frames
            ]
        )
    top, left = (new_height - height) // 2, (new_width - width) // 2
    return frames[:, top : top + height, left : left + width]
