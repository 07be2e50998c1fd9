"""An open video that PyAV decodes: the frames that a plan asks for, and as few others as the codec allows.

Letters in shapes: t frames, h height, w width.
"""

import bisect
import itertools
import operator
import time
from collections.abc import Iterator, Sequence, Set
from typing import NamedTuple

import av
import numpy as np
from av.container import InputContainer
from av.video.stream import VideoStream
from jaxtyping import Float, Int, UInt8

from vitx.data.container import (
    DEFAULT_OPTIONS,
    ReadOptions,
    VideoError,
    VideoSource,
    demux_packets,
    open_container,
)
from vitx.data.frame_index import FrameIndex, Keyframe, index_packets, order_times
from vitx.data.motion import MotionRecorder, export_motion
from vitx.data.packet_decoding import Decoded, decode_packets
from vitx.data.sampling import crop_box
from vitx.data.upright import SQUARE, FrameScaler, pixel_aspect, upright_size

MAX_REORDERED = 16
"""Frames that a decoder may return before one that is shown earlier: the most that H.264 and H.265 keep."""

MAX_KEPT = 2**25
"""Bytes of decoded frames that are kept where a video had to be decoded to count them: 300 of 320 x 240 pixels."""

PICTURES = ("apng", "gif", "jpeg_pipe", "png_pipe")
"""FFmpeg's names of the formats whose files hold a picture, or an animation."""

PICTURE_BRANDS = ("avif", "heic", "heix", "mif1")
"""Brands that a picture has whose format is otherwise that of a film (mov)."""

Indices = Sequence[int] | Int[np.ndarray, " t"]
"""Frame numbers from 0 in presentation order: any order, repeats allowed."""


class _StartedPass(NamedTuple):
    """A pass of the decoder that has begun.

    Attributes:
        wanted: frame numbers, in order.
        size: (height, width) of the first frame, upright.
        frames: the wanted frames.
    """

    wanted: list[int]
    size: tuple[int, int]
    frames: Iterator[av.VideoFrame]


class _SeekingFailedError(Exception):
    """Frames after a jump are not certain to be those of a plain pass."""


class PyAVVideo:
    """An open video; `vitx.data.decoding.open_video` opens and closes it.

    First plan, then read: `times` has the time of every frame, `upright_size` returns the size of the chosen ones, and
    `read` decodes them once, in one pass. Frame i is the i-th that one plain pass of the decoder returns. Where the
    packets say which that is, decoding begins at the last keyframe before a wanted frame; where they leave doubt, the
    whole video is decoded to count its frames, and frames are found by counting. Beside the result it holds one decoded
    frame, or the MAX_KEPT bytes of those that were counted.

    Attributes:
        times: time of each frame in seconds from the first.
        aspect: width of a stored pixel in units of its height, as frames are scaled.
    """

    def __init__(
        self,
        source: VideoSource,
        container: InputContainer,
        stream: VideoStream,
        seconds: float,
        options: ReadOptions = DEFAULT_OPTIONS,
        motion: bool = False,
    ):
        """Finds out which frames the video has.

        Args:
            source: the file's bytes or its path.
            container: the file, opened by `open_container`.
            stream: the video stream.
            seconds: time from now on after which reading is given up. Checked between packets: the decoding of one
                packet, whose pixels are bounded, is not interrupted.
            options: options of reading.
            motion: whether pixels have a fourth channel, motion (`vitx.data.motion`).

        Raises:
            VideoError: it has no frame that can be read, is a still picture that is named as a video, or has no motion.
        """
        self.source, self.container, self.stream, self.options = source, container, stream, options
        # A damaged file can name packets for hours: one deadline holds for finding and for decoding the frames.
        self.deadline = time.monotonic() + seconds
        self.aspect = pixel_aspect(stream) if options.square_pixels else SQUARE
        self._kept: list[Decoded] = []
        self._motion = MotionRecorder() if motion else None
        if motion:
            export_motion(stream)
        self.index: FrameIndex = index_packets(container, stream, self.deadline) or self._count_frames()
        self.times: Float[np.ndarray, " t"] = self.index.seconds(stream)
        if len(self.times) == 1:
            brand = container.metadata.get("major_brand")
            name = container.format.name if container.format.name in PICTURES else brand
            if name in PICTURES + PICTURE_BRANDS:
                raise VideoError(f"it is a still picture ({name}); expected a video")
        self._started: _StartedPass | None = None

    def upright_size(self, frames: Indices) -> tuple[int, int]:
        """Returns the (height, width) of the first of these frames, turned upright where the file says how it was held.

        Only a decoded frame has the orientation. A `read` of the same frames continues with that frame, so nothing is
        decoded twice.

        Raises:
            VideoError: the frame cannot be decoded.
            IndexError: a frame number is negative or not below the number of frames.
        """
        return self._start(self._check_frames(frames)).size

    def read(
        self,
        frames: Indices,
        boxes: Float[np.ndarray, "boxes 4"] | None = None,
        size: tuple[int, int] | None = None,
    ) -> UInt8[np.ndarray, "boxes t h w c"]:
        """Decodes boxes of frames, turned upright.

        Args:
            frames: frame numbers.
            boxes: (top, left, height, width) of each, in pixels of an upright frame, all of one height and width. None
                is one box: the largest at the centre that has the shape of `size`.
            size: (height, width) in pixels that each box is scaled to (bilinear); None leaves whole frames as they are.

        Returns:
            RGB, 0 to 255, and motion where the video was opened with it.

        Raises:
            VideoError: a frame cannot be decoded.
            IndexError: a frame number is negative or not below the number of frames.
        """
        wanted = self._check_frames(frames)
        boxes, size, scaled = self._scale(wanted, boxes, size)
        crops = np.empty((len(boxes), len(wanted), *size, 3 if self._motion is None else 4), np.uint8)
        for row, parts in enumerate(scaled):
            for crop, pixels in zip(crops, parts, strict=True):
                crop[row] = pixels
        # Frames are decoded once and in order; repeats and other orders are taken from the result.
        rows = [bisect.bisect_left(wanted, index) for index in frames]
        return crops if rows == list(range(len(wanted))) else crops[:, rows]

    def read_each(
        self,
        frames: Indices,
        boxes: Float[np.ndarray, "boxes 4"] | None = None,
        size: tuple[int, int] | None = None,
    ) -> Iterator[UInt8[np.ndarray, "boxes h w c"]]:
        """Yields what `read` returns frame by frame, each once and in order, and holds one of them."""
        *_, scaled = self._scale(self._check_frames(frames), boxes, size)
        for parts in scaled:
            yield np.stack(list(parts))

    def _scale(
        self, wanted: list[int], boxes: Float[np.ndarray, "boxes 4"] | None, size: tuple[int, int] | None
    ) -> tuple[Float[np.ndarray, "boxes 4"], tuple[int, int], Iterator[Iterator[np.ndarray]]]:
        """Returns (boxes, their size in pixels, an iterator over wanted frames of the pixels in every box)."""
        _, frame_size, decoded = self._start(wanted)
        self._started = None
        size = size or frame_size
        boxes = crop_box(*frame_size, size, 0.5)[None] if boxes is None else boxes
        scaler = FrameScaler(self.aspect)
        motion = self._motion
        frames = ((frame, None) for frame in decoded) if motion is None else motion.add_motion(wanted, decoded)
        return boxes, size, (scaler(frame, size, boxes, frame_size, cells) for frame, cells in frames)

    def close(self) -> None:
        """Ends decoding that was started and not read."""
        self._started, self._kept = None, []

    def _start(self, wanted: list[int]) -> "_StartedPass":
        """Decodes the first of the wanted frames, or returns the pass that has already begun with them."""
        if not wanted:
            return _StartedPass(wanted, (self.stream.height, self.stream.width), iter(()))
        if self._started is None or self._started.wanted != wanted:
            if self._motion is not None:
                self._motion.plan(wanted)
            decoded = self.decode(wanted)
            first = next(decoded)
            self._started = _StartedPass(wanted, upright_size(first, self.aspect), itertools.chain([first], decoded))
        return self._started

    def decode(self, wanted: list[int]) -> Iterator[av.VideoFrame]:
        """Yields frames; their numbers are in order, each once.

        Raises:
            VideoError: a frame is missing, or is damaged and the options do not accept that.
        """
        if not self.index.keyframes:
            yield from self._decode_from_start(wanted)
            return
        count = 0
        try:
            for frame in self._decode_by_seeking(wanted):
                yield frame
                count += 1
        except _SeekingFailedError:
            yield from self._decode_from_start(wanted[count:])

    def _decode_by_seeking(self, wanted: list[int]) -> Iterator[av.VideoFrame]:
        """Yields frames, found by their times behind keyframes.

        Decodes frames that no other refers to only where they are wanted, skips to the last keyframe before a wanted
        frame where that is ahead, and stops after the last wanted frame.
        """
        pts, position, frames = self.index.pts, -1, iter(())
        needed: set[int] = {pts[index] for index in wanted}
        held: dict[int, av.VideoFrame] = {}
        for row, index in enumerate(wanted):
            keyframes = self.index.keyframes_until(index)
            # The first wanted frame always needs a seek, because reading the times has moved to the end of the file.
            # Another seek pays only beyond the packets that a decoder takes in again before it returns a frame.
            if not row or keyframes[-1].index - position > 1 + 2 * self.stream.codec_context.reorder_depth:
                frames = self._decode_from(keyframes, needed)
            while pts[index] not in held:
                frame = next(frames, None)
                if frame is None or len(held) > MAX_REORDERED:
                    raise _SeekingFailedError
                held[frame.pts] = frame  # where frames are left out, H.264's decoder may return others out of order
            yield held.pop(pts[index])
            position = index

    def _decode_from(self, keyframes: Sequence[Keyframe], needed: Set[int]) -> Iterator[av.VideoFrame]:
        """Decodes from the last of these keyframes on, without frames that are not needed and no other refers to."""
        first, packets = self._seek(keyframes)
        observe = None if self._motion is None else self._record_motion
        needed, decoder = needed | {first.pts}, self.stream.codec_context
        decoded = decode_packets(itertools.chain([first], packets), decoder, needed, observe)
        is_verified = False
        for frame, problem in decoded:
            if frame.pts < first.pts:
                continue  # it refers to frames before the jump
            # With intra refresh a frame is marked as a keyframe that is none: what is returned first is a frame that
            # has been recovered, maybe roughly. What seems damaged may only lack the frames before the jump.
            if problem or not (is_verified or frame.pts == first.pts):
                raise _SeekingFailedError
            is_verified = True
            yield frame

    def _record_motion(self, frame: av.VideoFrame) -> None:
        """Records the motion of a decoded frame, found by its time."""
        if frame.pts is not None:
            self._motion.record(bisect.bisect_left(self.index.pts, frame.pts), frame)

    def _seek(self, keyframes: Sequence[Keyframe]) -> tuple[av.Packet, Iterator[av.Packet]]:
        """Jumps to the last of these keyframes, or one before it; returns its packet, and those that follow."""
        # By presentation time mp4 finds the keyframe; others land behind it, or (MPEG-PS) lose the times after a jump:
        # then by decoding time, or from the start.
        known = {keyframe.pts for keyframe in keyframes}
        for target in (keyframes[-1].pts, keyframes[-1].dts, min(0, self.stream.start_time or 0)):
            try:
                self.container.seek(target, stream=self.stream)
            except av.FFmpegError:  # a container without an index, in the middle of which nothing can be found
                continue
            packets = demux_packets(self.container, self.stream, self.deadline)
            first = next((packet for packet in packets if packet.is_keyframe), None)
            if first is not None and first.pts in known:
                return first, packets
        raise _SeekingFailedError

    def _decode_from_start(self, wanted: Sequence[int]) -> Iterator[av.VideoFrame]:
        """Yields frames of one plain pass of the decoder."""
        numbered = self._number_frames()
        if self._motion is not None:
            numbered = self._motion.record_each(numbered)
        for index in wanted:
            where = f"frame {index} of {len(self.times)} ({self.times[index]:.2f} s)"
            number, decoded = next((found for found in numbered if found[0] >= index), (None, None))
            if number != index:
                raise VideoError(f"cannot decode {where}: the video is damaged or cut short")
            if decoded.problem and not self.options.accept_damaged:
                raise VideoError(f"{where} is damaged: {decoded.problem}")
            yield decoded.frame

    def _number_frames(self) -> Iterator[tuple[int, Decoded]]:
        """Yields (number, frame) of one plain pass of the decoder."""
        if self._kept or not self.index.keyframes:
            yield from enumerate(self._kept or self._decode_plainly())
            return
        # By time, so that the numbers of others stay where damaged frames are missing.
        pts = self.index.pts
        for decoded in self._decode_plainly():
            number = None if decoded.frame.pts is None else bisect.bisect_left(pts, decoded.frame.pts)
            if number is not None and pts[number : number + 1] == [decoded.frame.pts]:
                yield number, decoded

    def _decode_plainly(self) -> Iterator[Decoded]:
        """Yields all frames of the file, reopened, in the order in which the decoder returns them."""
        seconds = max(self.deadline - time.monotonic(), 1.0)
        with open_container(self.source, seconds, self.options) as (container, stream):
            if self._motion is not None:
                export_motion(stream)
            yield from decode_packets(demux_packets(container, stream, self.deadline), stream.codec_context)

    def _count_frames(self) -> FrameIndex:
        """Decodes the whole video to find out which frames it has; keeps them where they are few and small."""
        pts, dts, num_bytes = [], [], 0
        for decoded in self._decode_plainly():
            pts.append(decoded.frame.pts)
            dts.append(decoded.frame.dts)
            num_bytes += sum(plane.buffer_size for plane in decoded.frame.planes)
            if num_bytes <= MAX_KEPT:
                self._kept.append(decoded)
            else:
                self._kept.clear()
        if not pts:
            raise VideoError("found no frame that can be decoded")
        rate = self.stream.average_rate or self.stream.guessed_rate or 25
        return FrameIndex(order_times(pts, dts, float(1 / (rate * self.stream.time_base))), [])

    def _check_frames(self, frames: Indices) -> list[int]:
        wanted = sorted(set(map(operator.index, frames)))
        if wanted and not 0 <= wanted[0] <= wanted[-1] < len(self.times):
            raise IndexError(f"asked for frames {wanted[0]} to {wanted[-1]} of a video of {len(self.times)} frames")
        return wanted
