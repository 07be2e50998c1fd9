"""Motion that the codec has measured: vectors that come with decoded frames, averaged over time.

Letters in shapes: h height, w width, rows and columns of cells of CELL x CELL pixels.
"""

import bisect
from collections.abc import Iterable, Iterator

import av
import numpy as np
from av.codec.context import Flags2
from av.sidedata.sidedata import Type
from av.video.frame import PictureType
from av.video.stream import VideoStream
from jaxtyping import Float, UInt8

from vitx.data.container import VideoError
from vitx.data.packet_decoding import Decoded
from vitx.data.side_data import side_data_of

CODECS = ("h264", "mpeg1video", "mpeg2video", "mpeg4")
"""Decoders of FFmpeg that export motion vectors. Those of H.265, VP9 and AV1 do not."""

CELL = 8
"""Side of a cell in stored pixels: half of a macroblock's."""

LEVELS = 8
"""Levels of the channel of motion for each pixel of length: it ends at 255 / 8 pixels from frame to frame."""

MAX_WAITING = 64
"""Frames without motion that wait for one that has some."""

Cells = Float[np.ndarray, "rows columns"]
_DOWN, _RIGHT = np.array([-1, -1, 1, 1])[:, None], np.array([-1, 1, -1, 1])[:, None]  # quarters of a block


def export_motion(stream: VideoStream) -> None:
    """Lets a stream's decoder export motion vectors; pixels stay the same. Call it before decoding.

    Raises:
        VideoError: the decoder exports none.
    """
    if stream.codec_context.name not in CODECS:
        raise _no_motion_error(f"the codec {stream.codec_context.name}")
    stream.codec_context.flags2 |= Flags2.export_mvs


def _no_motion_error(found: str) -> VideoError:
    # Short, since a batch carries 256 bytes of it (`vitx.data.pipeline.encode_error`).
    return VideoError(
        f"found {found}, without motion; data.motion needs {', '.join(CODECS)} with predicted frames: run "
        "`vitx data prepare`, or choose another model.reducer"
    )


class MotionRecorder:
    """Averages the motion of decoded frames up to each wanted one.

    All decoded frames since the previous wanted frame count, wanted or not, but no more than the median distance of two
    wanted frames: so the first frame, or one after a jump, averages as many as the others.
    """

    def __init__(self) -> None:
        self._wanted: list[int] = []
        self._span = 1
        self._sums: dict[int, tuple[Cells, int]] = {}  # by number of a wanted frame, until it is taken

    def plan(self, wanted: list[int]) -> None:
        """Begins a pass whose wanted frames have these numbers, in order."""
        self._wanted, self._sums = wanted, {}
        self._span = int(np.median(np.diff(wanted))) if len(wanted) > 1 else 1

    def record(self, number: int, frame: av.VideoFrame) -> None:
        """Adds the motion of a frame, given its number; a frame that is predicted from no other has none."""
        row = bisect.bisect_left(self._wanted, number)
        if row == len(self._wanted) or number <= self._wanted[row] - self._span:
            return
        if frame.pict_type == PictureType.I:
            return
        cells = measure_motion(frame)
        total, count = self._sums.get(self._wanted[row], (cells, 0))
        if not count or total.shape != cells.shape:  # a broadcast may change the size of its frames in the middle
            total, count = np.zeros_like(cells), 0
        self._sums[self._wanted[row]] = total + cells, count + 1

    def record_each(self, numbered: Iterable[tuple[int, Decoded]]) -> Iterator[tuple[int, Decoded]]:
        """Yields the (number, frame) pairs unchanged, and records the motion of each."""
        for number, decoded in numbered:
            self.record(number, decoded.frame)
            yield number, decoded

    def add_motion(self, wanted: list[int], frames: Iterable[av.VideoFrame]) -> Iterator[tuple[av.VideoFrame, Cells]]:
        """Yields the wanted frames with their mean motion; a frame without any, as a keyframe, takes the next one's.

        Raises:
            VideoError: no decoded frame has motion, or MAX_WAITING wanted frames in a row have none.
        """
        waiting = []
        for number, frame in zip(wanted, frames, strict=True):
            waiting.append(frame)
            if number in self._sums:
                total, count = self._sums.pop(number)
                yield from ((waiter, total / count) for waiter in waiting)
                waiting = []
            elif len(waiting) == MAX_WAITING:
                raise _no_motion_error("keyframes only")
        if len(waiting) == len(wanted) > 1:
            raise _no_motion_error("keyframes only")
        yield from ((waiter, np.zeros((1, 1))) for waiter in waiting)


def measure_motion(frame: av.VideoFrame) -> Cells:
    """Returns the mean length of the motion vectors in each cell, in stored pixels; 0 where there is none."""
    rows, columns = 2 * -(-frame.height // 16), 2 * -(-frame.width // 16)  # of whole macroblocks
    found = side_data_of(frame).get(Type.MOTION_VECTORS)
    if found is None:
        return np.zeros((rows, columns))
    vectors = found.to_ndarray()
    x, y, width, height = (vectors[name].astype(np.int64) for name in ("dst_x", "dst_y", "w", "h"))
    length = np.hypot(vectors["motion_x"], vectors["motion_y"]) / vectors["motion_scale"]
    # A block of 4 to 16 pixels a side, given by its centre, is divided in four quarters, each inside one cell.
    row, column = ((y + _DOWN * height // 4) // CELL), ((x + _RIGHT * width // 4) // CELL)
    places, area = np.clip(row * columns + column, 0, rows * columns - 1).ravel(), width * height
    # Blocks of B-frames have two vectors.
    total = np.bincount(places, np.tile(area, 4), rows * columns)
    weighted = np.bincount(places, np.tile(area * length, 4), rows * columns)
    return (weighted / np.maximum(total, 1)).reshape(rows, columns)


def draw_motion(cells: Cells, stored: tuple[int, int], scaled: tuple[int, int]) -> UInt8[np.ndarray, "h w"]:
    """Returns the motion of every pixel of a scaled frame, in LEVELS for each pixel of that frame.

    Args:
        cells: motion of the stored frame.
        stored: (height, width) of the stored frame.
        scaled: (height, width) that it is scaled to.
    """
    factors = [new / old for new, old in zip(scaled, stored, strict=True)]
    rows, columns = (
        np.minimum((np.arange(new) + 0.5) / factor // CELL, count - 1).astype(int)
        for new, factor, count in zip(scaled, factors, cells.shape, strict=True)
    )
    levels = np.minimum(np.round(cells * (LEVELS * np.prod(factors) ** 0.5)), 255).astype(np.uint8)
    return levels.take(rows, axis=0).take(columns, axis=1)
