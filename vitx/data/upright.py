"""Decoded frames as a player shows them: upright, of square pixels, boxes of them scaled to one size."""

import struct
from collections.abc import Iterator
from fractions import Fraction
from typing import NamedTuple

import av
import numpy as np
from av.sidedata.sidedata import Type
from av.video.reformatter import Interpolation, VideoReformatter
from av.video.stream import VideoStream
from jaxtyping import Float, UInt8

from vitx.data.container import MAX_PIXELS, VideoError
from vitx.data.motion import Cells, draw_motion
from vitx.data.side_data import side_data_of

SQUARE = Fraction(1)
"""Width of a square pixel in units of its height."""


class Orientation(NamedTuple):
    """How stored pixels become upright: first rows and columns change places, then each axis may be reversed."""

    is_transposed: bool = False
    is_upside_down: bool = False
    is_mirrored: bool = False

    @classmethod
    def of(cls, frame: av.VideoFrame) -> "Orientation":
        """Returns the one of the eight orientations that is nearest to what a frame's display matrix says."""
        # Few frames have side data, and an empty container is counted faster than it is searched.
        side_data = side_data_of(frame)
        matrix = side_data.get(Type.DISPLAYMATRIX) if len(side_data) else None
        if matrix is None or matrix.buffer_size < 36:
            return _AS_STORED
        # A pixel (x, y) is shown at (a x + c y, b x + d y); the third column and row hold no turn.
        a, b, _, c, d = struct.unpack_from("=5i", matrix)
        if a * d == b * c:  # no turn keeps the area of nothing
            return _AS_STORED
        if abs(b) + abs(c) > abs(a) + abs(d):
            return cls(True, b < 0, c < 0)
        return cls(False, d < 0, a < 0)

    def __call__(self, pixels: UInt8[np.ndarray, "h w c"]) -> UInt8[np.ndarray, "..."]:
        """Returns a view of pixels, upright."""
        pixels = pixels.swapaxes(0, 1) if self.is_transposed else pixels
        return pixels[:: -1 if self.is_upside_down else 1, :: -1 if self.is_mirrored else 1]


_AS_STORED = Orientation()


def pixel_aspect(stream: VideoStream) -> Fraction:
    """Returns the width of a stream's pixels in units of their height, 1 where that changes no size.

    Raises:
        VideoError: frames of square pixels would be too large.
    """
    stored = stream.sample_aspect_ratio or SQUARE
    aspect = Fraction(stored.numerator, stored.denominator)  # PyAV 19 (2026-11) has a type of its own
    if stream.width * stream.height * aspect > MAX_PIXELS:
        raise VideoError(
            f"found frames of {stream.height} x {stream.width} whose pixels are {aspect} as wide as high, expected at "
            f"most {MAX_PIXELS:,} square ones"
        )
    # Encoders write odd aspects, such as 640:639, where they rounded the width to whole pixels.
    return aspect if abs(stream.width * aspect - stream.width) >= 1 else SQUARE


def upright_size(frame: av.VideoFrame, aspect: Fraction = SQUARE) -> tuple[int, int]:
    """Returns the (height, width) of a decoded frame after it is turned upright and its pixels are square.

    Args:
        frame: the frame.
        aspect: width of a stored pixel in units of its height.
    """
    return _size_of(frame, aspect, Orientation.of(frame))


def _size_of(frame: av.VideoFrame, aspect: Fraction, orientation: Orientation) -> tuple[int, int]:
    width = frame.width if aspect == 1 else max(round(frame.width * aspect), 1)
    return (width, frame.height) if orientation.is_transposed else (frame.height, width)


def fit_boxes(
    boxes: Float[np.ndarray, "boxes 4"], old: tuple[int, int], new: tuple[int, int]
) -> Float[np.ndarray, "boxes 4"]:
    """Returns boxes that were planned for frames of one size, for a frame of another.

    A box keeps its shape, its place among the possible ones, and its fraction of the largest box of that shape.

    Args:
        boxes: (top, left, height, width) of each.
        old: (height, width) of the frames that they were planned for.
        new: (height, width) of the frame.
    """
    sides, old_sides, new_sides = boxes[:, 2:], np.asarray(old), np.asarray(new)
    scale = np.min(new_sides / sides, axis=1) / np.min(old_sides / sides, axis=1)
    new_boxes = sides * scale[:, None]
    room = old_sides - sides
    # A box that takes a whole side is in its middle, too.
    places = np.divide(boxes[:, :2], room, out=np.full_like(room, 0.5), where=room > 0)
    return np.concatenate([places * (new_sides - new_boxes), new_boxes], axis=1)


class FrameScaler:
    """Turns boxes of decoded frames into upright pixels; keeps FFmpeg's scaling tables from frame to frame.

    Attributes:
        aspect: width of a stored pixel in units of its height.
    """

    def __init__(self, aspect: Fraction = SQUARE) -> None:
        self.aspect = aspect
        self.scale, self.convert = VideoReformatter(), VideoReformatter()

    def __call__(
        self,
        frame: av.VideoFrame,
        size: tuple[int, int],
        boxes: Float[np.ndarray, "boxes 4"],
        frame_size: tuple[int, int],
        motion: Cells | None = None,
    ) -> Iterator[UInt8[np.ndarray, "h w c"]]:
        """Yields boxes of a frame, upright.

        Args:
            frame: the frame.
            size: (height, width) that each box is scaled to.
            boxes: (top, left, height, width) of each, all of one height and width.
            frame_size: (height, width) of the upright frames that the boxes were planned for. A broadcast or a call may
                change the size of its frames in the middle.
            motion: motion of the frame, as stored; it becomes a fourth channel, behind RGB.
        """
        orient = Orientation.of(frame)
        if (old := _size_of(frame, self.aspect, orient)) != frame_size:
            boxes = fit_boxes(boxes, frame_size, old)
        box_size = boxes[0, 2:].tolist()
        scales = tuple(new / side for new, side in zip(size, box_size, strict=True))
        if old[0] * old[1] * scales[0] * scales[1] > MAX_PIXELS:
            raise VideoError(f"found frames of {old[0]} x {old[1]}, too long and narrow to cover {size[0]} x {size[1]}")
        # The whole frame is scaled once and every box is cut out of it: boxes of one frame overlap.
        height, width = (max(round(o * s), new) for o, s, new in zip(old, scales, size, strict=True))
        stored_size = (frame.height, frame.width)
        stored = (height, width) if orient.is_transposed else (width, height)
        # One thread, because PyAV's default takes all cores for every frame.
        if frame.format.name == "yuv420p":  # half as many numbers to scale as in RGB
            frame = self.scale.reformat(frame, *stored, interpolation=Interpolation.BILINEAR, threads=1)
        kind = "rgb24" if motion is None else "rgba"  # FFmpeg leaves room for a fourth channel faster than NumPy
        frame = self.convert.reformat(frame, *stored, format=kind, interpolation=Interpolation.BILINEAR, threads=1)
        whole = frame.to_ndarray()
        if motion is not None:
            whole[..., 3] = draw_motion(motion, stored_size, whole.shape[:2])
        whole = orient(whole)
        for box in boxes.tolist():
            top, left = (
                min(max(round(place * scale), 0), side - new)
                for place, scale, side, new in zip(box[:2], scales, (height, width), size, strict=True)
            )
            yield whole[top : top + size[0], left : left + size[1]]
