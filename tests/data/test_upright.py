"""Frames are shown as a player shows them: the film of a file, upright, with square pixels, whatever their sizes."""

import io
import itertools
import json
import struct
from fractions import Fraction

import av
import numpy as np
import pytest
from PIL import Image, ImageOps

from tests.data.test_decoding import UNTURNED, encode, numbered_frames, read_numbers
from vitx.cli import main
from vitx.data import upright
from vitx.data.check import check
from vitx.data.decoding import ReadOptions, VideoError, decode_frames, open_video, probe
from vitx.data.encoding import encode_video, mux_images, transcode
from vitx.data.files import Folder
from vitx.data.pipeline import Data

HOW = {"short_side": 64, "codec": "libx264", "crf": 1, "keyint": 8}
ORIENTATIONS = {  # (a, b, c, d) of a display matrix, and what it does to [t, h, w, 3]: x' = a x + c y, y' = b x + d y
    "as stored": ((1, 0, 0, 1), lambda v: v),
    "a quarter clockwise": ((0, 1, -1, 0), lambda v: np.rot90(v, -1, (1, 2))),
    "half a turn": ((-1, 0, 0, -1), lambda v: v[:, ::-1, ::-1]),
    "a quarter counter-clockwise": ((0, -1, 1, 0), lambda v: np.rot90(v, 1, (1, 2))),
    "mirrored": ((-1, 0, 0, 1), lambda v: v[:, :, ::-1]),
    "upside down": ((1, 0, 0, -1), lambda v: v[:, ::-1]),
    "transposed": ((0, 1, 1, 0), lambda v: v.swapaxes(1, 2)),
    "transposed along the other diagonal": ((0, -1, -1, 0), lambda v: v.swapaxes(1, 2)[:, ::-1, ::-1]),
}


def turned(video: bytes, matrix: tuple[float, ...]) -> bytes:
    """An mp4 with another display matrix."""
    a, b, c, d = (round(65536 * value) for value in matrix)
    track = video.index(UNTURNED, video.index(b"tkhd"))
    return video[:track] + struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 2**30) + video[track + len(UNTURNED) :]


@pytest.fixture(scope="module")
def corner() -> tuple[np.ndarray, bytes]:
    """Frames with a bright corner at the top left and a grey one at the top right, and their video."""
    frames = np.zeros((4, 32, 64, 3), np.uint8)
    frames[:, :16, :16], frames[:, :16, 48:] = 250, 120
    return frames, encode_video(frames, options={"qp": "0"})


@pytest.mark.parametrize("name", ORIENTATIONS)
@pytest.mark.smoke
def test_all_eight_orientations_of_a_display_matrix_are_read_upright(name, corner, tmp_path):
    matrix, show = ORIENTATIONS[name]
    frames, video = corner
    expected = show(frames)
    video = turned(video, matrix)
    np.testing.assert_allclose(decode_frames(video, range(4)).astype(int), expected, atol=3)
    np.testing.assert_allclose(decode_frames(transcode(video, **HOW), range(4)).astype(int), expected, atol=6)
    # The left and the right crop of a clip are those of what is shown.
    data = Data(Folder(""), num_frames=2, frame_stride=1, image_size=(32, 32), eval_crops=3)
    views = data.read_views({"video": video}).astype(int)
    for view, place in zip(views, (0, 16, 32), strict=True):
        long_side = expected.shape[2] > expected.shape[1]
        crop = expected[:2, :, place : place + 32] if long_side else expected[:2, place : place + 32]
        np.testing.assert_allclose(view, crop, atol=6)


@pytest.mark.parametrize(
    ("matrix", "name"),
    [
        ((0.02, 1, -1, 0.02), "a quarter clockwise"),  # held a little askew
        ((-0.9, 0.2, 0.2, 0.9), "mirrored"),
        ((2, 0, 0, -2), "upside down"),  # scaled too
        ((0, 0, 0, 0), "as stored"),  # says nothing
        ((1, 1, 1, 1), "as stored"),
    ],
)
def test_other_display_matrices_are_read_as_the_nearest_orientation(matrix, name, corner):
    frames, video = corner
    np.testing.assert_allclose(decode_frames(turned(video, matrix), [0]), ORIENTATIONS[name][1](frames)[:1], atol=3)


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_pictures_of_cameras_are_turned_as_their_exif_data_say(kind):
    frame = np.zeros((32, 64, 3), np.uint8)
    frame[:16, :16], frame[:16, 48:] = 250, 120
    for number in range(1, 9):
        picture = Image.fromarray(frame)
        exif = picture.getexif()
        exif[0x0112] = number  # orientation
        picture.save(file := io.BytesIO(), kind, exif=exif)
        expected = ImageOps.exif_transpose(Image.open(file))
        video = mux_images([file.getvalue()] * 2)
        np.testing.assert_allclose(decode_frames(video, [1])[0].astype(int), expected, atol=3)


def encode_with_pixels(aspect: Fraction, codec: str = "libx264", container_format: str = "mp4") -> bytes:
    """Frames of 32 x 64 pixels that are `aspect` as wide as high."""
    file = io.BytesIO()
    with av.open(file, "w", format=container_format) as container:
        stream = container.add_stream(codec, rate=25)
        stream.height, stream.width, stream.pix_fmt = 32, 64, "yuv420p"
        stream.codec_context.sample_aspect_ratio = aspect
        for frame in numbered_frames(4, 64)[:, :32]:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))
    return file.getvalue()


@pytest.mark.parametrize("codec,container_format", [("libx264", "mp4"), ("libx264", "matroska"), ("mpeg4", "avi")])
def test_pixels_that_are_not_square_become_square_unless_a_setting_says_not_to(codec, container_format):
    for aspect, width in ((Fraction(2), 128), (Fraction(1, 2), 32), (Fraction(16, 11), 93), (Fraction(640, 639), 64)):
        video = encode_with_pixels(aspect, codec, container_format)
        assert decode_frames(video, [1]).shape == (1, 32, width, 3)
        assert decode_frames(video, [1], options=ReadOptions(square_pixels=False)).shape == (1, 32, 64, 3)
        ready = transcode(video, **HOW)
        assert decode_frames(ready, [1]).shape == (1, 32, width // 2 * 2, 3) or width == 93
        stored = probe(transcode(video, **HOW, read=ReadOptions(square_pixels=False)))
        assert (stored.height, stored.width, stored.pixel_aspect) == (32, 64, 1)


def test_pixels_of_a_turned_video_are_made_square_before_it_is_turned():
    video = turned(encode_with_pixels(Fraction(2)), (0, 1, -1, 0))
    assert decode_frames(video, [0]).shape == (1, 128, 32, 3)
    upright = decode_frames(encode_with_pixels(Fraction(2)), [0])
    np.testing.assert_allclose(decode_frames(video, [0]), np.rot90(upright, -1, (1, 2)), atol=3)


def test_pixels_too_wide_to_become_square_are_refused(monkeypatch):
    monkeypatch.setattr(upright, "MAX_PIXELS", 32 * 64 * 10)
    video = encode_with_pixels(Fraction(20))
    with pytest.raises(VideoError, match=r"32 x 64.* 20 "):
        decode_frames(video, [0])
    assert decode_frames(video, [0], options=ReadOptions(square_pixels=False)).shape == (1, 32, 64, 3)


def test_check_reports_pixels_that_are_not_square(tmp_path, capsys):
    for number, aspect in enumerate((Fraction(1), Fraction(16, 11), Fraction(16, 11))):
        path = tmp_path / "class" / f"{number}.mp4"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(encode_with_pixels(aspect) + bytes([0, 0, 0, 9]) + b"free" + bytes([number]))
    report = check(Folder(str(tmp_path)).splits())
    assert report["pixel_aspects"] == {"16:11": 2, "1:1": 1}
    assert main(["data", "check", str(tmp_path), "--stored_pixels"]) == 1  # one class, three videos
    assert "16:11 (2)" in capsys.readouterr().out


def mux_streams(*streams: tuple[np.ndarray, str, int], container_format: str = "matroska") -> bytes:
    """Video streams of (frames, encoder, disposition) in one file."""
    file = io.BytesIO()
    with av.open(file, "w", format=container_format) as container:
        opened = []
        for frames, codec, disposition in streams:
            stream = container.add_stream(codec, rate=25)
            stream.height, stream.width = frames.shape[1:3]
            stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
            stream.disposition = disposition
            opened.append(stream)
        for stream, (frames, *_) in zip(opened, streams, strict=True):
            for frame in frames:
                container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
            container.mux(stream.encode(None))
    return file.getvalue()


COVER, DEFAULT = av.stream.Disposition.attached_pic, av.stream.Disposition.default
FILM, PREVIEW = numbered_frames(20, 64), numbered_frames(1, 128)


@pytest.mark.parametrize(
    "before",
    [
        [(PREVIEW, "mjpeg", 0)],  # no flag says what it is
        [(PREVIEW, "mjpeg", DEFAULT)],
        [(PREVIEW, "libx264", DEFAULT), (PREVIEW, "mjpeg", 0)],
    ],
    ids=["one", "default", "two"],
)
def test_the_film_of_a_file_is_read_and_never_a_preview(before):
    video = mux_streams(*before, (FILM, "libx264", 0))
    assert read_numbers(decode_frames(video, range(20))[:, :32, :32]) == list(range(20))
    assert probe(video).num_frames == 20
    assert probe(transcode(video, **HOW)).num_frames == 20
    assert probe(video, options=ReadOptions(stream=0)).num_frames == 1
    assert probe(video, options=ReadOptions(stream=len(before))).num_frames == 20


def test_of_two_films_the_one_that_ffmpeg_takes_is_read_unless_another_is_named():
    small, large = numbered_frames(20, 32), numbered_frames(20, 64)[::-1]
    pairs = [*itertools.permutations(((small, "libx264", 0), (large, "libx264", 0)))]
    for first, second in [*pairs, ((small, "libx264", 0), (large, "libx264", DEFAULT))]:
        video = mux_streams(first, second)
        with av.open(io.BytesIO(video)) as container:
            best = container.streams.best("video").index
        assert probe(video).height == (first, second)[best][0].shape[1]
        for number, (frames, *_) in enumerate((first, second)):
            assert probe(video, options=ReadOptions(stream=number)).height == frames.shape[1]
    for number in (2, 7):
        with pytest.raises(VideoError, match=rf"2 video streams.*{number}"):
            probe(video, options=ReadOptions(stream=number))
    with pytest.raises(ValueError, match="-1"):
        ReadOptions(stream=-1)


def test_a_film_of_an_unknown_codec_is_left_for_one_that_can_be_read():
    codec = b"V_MPEG4/ISO/AVC"
    video = mux_streams((FILM, "libx264", DEFAULT), (FILM, "mpeg4", 0)).replace(codec, codec[:-3] + b"XYZ")
    assert probe(video).codec == "mpeg4" and probe(video).num_frames == 20
    with pytest.raises(VideoError, match="unknown codec"):
        probe(video, options=ReadOptions(stream=0))


def test_a_file_of_nothing_but_one_picture_is_read_as_one_frame():
    assert probe(mux_streams((PREVIEW, "mjpeg", 0))).num_frames == 1


def encode_changing(codec: str) -> bytes:
    """Twenty frames of 64 x 64 pixels, then twenty of 32 x 64."""
    halves = (numbered_frames(40, 64)[:20], numbered_frames(40, 64)[20:, :32])
    if codec == "libx264":  # two recordings, one behind the other
        return b"".join(encode(half, codec, "mpegts", "yuv420p", {"bf": "0", "qp": "4"}) for half in halves)
    packets, sources = [], [encode(half, codec, "webm", "yuv420p", {"crf": "4", "b": "2000000"}) for half in halves]
    file = io.BytesIO()
    with av.open(io.BytesIO(sources[0])) as template, av.open(file, "w", format="webm") as container:
        stream = container.add_stream_from_template(template.streams.video[0])
        for source in sources:
            with av.open(io.BytesIO(source)) as half:
                packets += [(bytes(packet), packet.is_keyframe) for packet in half.demux(video=0) if packet.size]
        for number, (data, is_keyframe) in enumerate(packets):
            packet = av.Packet(data)
            packet.pts = packet.dts = number
            packet.time_base, packet.is_keyframe, packet.stream = Fraction(1, 25), is_keyframe, stream
            container.mux(packet)
    return file.getvalue()


@pytest.mark.parametrize("codec", ["libx264", "libvpx"])
def test_a_frame_size_that_changes_within_a_file_changes_no_size_of_a_clip(codec):
    video = encode_changing(codec)
    whole = decode_frames(video, range(40), size=(32, 32))
    for index in (0, 5, 19, 20, 33, 39):  # the same alone, whatever size the first frame of a clip has
        np.testing.assert_array_equal(decode_frames(video, [index], size=(32, 32))[0], whole[index])
    assert decode_frames(video, [0, 39]).shape == (2, 64, 64, 3)
    assert decode_frames(video, [39, 25]).shape == (2, 32, 64, 3)
    ready = transcode(video, **HOW)
    assert probe(ready).num_frames == 40 and decode_frames(ready, [0, 39]).shape == (2, 64, 64, 3)
    data = Data(Folder(""), num_frames=8, frame_stride=5, image_size=(32, 32))
    assert data.read_clip({"video": video}, 0.5, np.random.default_rng(0)).shape == (8, 32, 32, 3)
    assert data.read_views({"video": video}).shape == (1, 8, 32, 32, 3)


def test_settings_of_reading_are_given_on_the_command_line(tmp_path, capsys):
    (tmp_path / "videos" / "class").mkdir(parents=True)
    (tmp_path / "videos" / "class" / "a.mkv").write_bytes(mux_streams((PREVIEW, "mjpeg", 0), (FILM, "libx264", 0)))
    assert main(["data", "check", str(tmp_path / "videos"), "--stream", "0", "--json"]) == 1  # one class, one video
    assert json.loads(capsys.readouterr().out)["sizes"] == {"128x128": 1}
    arguments = [str(tmp_path / "videos"), str(tmp_path / "ready"), "--stream", "0", "--json"]
    assert not main(["data", "prepare", *arguments])
    with open_video(next(iter(Folder(str(tmp_path / "videos")).splits().values()))[0]["video"]) as video:
        assert len(video.times) == 20
