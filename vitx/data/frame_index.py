"""Which frames a video has: read from its packets where they say it, otherwise left to be counted by decoding.

The truth about frame i is one plain pass of the decoder: frame i is the i-th that it returns.
"""

import bisect
import heapq
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from av.container import InputContainer
from av.video.stream import VideoStream
from jaxtyping import Float

from vitx.data.container import demux_packets

VOP_START = b"\0\0\1\xb6"
"""Bytes at which a frame of MPEG-4 (a video object plane) begins."""

SMALLEST_VOP = 20
"""Bytes below which a packet of MPEG-4 may be a placeholder that no frame comes of (FFmpeg's MAX_NVOP_SIZE is 19)."""


class Keyframe(NamedTuple):
    """A frame at which decoding can begin.

    Attributes:
        index: frame number in presentation order.
        pts: presentation time in units of the stream's time base.
        dts: decoding time in the same units.
    """

    index: int
    pts: int
    dts: int


class FrameIndex(NamedTuple):
    """Which frames a video has, in presentation order.

    Attributes:
        pts: presentation time of each frame in units of the stream's time base; frame i is the one with `pts[i]`.
        keyframes: frames at which decoding can begin; none where frames were counted, and can be found only so.
    """

    pts: list[int]
    keyframes: list[Keyframe]

    def seconds(self, stream: VideoStream) -> Float[np.ndarray, " t"]:
        """Returns the time of each frame in seconds from the first."""
        return (np.asarray(self.pts) - self.pts[0]) * float(stream.time_base)

    def keyframes_until(self, index: int) -> Sequence[Keyframe]:
        """Returns the keyframes up to a frame; at least one, though a stream may begin with another frame."""
        count = bisect.bisect_right(self.keyframes, index, key=lambda keyframe: keyframe.index)
        return self.keyframes[: max(count, 1)]


class _Packet(NamedTuple):
    """What a packet says of its frame; `is_shown` is False where the frame is only there to be referred to."""

    pts: int | None
    dts: int | None
    is_keyframe: bool
    is_shown: bool


def index_packets(container: InputContainer, stream: VideoStream, deadline: float) -> FrameIndex | None:
    """Reads all packets of a stream, decodes none, and returns which frames there are.

    Returns:
        None where packets do not say for certain which frames a decoder returns, and in which order.
    """
    codec = stream.codec_context.name
    packets = []
    for packet in demux_packets(container, stream, deadline):
        if not packet.size:
            continue
        if codec == "mpeg4" and (packet.size < SMALLEST_VOP or bytes(packet).count(VOP_START) > 1):
            return None  # two frames in one packet (DivX and XviD in AVI), and the placeholders that follow
        # Packets that an edit list discards, and VP8's hidden frames, are decoded because others refer to them.
        is_hidden = codec in ("vp8", "libvpx") and not memoryview(packet)[0] & 0x10
        is_shown = not (packet.is_discard or is_hidden)
        packets.append(_Packet(packet.pts, packet.dts, packet.is_keyframe, is_shown))
    # AVI stores no presentation times; FFmpeg guesses them, for B-frames wrongly.
    if container.format.name == "avi" and stream.codec_context.has_b_frames:
        return None
    return _index_times(packets, stream.codec_context.reorder_depth)


def _index_times(packets: Sequence[_Packet], reorder_depth: int) -> FrameIndex | None:
    """Returns the index of packets in decoding order, or None where they leave doubt.

    Args:
        packets: a stream's packets.
        reorder_depth: frames that the decoder holds back to put them in order.
    """
    times = [packet.pts for packet in packets]
    shown = [packet.pts for packet in packets if packet.is_shown]
    if not shown or None in times or len(set(times)) < len(times):
        return None
    # A stream cut without encoding it anew: the decoder drops some of what comes before its first keyframe.
    if not packets[0].is_keyframe or min(times) < times[0]:
        return None
    # The decoder returns the least of the times that it holds: where they begin again, or need more room, not in order.
    held, latest = times[:reorder_depth], -math.inf
    heapq.heapify(held)
    for time in times[reorder_depth:]:
        if (returned := heapq.heappushpop(held, time)) < latest:
            return None
        latest = returned
    shown.sort()
    return FrameIndex(
        shown,
        [
            Keyframe(
                bisect.bisect_left(shown, packet.pts), packet.pts, packet.pts if packet.dts is None else packet.dts
            )
            for packet in sorted(packet for packet in packets if packet.is_keyframe)
        ],
    )


def order_times(pts: Sequence[int | None], dts: Sequence[int | None], step: float) -> list[int]:
    """Returns strictly increasing times of frames that were counted: the first that are, of what the decoder says.

    Args:
        pts: presentation time of each frame, where it has one.
        dts: decoding time of each frame, where it has one.
        step: time from one frame to the next at a constant rate.
    """
    for times in (pts, dts):
        # The times of frames that are packed in pairs come in the wrong order, and are the right ones.
        if None not in times and len(set(times)) == len(times):
            return sorted(times)
    step = max(step, 1)
    return [round(number * step) for number in range(len(pts))]
