"""Two spellings of one thing, and one spelling of two: groups, files, names of classes and splits, links, lists."""

import csv
import itertools
import json
import os
import shutil

import numpy as np
import pytest

from vitx.cli import main
from vitx.data import folders
from vitx.data.encoding import encode_video
from vitx.data.files import Folder, Table
from vitx.data.same_files import identify_files
from vitx.errors import UserError

CLIPS = [encode_video(np.random.default_rng(i).integers(0, 255, (3, 16, 16, 3), np.uint8)) for i in range(16)]
NAMES = [f"{name}/{i}.mp4" for i in range(4) for name in "ab"]


def fill(root, *names):
    """Writes a different video under each name."""
    for name, clip in zip(names, itertools.cycle(CLIPS), strict=False):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(clip)
    return root


def write_list(file, rows, delimiter=","):
    with open(file, "w", newline="", encoding="utf-8") as out:
        csv.writer(out, delimiter=delimiter).writerows(rows)
    return str(file)


def list_notes(dataset):
    return "\n".join(next(iter(dataset.splits().values())).notes)


def split_of(splits):
    return {os.path.basename(path): split for split, videos in splits.items() for path in videos.paths}


# Groups


@pytest.mark.parametrize("group", [0, "0", False, 0.0, " 0 ", -1])
def test_every_group_that_is_present_keeps_its_videos_together(group, tmp_path):
    fill(tmp_path, *NAMES)
    rows = [{"path": name, "class": name[0], "group": group if i < 4 else i} for i, name in enumerate(NAMES)]
    (tmp_path / "list.jsonl").write_text("\n".join(map(json.dumps, rows)))
    for seed in range(6):
        splits = Table(str(tmp_path / "list.jsonl"), seed=seed, test=0.3, validation=0.3).splits()
        places = {path: split for split, videos in splits.items() for path in videos.paths}
        assert len({places[str(tmp_path / name)] for name in NAMES[:4]}) == 1


@pytest.mark.parametrize("empty", [None, "", "  "])
def test_an_empty_group_is_none(empty, tmp_path):
    fill(tmp_path, *NAMES)
    rows = [{"path": name, "class": name[0], "group": empty} for name in NAMES]
    (tmp_path / "list.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert set(Table(str(tmp_path / "list.jsonl")).splits()) == {"train", "validation", "test"}


def test_numbers_and_text_that_print_alike_are_one_group_and_named(tmp_path):
    fill(tmp_path, *NAMES)
    groups = [7, "7", "7 ", 7, 1, 2, 3, 4]
    rows = [{"path": name, "class": name[0], "group": g} for name, g in zip(NAMES, groups, strict=True)]
    (tmp_path / "list.jsonl").write_text("\n".join(map(json.dumps, rows)))
    dataset = Table(str(tmp_path / "list.jsonl"), seed=1)
    places = {path: split for split, videos in dataset.splits().items() for path in videos.paths}
    assert len({places[str(tmp_path / name)] for name in NAMES[:4]}) == 1
    assert "'7'" in list_notes(dataset) and "one group" in list_notes(dataset)


# The same file twice


def copy_file(root, kind):
    """Returns another path of a/0.mp4."""
    first, other = root / "a" / "0.mp4", root / "a" / "other.mp4"
    match kind:
        case "path":
            return "a/../a/0.mp4"
        case "absolute":
            return str(first)
        case "link":
            other.symlink_to(first)
        case "hard link":
            os.link(first, other)
        case "copy":
            shutil.copy(first, other)
    return "a/other.mp4"


KINDS = ["path", "absolute", "link", "hard link", "copy"]


@pytest.mark.parametrize("kind", KINDS)
def test_one_file_with_two_labels_is_refused(kind, tmp_path, capsys):
    fill(tmp_path, *NAMES)
    rows = [("path", "class"), *((name, name[0]) for name in NAMES), (copy_file(tmp_path, kind), "b")]
    file = write_list(tmp_path / "list.csv", rows)
    with pytest.raises(UserError) as error:
        Table(file).open("train")
    assert "0.mp4" in str(error.value) and " a" in str(error.value) and " b" in str(error.value)
    assert main(["data", "check", file, "--json"]) == 1
    assert any("0.mp4" in problem for problem in json.loads(capsys.readouterr().out)["problems"])


@pytest.mark.parametrize("kind", KINDS)
def test_one_file_in_two_splits_is_reported_and_drawn_splits_keep_it_together(kind, tmp_path, capsys):
    fill(tmp_path, *NAMES)
    other = copy_file(tmp_path, kind)
    rows = [("path", "class", "split"), *((name, name[0], "train") for name in NAMES), (other, "a", "test")]
    dataset = Table(write_list(tmp_path / "list.csv", rows))
    assert "0.mp4" in list_notes(dataset) and "train" in list_notes(dataset) and "test" in list_notes(dataset)
    assert main(["data", "check", dataset.path, "--json"]) == 1
    (leak,) = json.loads(capsys.readouterr().out)["leaks"]
    assert str(tmp_path / "a" / "0.mp4") in leak
    drawn = write_list(tmp_path / "drawn.csv", [row[:2] for row in rows])
    for seed in range(8):
        splits = Table(drawn, seed=seed, test=0.3).splits()
        places = {os.path.realpath(path): split for split, videos in splits.items() for path in videos.paths}
        theirs = {os.path.normpath(tmp_path / "a" / "0.mp4"), os.path.realpath(tmp_path / other)}
        assert len({places[path] for path in theirs}) == 1


@pytest.mark.parametrize("kind", ["line", *KINDS])
def test_videos_that_are_there_twice_are_counted(kind, tmp_path, capsys):
    fill(tmp_path, *NAMES)
    again = "a/0.mp4" if kind == "line" else copy_file(tmp_path, kind)
    rows = [("path", "class", "split"), *((name, name[0], "train") for name in NAMES), *[(again, "a", "train")] * 2]
    dataset = Table(write_list(tmp_path / "list.csv", rows))
    assert "2 videos repeat others" in list_notes(dataset)
    main(["data", "check", dataset.path, "--json"])
    assert any("2 videos" in note for note in json.loads(capsys.readouterr().out)["notes"])


def test_segments_of_one_video_may_differ_and_leak_where_they_overlap(tmp_path):
    fill(tmp_path, *NAMES)
    head = ("path", "class", "begin", "end", "split")
    apart = [head, ("a/0.mp4", "a", 0, 1, "train"), ("a/0.mp4", "b", 1, 2, "test")]
    assert "test" not in list_notes(Table(write_list(tmp_path / "apart.csv", apart)))
    overlapping = [head, ("a/0.mp4", "a", 0, 1, "train"), ("a/0.mp4", "b", 0.5, 2, "test")]
    assert "test" in list_notes(Table(write_list(tmp_path / "overlapping.csv", overlapping)))
    same = [head, ("a/0.mp4", "a", 0, 1, "train"), ("a/0.mp4", "b", 0, 1, "train")]
    with pytest.raises(UserError, match=r"0\.mp4"):
        Table(write_list(tmp_path / "same.csv", same), test=0.0, validation=0.0).open("train")


def test_files_are_the_same_by_content_only_where_every_byte_is(tmp_path):
    data = np.random.default_rng(0).bytes(400_000)
    changed = data[:200_000] + b"?" + data[200_001:]  # neither at the begin nor at the end
    for name, content in (("0", data), ("1", changed), ("2", data), ("3", b""), ("4", b"")):
        (tmp_path / name).write_bytes(content)
    (tmp_path / "5").symlink_to(tmp_path / "2")
    paths = [str(tmp_path / name) for name in ("0", "1", "2", "3", "4", "5", "missing", "missing")]
    assert identify_files(paths) == [0, 1, 0, 3, 4, 0, 6, 6]


# Names of classes and splits


def test_spellings_of_one_class_are_one_class_and_named(tmp_path):
    fill(tmp_path, "caf\u00e9/0.mp4", "cafe\u0301/1.mp4", "walk/2.mp4", " walk/3.mp4", "walk\u00a0/4.mp4", "Walk/5.mp4")
    for name, clip in zip(("\ufeffwalk/6.mp4", "walk \u200b/7.mp4"), CLIPS[6:], strict=False):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_bytes(clip)
    fill(tmp_path, ".ipynb_checkpoints/0.mp4", "walk/.hidden/1.mp4", "walk/.2.mp4")
    dataset = Folder(str(tmp_path), test=0.0, validation=0.0)
    train = dataset.open("train")
    assert train.label_names == {"class": ("Walk", "caf\u00e9", "walk")} and len(train) == 8
    assert (
        "cafe\\u0301" in list_notes(dataset)
        and "' walk'" in list_notes(dataset)
        and "'Walk', 'walk'" in list_notes(dataset)
    )
    rows = [("path", "class", "acts"), ("walk/2.mp4", "caf\u00e9", "x; y"), (" walk/3.mp4", " cafe\u0301 ", "x ;z")]
    listed = Table(write_list(tmp_path / "list.csv", rows), multi_label=("acts",), test=0.0, validation=0.0)
    assert listed.open("train").label_names == {"class": ("caf\u00e9",), "acts": ("x", "y", "z")}


@pytest.mark.parametrize(
    ("train", "validation", "test"),
    [
        ("Train", "valid", "TEST"),
        ("training", "Val", "testing"),
        ("TRAIN ", "dev", "test"),
        ("train", "Validation", "tst"),
    ],
)
def test_usual_names_of_splits_are_recognised(train, validation, test, tmp_path):
    of = {"train": train, "validation": validation, "test": test}
    fill(tmp_path, *(f"{name}/{label}/{split}.mp4" for split, name in of.items() for label in "ab"), "extra/c/0.mp4")
    dataset = Folder(str(tmp_path))
    splits = dataset.splits()
    assert {name: set(map(os.path.basename, videos.paths)) for name, videos in splits.items()} == {
        split: {f"{split}.mp4"} for split in of
    }
    assert splits["train"].label_names == {"class": ("a", "b")} and "extra" in list_notes(dataset)
    assert list(dataset.read().ignored) == [str(tmp_path / "extra" / "c" / "0.mp4")]
    rows = [("path", "class", "split"), *((f"{name}/a/{split}.mp4", "a", name) for split, name in of.items())]
    assert set(Table(write_list(tmp_path / "list.csv", rows)).splits()) == set(of)


def test_a_class_may_be_called_as_a_split(tmp_path):
    fill(tmp_path, "train/0.mp4", "train/1.mp4", "bus/0.mp4", "test/2.mp4")
    assert Folder(str(tmp_path), test=0.0, validation=0.0).open("train").label_names["class"] == (
        "bus",
        "test",
        "train",
    )
    shutil.rmtree(tmp_path / "bus")
    with pytest.raises(UserError, match="CLASS"):
        Folder(str(tmp_path)).open("train")


def test_two_folders_of_one_split_are_refused(tmp_path):
    fill(tmp_path, "Train/a/0.mp4", "train/a/1.mp4")
    with pytest.raises(UserError, match="Train and train"):
        Folder(str(tmp_path)).open("train")


# Links and folders that cannot be read


def test_links_are_followed_once_and_loops_end(tmp_path):
    fill(tmp_path, "videos/a/0.mp4", "videos/b/1.mp4", "elsewhere/2.mp4", "elsewhere/deep/3.mp4")
    (tmp_path / "videos/a/more").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "videos/a/again").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere/deep/up").symlink_to(tmp_path / "videos/a")
    (tmp_path / "videos/b/one.mp4").symlink_to(tmp_path / "videos/b/1.mp4")
    (tmp_path / "videos/b/gone.mp4").symlink_to(tmp_path / "nothing.mp4")
    dataset = Folder(str(tmp_path / "videos"), test=0.0, validation=0.0)
    train = dataset.open("train")
    assert sorted(map(os.path.basename, train.paths)) == ["0.mp4", "1.mp4", "2.mp4", "3.mp4", "one.mp4"]
    assert all(name in list_notes(dataset) for name in ("more", "gone.mp4", "deep/up", "repeat others"))


@pytest.mark.parametrize("place", ["", "a", "a/deep", "b"])
def test_a_link_that_leads_to_itself_is_named_and_left_out(place, tmp_path):
    fill(tmp_path, *NAMES, "a/deep/9.mp4")
    (tmp_path / place / "loop").symlink_to("loop")
    (tmp_path / place / "loop.mp4").symlink_to("loop.mp4")
    dataset = Folder(str(tmp_path), test=0.0, validation=0.0)
    assert len(dataset.open("train")) == len(NAMES) + 1
    assert not place or f"{place}/loop.mp4" in list_notes(dataset)


@pytest.mark.parametrize(
    ("place", "target"),
    [("loop", ""), ("loop", ".."), ("a/loop", "a"), ("a/loop", ""), ("a/deep/loop", "a"), ("train/a/loop", "train")],
)
def test_a_link_to_a_folder_that_holds_it_is_named_and_left_out(place, target, tmp_path):
    """Not a class, and no further paths of the videos of other classes."""
    root = tmp_path / "data"
    names = [f"train/{name}" for name in NAMES] if place.startswith("train") else [*NAMES, "a/deep/9.mp4"]
    fill(root, *names, "b/cover.jpg" if place == "loop" else "train/b/cover.jpg" if target == "train" else names[0])
    fill(tmp_path / "other", "0.mp4")
    (root / place).symlink_to(root / target)
    dataset = Folder(str(root), test=0.0, validation=0.0)
    train = dataset.open("train")
    assert train.label_names == {"class": ("a", "b")} and len(train) == len(names)
    assert f"{root / place} leads back to" in list_notes(dataset)


def test_a_link_into_a_folder_that_may_not_be_entered_is_named(tmp_path, monkeypatch):
    fill(tmp_path, *NAMES)
    scan = os.scandir

    class Forbidden:
        name = "secret"

        def is_dir(self):
            raise PermissionError(13, "Permission denied", self.name)

    monkeypatch.setattr(
        folders.os, "scandir", lambda path: [*scan(path), Forbidden()] if path.name == "a" else scan(path)
    )
    with pytest.raises(UserError, match=r"a/secret.*Permission denied"):
        Folder(str(tmp_path)).open("train")


def test_a_folder_that_may_not_be_read_is_refused_and_named(tmp_path, monkeypatch, capsys):
    fill(tmp_path, *NAMES, "b/deep/9.mp4")
    scan = os.scandir

    def refuse(path):
        if str(path) == str(tmp_path / "b" / "deep"):
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(folders.os, "scandir", refuse)
    with pytest.raises(UserError, match=r"b/deep"):
        Folder(str(tmp_path)).open("train")
    assert main(["data", "check", str(tmp_path), "--json"]) == 1
    assert any("b/deep" in problem for problem in json.loads(capsys.readouterr().out)["problems"])


# File names, endings and delimiters of lists


@pytest.mark.parametrize("name", [b"caf\xe9.mp4", b"\xff\xfe.MP4"])
def test_file_names_that_are_not_utf8_are_read(name, tmp_path, capsys):
    fill(tmp_path, *NAMES)
    (tmp_path / "a" / "0.mp4").rename(os.fsdecode(bytes(tmp_path / "a") + b"/" + name))
    paths = [path for videos in Folder(str(tmp_path)).splits().values() for path in videos.paths]
    assert os.fsdecode(name) in map(os.path.basename, paths)
    (tmp_path / "list.csv").write_bytes(b"path,class,split\na/" + name + b",a,train\nb/0.mp4,b,train\n")
    assert len(Table(str(tmp_path / "list.csv")).open("train")) == 2
    (tmp_path / "a" / os.fsdecode(name)).write_bytes(b"no video")
    assert main(["data", "check", str(tmp_path)]) == 1
    assert name.split(b".")[0] not in capsys.readouterr().out.encode("utf-8", "replace")


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (b"path,class\na/0.mp4,caf\xe9\n", 2),
        (b"path,class\na/0.mp4,a\ncaf\xe9.mp4,a\n", 3),
        (b"path,cl\xe4ss\na/0.mp4,a\n", 2),
    ],
)
def test_a_list_that_is_not_utf8_is_refused_with_its_line(content, line, tmp_path):
    fill(tmp_path, *NAMES)
    (tmp_path / "list.csv").write_bytes(content)
    with pytest.raises(UserError, match=rf"list\.csv, line {line}.*UTF-8|line {line} has no 'class'"):
        Table(str(tmp_path / "list.csv")).open("train")


def test_a_class_folder_that_is_not_utf8_is_refused(tmp_path):
    fill(tmp_path, *NAMES)
    os.mkdir(bytes(tmp_path) + b"/caf\xe9")
    with pytest.raises(UserError, match="UTF-8"):
        Folder(str(tmp_path)).open("train")


@pytest.mark.parametrize("ending", [".csv", ".CSV", ".Csv", ".tsv"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|", ", "])
def test_lists_are_read_with_any_usual_delimiter_and_ending(ending, delimiter, tmp_path, capsys):
    fill(tmp_path, *NAMES)
    rows = [("class", "path", "split"), *((name[0], name, "train") for name in NAMES)]
    file = tmp_path / f"list{ending}"
    file.write_text("\n".join(delimiter.join(row) for row in rows))
    train = Table(str(file), test=0.0, validation=0.0).open("train")
    assert train.paths == tuple(str(tmp_path / name) for name in NAMES) and train.label_names["class"] == ("a", "b")
    main(["data", "check", str(file), "--json"])
    assert json.loads(capsys.readouterr().out)["videos"] == len(NAMES)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le"])
def test_lists_of_spreadsheets_are_read_in_their_encodings(encoding, tmp_path):
    fill(tmp_path, "caf\u00e9/0.mp4")
    mark = "\ufeff" if encoding == "utf-16-le" else ""
    (tmp_path / "list.csv").write_text(f"{mark}path\tclass\ncaf\u00e9/0.mp4\tcaf\u00e9\n", encoding=encoding)
    table = Table(str(tmp_path / "list.csv"), test=0.0, validation=0.0)
    assert table.open("train").label_names["class"] == ("caf\u00e9",)


# Too little to say anything


def test_one_class_and_few_test_videos_and_a_picture_are_named_by_check(tmp_path, capsys):
    fill(tmp_path, *(f"train/walk/{i}.mp4" for i in range(9)), *(f"test/walk/x{i}.mp4" for i in range(3)))
    from PIL import Image

    Image.fromarray(np.zeros((16, 16, 3), np.uint8)).save(tmp_path / "train/walk/0.mp4", "JPEG")
    assert main(["data", "check", str(tmp_path), "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    (broken,) = report["broken"]
    assert broken["path"].endswith("train/walk/0.mp4") and "picture" in broken["problem"]
    problems = "\n".join(report["problems"])
    assert "walk" in problems and "test split has 3 videos" in problems
