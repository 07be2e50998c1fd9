"""Which frames a video has: read from its packets where these are certain, otherwise counted by decoding.

The truth about frame i is one plain pass of the decoder: frame i is the i-th that it returns.
"""

import bisect
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import av
import numpy as np
from av.container import InputContainer
from av.video.stream import VideoStream
from jaxtyping import Float

from vitx.data.container import demux_packets

VOP_START = b"\0\0\1\xb6"
"""Bytes at which a frame of MPEG-4 (a video object plane) begins."""

SMALLEST_VOP = 20
"""Bytes below which a packet of MPEG-4 may be a placeholder that no frame comes of (FFmpeg's MAX_NVOP_SIZE is 19)."""


STORING_TIMES = ("flv", "matroska,webm", "mov,mp4,m4a,3gp,3g2,mj2", "mpeg", "mpegts", "nut")
"""FFmpeg's names of the containers that store when a frame is shown, not only when it is decoded."""


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
        keyframes: frames at which decoding can begin; none where frames can only be found by counting.
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


def index_packets(container: InputContainer, stream: VideoStream, deadline: float) -> FrameIndex | None:
    """Reads all packets of a stream, decodes none, and returns which frames there are.

    Returns:
        None where packets do not say for certain which frames a decoder returns, and in which order.
    """
    check = _CHECKS.get(stream.codec_context.name)
    packets = [
        (packet.pts, packet.dts, packet.is_keyframe, _HIDDEN if packet.is_discard else check and check(packet))
        for packet in demux_packets(container, stream, deadline)
        if packet.size
    ]
    if not packets:
        return None
    times, _, _, kinds = zip(*packets, strict=True)
    if None in times or len(set(times)) < len(times) or _UNCERTAIN in kinds:
        return None
    # AVI and MXF store no presentation times. FFmpeg guesses them, for frames that it puts in order wrongly; so it did
    # for files that were copied into another container.
    shown, depth = sorted(times), stream.codec_context.reorder_depth
    is_sorted = shown == list(times)
    if depth and (is_sorted or container.format.name not in STORING_TIMES):
        return None
    # A stream cut without re-encoding: the decoder drops some of what comes before its first keyframe.
    if not packets[0][2] or shown[0] < times[0]:
        return None
    # A decoder that holds no more packets back returns frames in another order; so it does where times begin again.
    if not is_sorted and (np.argsort(times) - np.arange(len(times))).max() > depth:
        return None
    # Packets that an edit list discards are decoded, because others refer to them, but no player shows them.
    if _HIDDEN in kinds:
        shown = sorted(pts for pts, kind in zip(times, kinds, strict=True) if kind != _HIDDEN)
    keys = sorted((pts, pts if dts is None else dts) for pts, dts, is_keyframe, _ in packets if is_keyframe)
    return (
        FrameIndex(shown, [Keyframe(bisect.bisect_left(shown, pts), pts, dts) for pts, dts in keys]) if shown else None
    )


_UNCERTAIN, _HIDDEN = "uncertain", "hidden"


def _check_mpeg4(packet: av.Packet) -> str | None:
    """Finds two frames in one packet (DivX and XviD in AVI), and the placeholders that follow."""
    is_single = packet.size >= SMALLEST_VOP and bytes(packet).count(VOP_START) == 1
    return None if is_single else _UNCERTAIN


def _check_vp8(packet: av.Packet) -> str | None:
    """Finds frames that are never shown, because others only refer to them."""
    return None if memoryview(packet)[0] & 0x10 else _HIDDEN


_CHECKS: Mapping[str, Callable[[av.Packet], str | None]] = MappingProxyType(
    {"mpeg4": _check_mpeg4, "vp8": _check_vp8, "libvpx": _check_vp8}
)
"""{name of a decoder: check of what a packet's bytes say about its frame}."""


def order_times(pts: Sequence[int | None], dts: Sequence[int | None], step: float) -> list[int]:
    """Returns strictly increasing times of counted frames: presentation times, decoding times, or a constant rate.

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
