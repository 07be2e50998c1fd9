"""Arrays and images to video files, and one video file to another.

Letters in shapes: t frames, h height, w width.
"""

import io
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import IO

import av
import numpy as np
from av.video.reformatter import VideoReformatter
from jaxtyping import UInt8
from PIL import Image

from vitx.data.container import DEFAULT_OPTIONS, ReadOptions, VideoError, VideoSource, open_container, prefix_errors
from vitx.data.pyav_video import PyAVVideo
from vitx.data.sampling import frames_between
from vitx.data.upright import FrameScaler, upright_size

MAX_SECONDS = 3600.0
"""Time after which transcoding a video is given up."""


def encode_video(
    frames: UInt8[np.ndarray, "t h w 3"],
    *,
    fps: int | Fraction = 25,
    codec: str = "libx264",
    pixel_format: str = "yuv420p",
    options: Mapping[str, str] | None = None,
) -> bytes:
    """Encodes RGB frames as an mp4 file in memory, with one encoder thread.

    Args:
        frames: RGB, 0 to 255. yuv420p needs even height and width.
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
    with prefix_errors("cannot encode"), av.open(file, "w", format="mp4") as container:
        stream = container.add_stream(codec, rate=fps, options=dict(options or {}))
        stream.height, stream.width, stream.pix_fmt = frames.shape[1], frames.shape[2], pixel_format
        # What x264 writes depends on its number of threads, and that would depend on the machine.
        stream.codec_context.thread_count = 1
        for pts, array in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(array, format="rgb24")
            frame = reformatter.reformat(frame, format=pixel_format, threads=1)
            frame.pts, frame.time_base = pts, 1 / Fraction(fps)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return file.getvalue()


def encode_gif(frames: UInt8[np.ndarray, "t h w 3"], *, frame_milliseconds: int) -> bytes:
    """Encodes RGB frames as a GIF in memory that repeats for ever."""
    file = io.BytesIO()
    first, *others = map(Image.fromarray, frames)
    first.save(file, "GIF", save_all=True, append_images=others, duration=frame_milliseconds, loop=0)
    return file.getvalue()


def mux_images(images: Sequence[bytes], *, fps: int | Fraction = 25) -> bytes:
    """Returns a video whose frames are encoded images, PNG or JPEG, as they are: nothing is decoded.

    Raises:
        VideoError: there are no images, or they are not all PNG or all JPEG.
    """
    file, codecs = io.BytesIO(), {b"\x89PNG": ("png", "rgb24"), b"\xff\xd8\xff": ("mjpeg", "yuvj420p")}
    found = [(magic, codec) for magic, codec in codecs.items() if len(images) and images[0].startswith(magic)]
    if not found:
        raise VideoError(f"found {len(images)} images, expected at least one, PNG or JPEG")
    ((magic, (codec, pixel_format)),) = found
    # A decoder would skip images of another kind silently, and the frames after them would change their numbers.
    if others := [number for number, image in enumerate(images, 1) if not image.startswith(magic)]:
        raise VideoError(f"image {others[0]} of {len(images)} is of another kind; expected PNG alone, or JPEG alone")
    # Stored as they are, images keep their pixels, and only those of a clip are ever decoded.
    with open_container(images[0]) as (_, image):
        height, width = image.height, image.width
    with prefix_errors("cannot put images together"), av.open(file, "w", format="mov") as container:
        stream = container.add_stream(codec, rate=fps)
        stream.height, stream.width, stream.pix_fmt = height, width, pixel_format
        for number, image in enumerate(images):
            packet = av.Packet(image)
            packet.pts = packet.dts = number
            packet.time_base, packet.is_keyframe, packet.stream = 1 / Fraction(fps), True, stream
            container.mux(packet)
    return file.getvalue()


def transcode(
    source: VideoSource,
    *,
    short_side: int,
    codec: str,
    crf: int,
    keyint: int,
    segment: tuple[float, float] = (0.0, float("inf")),
    seconds: float = MAX_SECONDS,
    read: ReadOptions = DEFAULT_OPTIONS,
) -> bytes:
    """Re-encodes a video as an mp4 file: upright, scaled down, without sound, every frame at its time.

    Holds one frame at a time, and encodes in one thread: the same file always becomes the same bytes.

    Args:
        source: the file's bytes or its path.
        short_side: pixels that the shorter side of a frame is scaled to; smaller frames stay as they are. Sides become
            even.
        codec: FFmpeg's name of the encoder.
        crf: constant quality of the encoder; less is better and larger.
        keyint: frames from one keyframe to the next at most.
        segment: (begin, end) of the part to encode, in seconds from the first frame.
        seconds: time after which transcoding is given up.
        read: what is read of the file.

    Raises:
        VideoError: the video or a frame of it is unreadable, or the encoder refuses it.
    """
    file = io.BytesIO()
    with open_container(source, seconds, read) as (container, stream):
        video = PyAVVideo(source, container, stream, seconds, read)
        wanted = frames_between(video.times, *segment).tolist()
        if not wanted:
            raise VideoError(f"it ends before the segment {segment} begins")
        _encode(video, wanted, file, lambda side: min(1, short_side / side), codec, {"crf": str(crf)}, keyint=keyint)
    return file.getvalue()


def redraw(
    source: VideoSource,
    target: IO[bytes] | io.BytesIO,
    draw: Callable[[UInt8[np.ndarray, "h w 3"], float], UInt8[np.ndarray, "h w 3"]],
    *,
    least_side: int = 0,
    crf: int = 20,
    seconds: float = MAX_SECONDS,
    read: ReadOptions = DEFAULT_OPTIONS,
) -> None:
    """Writes a video as an mp4 file with every frame drawn on: upright, without sound, every frame at its time.

    Args:
        source: the file's bytes or its path.
        target: a file that is open for writing.
        draw: returns a frame, given its pixels and its time in seconds from the first.
        least_side: pixels that the shorter side of smaller frames is enlarged to. Sides become even.
        crf: constant quality of the encoder; less is better and larger.
        seconds: time after which it gives up.
        read: what is read of the file.

    Raises:
        VideoError: the video or a frame of it is unreadable, or the encoder refuses it.
    """
    with open_container(source, seconds, read) as (container, stream):
        video = PyAVVideo(source, container, stream, seconds, read)
        options = {"crf": str(crf), "preset": "veryfast"}
        wanted = list(range(len(video.times)))
        _encode(video, wanted, target, lambda side: max(1, least_side / side), "libx264", options, draw=draw)


def _encode(
    video: PyAVVideo,
    wanted: Sequence[int],
    target: IO[bytes] | io.BytesIO,
    scale_of: Callable[[int], float],
    codec: str,
    options: Mapping[str, str],
    *,
    keyint: int | None = None,
    draw: Callable[[np.ndarray, float], np.ndarray] | None = None,
) -> None:
    """Encodes frames of an open video, one after the other, at their times.

    Args:
        video: an open video.
        wanted: numbers of the frames, in order.
        target: a file that is open for writing.
        scale_of: returns the factor by which frames are scaled, given the length of their shorter side.
        codec: FFmpeg's name of the encoder.
        options: the encoder's own options.
        keyint: frames from one keyframe to the next at most; None leaves it to the encoder.
        draw: see `redraw`; None encodes frames as they are.
    """
    stream, scaler, pts, size = video.stream, FrameScaler(video.aspect), video.index.pts, None
    with av.open(target, "w", format="mp4") as container:
        rate = stream.average_rate or stream.guessed_rate or Fraction(25)
        encoder = container.add_stream(codec, rate=rate, options=dict(options))
        for index, frame in zip(wanted, video.decode(list(wanted)), strict=True):
            if size is None:
                frame_size = upright_size(frame, video.aspect)
                # yuv420p stores colours of two by two pixels, so sides must be even.
                scale = scale_of(min(frame_size))
                size = tuple(max(2 * round(side * scale / 2), 2) for side in frame_size)
                encoder.height, encoder.width = size
                encoder.pix_fmt, context = "yuv420p", encoder.codec_context
                context.thread_count, context.time_base = 1, stream.time_base
                if keyint is not None:
                    context.gop_size = keyint
                whole = np.array([(0.0, 0.0, *frame_size)])
            (pixels,) = scaler(frame, size, whole, frame_size)
            if draw is not None:
                pixels = draw(pixels, float(video.times[index]))
            small = av.VideoFrame.from_ndarray(pixels, format="rgb24").reformat(format="yuv420p", threads=1)
            # Times are the source's own, so that a variable frame rate stays one.
            small.pts, small.time_base = pts[index] - pts[wanted[0]], stream.time_base
            container.mux(encoder.encode(small))
        container.mux(encoder.encode(None))
