"""Frames that the decoder finds damaged make a clip unreadable, and are named; a setting accepts them."""

import contextlib
import json
import logging
import re
from pathlib import Path

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from tests.data.test_decoding import encode, remux
from tests.data.test_same_frames import mux, read_packets
from vitx.cli import main
from vitx.data.check import check
from vitx.data.decoding import ReadOptions, VideoError, decode_frames, open_video
from vitx.data.encoding import transcode
from vitx.data.files import Folder
from vitx.data.pipeline import Data, decode_error

NUM_FRAMES = 40
FORMATS = {  # (encoder, container, pixel format, its options), whose decoders notice most of what is overwritten
    # FFmpeg marks some H.264 frames as corrupt only when it returns them, after B-frames that refer to them.
    "H.264": ("libx264", "matroska", "yuv420p", {"bf": "0"}),
    "H.264 in AVI": ("libx264", "avi", "yuv420p", {"bf": "0"}),
    "MPEG-4": ("mpeg4", "avi", "yuv420p", {"q": "3"}),
    "MPEG-4 with B-frames": ("mpeg4", "avi", "yuv420p", {"q": "3", "bf": "2"}),
    "MPEG-2": ("mpeg2video", "mpeg", "yuv420p", {"q": "3", "bf": "2"}),
    "Windows": ("wmv2", "asf", "yuv420p", {}),
    "checksums": ("ffv1", "matroska", "yuv420p", {"slicecrc": "1", "slices": "4", "level": "3"}),
}


@pytest.fixture(scope="module")
def scene() -> np.ndarray:
    """A camera that pans over a texture."""
    noise = np.random.default_rng(0).normal(0, 1, (160, 300, 3))
    texture = (gaussian_filter(noise, (3, 3, 0)) * 600 + 120).clip(0, 255).astype(np.uint8)
    return np.stack([texture[20:116, 3 * t : 3 * t + 144] for t in range(NUM_FRAMES)])


def damage_packet(video: bytes, container_format: str, number: int, seed: int) -> bytes:
    """A video with other bytes in the middle half of one packet's data; the container stays sound."""
    rng, packets = np.random.default_rng(seed), read_packets(video)
    data, *rest = packets[number]
    at = int(rng.integers(len(data) // 4, 3 * len(data) // 4))
    packets[number] = (data[:at] + rng.bytes(min(8, len(data) - at)) + data[at + 8 :], *rest)
    return mux(packets, video, container_format)


def count_problems(video: bytes) -> int:
    """Number of frames of one plain pass of the decoder that are damaged."""
    with open_video(video) as opened:
        return sum(decoded.frame.is_corrupt or decoded.problem is not None for decoded in opened._decode_plainly())


def is_logged(video: bytes) -> bool:
    """Whether FFmpeg logs the first damage while it decodes the packet, and does not only mark the frame afterwards."""
    with open_video(video) as opened:
        problem = next((decoded.problem for decoded in opened._decode_plainly() if decoded.problem), None)
    return problem is not None and "marks it as corrupt" not in problem


@pytest.mark.parametrize("name", FORMATS)
def test_every_frame_that_is_off_after_the_decoder_complains_is_reported(name, scene):
    """Where it does not complain, nothing can be known: a decoder shows what the bytes say."""
    codec, container_format, pixel_format, options = FORMATS[name]
    video = encode(scene, codec, container_format, pixel_format, options)
    sound, num_noticed = decode_frames(video, range(NUM_FRAMES)).astype(int), 0
    for seed in range(6):
        damaged = damage_packet(video, container_format, 3 + 6 * seed, seed)
        is_noticed = count_problems(damaged)
        num_noticed += bool(is_noticed)
        for index in range(0, NUM_FRAMES, 3):
            try:
                (frame,) = decode_frames(damaged, [index])
            except VideoError as error:
                assert is_noticed and str(index) in str(error)
            else:
                assert not is_noticed or np.abs(frame - sound[index]).max() <= 3, (seed, index)
    assert num_noticed >= 1


@pytest.mark.parametrize("name", FORMATS)
def test_sound_videos_are_never_reported(name, scene):
    codec, container_format, pixel_format, options = FORMATS[name]
    video = encode(scene, codec, container_format, pixel_format, options)
    assert count_problems(video) == 0
    assert decode_frames(video, range(NUM_FRAMES)).shape == scene.shape


@pytest.fixture(scope="module")
def damaged(scene) -> tuple[bytes, int]:
    """A video with two keyframes, 0 and 20, and its first damaged frame."""
    video = encode(scene, "libx264", "matroska", "yuv420p", {"g": "20", "bf": "0"})
    for seed in range(50):
        damaged = damage_packet(video, "matroska", 10, seed)
        if count_problems(damaged):
            return damaged, 10
    raise AssertionError("the decoder notices the damage of no seed")


def _is_damaged(video: bytes, index: int) -> bool:
    try:
        decode_frames(video, [index])
    except VideoError:
        return True
    return False


def test_damage_lasts_until_the_next_keyframe(damaged):
    video, first = damaged
    assert not any(_is_damaged(video, index) for index in range(first))
    assert any(_is_damaged(video, index) for index in range(first + 1, 20))
    assert not any(_is_damaged(video, index) for index in range(20, NUM_FRAMES))
    assert decode_frames(video, range(20, NUM_FRAMES)).shape[0] == 20


def test_frames_that_are_shown_before_a_keyframe_share_the_damage_of_those_before_it(scene):
    """In an open group they are decoded after the keyframe, and refer to both sides of it."""
    options = {"x264-params": "keyint=10:min-keyint=10:bframes=3:b-adapt=0:scenecut=0:open-gop=1"}
    video = encode(scene, "libx264", "matroska", "yuv420p", options)
    packets = read_packets(video)
    key = [number for number, packet in enumerate(packets) if packet[3]][2]
    leading = [packet[1] for packet in packets[key + 1 :] if packet[1] < packets[key][1]]
    assert leading
    # Of some damage the decoder tells while it decodes the packet, of other only when it returns the frame.
    videos = [damage_packet(video, "matroska", key - 4, seed) for seed in range(30)]  # what was shown last before them
    noticed = [damaged for damaged in videos if count_problems(damaged)]
    assert {is_logged(damaged) for damaged in noticed} == {True, False}
    for damaged in noticed:
        assert all(_is_damaged(damaged, index) for index in leading)
        assert not any(_is_damaged(damaged, index) for index in range(packets[key][1], NUM_FRAMES, 3))


def test_damaged_frames_are_returned_where_they_are_accepted(damaged):
    video, first = damaged
    accepted = decode_frames(video, range(NUM_FRAMES), options=ReadOptions(accept_damaged=True))
    assert len(accepted) == NUM_FRAMES
    np.testing.assert_array_equal(decode_frames(video, range(first)), accepted[:first])
    how = {"short_side": 96, "codec": "libx264", "crf": 20, "keyint": 8}
    with pytest.raises(VideoError, match=f"frame {first} "):
        transcode(video, **how)
    assert transcode(video, **how, read=ReadOptions(accept_damaged=True))
    assert transcode(video, **how, segment=(0.0, (first - 1) / 25))


@pytest.mark.smoke
def test_check_names_file_frame_and_time_of_damage(damaged, scene, tmp_path, capsys):
    video, first = damaged
    (tmp_path / "class").mkdir()
    (tmp_path / "class" / "damaged.mkv").write_bytes(video)
    (tmp_path / "class" / "sound.mkv").write_bytes(encode(scene, "libx264", "matroska", "yuv420p", {}))
    dataset = Folder(str(tmp_path), validation=0.0, test=0.0)
    (problem,) = check(dataset.splits(), whole=True)["broken"]
    assert problem["path"].endswith("damaged.mkv")
    assert re.search(rf"damaged\.mkv: frame {first} .*\({first / 25:.2f} s\)", problem["problem"])
    assert check(dataset.splits(), whole=True, reading=ReadOptions(accept_damaged=True))["broken"] == []
    arguments = ["data", "check", str(tmp_path), "--whole", "--json"]
    assert main(arguments) == 1
    assert len(json.loads(capsys.readouterr().out)["broken"]) == 1
    assert main([*arguments, "--accept_damaged"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert report["broken"] == [] and len(report["problems"]) == 3  # one class, no validation, no test


def test_a_damaged_clip_is_replaced_like_an_unreadable_video(damaged, scene, tmp_path):
    video, first = damaged
    (tmp_path / "class").mkdir()
    (tmp_path / "class" / "damaged.mkv").write_bytes(video)
    (tmp_path / "class" / "sound.mkv").write_bytes(encode(scene, "libx264", "matroska", "yuv420p", {}))
    dataset = Folder(str(tmp_path), validation=0.0, test=0.0)
    data = Data(dataset, num_frames=NUM_FRAMES, frame_stride=1, image_size=(16, 16), batch_size=2, max_unreadable=1.0)
    (batch,) = data.train_batches(dataset.open("train"), 0, range(1))
    assert (batch["unreadable_index"] >= 0).sum() == 1
    (message,) = filter(None, map(decode_error, batch["error"]))
    assert "damaged.mkv" in message and f"frame {first} " in message
    accepting = Data(**{**vars(data), "reading": ReadOptions(accept_damaged=True)})
    (batch,) = accepting.train_batches(dataset.open("train"), 0, range(1))
    assert (batch["unreadable_index"] == -1).all()


def test_messages_of_ffmpeg_are_collected_and_not_printed(damaged, caplog, capfd):
    """Also those of a file that is cut short, which are no damage of a frame."""
    video, _ = damaged
    with caplog.at_level(logging.DEBUG):
        assert any(_is_damaged(video, index) for index in range(NUM_FRAMES))
        cut = remux(video, "matroska")
        with contextlib.suppress(VideoError):
            decode_frames(cut[: len(cut) // 2], [0])
    assert not [record for record in caplog.records if record.name.startswith("libav")]
    assert capfd.readouterr() == ("", "")


CASES = Path(__file__).parents[3] / "shared" / "cases"


@pytest.mark.skipif(not CASES.exists(), reason="the real files are not beside the repository")
def test_a_real_damaged_file_is_reported_and_its_sound_twin_is_not():
    assert not any(_is_damaged(CASES / "undamaged.mkv", index) for index in range(40))
    damaged = [index for index in range(40) if _is_damaged(CASES / "damaged.mkv", index)]
    assert {11, 12} <= set(damaged)  # where the decoder complains, until the keyframe at 20
    assert max(damaged) < 20
