"""Sliding windows: they cover a video, and their clips are those that reading each window alone gives."""

import dataclasses

import numpy as np
import pytest

from vitx.data.decoding import VideoError, open_video
from vitx.data.encoding import encode_video
from vitx.data.files import Folder
from vitx.data.pipeline import Data
from vitx.data.windows import EvaluationReader, SlidingWindows, read_windows, video_seconds, whole_video
from vitx.errors import UserError

TIMES = np.arange(100) / 25  # four seconds


def list_bounds(windows):
    return [(round(window.start, 3), round(window.end, 3)) for window in windows]


def test_windows_in_seconds_and_in_frames_cover_the_video():
    assert video_seconds(TIMES) == pytest.approx(4)
    expected = [(0, 1.5), (1, 2.5), (2, 3.5), (2.5, 4)]
    assert list_bounds(SlidingWindows.parse("1.5s", "1").plan(TIMES)) == expected
    in_frames = SlidingWindows.parse("38f", "25f").plan(TIMES)
    assert list_bounds(in_frames) == [(0, 1.52), (1, 2.52), (2, 3.52), (2.48, 4)]
    assert [len(window.frames) for window in in_frames] == [38] * 4
    assert list_bounds(SlidingWindows.parse("2s").plan(TIMES)) == [(0, 2), (1, 3), (2, 4)]
    assert list_bounds(SlidingWindows.parse("9s").plan(TIMES)) == [(0, 4)] == list_bounds(whole_video(TIMES))


@pytest.mark.parametrize(("rate", "length", "count"), [(10, "1.6s", 16), (30, "0.533333s", 16), (20, "1.6s", 32)])
def test_windows_lose_no_frame_to_rounding(rate, length, count):
    times = (np.arange(300) / rate).round(3)  # Matroska's milliseconds
    for windows in (SlidingWindows.parse(length), SlidingWindows.parse(length, "0.2")):
        assert min(len(window.frames) for window in windows.plan(times)[:-1]) >= count - (rate == 30)
    (first, *_) = SlidingWindows.parse("1.6s", "0.8s").plan(np.arange(300) / 10)
    assert first.frames.tolist() == list(range(16))


@pytest.mark.parametrize(
    ("words", "found"),
    [(("0s",), "0s"), (("four",), "four"), (("2.5f",), "2.5f"), (("2s", "8f"), "8f"), (("2s", "3s"), "3s")],
)
def test_windows_that_are_none_are_refused(words, found):
    with pytest.raises(UserError, match=found):
        SlidingWindows.parse(*words)


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    frames = np.random.default_rng(0).integers(0, 255, (40, 30, 40, 3), np.uint8)
    path = tmp_path_factory.mktemp("clips") / "clip.mp4"
    path.write_bytes(encode_video(frames, options={"x264-params": "keyint=9:bframes=2"}))
    return str(path)


def test_one_pass_reads_the_views_that_each_window_alone_has(clip):
    data = Data(Folder("videos"), num_frames=4, frame_stride=2, image_size=(16, 16), eval_clips=2, eval_crops=3)
    reader = EvaluationReader(data)
    with reader.open(clip, 60.0) as video:
        windows = SlidingWindows.parse("0.6s", "0.2s").plan(video.times)
        found = list(read_windows(reader, video, windows))
    assert len(found) == len(windows) == 6
    for window, views in zip(windows, found, strict=True):
        alone = data.read_views({"video": clip, "segment": (round(window.start, 6), round(window.end, 6))})
        np.testing.assert_array_equal(views, alone)
    with reader.open(clip, 60.0) as video:
        (whole,) = read_windows(reader, video, whole_video(video.times))
    np.testing.assert_array_equal(whole, data.read_views({"video": clip}))


def test_windows_shorter_than_the_clip_are_refused_and_a_short_video_is_not(clip):
    data = Data(Folder("videos"), num_frames=16, image_size=(16, 16))
    reader = EvaluationReader(data)
    with pytest.raises(VideoError, match=r"clip\.mp4.* 10 frames.* 16"), reader.open(clip, 60.0) as video:
        list(read_windows(reader, video, SlidingWindows.parse("10f").plan(video.times)))
    long = EvaluationReader(dataclasses.replace(data, num_frames=64))
    with long.open(clip, 60.0) as video:
        (views,) = read_windows(long, video, SlidingWindows.parse("100f").plan(video.times))
    assert views.shape == (1, 64, 16, 16, 3)


def test_frames_are_read_one_by_one_as_all_at_once(clip):
    with open_video(clip) as video:
        frames = [0, 3, 17, 39]
        together = video.read(frames, size=(12, 10))
        one_by_one = list(video.read_each(frames, size=(12, 10)))
    np.testing.assert_array_equal(np.stack(one_by_one, axis=1), together)
