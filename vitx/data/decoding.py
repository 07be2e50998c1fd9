"""Video bytes to arrays and back: the only module that knows PyAV.

Frames are numbered in presentation order. Each call opens its video, works in the calling thread and closes it
again; PyAV releases the GIL while it works, so callers get parallelism from threads.
"""

import bisect
import contextlib
import io
import itertools
import operator
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal, NamedTuple

import av
import numpy as np
from av.container import InputContainer
from av.stream import Disposition
from av.video.reformatter import Interpolation, VideoReformatter
from av.video.stream import VideoStream
from jaxtyping import Float, UInt8

from vitx.data import mp4_boxes, torchcodec_frames
from vitx.data.sampling import Box, slid_box, within

MAX_PIXELS = 64_000_000
"""Frames that claim more pixels than this are refused before any memory is set aside for them."""

MAX_SECONDS = 60.0
"""Videos that take longer to read are given up."""

MAX_REORDERED = 16
"""Frames that a decoder may give before one that is shown earlier: the most that H.264 and H.265 keep."""

CONTAINERS = "asf,avi,flv,gif,h264,hevc,ivf,jpeg_pipe,matroska,mov,mpeg,mpegts,mxf,nut,ogg,png_pipe"
"""What is read, by FFmpeg's names: files that hold their video. Playlists name others, which could be anything."""

SKIPPING = ("h264", "hevc", "mpeg4", "mpeg2video")
"""Decoders that can leave out a frame that no other refers to, whenever they are told."""

Video = bytes | str | os.PathLike
"""A whole video file in memory, or the path of one. Paths are local: no URL is ever opened."""

Decoder = Literal["pyav", "torchcodec"]

# PyAV 18 raises UnicodeDecodeError for metadata that are not UTF-8 unless it is given an error handler. PyAV 19.0
# (2026-11) removed the argument and decodes them with "surrogateescape", so nothing may print metadata unescaped.
_METADATA_ERRORS = {"metadata_errors": "replace"} if int(av.__version__.split(".")[0]) < 19 else {}

Choice = Callable[[Float[np.ndarray, " frames"]], Sequence[int] | np.ndarray]
"""Chooses frame numbers, given the times of a video's frames in seconds from the first."""


class _Keyframe(NamedTuple):
    """A frame that decoding can begin with: its number, and its times in units of the stream's."""

    index: int
    pts: int
    dts: int


class VideoError(ValueError):
    """A video that cannot be read (or written); the message says what was found and what was expected."""


@dataclass(frozen=True)
class VideoInfo:
    """What a video says about itself.

    Attributes:
      codec: FFmpeg's name of it.
      num_frames: frames that decoding gives, counted.
      fps: average frames per second.
      height: pixels, before any rotation.
      width: pixels, likewise.
      duration: seconds.
    """

    codec: str
    num_frames: int
    fps: float
    height: int
    width: int
    duration: float


def encode_video(
    frames: UInt8[np.ndarray, "frames height width 3"],
    *,
    fps: int | Fraction = 25,
    codec: str = "libx264",
    pixel_format: str = "yuv420p",
    options: Mapping[str, str] | None = None,
) -> bytes:
    """Encodes RGB frames as an mp4 file in memory, with one encoder thread.

    Args:
      frames: `[frames, height, width, 3]`, 0 to 255. yuv420p needs even height and width.
      fps: frames per second.
      codec: FFmpeg's name of the encoder.
      pixel_format: FFmpeg's name of the encoded pixel format.
      options: the encoder's own options, such as `{"preset": "ultrafast", "crf": "18"}`.

    Raises:
      VideoError: there are no frames, or the encoder refuses them.
    """
    if not len(frames):
        raise VideoError("found no frames to encode, expected at least one")
    file, reformatter = io.BytesIO(), VideoReformatter()
    with _errors_of("cannot encode"), av.open(file, "w", format="mp4") as container:
        stream = container.add_stream(codec, rate=fps, options=dict(options or {}))
        stream.height, stream.width, stream.pix_fmt = frames.shape[1], frames.shape[2], pixel_format
        stream.codec_context.thread_count = 1
        for pts, array in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(array, format="rgb24")
            frame = reformatter.reformat(frame, format=pixel_format, threads=1)
            frame.pts, frame.time_base = pts, 1 / Fraction(fps)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return file.getvalue()


def video_of(images: Sequence[bytes], *, fps: int | Fraction = 25) -> bytes:
    """Returns a video whose frames are these encoded images, PNG or JPEG, as they are: nothing is decoded.

    Raises:
      VideoError: there are none, or they are of another kind.
    """
    file, codecs = io.BytesIO(), {b"\x89PNG": ("png", "rgb24"), b"\xff\xd8\xff": ("mjpeg", "yuvj420p")}
    found = [each for start, each in codecs.items() if len(images) and images[0].startswith(start)]
    if not found:
        raise VideoError(f"found {len(images)} images, expected at least one, PNG or JPEG")
    with _opened(images[0]) as (_, image):
        height, width = image.height, image.width
    with _errors_of("cannot put images together"), av.open(file, "w", format="mov") as container:
        stream = container.add_stream(found[0][0], rate=fps)
        stream.height, stream.width, stream.pix_fmt = height, width, found[0][1]
        for number, image in enumerate(images):
            packet = av.Packet(image)
            packet.pts = packet.dts = number
            packet.time_base, packet.is_keyframe, packet.stream = 1 / Fraction(fps), True, stream
            container.mux(packet)
    return file.getvalue()


def probe(video: Video) -> VideoInfo:
    """Reads a video's header, and its packets too where the header does not list the frames; decodes nothing.

    Raises:
      VideoError: the video is unreadable.
    """
    with _opened(video) as (container, stream):
        if stream.frames and len(stream.index_entries):
            num_frames = sum(not entry.is_discard for entry in stream.index_entries)
        else:
            num_frames = len(_presentation_times(container, stream, time.monotonic() + MAX_SECONDS)[0])
        rate = stream.average_rate or stream.guessed_rate
        if stream.duration:
            duration = float(stream.duration * stream.time_base)
        elif container.duration:
            duration = container.duration / av.time_base
        else:
            duration = float(num_frames / rate) if rate else 0.0
        fps = float(rate) if rate else num_frames / duration if duration else 0.0
        return VideoInfo(stream.codec_context.name, num_frames, fps, stream.height, stream.width, duration)


def decode_frames(
    video: Video,
    indices: Sequence[int] | np.ndarray | Choice,
    *,
    size: tuple[int, int] | None = None,
    box: Callable[[int, int], Box] | None = None,
    seconds: float = MAX_SECONDS,
    decoder: Decoder = "pyav",
) -> UInt8[np.ndarray, "frames height width 3"]:
    """Decodes exactly the frames asked for: `decode_crops` of one crop.

    Args:
      video: the file's bytes or its path.
      indices: frame numbers from 0 in presentation order, or a function that chooses them.
      size: (height, width) that a part of every frame is scaled to (bilinear); None leaves frames as they are.
      box: chooses that part, given the (height, width) of upright frames; None is the largest one at the centre that
        has the shape of `size`.
      seconds: that all of it may take, as in `decode_crops`.
      decoder: the library that decodes.

    Returns:
      RGB `[len(indices), height, width, 3]`, 0 to 255.

    Raises:
      VideoError: the video is unreadable, or a wanted frame of it is.
      IndexError: an index is negative or not below the number of frames.
    """

    def boxes(height: int, width: int) -> list[Box]:
        return [box(height, width) if box else slid_box(height, width, size or (height, width), 0.5)]

    return decode_crops(video, indices, size=size, boxes=boxes, seconds=seconds, decoder=decoder)[0]


def decode_crops(
    video: Video,
    indices: Sequence[int] | np.ndarray | Choice,
    *,
    size: tuple[int, int] | None,
    boxes: Callable[[int, int], Sequence[Box]],
    seconds: float = MAX_SECONDS,
    decoder: Decoder = "pyav",
) -> UInt8[np.ndarray, "crops frames height width 3"]:
    """Decodes parts of exactly the frames asked for, turned upright where the file says how it was held.

    Decodes each frame at most once and those that no other refers to only where they are wanted, skips to the last
    keyframe before a wanted frame where that is ahead, and stops after the last wanted frame. Holds one decoded frame
    beside the result, so that `size` bounds the memory.

    Args:
      video: the file's bytes or its path.
      indices: frame numbers from 0 in presentation order; any order, repeats allowed. Or a function that chooses
        them, given the frames' times in seconds from the first.
      size: (height, width) that each part is scaled to (bilinear); None leaves frames as they are.
      boxes: chooses the parts, all of one height and width, given the (height, width) of upright frames.
      seconds: that all of it may take. Checked between packets, and while the container reads a file: what is not
        interrupted is the decoding of one packet, whose pixels are bounded.
      decoder: the library that decodes. torchcodec holds all wanted frames at once, and is not interrupted.

    Returns:
      RGB `[parts, len(indices), height, width, 3]`, 0 to 255.

    Raises:
      VideoError: the video is unreadable, or a wanted frame of it is.
      IndexError: an index is negative or not below the number of frames.
    """
    deadline = time.monotonic() + seconds
    with _opened(video, seconds) as (container, stream):
        times, keyframes = _presentation_times(container, stream, deadline)
        if callable(indices):
            indices = indices((np.asarray(times) - times[0]) * float(stream.time_base))
        wanted = sorted(set(map(operator.index, indices)))
        if wanted and not 0 <= wanted[0] <= wanted[-1] < len(times):
            raise IndexError(f"asked for frames {wanted[0]} to {wanted[-1]} of a video of {len(times)} frames")
        crops = np.empty((1, 0, *(size or (stream.height, stream.width)), 3), np.uint8)
        scaler, decoded = _Scaler(), _decoded(container, stream, times, keyframes, wanted, deadline)
        if decoder == "torchcodec":
            decoded = _by_torchcodec(video, wanted)
        for row, (index, frame) in enumerate(zip(wanted, decoded, strict=True)):
            if not row:
                there = _upright_size(frame)
                parts = boxes(*there)
                crops = np.empty((len(parts), len(wanted), *(size or there), 3), np.uint8)
            if _upright_size(frame) != there:
                raise VideoError(f"frame {index} is of another size than frame {wanted[0]}: {there[0]} x {there[1]}")
            for crop, part in zip(crops, scaler(frame, crops.shape[2:4], parts), strict=True):
                crop[row] = part
    rows = [bisect.bisect_left(wanted, index) for index in indices]
    return crops if rows == list(range(len(wanted))) else crops[:, rows]


def transcode(
    video: Video,
    *,
    short_side: int,
    codec: str,
    crf: int,
    keyint: int,
    segment: tuple[float, float] = (0.0, float("inf")),
    seconds: float = 3600.0,
) -> bytes:
    """Encodes a video anew as an mp4 file: upright, at most so large, without sound, every frame at its time.

    Holds one frame at a time, and encodes in one thread: the same file always becomes the same bytes.

    Args:
      video: the file's bytes or its path.
      short_side: pixels that the shorter side of a frame is scaled to; smaller frames stay as they are. Sides become
        even.
      codec: FFmpeg's name of the encoder.
      crf: its constant quality; less is better and larger.
      keyint: frames from one keyframe to the next at most.
      segment: (begin, end) of the part that is kept, in seconds from the first frame.
      seconds: that all of it may take.

    Raises:
      VideoError: the video or a frame of it is unreadable, or the encoder refuses it.
    """
    deadline, file = time.monotonic() + seconds, io.BytesIO()
    with _opened(video, seconds) as (source, stream):
        times, keyframes = _presentation_times(source, stream, deadline)
        wanted = within((np.asarray(times) - times[0]) * float(stream.time_base), *segment).tolist()
        if not wanted:
            raise VideoError(f"it ends before the segment {segment} begins")
        scaler, rate = _Scaler(), stream.average_rate or stream.guessed_rate or Fraction(25)
        with av.open(file, "w", format="mp4") as target:
            encoder = target.add_stream(codec, rate=rate, options={"crf": str(crf)})
            context, size = encoder.codec_context, None
            for index, frame in zip(wanted, _decoded(source, stream, times, keyframes, wanted, deadline), strict=True):
                there = _upright_size(frame)
                if size is None:
                    size = tuple(max(2 * round(side * min(1, short_side / min(there)) / 2), 2) for side in there)
                    encoder.height, encoder.width = size
                    encoder.pix_fmt, context.thread_count, context.gop_size = "yuv420p", 1, keyint
                    context.time_base = stream.time_base
                (pixels,) = scaler(frame, size, [(0.0, 0.0, *map(float, there))])
                small = av.VideoFrame.from_ndarray(pixels, format="rgb24").reformat(format="yuv420p", threads=1)
                small.pts, small.time_base = times[index] - times[wanted[0]], stream.time_base
                target.mux(encoder.encode(small))
            target.mux(encoder.encode(None))
    return file.getvalue()


def _decoded(
    container: InputContainer,
    stream: VideoStream,
    times: list[int],
    keyframes: list[_Keyframe],
    wanted: list[int],
    deadline: float,
) -> Iterator[av.VideoFrame]:
    """Yields the wanted frames, which are in order; `times` and `keyframes` are those of `_presentation_times`."""
    needed, held, position, frames = {times[index] for index in wanted}, {}, -1, iter(())
    for row, index in enumerate(wanted):
        place = max(bisect.bisect_right(keyframes, index, key=operator.attrgetter("index")) - 1, 0)
        # After a jump the decoder takes in about as many packets again as it reorders.
        if not row or keyframes[place].index - position > 1 + 2 * stream.codec_context.reorder_depth:
            frames = _decoded_from(container, stream, keyframes[: place + 1], needed, deadline)
        while times[index] not in held:
            frame = next(frames, None)
            if frame is None or len(held) > MAX_REORDERED:
                raise VideoError(f"cannot decode frame {index} of {len(times)}: the video is damaged or cut short")
            if frame.pts in needed:  # where frames are left out, H.264's decoder may give the others out of order
                held[frame.pts] = frame
        needed.remove(times[index])
        position = index
        yield held.pop(times[index])


def _by_torchcodec(video: Video, wanted: list[int]) -> Iterator[av.VideoFrame]:
    try:
        for pixels in torchcodec_frames.decoded(video, wanted) if wanted else ():
            yield av.VideoFrame.from_ndarray(pixels, format="rgb24")
    except (RuntimeError, ValueError, IndexError) as error:
        raise VideoError(f"torchcodec: {str(error).strip().splitlines()[0]}") from error


def _decoded_from(
    container: InputContainer, stream: VideoStream, keyframes: list[_Keyframe], needed: Set[int], deadline: float
) -> Iterator[av.VideoFrame]:
    """Decodes from the last of these keyframes on, without the frames that are not needed and no other refers to."""
    # By presentation time mp4 finds the keyframe; others land behind it, or (MPEG-PS) lose the times after a jump:
    # then by decoding time, or from the start.
    known = {keyframe.pts for keyframe in keyframes}
    for target in (keyframes[-1].pts, keyframes[-1].dts, min(0, stream.start_time or 0)):
        container.seek(target, stream=stream)
        packets = _packets(container, stream, deadline)
        first = next((packet for packet in packets if packet.is_keyframe), None)
        if first is not None and first.pts in known:
            break
    decoder, skipped, may_skip = stream.codec_context, None, stream.codec_context.name in SKIPPING
    for packet in itertools.chain([first] if first else [], packets):
        skip = "NONREF" if may_skip and packet.size and packet.pts not in needed else "DEFAULT"
        if skip != skipped:
            decoder.skip_frame = skipped = skip
        yield from packet.decode()


def _packets(container: InputContainer, stream: VideoStream, deadline: float) -> Iterator[av.Packet]:
    """Demuxes the stream until the deadline; the last packet is empty and flushes the decoder."""
    # closed, because PyAV 18.1 loses memory, 170 bytes, with every such generator that is dropped half-way
    with contextlib.closing(container.demux(stream)) as packets:
        for packet in packets:
            if time.monotonic() > deadline:
                raise VideoError("reading it takes too long; the file is damaged, or slow to reach")
            yield packet


def _quarters(frame: av.VideoFrame) -> int:
    """By how many quarters of a turn, counter-clockwise, a frame has to be turned to stand upright."""
    return round(frame.rotation / 90) % 4


def _upright_size(frame: av.VideoFrame) -> tuple[int, int]:
    return (frame.width, frame.height) if _quarters(frame) % 2 else (frame.height, frame.width)


class _Scaler:
    """Turns parts of frames into upright RGB pixels."""

    def __init__(self) -> None:
        self.scale, self.convert = VideoReformatter(), VideoReformatter()

    def __call__(
        self, frame: av.VideoFrame, size: tuple[int, int], boxes: Sequence[Box]
    ) -> Iterator[UInt8[np.ndarray, "height width 3"]]:
        """Yields parts of the upright frame, all of one height and width, scaled to a (height, width)."""
        old = _upright_size(frame)
        scales = tuple(wanted / there for wanted, there in zip(size, boxes[0][2:], strict=True))
        if old[0] * old[1] * scales[0] * scales[1] > MAX_PIXELS:
            raise VideoError(f"found frames of {old[0]} x {old[1]}, too long and narrow to cover {size[0]} x {size[1]}")
        height, width = (max(round(o * s), w) for o, s, w in zip(old, scales, size, strict=True))
        quarters = _quarters(frame)
        stored = (height, width) if quarters % 2 else (width, height)
        if frame.format.name == "yuv420p":  # half as many numbers to scale as in RGB
            frame = self.scale.reformat(frame, *stored, interpolation=Interpolation.BILINEAR, threads=1)
        frame = self.convert.reformat(frame, *stored, format="rgb24", interpolation=Interpolation.BILINEAR, threads=1)
        whole = np.rot90(frame.to_ndarray(), quarters)
        for box in boxes:
            top, left = (
                min(max(round(at * scale), 0), there - wanted)
                for at, scale, there, wanted in zip(box[:2], scales, (height, width), size, strict=True)
            )
            yield whole[top : top + size[0], left : left + size[1]]


@contextlib.contextmanager
def _errors_of(what: str) -> Iterator[None]:
    try:
        yield
    except (av.FFmpegError, VideoError) as error:
        raise VideoError(f"{what}: {getattr(error, 'strerror', error)}") from error


@contextlib.contextmanager
def _opened(video: Video, seconds: float = MAX_SECONDS) -> Iterator[tuple[InputContainer, VideoStream]]:
    """Opens a video at its first real video stream, with one decoder thread."""
    # The whitelists and the prefix keep names from reaching out to the network, and files to other files.
    name = f"{len(video)} bytes" if isinstance(video, bytes) else os.fspath(video)
    if not isinstance(video, bytes) and os.path.exists(name) and not os.path.isfile(name):
        raise VideoError(f"{name}: it is no file")  # a pipe or a device could be waited for without end
    with contextlib.suppress(OSError), io.BytesIO(video) if isinstance(video, bytes) else open(video, "rb") as file:
        if claims := mp4_boxes.excess(file):
            raise VideoError(f"{name}: it claims {claims}, more than its bytes can hold")
    options = {"protocol_whitelist": "file", "format_whitelist": CONTAINERS, "max_pixels": str(MAX_PIXELS)}
    source = io.BytesIO(video) if isinstance(video, bytes) else f"file:{name}"
    with _errors_of(name), av.open(source, options=options, timeout=seconds, **_METADATA_ERRORS) as container:
        streams = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
        if not streams:
            raise VideoError(f"found {len(container.streams)} streams but no video")
        stream = streams[0]
        if stream.codec_context is None:
            raise VideoError("found a video stream of an unknown codec")
        if not 0 < stream.height * stream.width <= MAX_PIXELS:
            raise VideoError(f"found frames of {stream.height} x {stream.width}, expected 1 to {MAX_PIXELS:,} pixels")
        stream.codec_context.thread_count = 1
        yield container, stream


def _presentation_times(
    container: InputContainer, stream: VideoStream, deadline: float
) -> tuple[list[int], list[_Keyframe]]:
    """Demuxes the stream: the frames' times, and the keyframes among them, in order."""
    packets = [
        (packet.pts, packet.dts, packet.is_keyframe, packet.is_discard)
        for packet in _packets(container, stream, deadline)
        if packet.size
    ]
    unordered = (
        container.format.name == "avi" and stream.codec_context.name != "mpeg4" and stream.codec_context.has_b_frames
    )
    if unordered or any(pts is None for pts, *_ in packets):
        raise VideoError("found frames without presentation times, expected a container that stores them")
    times = sorted({pts for pts, _, _, discard in packets if not discard})
    keys = sorted((pts, pts if dts is None else dts) for pts, dts, is_keyframe, _ in packets if is_keyframe)
    if not times or not keys:
        raise VideoError(f"found {len(times)} frames and {len(keys)} keyframes, expected at least one of each")
    return times, [_Keyframe(bisect.bisect_left(times, pts), pts, dts) for pts, dts in keys]
