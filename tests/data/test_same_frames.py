"""Frame i is the i-th that one plain pass of the decoder returns, however the video is read."""

import io
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from av.bitstream import BitStreamFilterContext

from tests.data.test_decoding import encode, numbered_frames, read_numbers
from vitx.data import pyav_video
from vitx.data.decoding import ReadOptions, decode_frames, open_video, probe
from vitx.data.encoding import transcode
from vitx.data.files import Folder
from vitx.data.pipeline import Data
from vitx.data.preparation import Preparation
from vitx.data.pyav_video import PyAVVideo
from vitx.data.sampling import frames_between, sample_dense
from vitx.data.upright import FrameScaler, upright_size

NUM_FRAMES = 40
DIVX = b"\0\0\1\xb2DivX503b1393p"  # user data by which decoders know that frames are packed
VOP = b"\0\0\1\xb6"
PLACEHOLDER = VOP + b"\x53\x40\x7f"  # a frame that is not coded
X264 = "qp=10:bframes=3:b-adapt=0:scenecut=0"


def decode_plainly(video: bytes) -> np.ndarray:
    """Frames of FFmpeg's best stream, as the decoder returns them."""
    with av.open(io.BytesIO(video)) as container:
        stream = container.streams.best("video")
        stream.codec_context.thread_count = 1
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(stream)])


def assert_reads_like_a_plain_pass(video: bytes, whole: np.ndarray | None = None) -> None:
    """In one go, every frame alone, and in clips of any order."""
    expected = decode_plainly(video) if whole is None else whole
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


Packet = tuple[bytes, int | None, int | None, bool]
"""Bytes, presentation and decoding time in frames, and whether it is a keyframe."""


def read_packets(video: bytes) -> list[Packet]:
    """Packets of a video's first stream."""
    with av.open(io.BytesIO(video)) as container:
        stream = container.streams.video[0]
        unit = Fraction(1, 25) / stream.time_base
        # Rounded down: a program stream begins half a frame late, and `round` would give two frames the same number.
        return [
            (
                bytes(packet),
                None if packet.pts is None else packet.pts // unit,
                None if packet.dts is None else packet.dts // unit,
                packet.is_keyframe,
            )
            for packet in container.demux(stream)
            if packet.size
        ]


def mux(packets: Sequence[Packet], video: bytes, container_format: str) -> bytes:
    """Packets of a video's first stream, to a file of their own."""
    file = io.BytesIO()
    with av.open(io.BytesIO(video)) as source, av.open(file, "w", format=container_format) as container:
        stream = container.add_stream_from_template(source.streams.video[0])
        for data, pts, dts, is_keyframe in packets:
            packet = av.Packet(data)
            packet.pts, packet.dts, packet.time_base = pts, dts, Fraction(1, 25)
            packet.is_keyframe, packet.stream = is_keyframe, stream
            container.mux(packet)
    return file.getvalue()


def pack_pairs(container_format: str, b_frames: int = 1) -> bytes:
    """MPEG-4 whose first B-frame of each group is in the packet of the frame before it, as DivX and XviD wrote AVI."""
    options = {"bf": str(b_frames), "g": "12", "q": "2"}
    video = encode(numbered_frames(NUM_FRAMES, 64), "mpeg4", "avi", "yuv420p", options)
    frames = [(data, is_keyframe) for data, _, _, is_keyframe in read_packets(video)]
    is_b = [data[data.index(VOP) + 4] >> 6 == 2 for data, _ in frames] + [False, False]
    chunks, number = [], 0
    while number < len(frames):
        data, is_keyframe = frames[number]
        number += 1
        if not is_b[number]:
            chunks.append((data, is_keyframe))
            continue
        chunks.append((data + frames[number][0], is_keyframe))
        number += 1
        while is_b[number]:
            chunks.append(frames[number])
            number += 1
        chunks.append((PLACEHOLDER, False))
    chunks[0] = (DIVX + chunks[0][0], True)
    return mux([(data, i, i, key) for i, (data, key) in enumerate(chunks)], video, container_format)


def unpack_pairs(video: bytes) -> bytes:
    """The same frames, each in a packet of its own, by FFmpeg's filter."""
    with av.open(io.BytesIO(video)) as container:
        stream = container.streams.video[0]
        unpack = BitStreamFilterContext("mpeg4_unpack_bframes", stream)
        packets = [out for packet in container.demux(stream) if packet.size for out in unpack.filter(packet)]
        rows = [(bytes(out), i, i, out.is_keyframe) for i, out in enumerate(packets + unpack.filter(None))]
    return mux(rows, video, "avi")


@pytest.mark.parametrize("b_frames", [1, 2])
@pytest.mark.parametrize("container_format", ["avi", "matroska"])
def test_packed_b_frames_are_read_in_the_order_of_a_plain_pass(container_format, b_frames):
    video = pack_pairs(container_format, b_frames)
    whole = decode_plainly(video)
    assert read_numbers(whole[:, :32, :32]) == list(range(NUM_FRAMES))
    assert_reads_like_a_plain_pass(video, whole)
    with open_video(video) as opened:
        np.testing.assert_allclose(np.diff(opened.times), 0.04, atol=1e-6)


def test_packed_and_unpacked_b_frames_are_the_same_frames():
    video = pack_pairs("avi")
    assert_reads_like_a_plain_pass(unpack_pairs(video), decode_plainly(video))


@pytest.mark.smoke
def test_clips_of_packed_b_frames_and_of_prepared_copies_are_the_plain_frames(tmp_path):
    video, how = pack_pairs("avi"), {"short_side": 64, "codec": "libx264", "crf": 0, "keyint": 8}
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


def encode_x264(container_format: str, options: str) -> bytes:
    return encode(numbered_frames(NUM_FRAMES, 64), "libx264", container_format, "yuv420p", {"x264-params": options})


@pytest.mark.parametrize("container_format", ["mp4", "mpegts", "matroska", "flv", "nut"])
@pytest.mark.parametrize("open_gop", [0, 1])
def test_groups_that_are_open_and_closed_are_read_in_the_order_of_a_plain_pass(container_format, open_gop):
    video = encode_x264(container_format, f"{X264}:keyint=9:min-keyint=9:open-gop={open_gop}")
    assert_reads_like_a_plain_pass(video)
    with open_video(video) as opened:
        assert opened.index.keyframes  # found by seeking, not by counting


@pytest.mark.parametrize("container_format", ["mp4", "mpegts"])
@pytest.mark.parametrize("b_frames", [0, 2])
def test_intra_refresh_is_decoded_from_further_back(container_format, b_frames, monkeypatch):
    video = encode_x264(container_format, f"qp=10:intra-refresh=1:keyint=10:b-adapt=0:scenecut=0:bframes={b_frames}")
    assert_reads_like_a_plain_pass(video)
    # What a decoder recovers after a while may be right only roughly, so it is not read, though here it would be exact.
    begun, decode_from_start = [], PyAVVideo._decode_from_start
    monkeypatch.setattr(
        PyAVVideo, "_decode_from_start", lambda self, wanted: begun.append(wanted) or decode_from_start(self, wanted)
    )
    decode_frames(video, [35])
    assert begun == [[35]]


def test_a_video_of_one_keyframe_is_read_in_the_order_of_a_plain_pass():
    assert_reads_like_a_plain_pass(encode_x264("mp4", f"{X264}:keyint=infinite"))


@pytest.mark.parametrize("container_format", ["matroska", "mpegts", "mp4"])
@pytest.mark.parametrize("cut", [5, 9, 12])  # in a group, at its keyframe, in the next group
def test_a_stream_cut_without_re_encoding_has_the_frames_of_a_plain_pass(container_format, cut):
    video = encode_x264("matroska", f"{X264}:keyint=9:min-keyint=9")
    assert_reads_like_a_plain_pass(mux(read_packets(video)[cut:], video, container_format))


@pytest.mark.parametrize("skipped", [0, 2])
def test_an_open_group_cut_at_its_keyframe_is_not_taken_for_damage(skipped):
    """Its frames refer back: H.264 is to forget some that are not there, and H.265 leaves out those that lack any."""
    video = encode_x264("matroska", f"{X264}:keyint=9:min-keyint=9:open-gop=1")
    assert_reads_like_a_plain_pass(mux(read_packets(video)[9 + skipped :], video, "matroska"))
    options = {"x265-params": "log-level=none:keyint=9:min-keyint=9:bframes=3:open-gop=1:scenecut=0"}
    video = encode(numbered_frames(NUM_FRAMES, 64), "libx265", "matroska", "yuv420p", options)
    packets = read_packets(video)
    second = [number for number, packet in enumerate(packets) if packet[3]][1]
    assert_reads_like_a_plain_pass(mux(packets[second + skipped :], video, "matroska"))


def test_hidden_frames_of_vp8_are_no_frames():
    options = {"deadline": "realtime", "cpu-used": "8", "g": "20"}
    video = encode(numbered_frames(NUM_FRAMES, 64), "libvpx", "webm", "yuv420p", options)
    packets = read_packets(video)
    for number in (3, 17, 30):
        data, *rest = packets[number]
        packets[number] = (bytes([data[0] & ~0x10]) + data[1:], *rest)
    video = mux(packets, video, "webm")
    assert_reads_like_a_plain_pass(video)
    with open_video(video) as opened:
        assert len(opened.times) == NUM_FRAMES - 3 and opened.index.keyframes


def test_times_that_a_container_does_not_store_are_ignored():
    """MXF without an index, and a stream whose decoding times were copied as presentation times."""
    video = encode_x264("mxf", f"{X264}:keyint=9")
    assert_reads_like_a_plain_pass(video)
    packets = [(data, number, number, key) for number, (data, _, _, key) in enumerate(read_packets(video))]
    assert_reads_like_a_plain_pass(mux(packets, encode_x264("matroska", f"{X264}:keyint=9"), "matroska"))


def test_times_that_begin_again_leave_every_frame_in_its_place():
    """Two recordings, one behind the other."""
    video = encode_x264("mpegts", f"{X264}:keyint=9") * 2
    assert_reads_like_a_plain_pass(video)
    with open_video(video) as opened:
        assert len(opened.times) == 2 * NUM_FRAMES and np.all(np.diff(opened.times) > 0)


@pytest.mark.parametrize("hidden", [3, 12, 15])  # in a group, at its end, in the next group
@pytest.mark.parametrize("container_format", ["mp4", "mov"])
def test_frames_before_the_beginning_of_an_edit_list_are_not_shown(container_format, hidden):
    video = encode_x264("mp4", f"{X264}:keyint=12:min-keyint=12")
    packets = [(data, pts - hidden, dts - hidden, is_key) for data, pts, dts, is_key in read_packets(video)]
    video = mux(packets, video, container_format)
    assert_reads_like_a_plain_pass(video)
    assert read_numbers(decode_frames(video, [0])[:, :32, :32]) == [hidden]


def test_two_frames_of_one_time_are_two_frames():
    video = encode_x264("matroska", f"{X264}:keyint=12")
    packets = read_packets(video)
    packets[7] = (packets[7][0], packets[6][1], *packets[7][2:])
    assert_reads_like_a_plain_pass(mux(packets, video, "matroska"))


def test_times_that_contradict_the_order_of_the_decoder_are_ignored():
    video = encode(numbered_frames(NUM_FRAMES, 64), "mjpeg", "matroska", "yuvj420p", {})
    packets = [(data, ((number - 1) ^ 1) + 2, number, True) for number, (data, *_) in enumerate(read_packets(video))]
    packets[0] = (packets[0][0], 0, 0, True)
    assert_reads_like_a_plain_pass(mux(packets, video, "matroska"))


def test_frames_that_are_falsely_marked_as_keyframes_are_not_begun_at():
    video = encode(numbered_frames(NUM_FRAMES, 64), "mpeg4", "matroska", "yuv420p", {"g": "40", "q": "2"})
    packets = [(data, pts, dts, True) for data, pts, dts, _ in read_packets(video)]
    assert_reads_like_a_plain_pass(mux(packets, video, "matroska"))


@pytest.mark.parametrize("length", [1, 2, 3])
def test_short_videos_are_read_like_a_plain_pass(length):
    options = {"x264-params": "bframes=3:b-adapt=0"}
    assert_reads_like_a_plain_pass(encode(numbered_frames(length, 64), "libx264", "mp4", "yuv420p", options))


def test_frames_that_were_counted_are_not_all_kept_in_memory(monkeypatch):
    video = pack_pairs("avi")
    whole = decode_frames(video, range(NUM_FRAMES))
    monkeypatch.setattr(pyav_video, "MAX_KEPT", 10_000)
    with open_video(video) as opened:
        assert not opened._kept
        np.testing.assert_array_equal(opened.read([31, 4])[0], whole[[31, 4]])


SHARED = Path(__file__).parents[3] / "shared"
REAL_FILES = sorted(
    path for folder in ("clips", "cases") for path in (SHARED / folder).glob("*.*") if path.suffix != ".md"
)


@pytest.mark.skipif(not REAL_FILES, reason="the real files are not beside the repository")
@pytest.mark.parametrize("path", REAL_FILES, ids=lambda path: path.name)
def test_real_files_are_read_like_a_plain_pass(path):
    """One frame alone, clips, evaluation, and a copy as it is: the same pixels; re-encoded: the same frames."""
    options = ReadOptions(accept_damaged=path.stem == "damaged")
    with av.open(path) as container, open_video(path, options=options) as video:
        count = sum(1 for _ in container.decode(container.streams.best("video")))
        assert len(video.times) == count
        times, frames = video.times, list(video.decode(list(range(count))))
    whole = []
    with av.open(path) as container:
        stream = container.streams.best("video")
        stream.codec_context.thread_count = 1
        for ours, theirs in zip(frames, container.decode(stream), strict=True):
            np.testing.assert_array_equal(ours.to_ndarray(), theirs.to_ndarray())
            size = upright_size(theirs)
            whole.append(next(FrameScaler()(theirs, size, np.array([(0.0, 0.0, *size)]), size)))
    whole, rng = np.stack(whole), np.random.default_rng(0)
    for indices in ([0], [count - 1], *rng.integers(0, count, (8, 4)), np.arange(0, count, max(count // 12, 1))):
        np.testing.assert_array_equal(decode_frames(path, indices, options=options), whole[indices])
    data = Data(Folder(""), num_frames=3, image_size=whole.shape[1:3], eval_clips=2, frame_stride=1, reading=options)
    for start, view in zip((0.25, 0.75), data.read_views({"video": str(path)}), strict=True):
        chosen = sample_dense(count, 3, 1, start, "loop")
        np.testing.assert_array_equal(view, whole[chosen])
        clip = data.read_clip({"video": Preparation(codec="copy").encode({"video": str(path)})}, start)
        np.testing.assert_array_equal(clip, whole[chosen])
    ready = transcode(path, short_side=1000, codec="libx264", crf=1, keyint=16, read=options, segment=(0.0, 1.0))
    second = range(probe(ready).num_frames)
    # Sides became even, and colours lost some of their places once more: brightness stays.
    small, large = (
        frames[:, : whole.shape[1] // 2 * 2, : whole.shape[2] // 2 * 2].mean(-1)
        for frames in (decode_frames(ready, second), whole[second])
    )
    assert len(second) == len(frames_between(times, 0.0, 1.0)) and np.abs(small - large).mean() < 5
