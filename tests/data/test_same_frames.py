"""Frame i is the i-th that one plain pass of the decoder returns, however the video is read."""

import io
from collections.abc import Sequence
from fractions import Fraction

import av
import numpy as np
import pytest
from av.bitstream import BitStreamFilterContext

from tests.data.test_decoding import encode, numbered_frames, read_numbers
from vitx.data.decoding import decode_frames, open_video, probe
from vitx.data.encoding import transcode
from vitx.data.files import Folder
from vitx.data.pipeline import Data

NUM_FRAMES = 40
DIVX = b"\0\0\1\xb2DivX503b1393p"  # user data by which decoders know that frames are packed
VOP = b"\0\0\1\xb6"
PLACEHOLDER = VOP + b"\x53\x40\x7f"  # a frame that is not coded
X264 = "qp=10:bframes=3:b-adapt=0:scenecut=0"


def plain_pass(video: bytes) -> np.ndarray:
    """Frames of FFmpeg's best stream, as the decoder returns them."""
    with av.open(io.BytesIO(video)) as container:
        stream = container.streams.best("video")
        stream.codec_context.thread_count = 1
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(stream)])


def assert_reads_like_a_plain_pass(video: bytes, whole: np.ndarray | None = None) -> None:
    """In one go, every frame alone, and in clips of any order."""
    expected = plain_pass(video) if whole is None else whole
    ours = decode_frames(video, range(probe(video).num_frames))
    assert ours.shape == expected.shape
    # PyAV's own conversion to RGB rounds otherwise.
    np.testing.assert_allclose(ours.astype(int), expected, atol=4)
    for index in range(len(ours)):
        np.testing.assert_array_equal(decode_frames(video, [index])[0], ours[index], str(index))
    rng = np.random.default_rng(0)
    for _ in range(6):
        indices = rng.integers(0, len(ours), 5)
        np.testing.assert_array_equal(decode_frames(video, indices), ours[indices], str(indices))


def mux(packets: Sequence[tuple], template: av.video.stream.VideoStream, container_format: str) -> bytes:
    """(bytes, pts, dts, is_keyframe) to a file; times are frame numbers, None for what is not written."""
    file = io.BytesIO()
    with av.open(file, "w", format=container_format) as container:
        stream = container.add_stream_from_template(template)
        for data, pts, dts, is_keyframe in packets:
            packet = av.Packet(data)
            packet.pts, packet.dts, packet.time_base = pts, dts, Fraction(1, 25)
            packet.is_keyframe, packet.stream = is_keyframe, stream
            container.mux(packet)
    return file.getvalue()


def coded(video: bytes) -> tuple[list[tuple[bytes, int, int, bool]], av.video.stream.VideoStream]:
    """(bytes, pts, dts, is_keyframe) of each packet, in frames, and the stream."""
    with av.open(io.BytesIO(video)) as container:
        stream = container.streams.video[0]
        unit = Fraction(1, 25) / stream.time_base
        packets = [packet for packet in container.demux(stream) if packet.size]
        return [
            (
                bytes(packet),
                *(None if t is None else round(t / unit) for t in (packet.pts, packet.dts)),
                packet.is_keyframe,
            )
            for packet in packets
        ], stream


def packed(container_format: str, b_frames: int = 1) -> bytes:
    """MPEG-4 whose first B-frame of each group is in the packet of the frame before it, as DivX and XviD wrote AVI."""
    options = {"bf": str(b_frames), "g": "12", "q": "2"}
    video = encode(numbered_frames(NUM_FRAMES, 64), "mpeg4", "avi", "yuv420p", options)
    with av.open(io.BytesIO(video)) as container:
        stream = container.streams.video[0]
        frames = [(bytes(packet), packet.is_keyframe) for packet in container.demux(stream) if packet.size]
        is_b = [data[data.index(VOP) + 4] >> 6 == 2 for data, _ in frames] + [False]
        chunks, number = [], 0
        while number < len(frames):
            data, is_keyframe = frames[number]
            number += 1
            if is_b[number]:
                chunks.append((data + frames[number][0], is_keyframe))
                number += 1
                while is_b[number]:
                    chunks.append(frames[number])
                    number += 1
                chunks.append((PLACEHOLDER, False))
            else:
                chunks.append((data, is_keyframe))
        chunks[0] = (DIVX + chunks[0][0], True)
        return mux([(data, i, i, key) for i, (data, key) in enumerate(chunks)], stream, container_format)


def unpacked(video: bytes) -> bytes:
    """The same frames, each in a packet of its own, by FFmpeg's filter."""
    with av.open(io.BytesIO(video)) as container:
        stream = container.streams.video[0]
        unpack = BitStreamFilterContext("mpeg4_unpack_bframes", stream)
        packets = [out for packet in container.demux(stream) if packet.size for out in unpack.filter(packet)]
        packets += unpack.filter(None)
        rows = [(bytes(packet), i, i, packet.is_keyframe) for i, packet in enumerate(packets)]
        return mux(rows, stream, "avi")


@pytest.mark.parametrize("b_frames", [1, 2])
@pytest.mark.parametrize("container_format", ["avi", "matroska"])
def test_packed_b_frames_are_read_in_the_order_of_a_plain_pass(container_format, b_frames):
    video = packed(container_format, b_frames)
    whole = plain_pass(video)
    assert read_numbers(whole[:, :32, :32]) == list(range(NUM_FRAMES))
    assert_reads_like_a_plain_pass(video, whole)
    with open_video(video) as opened:
        np.testing.assert_allclose(np.diff(opened.times), 0.04, atol=1e-6)


def test_packed_and_unpacked_b_frames_are_the_same_frames():
    video = packed("avi")
    assert_reads_like_a_plain_pass(unpacked(video), plain_pass(video))


@pytest.mark.smoke
def test_clips_of_packed_b_frames_and_of_prepared_copies_are_the_plain_frames(tmp_path):
    video, how = packed("avi"), {"short_side": 64, "codec": "libx264", "crf": 0, "keyint": 8}
    whole = decode_frames(video, range(NUM_FRAMES))
    # Lossless, so that the prepared frames differ by the rounding of one more conversion of colours only.
    ready = decode_frames(transcode(video, **how), range(NUM_FRAMES))
    assert read_numbers(ready[:, :32, :32]) == list(range(NUM_FRAMES))
    assert np.abs(ready.astype(int) - whole).mean() < 3
    data = Data(Folder(str(tmp_path)), num_frames=4, frame_stride=3, image_size=(64, 64), eval_clips=2)
    for start in (0.0, 0.4, 1.0):
        numbers = read_numbers(clip := data.read_clip({"video": video}, start)[:, :32, :32])
        assert np.diff(numbers).tolist() == [3, 3, 3]
        np.testing.assert_array_equal(clip, whole[numbers, :32, :32])
    for view in data.read_views({"video": video}):
        np.testing.assert_array_equal(view, whole[read_numbers(view[:, :32, :32])])


@pytest.mark.parametrize("container_format", ["avi", "h264"])
@pytest.mark.parametrize("b_frames", [0, 3])
def test_h264_without_presentation_times_is_read(container_format, b_frames):
    options = {"x264-params": f"qp=10:keyint=9:b-adapt=0:bframes={b_frames}"}
    video = encode(numbered_frames(NUM_FRAMES, 64), "libx264", container_format, "yuv420p", options)
    assert_reads_like_a_plain_pass(video)
    assert read_numbers(decode_frames(video, [39, 3, 17])[:, :32, :32]) == [39, 3, 17]
    with open_video(video) as opened:
        assert np.all(np.diff(opened.times) > 0)
