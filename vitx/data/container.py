"""The one place that opens video files: guarded against what other people's files can do.

A file may be anything: a pipe that is never filled, a playlist that names somebody else's files, a header that claims
more frames than fit into memory. Everything that reads a video goes through `open_container`.
"""

import contextlib
import dataclasses
import io
import os
import time
from collections.abc import Iterator, Sequence

import av
from av.container import InputContainer
from av.stream import Disposition
from av.video.stream import VideoStream

from vitx.configuration import register
from vitx.data import mp4_boxes

MAX_PIXELS = 64_000_000
"""Largest area of a frame: frames that claim more pixels are refused before memory is allocated for them."""

MAX_SECONDS = 60.0
"""Time after which reading a video is given up."""

CONTAINERS = "apng,asf,avi,flv,gif,h264,hevc,ivf,jpeg_pipe,matroska,mov,mpeg,mpegts,mxf,nut,ogg,png_pipe"
"""FFmpeg's names of the formats that are read. All hold their video themselves; playlists, which name other files, are
missing on purpose."""

VideoSource = bytes | str | os.PathLike
"""A whole video file in memory, or its path. Paths are local: no URL is ever opened."""

# PyAV 18 raises UnicodeDecodeError for metadata that are not UTF-8 unless it is given an error handler. PyAV 19.0
# (2026-11) removed the argument and decodes them with "surrogateescape", so nothing may print metadata unescaped.
_METADATA_ERRORS = {"metadata_errors": "replace"} if int(av.__version__.split(".")[0]) < 19 else {}


class VideoError(ValueError):
    """A video that cannot be read or written; the message has what was found and what was expected."""


@register
@dataclasses.dataclass(frozen=True)
class ReadOptions:
    """Which stream of a video file is read, and how.

    Attributes:
        stream: number of the stream among the file's video streams, from 0; None leaves it to FFmpeg, which takes the
            best one. Cover pictures and previews of one frame are never taken where the file has a film.
        square_pixels: scale frames of non-square pixels as players do; False leaves pixels as they are stored.
        accept_damaged: return frames that the decoder marks as corrupt, or reports errors for, in place of an error.
    """

    stream: int | None = None
    square_pixels: bool = True
    accept_damaged: bool = False

    def __post_init__(self):
        if self.stream is not None and self.stream < 0:
            raise ValueError(f"stream is {self.stream}; expected a number from 0, or None")


DEFAULT_OPTIONS = ReadOptions()


@contextlib.contextmanager
def open_container(
    source: VideoSource, seconds: float = MAX_SECONDS, options: ReadOptions = DEFAULT_OPTIONS
) -> Iterator[tuple[InputContainer, VideoStream]]:
    """Opens a video at its best video stream, with one decoder thread.

    Args:
        source: the file's bytes or its path.
        seconds: time that FFmpeg may wait for the file.
        options: settings of reading, such as the stream to take.

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
    with prefix_errors(name), contextlib.ExitStack() as opened:
        container = opened.enter_context(_open(source, seconds))
        stream = _choose_stream(container, options.stream, seconds)
        if len(container.streams.video) > 1:  # choosing a stream has read packets
            container = opened.enter_context(_open(source, seconds))
            stream = container.streams[stream.index]
        if stream.codec_context is None:
            raise VideoError("found a video stream of an unknown codec")
        if not 0 < stream.height * stream.width <= MAX_PIXELS:
            raise VideoError(f"found frames of {stream.height} x {stream.width}, expected 1 to {MAX_PIXELS:,} pixels")
        # One thread: callers decode several videos at once, and results do not depend on the number of cores.
        stream.codec_context.thread_count = 1
        yield container, stream


def _open(source: VideoSource, seconds: float) -> InputContainer:
    """Opens a file; a file that names other files is refused."""
    # The whitelists and the prefix keep names from reaching out to the network, and files to other files.
    guards = {"protocol_whitelist": "file", "format_whitelist": CONTAINERS, "max_pixels": str(MAX_PIXELS)}
    file = io.BytesIO(source) if isinstance(source, bytes) else f"file:{os.fspath(source)}"
    try:
        return av.open(file, options=guards, timeout=seconds, **_METADATA_ERRORS)
    except av.ArgumentError as error:  # "Invalid argument", where a format is not among those of the guards
        raise VideoError(f"it is of no format that is read; expected one of {CONTAINERS}") from error


def _choose_stream(container: InputContainer, number: int | None, seconds: float) -> VideoStream:
    """Returns the video stream of a number, or the best one."""
    streams = list(container.streams.video)
    if number is not None:
        if not 0 <= number < len(streams):
            raise VideoError(f"found {len(streams)} video streams, no number {number} (stream)")
        return streams[number]
    # The cover picture of a file is a video stream, too.
    films = [stream for stream in streams if not stream.disposition & Disposition.attached_pic]
    if not films:
        raise VideoError(f"found {len(container.streams)} streams but no video")
    films = [stream for stream in films if stream.codec_context is not None] or films
    if len(films) > 1:
        films = _select_films(container, films, time.monotonic() + seconds) or films
    best = container.streams.best("video")
    return best if best in films else films[0]


def _select_films(container: InputContainer, streams: Sequence[VideoStream], deadline: float) -> list[VideoStream]:
    """Returns the streams of more than one frame: the others are previews, though no flag marks them."""
    counts = dict.fromkeys((stream.index for stream in streams), 0)
    for packet in demux_packets(container, streams, deadline):
        counts[packet.stream_index] += bool(packet.size)
        if min(counts.values()) > 1:
            break
    return [stream for stream in streams if counts[stream.index] > 1]


@contextlib.contextmanager
def prefix_errors(prefix: str) -> Iterator[None]:
    """Raises FFmpeg's errors and `VideoError` as a `VideoError` whose message begins with a prefix."""
    try:
        yield
    except (av.FFmpegError, VideoError) as error:
        message = str(getattr(error, "strerror", error))
        # A file that is opened again, for another pass of its decoder, has its name in the message already.
        raise VideoError(message if message.startswith(prefix) else f"{prefix}: {message}") from error


def demux_packets(
    container: InputContainer, stream: VideoStream | Sequence[VideoStream], deadline: float
) -> Iterator[av.Packet]:
    """Yields the packets of a stream until a deadline; the last packet is empty and flushes the decoder.

    Args:
        container: an open file.
        stream: one of its streams, or several.
        deadline: `time.monotonic()` at which reading is given up.
    """
    # Closed, because PyAV 18.1 (2026-11) leaks 170 bytes with every such generator that is dropped before its end.
    with contextlib.closing(container.demux(stream)) as packets:
        for packet in packets:
            if time.monotonic() > deadline:
                raise VideoError("reading it takes too long; the file is damaged, or slow to reach")
            yield packet
