"""The one place that opens video files: guarded against what other people's files can do.

A file may be anything: a pipe that is never filled, a playlist that names somebody else's files, a header that claims
more frames than fit into memory. Everything that reads a video goes through `open_container`.
"""

import bisect
import contextlib
import io
import os
import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import av
import numpy as np
from av.container import InputContainer
from av.stream import Disposition
from av.video.stream import VideoStream
from jaxtyping import Float

from vitx.data import mp4_boxes

MAX_PIXELS = 64_000_000
"""Largest area of a frame: frames that claim more pixels are refused before memory is allocated for them."""

MAX_SECONDS = 60.0
"""Time after which reading a video is given up."""

CONTAINERS = "asf,avi,flv,gif,h264,hevc,ivf,jpeg_pipe,matroska,mov,mpeg,mpegts,mxf,nut,ogg,png_pipe"
"""FFmpeg's names of the formats that are read. All hold their video themselves; playlists, which name other files, are
missing on purpose."""

VideoSource = bytes | str | os.PathLike
"""A whole video file in memory, or its path. Paths are local: no URL is ever opened."""

# PyAV 18 raises UnicodeDecodeError for metadata that are not UTF-8 unless it is given an error handler. PyAV 19.0
# (2026-11) removed the argument and decodes them with "surrogateescape", so nothing may print metadata unescaped.
_METADATA_ERRORS = {"metadata_errors": "replace"} if int(av.__version__.split(".")[0]) < 19 else {}


class VideoError(ValueError):
    """A video that cannot be read or written; the message says what was found and what was expected."""


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
        keyframes: frames at which decoding can begin.
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


@contextlib.contextmanager
def open_container(source: VideoSource, seconds: float = MAX_SECONDS) -> Iterator[tuple[InputContainer, VideoStream]]:
    """Opens a video at its first real video stream, with one decoder thread.

    Args:
        source: the file's bytes or its path.
        seconds: time that FFmpeg may wait for the file.

    Raises:
        VideoError: the video is unreadable, or something inside the `with` block raised it. The message begins with
            the file's name.
    """
    name = f"{len(source)} bytes" if isinstance(source, bytes) else os.fspath(source)
    if not isinstance(source, bytes) and os.path.exists(name) and not os.path.isfile(name):
        raise VideoError(f"{name}: expected a regular file")  # a pipe or a device could be waited for without end
    # A file that cannot be opened here is left to FFmpeg, whose error names the reason.
    with contextlib.suppress(OSError), io.BytesIO(source) if isinstance(source, bytes) else open(source, "rb") as file:
        if excess := mp4_boxes.find_excess(file):
            raise VideoError(f"{name}: it claims {excess}, more than its bytes can hold")
    # The whitelists and the prefix keep names from reaching out to the network, and files to other files.
    options = {"protocol_whitelist": "file", "format_whitelist": CONTAINERS, "max_pixels": str(MAX_PIXELS)}
    file = io.BytesIO(source) if isinstance(source, bytes) else f"file:{name}"
    with prefix_errors(name), av.open(file, options=options, timeout=seconds, **_METADATA_ERRORS) as container:
        # The cover picture of a file is a video stream, too.
        streams = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
        if not streams:
            raise VideoError(f"found {len(container.streams)} streams but no video")
        stream = streams[0]
        if stream.codec_context is None:
            raise VideoError("found a video stream of an unknown codec")
        if not 0 < stream.height * stream.width <= MAX_PIXELS:
            raise VideoError(f"found frames of {stream.height} x {stream.width}, expected 1 to {MAX_PIXELS:,} pixels")
        # One thread: callers decode several videos at once, and results do not depend on the number of cores.
        stream.codec_context.thread_count = 1
        yield container, stream


@contextlib.contextmanager
def prefix_errors(prefix: str) -> Iterator[None]:
    """Raises FFmpeg's errors and `VideoError` as a `VideoError` whose message begins with a prefix."""
    try:
        yield
    except (av.FFmpegError, VideoError) as error:
        raise VideoError(f"{prefix}: {getattr(error, 'strerror', error)}") from error


def demux_packets(container: InputContainer, stream: VideoStream, deadline: float) -> Iterator[av.Packet]:
    """Yields the packets of a stream until a deadline; the last packet is empty and flushes the decoder.

    Args:
        container: an open file.
        stream: one of its streams.
        deadline: `time.monotonic()` at which reading is given up.
    """
    # Closed, because PyAV 18.1 (2026-11) leaks 170 bytes with every such generator that is dropped before its end.
    with contextlib.closing(container.demux(stream)) as packets:
        for packet in packets:
            if time.monotonic() > deadline:
                raise VideoError("reading it takes too long; the file is damaged, or slow to reach")
            yield packet


def index_frames(container: InputContainer, stream: VideoStream, deadline: float) -> FrameIndex:
    """Reads all packets of a stream, decodes none, and returns which frames there are."""
    packets = [
        (packet.pts, packet.dts, packet.is_keyframe, packet.is_discard)
        for packet in demux_packets(container, stream, deadline)
        if packet.size
    ]
    # AVI stores decoding times; with B-frames only MPEG-4's decoder makes presentation times of them.
    is_unordered = (
        container.format.name == "avi" and stream.codec_context.name != "mpeg4" and stream.codec_context.has_b_frames
    )
    if is_unordered or any(pts is None for pts, *_ in packets):
        raise VideoError("found frames without presentation times, expected a container that stores them")
    # Packets that an edit list discards are decoded, because others refer to them, but no player shows them.
    # A set, because packets of one time are one frame to a player.
    times = sorted({pts for pts, _, _, is_discard in packets if not is_discard})
    keys = sorted((pts, pts if dts is None else dts) for pts, dts, is_keyframe, _ in packets if is_keyframe)
    if not times or not keys:
        raise VideoError(f"found {len(times)} frames and {len(keys)} keyframes, expected at least one of each")
    return FrameIndex(times, [Keyframe(bisect.bisect_left(times, pts), pts, dts) for pts, dts in keys])
