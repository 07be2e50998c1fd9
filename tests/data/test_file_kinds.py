"""Animations and folders of pictures are read where FFmpeg reads them; what is not read is named with the reason."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.data.test_decoding import numbered_frames, read_numbers
from vitx.cli import main
from vitx.data import file_kinds
from vitx.data.check import check
from vitx.data.decoding import VideoError, decode_frames, open_video, probe
from vitx.data.file_kinds import ENDINGS, UNREAD, read_video
from vitx.data.files import Folder, Table
from vitx.data.pipeline import Data
from vitx.data.preparation import Preparation, prepare
from vitx.errors import UserError

FRAMES = numbered_frames(12, 64)


def animation(kind: str) -> bytes:
    first, *others = map(Image.fromarray, FRAMES)
    first.save(file := io.BytesIO(), kind, save_all=True, append_images=others, duration=40)
    return file.getvalue()


def write_pictures(folder: Path, kind: str = "png") -> None:
    """Frames by their numbers, without leading zeros."""
    folder.mkdir(parents=True)
    for number, frame in enumerate(FRAMES):
        Image.fromarray(frame).save(folder / f"frame_{number}.{kind}", quality=95)


@pytest.mark.parametrize("kind", ["GIF", "PNG", "AVIF"])
def test_animations_are_read_as_videos(kind):
    video = animation(kind)
    assert probe(video).num_frames == 12
    for indices in (range(12), [7], [11, 0, 3]):
        assert read_numbers(decode_frames(video, indices)[:, :32, :32]) == list(indices)
    with open_video(video) as opened:
        np.testing.assert_allclose(np.diff(opened.times), 0.04, atol=0.005)


def test_an_animation_that_is_not_decoded_is_refused():
    with pytest.raises(VideoError):
        probe(animation("WEBP"))


@pytest.mark.parametrize("kind", ["png", "jpg"])
@pytest.mark.smoke
def test_a_folder_of_pictures_is_a_video(kind, tmp_path):
    for name in ("walk/first", "walk/second", "fall/only"):
        write_pictures(tmp_path / "videos" / name, kind)
    dataset = Folder(str(tmp_path / "videos"), validation=0.0, test=0.0)
    source = dataset.open("train")
    assert [Path(path).name for path in source.paths] == ["only", "first", "second"]
    assert source.labels["class"] == (0, 1, 1) and list(dataset.read().ignored) == []
    data = Data(dataset, num_frames=4, frame_stride=3, image_size=(64, 64))
    numbers = read_numbers(data.read_clip(source[0], 1.0)[:, :32, :32])
    assert numbers == [2, 5, 8, 11]
    assert check(dataset.splits(), whole=True)["broken"] == []
    assert not prepare(dataset.splits(), tmp_path / "ready", Preparation())["broken"]


def test_a_folder_of_pictures_is_named_in_a_table(tmp_path):
    write_pictures(tmp_path / "one")
    (tmp_path / "list.csv").write_text("path,class,split\none,a,train\n")
    example = Table(str(tmp_path / "list.csv")).open("train")[0]
    assert read_numbers(decode_frames(example["video"], range(12))[:, :32, :32]) == list(range(12))


def test_pictures_that_are_no_frames_are_no_video(tmp_path):
    """Thumbnails beside videos, single pictures, and pictures among other files."""
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "1.gif").write_bytes(animation("GIF"))
    write_pictures(tmp_path / "a" / "thumbnails")
    (tmp_path / "b" / "one").mkdir(parents=True)
    (tmp_path / "b" / "one" / "cover.png").touch()
    write_pictures(tmp_path / "b" / "mixed")
    (tmp_path / "b" / "mixed" / "notes.txt").touch()
    write_pictures(tmp_path / "b" / "real")
    dataset = Folder(str(tmp_path), validation=0.0, test=0.0)
    assert [Path(path).name for path in dataset.open("train").paths] == ["1.gif", "real"]
    assert len(list(dataset.read().ignored)) == 12 + 1 + 13


@pytest.mark.parametrize(
    "change",
    [
        lambda folder: (folder / "frame_3.png").rename(folder / "frame_3.PNG"),
        lambda folder: (folder / "Thumbs.db").touch(),
        lambda folder: (folder / "desktop.ini").touch(),
        lambda folder: write_pictures(folder / "thumbnails"),
        lambda folder: folder.rename(folder.with_name("one.mp4")),
    ],
    ids=["upper case", "thumbs", "desktop", "thumbnails", "ending"],
)
def test_a_folder_of_frames_is_one_video_whatever_is_beside_them(change, tmp_path):
    write_pictures(tmp_path / "a" / "one")
    change(tmp_path / "a" / "one")
    source = Folder(str(tmp_path), validation=0.0, test=0.0).open("train")
    assert [Path(path).stem for path in source.paths] == ["one"]
    example = source[0]
    assert read_numbers(decode_frames(example["video"], range(12))[:, :32, :32]) == list(range(12))


def test_frames_that_end_in_jpg_and_in_jpeg_are_of_one_video(tmp_path):
    write_pictures(tmp_path / "a" / "one", "jpg")
    (tmp_path / "a" / "one" / "frame_7.jpg").rename(tmp_path / "a" / "one" / "frame_7.jpeg")
    (example,) = Folder(str(tmp_path), validation=0.0, test=0.0).open("train")
    assert read_numbers(decode_frames(example["video"], range(12))[:, :32, :32]) == list(range(12))


@pytest.mark.parametrize("other", [b"notes", b"", b"\xff\xd8\xff"], ids=["text", "empty", "JPEG"])
def test_a_listed_folder_with_another_file_among_its_frames_is_refused(other, tmp_path):
    """Its frames would be others than their names say: a decoder passes over what is no picture of its kind."""
    write_pictures(tmp_path / "one")
    (tmp_path / "one" / "frame_5").write_bytes(other)
    (tmp_path / "list.csv").write_text("path,class,split\none,a,train\n")
    with pytest.raises(VideoError, match=r"one: image \d+ of 13"):
        Table(str(tmp_path / "list.csv")).open("train")[0]


@pytest.mark.parametrize("kind", ["WEBP", "BMP", "TIFF", "GIF", "PNG", "AVIF"])
def test_a_still_picture_in_the_place_of_a_video_is_named(kind):
    Image.fromarray(FRAMES[0]).save(file := io.BytesIO(), kind)
    with pytest.raises(VideoError, match=r"still picture|no format that is read; expected one of apng"):
        probe(file.getvalue())


def test_a_damaged_folder_of_pictures_is_named(tmp_path):
    write_pictures(tmp_path / "a" / "one")
    (tmp_path / "a" / "one" / "frame_0.png").write_bytes(b"no picture")
    source = Folder(str(tmp_path), validation=0.0, test=0.0).open("train")
    with pytest.raises(VideoError, match=r"a.one"):
        source[0]


@pytest.mark.parametrize("ending", sorted(UNREAD))
@pytest.mark.parametrize("layout", ["", "train"])
def test_a_class_whose_files_are_all_of_a_kind_that_is_not_read_is_named(ending, layout, tmp_path, capsys):
    root = tmp_path / layout
    for name in ("a/1.mp4", f"b/1{ending}", f"b/deep/2{ending}", "c/notes.txt", ".hidden/1.webp"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    with pytest.raises(UserError, match=rf"b is a class.*2 of {ending} \("):
        Folder(str(tmp_path)).splits()
    assert main(["data", "check", str(tmp_path)]) == 2
    assert ending in capsys.readouterr().err
    (root / "b" / "2.MKV").touch()  # a class that has one video is there, and the others are listed
    dataset = Folder(str(tmp_path))
    assert dataset.splits()["train"].label_names == {"class": ("a", "b")}
    assert sum(path.endswith(ending) for path in list(dataset.read().ignored)) == 2


def test_no_ending_is_both_read_and_not_read():
    assert not set(ENDINGS) & set(UNREAD)


def test_a_folder_of_videos_is_not_read_as_frames(tmp_path, monkeypatch):
    """It may be as large as a dataset."""
    (tmp_path / "a.mp4").touch()
    monkeypatch.setattr(file_kinds, "read_bytes", None)
    with pytest.raises(VideoError, match=r"found a folder with a\.mp4; expected a video"):
        read_video(str(tmp_path))
