"""Decoding gives exactly the frames asked for, whatever the coding order, and refuses what it cannot read."""

import importlib.util
import io
import os
import struct
from fractions import Fraction

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vitx.data import container as container_module
from vitx.data import mp4_boxes
from vitx.data.decoding import VideoError, decode_frames, open_video, probe
from vitx.data.encoding import encode_video, mux_images, transcode
from vitx.data.pyav_video import PyAVVideo
from vitx.errors import UserError

NUM_FRAMES = 70
INTRA = {"preset": "ultrafast", "x264-params": "keyint=1:qp=10"}
LONG_GOP = {"preset": "medium", "x264-params": "qp=10"}
SHORT_GOP = {"preset": "medium", "x264-params": "qp=10:keyint=9:min-keyint=9:bframes=3:b-adapt=0:scenecut=0"}
OPEN_GOP = {"preset": "medium", "x264-params": "qp=10:keyint=9:min-keyint=9:bframes=3:open-gop=1:scenecut=0"}


def numbered_frames(num_frames: int = NUM_FRAMES, side: int = 32) -> np.ndarray:
    """Frames that carry their number as 8 black or white blocks in the top half, over a pattern that moves."""
    frames = np.full((num_frames, side, side, 3), 60, np.uint8)
    for number, frame in enumerate(frames):
        for bit in range(8):
            row, column = divmod(bit, 4)
            frame[8 * row : 8 * row + 8, 8 * column : 8 * column + 8] = 255 * (number >> bit & 1)
        frame[16:, (np.arange(8) + number) % side] = 200
    return frames


def read_numbers(frames: np.ndarray) -> list[int]:
    blocks = frames[:, :16].mean(-1).reshape(-1, 2, 8, 4, 8).mean((2, 4)).reshape(-1, 8) > 128
    return list((blocks * 2 ** np.arange(8)).sum(1))


@pytest.fixture(scope="module", params=[INTRA, LONG_GOP, SHORT_GOP, OPEN_GOP], ids=["intra", "long", "short", "open"])
def video(request) -> bytes:
    return encode_video(numbered_frames(), options=request.param)


def test_long_gop_has_reordered_frames():
    with av.open(io.BytesIO(encode_video(numbered_frames(), options=LONG_GOP))) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
    assert [p.pts for p in packets] != sorted(p.pts for p in packets)
    assert sum(p.is_keyframe for p in packets) < 5


@pytest.mark.smoke
def test_decodes_every_frame_in_order(video):
    assert read_numbers(decode_frames(video, range(NUM_FRAMES))) == list(range(NUM_FRAMES))


@settings(max_examples=25, deadline=None)
@given(indices=st.lists(st.integers(0, NUM_FRAMES - 1), max_size=12))
def test_decodes_any_indices(video, indices):
    frames = decode_frames(video, indices)
    assert frames.shape == (len(indices), 32, 32, 3) and frames.dtype == np.uint8
    np.testing.assert_array_equal(frames, decode_frames(video, range(NUM_FRAMES))[indices])
    assert read_numbers(frames) == indices


def test_decodes_close_to_the_original():
    frames = numbered_frames(12)
    decoded = decode_frames(encode_video(frames, options=INTRA), range(12))
    assert np.abs(decoded.astype(int) - frames).mean() < 3


@pytest.mark.smoke
def test_metadata_that_are_not_utf8_leave_a_video_readable():
    frames, file, title = numbered_frames(2), io.BytesIO(), b"caf\xff\xfe"
    with av.open(file, "w", format="mp4") as container:
        container.metadata["title"] = "x" * len(title)
        stream = container.add_stream("libx264", rate=25)
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))
    video = file.getvalue().replace(b"x" * len(title), title)
    assert title in video
    assert decode_frames(video, [0, 1]).shape == frames.shape and probe(video).num_frames == 2


def test_reads_paths_and_bytes_alike(video, tmp_path):
    path = tmp_path / "a:b %d.mp4"
    path.write_bytes(video)
    for source in (path, str(path)):
        np.testing.assert_array_equal(decode_frames(source, [3, 40]), decode_frames(video, [3, 40]))
        assert probe(source) == probe(video)


def test_probe_reads_the_header(video):
    info = probe(video)
    assert (info.num_frames, info.height, info.width) == (NUM_FRAMES, 32, 32)
    assert info.fps == pytest.approx(25) and info.duration == pytest.approx(NUM_FRAMES / 25, abs=0.05)


@pytest.mark.parametrize("container_format", ["matroska", "mov", "mpegts"])
def test_frames_are_counted_where_the_container_does_not(video, container_format):
    remuxed = remux(video, container_format)
    assert probe(remuxed).num_frames == NUM_FRAMES
    assert read_numbers(decode_frames(remuxed, [60, 2, 33])) == [60, 2, 33]


def remux(video: bytes, container_format: str) -> bytes:
    file = io.BytesIO()
    with av.open(io.BytesIO(video)) as source, av.open(file, "w", format=container_format) as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.size:
                packet.stream = stream
                target.mux(packet)
    return file.getvalue()


@pytest.mark.parametrize("indices", [[-1], [NUM_FRAMES], [0, 1000]])
def test_frames_beyond_the_video_are_refused(video, indices):
    with pytest.raises(IndexError, match="70 frames"):
        decode_frames(video, indices)


FORMATS = {  # (encoder, container, pixel format, its options)
    "grey": ("libx264", "mp4", "gray", {}),
    "ten bits": ("libx264", "mp4", "yuv420p10le", {}),
    "full range": ("mjpeg", "avi", "yuvj420p", {}),
    "H.265": ("libx265", "mp4", "yuv420p", {"x265-params": "log-level=none"}),
    "VP9": ("libvpx-vp9", "webm", "yuv420p", {"deadline": "realtime", "cpu-used": "8"}),
    "alpha": ("libvpx-vp9", "webm", "yuva420p", {"deadline": "realtime", "cpu-used": "8"}),
    "alpha of sixteen bits": ("ffv1", "matroska", "gbrap16le", {}),
    "AV1": ("libsvtav1", "mp4", "yuv420p", {"preset": "13"}),
    "B-frames in AVI": ("mpeg4", "avi", "yuv420p", {"bf": "2", "g": "12"}),
    "H.264 in AVI": ("libx264", "avi", "yuv420p", {"bf": "0"}),
    "MPEG-2": ("mpeg2video", "mpeg", "yuv420p", {"bf": "2"}),
    "Windows": ("wmv2", "asf", "yuv420p", {}),
    "a stream without length": ("libx264", "matroska", "yuv420p", {}),
    "GIF": ("gif", "gif", "rgb8", {}),
}


def encode(
    frames: np.ndarray, codec: str, container_format: str, pixel_format: str, options: dict[str, str], pts=None
) -> bytes:
    """Frames in any format; `pts` are their times in milliseconds."""
    file = io.BytesIO()
    live = {"live": "1"} if container_format == "matroska" else {}
    with av.open(file, "w", format=container_format, options=live) as container:
        stream = container.add_stream(codec, rate=25, options=options)
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], pixel_format
        if pts is not None:
            stream.time_base = stream.codec_context.time_base = Fraction(1, 1000)
        for number, array in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(array, format="rgb24")
            if pts is not None:
                frame.pts, frame.time_base = pts[number], Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return file.getvalue()


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.smoke
def test_any_frames_of_a_format_equal_those_of_a_whole_pass(name):
    codec, container_format, pixel_format, options = FORMATS[name]
    video = encode(numbered_frames(40, 64), codec, container_format, pixel_format, options)
    whole = decode_frames(video, range(40))
    assert read_numbers(whole[:, :32, :32]) == list(range(40))
    for indices in ([39], [3, 30, 31, 0], range(2, 40, 7)):
        np.testing.assert_array_equal(decode_frames(video, indices), whole[list(indices)])
    assert (info := probe(video)).num_frames == 40 and info.fps == pytest.approx(25, rel=0.01)
    assert decode_frames(video, [7], size=(30, 21)).shape == (1, 30, 21, 3)


@pytest.mark.parametrize("height,width", [(33, 47), (1, 1), (2, 500)])
def test_odd_and_tiny_sizes_are_read(height, width):
    frames = np.full((3, height, width, 3), 200, np.uint8)
    for pixel_format in ("yuv444p", "yuv420p"):
        video = encode(frames, "ffv1", "matroska", pixel_format, {})
        np.testing.assert_allclose(decode_frames(video, [2, 0]), frames[:2], atol=3)
        np.testing.assert_allclose(decode_frames(video, [1], size=(9, 15)), np.full((1, 9, 15, 3), 200), atol=3)


def test_times_of_a_variable_frame_rate_are_exact():
    gaps = np.random.default_rng(0).integers(7, 300, 30)
    video = encode(numbered_frames(30), "libx264", "mp4", "yuv420p", {"bf": "3"}, np.cumsum(gaps).tolist())
    with open_video(video) as opened:
        assert read_numbers(opened.read([29, 4, 17])[0]) == [29, 4, 17]
        np.testing.assert_allclose(opened.times, (np.cumsum(gaps) - gaps[0]) / 1000, atol=1e-3)


def test_a_video_of_one_frame_is_read():
    video = encode_video(numbered_frames(8)[5:6])
    with open_video(video) as opened:
        assert opened.times.tolist() == [0] and read_numbers(opened.read([0])[0]) == [5]
    assert probe(video).num_frames == 1


def test_reading_ends_at_its_deadline(monkeypatch):
    """With a clock that advances by a second whenever it is read."""
    ticks = iter(range(10_000))
    monkeypatch.setattr(container_module.time, "monotonic", lambda: float(next(ticks)))
    video = encode_video(numbered_frames(), options=LONG_GOP)
    with open_video(video, seconds=200.0) as opened:
        assert read_numbers(opened.read([5])[0]) == [5]
    for seconds in (NUM_FRAMES / 2, NUM_FRAMES + 5.0):  # while it looks for the frames, and while it decodes
        with pytest.raises(VideoError, match="too long"), open_video(video, seconds=seconds) as opened:
            opened.read(range(NUM_FRAMES))


def test_a_pipe_is_refused(tmp_path):
    os.mkfifo(tmp_path / "clip.mp4")
    with pytest.raises(VideoError, match="regular file"):
        decode_frames(tmp_path / "clip.mp4", [0])


@pytest.mark.parametrize("text", ["ffconcat version 1.0\nfile {}\n", "#EXTM3U\n#EXTINF:10,\n{}\n#EXT-X-ENDLIST\n"])
@pytest.mark.parametrize("name", ["real.ts", "pipe.ts"])
def test_a_playlist_is_refused(text, name, video, tmp_path):
    """They could be anybody's, or a pipe that nobody ever fills."""
    (tmp_path / "real.ts").write_bytes(remux(video, "mpegts"))
    os.mkfifo(tmp_path / "pipe.ts")
    for ending in ("mp4", "m3u8"):
        (tmp_path / f"clip.{ending}").write_text(text.format(name))
        with pytest.raises(VideoError, match=r"Invalid data|expected one of apng"):
            probe(tmp_path / f"clip.{ending}")


def test_frames_that_no_other_refers_to_are_skipped(monkeypatch):
    """And the others are what they would have been."""
    video, decoded = encode_video(numbered_frames(), options=LONG_GOP), []
    whole = decode_frames(video, range(NUM_FRAMES))
    decode_from = PyAVVideo._decode_from

    def counted(*args):
        for frame in decode_from(*args):
            decoded.append(frame.pts)
            yield frame

    monkeypatch.setattr(PyAVVideo, "_decode_from", counted)
    np.testing.assert_array_equal(decode_frames(video, [0, 61]), whole[[0, 61]])
    assert len(decoded) < 50


def audio_only() -> bytes:
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("aac", rate=44100, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.rate = 44100
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return file.getvalue()


def giant_gif() -> bytes:
    return b"GIF89a" + b"\xff\xff\xff\xff" + b"\x00\x00\x00" + b"\x2c\x00\x00\x00\x00\xff\xff\xff\xff\x00\x02\x00\x3b"


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("nothing", lambda: b""),
        ("text", lambda: b"not a video at all" * 100),
        ("audio only", audio_only),
        ("huge frames", giant_gif),
        ("half a file", lambda: encode_video(numbered_frames(), options=INTRA)[:2000]),
    ],
)
@pytest.mark.smoke
def test_unreadable_videos_raise_video_error(name, make):
    for read in (probe, lambda video: decode_frames(video, [0])):
        with pytest.raises(VideoError):
            read(make())


def box(name: bytes, *numbers: int) -> bytes:
    return struct.pack(f">I4s{len(numbers)}I", 8 + 4 * len(numbers), name, *numbers)


@pytest.mark.parametrize(
    ("claim", "message"),
    [
        (box(b"stsz", 0, 1, 50_000_000), "50,000,003 samples"),
        (box(b"trun", 0, 50_000_000), "50,000,003 samples"),
        (box(b"elst", 0, 50_000_000), "shown by 50,000,000 edits"),
        (box(b"moov") * 1001, "more than 1,000 boxes"),
        (box(b"cmov"), "compressed headers"),
        (box(b"stsd", 0, 1) + box(b"stsz", 0, 1, 9), "tables inside"),
    ],
)
def test_claims_beyond_the_bytes_of_a_file_are_refused_at_once(claim, message, tmp_path, monkeypatch):
    monkeypatch.setattr(mp4_boxes, "MAX_BOXES", 1000)
    whole = encode_video(numbered_frames(3))
    if b"stsd" in claim:
        claim = struct.pack(">I", len(claim)) + claim[4:]
    short = struct.pack(">I4s", 8 + len(claim), b"moof")
    long = struct.pack(">I4sQ", 1, b"moof", 16 + len(claim))
    for header in (short, long):
        (tmp_path / "clip.mp4").write_bytes(hostile := whole + header + claim)
        for video in (hostile, tmp_path / "clip.mp4"):
            with pytest.raises(VideoError, match=message):
                probe(video)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(VideoError, match=r"missing\.mp4"):
        probe(tmp_path / "missing.mp4")


def test_urls_are_not_opened():
    with pytest.raises(VideoError):
        probe("http://127.0.0.1:9/clip.mp4")


def test_a_file_cut_short_is_read_up_to_the_cut():
    whole = remux(encode_video(numbered_frames(), options=INTRA), "matroska")
    cut = whole[: int(0.6 * len(whole))]
    assert read_numbers(decode_frames(cut, [5, 0])) == [5, 0]
    assert 0 < probe(cut).num_frames < NUM_FRAMES
    with pytest.raises(IndexError):
        decode_frames(cut, [NUM_FRAMES - 1])


def test_frames_above_the_pixel_limit_are_refused(monkeypatch, video):
    monkeypatch.setattr(container_module, "MAX_PIXELS", 32 * 32 - 1)
    with pytest.raises(VideoError):
        decode_frames(video, [0])


def test_frames_that_the_encoder_refuses_raise_video_error():
    with pytest.raises(VideoError, match="no frames"):
        encode_video(np.zeros((0, 32, 32, 3), np.uint8))
    with pytest.raises(VideoError):
        encode_video(np.zeros((2, 33, 32, 3), np.uint8))


def test_frames_are_scaled_to_cover_and_cropped_at_the_centre():
    ramp = np.broadcast_to(np.linspace(0, 255, 64).astype(np.uint8)[None, None, :, None], (2, 32, 64, 3)).copy()
    video = encode_video(ramp, options={"qp": "0"})
    fitted = decode_frames(video, [1, 0], size=(16, 16))
    assert fitted.shape == (2, 16, 16, 3)
    np.testing.assert_allclose(fitted[0, 8, :, 0], np.linspace(64, 191, 16), atol=6)
    np.testing.assert_array_equal(decode_frames(video, [0, 1], size=(32, 64)), decode_frames(video, [0, 1]))
    assert decode_frames(video, [0], size=(50, 21)).shape == (1, 50, 21, 3)


UNTURNED = bytes.fromhex("00010000 00000000 00000000 00000000 00010000 00000000 00000000 00000000 40000000")
TURNS = {  # the display matrix of an mp4's track, and what a player does
    1: "00000000 00010000 00000000 ffff0000 00000000 00000000 00000000 00000000 40000000",
    2: "ffff0000 00000000 00000000 00000000 ffff0000 00000000 00000000 00000000 40000000",
    3: "00000000 ffff0000 00000000 00010000 00000000 00000000 00000000 00000000 40000000",
}


@pytest.mark.parametrize("clockwise", TURNS)
def test_frames_are_turned_upright_by_the_display_matrix(clockwise):
    frames = np.zeros((2, 32, 64, 3), np.uint8)
    frames[:, :16, :16] = 255  # top left
    video = encode_video(frames, options={"qp": "0"})
    track = video.index(UNTURNED, video.index(b"tkhd"))
    turned = video[:track] + bytes.fromhex(TURNS[clockwise]) + video[track + len(UNTURNED) :]
    expected = np.rot90(frames, -clockwise, axes=(1, 2))
    np.testing.assert_allclose(decode_frames(turned, [0, 1]).astype(int), expected, atol=3)
    assert decode_frames(turned, [0], size=(16, 8)).shape == (1, 16, 8, 3)


def test_frames_too_long_and_narrow_are_refused():
    video = encode_video(np.zeros((1, 2, 4096, 3), np.uint8))
    with pytest.raises(VideoError, match="too long and narrow to cover 448 x 448"):
        decode_frames(video, [0], size=(448, 448))


@pytest.mark.smoke
def test_transcoded_frames_keep_their_times_and_are_upright():
    def frames(height, width):
        return encode_video(np.zeros((3, height, width, 3), np.uint8))

    gaps = np.cumsum(np.random.default_rng(0).integers(7, 300, 30)).tolist()
    uneven = encode(numbered_frames(30, 64), "libx264", "matroska", "yuv420p", {"bf": "3"}, gaps)
    how = {"short_side": 64, "codec": "libx264", "crf": 10, "keyint": 8}
    with open_video(uneven) as before, open_video(transcode(uneven, **how)) as after:
        for video in (before, after):
            assert read_numbers(video.read(range(30))[0, :, :32, :32]) == [*range(30)]
        np.testing.assert_allclose(before.times, after.times, atol=1e-3)
    assert probe(transcode(frames(250, 90), **(how | {"short_side": 46}))).height == 128
    assert probe(transcode(frames(50, 90), **how)).height == 50
    turned = frames(64, 96)
    track = turned.index(UNTURNED, turned.index(b"tkhd"))
    turned = turned[:track] + bytes.fromhex(TURNS[1]) + turned[track + len(UNTURNED) :]
    assert (probe(transcode(turned, **how)).height, probe(transcode(turned, **how)).width) == (96, 64)
    part = transcode(uneven, **how, segment=(1.0, 2.0))
    inside = [i for i, time in enumerate(before.times) if 1 <= time < 2]
    assert read_numbers(decode_frames(part, range(len(inside)))[:, :32, :32]) == inside


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_images_become_a_video(kind, mode):
    images = []
    for frame in numbered_frames(20):
        Image.fromarray(frame).convert(mode).save(file := io.BytesIO(), kind, quality=95)
        images.append(file.getvalue())
    video = mux_images(images, fps=10)
    assert read_numbers(decode_frames(video, [19, 0, 7])) == [19, 0, 7]
    assert probe(video).num_frames == 20 and probe(video).fps == 10
    for wrong in ([], [b"GIF89a"]):
        with pytest.raises(VideoError, match="PNG or JPEG"):
            mux_images(wrong)


@pytest.mark.skipif(importlib.util.find_spec("torchcodec") is not None, reason="torchcodec is installed")
def test_a_missing_torchcodec_is_an_error_that_names_the_package(video):
    with pytest.raises(UserError, match="pip install torchcodec"):
        decode_frames(video, [0], decoder="torchcodec")


@pytest.mark.peers
def test_torchcodec_reads_the_same_frames(video):
    """With FFmpeg's shared libraries: the same frames, upright, and the same pixels up to colour conversion."""
    indices = [61, 3, 3, 40]
    try:
        theirs = decode_frames(video, indices, decoder="torchcodec")
    except UserError as error:
        pytest.skip(str(error))
    assert read_numbers(theirs) == indices
    np.testing.assert_allclose(theirs.astype(int), decode_frames(video, indices), atol=3)
    small = decode_frames(video, indices, size=(16, 16), decoder="torchcodec").astype(int)
    assert np.abs(small - decode_frames(video, indices, size=(16, 16))).mean() < 3
    track = video.index(UNTURNED, video.index(b"tkhd"))
    turned = video[:track] + bytes.fromhex(TURNS[1]) + video[track + len(UNTURNED) :]
    upright = decode_frames(turned, [5], decoder="torchcodec").astype(int)
    np.testing.assert_allclose(upright, decode_frames(turned, [5]), atol=3)
    with pytest.raises(VideoError):
        decode_frames(b"no video", [0], decoder="torchcodec")
