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
from av.video.reformatter import Interpolation, VideoReformatter
from av.video.stream import VideoStream
from jaxtyping import Float, Int, UInt8

from vitx.data.container import MAX_PIXELS, FrameIndex, Keyframe, VideoError, VideoSource, demux_packets, index_frames
from vitx.data.sampling import crop_box

MAX_REORDERED = 16
"""Frames that a decoder may return before one that is shown earlier: the most that H.264 and H.265 keep."""

SKIPPING = ("h264", "hevc", "mpeg4", "mpeg2video")
"""Decoders whose `skip_frame` may change between packets, so that a frame that no other refers to can be left out."""

Indices = Sequence[int] | Int[np.ndarray, " t"]
"""Frame numbers from 0 in presentation order: any order, repeats allowed."""


class _Started(NamedTuple):
    """Decoding that has begun.

    Attributes:
        wanted: frame numbers, in order.
        size: (height, width) of the first frame, upright.
        frames: the wanted frames.
    """

    wanted: list[int]
    size: tuple[int, int]
    frames: Iterator[av.VideoFrame]


class PyAVVideo:
    """An open video; `vitx.data.decoding.open_video` opens and closes it.

    First plan, then read: `times` says which frames there are, `upright_size` how large those that were chosen are, and
    `read` decodes them once, in one pass. It holds one decoded frame beside the result, so that the size of the result
    bounds the memory.

    Attributes:
        times: time of each frame in seconds from the first.
    """

    def __init__(self, source: VideoSource, container: InputContainer, stream: VideoStream, seconds: float):
        """Reads the times of the frames.

        Args:
            source: the file's bytes or its path.
            container: the file, opened by `open_container`.
            stream: the video stream.
            seconds: time from now on after which reading is given up. Checked between packets: the decoding of one
                packet, whose pixels are bounded, is not interrupted.
        """
        self.source, self.container, self.stream = source, container, stream
        # A damaged file can name packets for hours: one deadline holds for finding and for decoding the frames.
        self.deadline = time.monotonic() + seconds
        self.index: FrameIndex = index_frames(container, stream, self.deadline)
        self.times: Float[np.ndarray, " t"] = self.index.seconds(stream)
        self._started: _Started | None = None

    def upright_size(self, frames: Indices) -> tuple[int, int]:
        """Returns the (height, width) of the first of these frames, turned upright where the file says how it was held.

        Only a decoded frame tells how it is to be turned. A `read` of the same frames continues with that frame:
        nothing is decoded twice.

        Raises:
            VideoError: the frame cannot be decoded.
            IndexError: a frame number is negative or not below the number of frames.
        """
        return self._start(self._check(frames)).size

    def read(
        self,
        frames: Indices,
        boxes: Float[np.ndarray, "boxes 4"] | None = None,
        size: tuple[int, int] | None = None,
    ) -> UInt8[np.ndarray, "boxes t h w 3"]:
        """Decodes boxes of frames, turned upright.

        Args:
            frames: frame numbers.
            boxes: (top, left, height, width) of each, in pixels of an upright frame, all of one height and width. None
                is one box: the largest at the centre that has the shape of `size`.
            size: (height, width) in pixels that each box is scaled to (bilinear); None leaves whole frames as they are.

        Returns:
            RGB, 0 to 255.

        Raises:
            VideoError: a frame cannot be decoded.
            IndexError: a frame number is negative or not below the number of frames.
        """
        wanted = self._check(frames)
        _, frame_size, decoded = self._start(wanted)
        self._started = None
        size = size or frame_size
        if boxes is None:
            boxes = crop_box(*frame_size, size, 0.5)[None]
        crops = np.empty((len(boxes), len(wanted), *size, 3), np.uint8)
        scaler = FrameScaler()
        for row, (index, frame) in enumerate(zip(wanted, decoded, strict=True)):
            if upright_size(frame) != frame_size:
                height, width = frame_size
                raise VideoError(f"frame {index} is of another size than frame {wanted[0]}: {height} x {width}")
            for crop, pixels in zip(crops, scaler(frame, size, boxes), strict=True):
                crop[row] = pixels
        # Frames are decoded once and in order; repeats and other orders are made of the result.
        rows = [bisect.bisect_left(wanted, index) for index in frames]
        return crops if rows == list(range(len(wanted))) else crops[:, rows]

    def close(self) -> None:
        """Ends decoding that was started and not read."""
        self._started = None

    def _start(self, wanted: list[int]) -> "_Started":
        """Decodes the first of the wanted frames, or returns where decoding them has been started already."""
        if not wanted:
            return _Started(wanted, (self.stream.height, self.stream.width), iter(()))
        if self._started is None or self._started.wanted != wanted:
            decoded = self.decode(wanted)
            first = next(decoded)
            self._started = _Started(wanted, upright_size(first), itertools.chain([first], decoded))
        return self._started

    def decode(self, wanted: list[int]) -> Iterator[av.VideoFrame]:
        """Yields frames; their numbers are in order, each once.

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
                    raise VideoError(f"cannot decode frame {index} of {len(pts)}: the video is damaged or cut short")
                if frame.pts in needed:  # where frames are left out, H.264's decoder may return others out of order
                    held[frame.pts] = frame
            needed.remove(pts[index])
            position = index
            yield held.pop(pts[index])

    def _decode_from(self, keyframes: Sequence[Keyframe], needed: Set[int]) -> Iterator[av.VideoFrame]:
        """Decodes from the last of these keyframes on, without frames that are not needed and no other refers to."""
        # By presentation time mp4 finds the keyframe; others land behind it, or (MPEG-PS) lose the times after a jump:
        # then by decoding time, or from the start.
        known = {keyframe.pts for keyframe in keyframes}
        for target in (keyframes[-1].pts, keyframes[-1].dts, min(0, self.stream.start_time or 0)):
            self.container.seek(target, stream=self.stream)
            packets = demux_packets(self.container, self.stream, self.deadline)
            first = next((packet for packet in packets if packet.is_keyframe), None)
            if first is not None and first.pts in known:
                break
        # Whether a frame may be skipped is said before each packet. Later packets are demanded one at a time, so that
        # decoding stops where the caller does.
        decoder = self.stream.codec_context
        skipped, may_skip = None, decoder.name in SKIPPING
        for packet in itertools.chain([first] if first else [], packets):
            skip = "NONREF" if may_skip and packet.size and packet.pts not in needed else "DEFAULT"
            if skip != skipped:
                decoder.skip_frame = skipped = skip
            yield from packet.decode()

    def _check(self, frames: Indices) -> list[int]:
        wanted = sorted(set(map(operator.index, frames)))
        if wanted and not 0 <= wanted[0] <= wanted[-1] < len(self.times):
            raise IndexError(f"asked for frames {wanted[0]} to {wanted[-1]} of a video of {len(self.times)} frames")
        return wanted


def upright_size(frame: av.VideoFrame) -> tuple[int, int]:
    """Returns the (height, width) of a decoded frame after it is turned upright."""
    return (frame.width, frame.height) if _quarter_turns(frame) % 2 else (frame.height, frame.width)


def _quarter_turns(frame: av.VideoFrame) -> int:
    """Returns by how many quarters of a turn, counter-clockwise, a frame has to be turned to stand upright."""
    return round(frame.rotation / 90) % 4


class FrameScaler:
    """Turns boxes of decoded frames into upright RGB pixels; keeps FFmpeg's scaling tables from frame to frame."""

    def __init__(self) -> None:
        self.scale, self.convert = VideoReformatter(), VideoReformatter()

    def __call__(
        self, frame: av.VideoFrame, size: tuple[int, int], boxes: Float[np.ndarray, "boxes 4"]
    ) -> Iterator[UInt8[np.ndarray, "h w 3"]]:
        """Yields boxes of the upright frame, all of one height and width, scaled to a (height, width)."""
        old, box_size = upright_size(frame), boxes[0, 2:].tolist()
        scales = tuple(new / side for new, side in zip(size, box_size, strict=True))
        if old[0] * old[1] * scales[0] * scales[1] > MAX_PIXELS:
            raise VideoError(f"found frames of {old[0]} x {old[1]}, too long and narrow to cover {size[0]} x {size[1]}")
        # The whole frame is scaled once and every box is cut out of it: boxes of one frame overlap.
        height, width = (max(round(o * s), new) for o, s, new in zip(old, scales, size, strict=True))
        quarters = _quarter_turns(frame)
        stored = (height, width) if quarters % 2 else (width, height)
        # One thread, because PyAV's default takes all cores for every frame.
        if frame.format.name == "yuv420p":  # half as many numbers to scale as in RGB
            frame = self.scale.reformat(frame, *stored, interpolation=Interpolation.BILINEAR, threads=1)
        frame = self.convert.reformat(frame, *stored, format="rgb24", interpolation=Interpolation.BILINEAR, threads=1)
        whole = np.rot90(frame.to_ndarray(), quarters)
        for box in boxes.tolist():
            top, left = (
                min(max(round(place * scale), 0), side - new)
                for place, scale, side, new in zip(box[:2], scales, (height, width), size, strict=True)
            )
            yield whole[top : top + size[0], left : left + size[1]]
