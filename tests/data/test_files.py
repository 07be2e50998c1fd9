"""Folders and tables of videos: every file is found, splits hold, errors name file and line."""

import dataclasses
import json
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vitx.configuration import from_dict, to_dict
from vitx.data.files import Folder, Table
from vitx.data.sources import label_columns
from vitx.data.splits import VideoRow, assign_splits
from vitx.errors import UserError

SPLITS = ("train", "validation", "test")


def touch(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return str(root)


@pytest.mark.smoke
def test_a_folder_of_classes_is_split_in_equal_fractions(tmp_path):
    names = [
        f"{name}/{i:02}.mp4" for name, size in (("walk", 20), ("fall", 40), ("10", 3), ("2", 1)) for i in range(size)
    ]
    path = touch(tmp_path, *names, "walk/deep/er.MKV", "walk/notes.txt", "walk/.hidden.mp4", "stray.mp4")
    splits = {split: Folder(path).open(split) for split in SPLITS}
    assert splits["train"].label_names == {"class": ("2", "10", "fall", "walk")}
    everything = [path for videos in splits.values() for path in videos.paths]
    assert len(everything) == len(set(everything)) == 65 and any(path.endswith("er.MKV") for path in everything)
    counts = {split: Counter(videos.labels["class"]) for split, videos in splits.items()}
    assert counts["test"] == counts["validation"] == {1: 1, 2: 6, 3: 3} and counts["train"][0] == 1
    example = splits["test"][0]
    assert example["video"] in everything and set(example["labels"]) == {"class"} and "segment" not in example
    # another seed is another draw, the same seed the same; a file that is added moves few others
    assert Folder(path, seed=1).open("test").paths != splits["test"].paths == Folder(path).open("test").paths
    before = set(splits["train"].paths)
    touch(tmp_path, "fall/zz.mp4")
    assert len(set(Folder(path).open("train").paths) ^ before) <= 2


def test_classes_may_be_numbers_that_no_row_names(tmp_path):
    (tmp_path / "list.csv").write_text("path,verb,split\na.mp4,4,train\nb.mp4,0,validation\n")
    (tmp_path / "a.mp4").touch()
    table = Table(str(tmp_path / "list.csv"), ("verb",), num_classes=(("verb", 5),))
    assert table.open("train").label_names == {"verb": ("0", "1", "2", "3", "4")}
    assert table.open("train").labels["verb"] == (4,)
    with pytest.raises(UserError, match=r"verb '4'.*0 to 3"):
        dataclasses.replace(table, num_classes=(("verb", 4),)).open("train")
    with pytest.raises(ValueError, match=r"'noun'.*verb"):
        dataclasses.replace(table, num_classes=(("noun", 5),))


def test_folders_of_splits_are_used_and_the_missing_one_is_drawn(tmp_path):
    path = touch(tmp_path, *(f"train/{name}/{i}.mp4" for name in "ab" for i in range(20)), "val/a/x.mp4", "val/c/y.mp4")
    splits = {split: Folder(path, test=0.1).open(split) for split in SPLITS}
    assert [len(splits[split]) for split in SPLITS] == [36, 2, 4]
    assert splits["train"].label_names == {"class": ("a", "b", "c")} and splits["validation"].labels["class"] == (0, 2)


def write_table(tmp_path, *rows, name="list.csv"):
    touch(tmp_path, "a.mp4")
    path = tmp_path / name
    path.write_text("\n".join(rows))
    return str(path)


def test_a_table_has_labels_segments_and_splits(tmp_path):
    rows = ["\ufeffpath,verb,noun,begin,end,split", "a.mp4,cut,10,0.5,2,train", '"b, c.mp4",peel,9,,,validation']
    csv = Table(write_table(tmp_path, *rows), labels=("verb", "noun"), test=0.0)
    assert csv.open("train")[0] == {
        "video": str(tmp_path / "a.mp4"),
        "labels": {"verb": 0, "noun": 1},
        "segment": (0.5, 2.0),
    }
    assert "segment" not in csv.open("validation")[0] and csv.open("validation")[0]["video"].endswith("b, c.mp4")
    objects = [
        {"path": "a.mp4", "verb": "cut", "noun": 10, "begin": 0.5, "end": 2, "split": "train"},
        {"path": "b, c.mp4", "verb": "peel", "noun": 9, "split": "validation"},
    ]
    jsonl = Table(write_table(tmp_path, *map(json.dumps, objects), name="list.jsonl"), labels=("verb", "noun"))
    for split in ("train", "validation"):
        assert jsonl.open(split) == csv.open(split)
    with pytest.raises(UserError, match="leaves none of its 2 videos for the test split"):
        jsonl.open("test")


def test_a_table_has_several_classes_and_numbers(tmp_path):
    """And splits are drawn where no label has one class."""
    rows = ["path,actions,EF,begin", "a.mp4, sit ; 10;2;sit,55.5,", "b.mp4,,60,", "c.mp4,10,-1e1,"]
    settings = {"labels": (), "multi_label": ("actions",), "targets": ("EF",), "test": 0.0, "validation": 0.0}
    train = Table(write_table(tmp_path, *rows), **settings).open("train")
    assert train.label_names == {"actions": ("2", "10", "sit"), "EF": ("EF",)}
    columns = label_columns(train)
    np.testing.assert_array_equal(columns["actions"], np.float32([[1, 1, 1], [0, 0, 0], [0, 1, 0]]))
    np.testing.assert_array_equal(columns["EF"], np.float32([[55.5], [60], [-10]]))
    objects = [{"path": "a.mp4", "actions": ["sit", 10, "2"], "EF": 55.5}, {"path": "b.mp4", "actions": None, "EF": 60}]
    jsonl = Table(write_table(tmp_path, *map(json.dumps, objects), name="list.jsonl"), **settings).open("train")
    np.testing.assert_array_equal(label_columns(jsonl)["actions"], columns["actions"][:2])
    many = write_table(tmp_path, "path,actions", *(f"{i or 'a'}.mp4,{i};{i + 1}" for i in range(100)))
    drawn = Table(many, labels=(), multi_label=("actions",)).splits()
    assert 65 <= len(drawn["train"]) <= 80 and sum(map(len, drawn.values())) == 100


ROWS = st.lists(st.tuples(st.integers(0, 9), st.sampled_from("abc"), st.sampled_from("xyz")), min_size=1, max_size=60)


@given(ROWS, st.integers(0, 5))
def test_a_group_is_never_torn_apart_and_no_class_is_missing_in_training(rows, seed):
    settings = Table("list.csv", validation=0.2, test=0.3, seed=seed)
    listed = [VideoRow(str(i), tuple(labels), None, f"group {group}") for i, (group, *labels) in enumerate(rows)]
    splits = assign_splits(listed, settings)
    assert len({(row.group, split) for row, split in zip(listed, splits, strict=True)}) == len(
        {r.group for r in listed}
    )
    training = [row for row, split in zip(listed, splits, strict=True) if split == "train"]
    assert {row.labels[0] for row in training} == {row.labels[0] for row in listed}
    order = np.random.default_rng(seed).permutation(len(listed))
    assert assign_splits([listed[i] for i in order], settings) == [splits[i] for i in order]


@given(st.lists(st.sampled_from("abc"), min_size=1, max_size=60), st.integers(0, 5))
def test_the_fractions_hold_in_every_class(labels, seed):
    settings = Table("list.csv", validation=0.2, test=0.3, seed=seed)
    splits = assign_splits([VideoRow(str(i), (label,), None, str(i)) for i, label in enumerate(labels)], settings)
    for label, size in Counter(labels).items():
        counts = Counter(split for name, split in zip(labels, splits, strict=True) if name == label)
        assert counts["train"]
        for name in ("validation", "test") if size > 2 else ():
            assert abs(counts[name] - max(getattr(settings, name) * size, 1)) < 1 + 1e-9
    if max(Counter(labels).values()) > 2:
        assert set(splits) == set(SPLITS)


def test_fractions_hold_with_several_labels_and_with_groups():
    rng = np.random.default_rng(0)
    several = [
        VideoRow(str(i), (f"{v}", f"{n}", f"{v} {n}"), None, str(i))
        for i, (v, n) in enumerate(zip(rng.integers(50, size=1000), rng.integers(100, size=1000), strict=True))
    ]
    rare = [VideoRow(str(i), (f"{i // 2}",), None, str(i)) for i in range(1000)]
    patients = [VideoRow(str(i), ("ill" if i % 40 < 20 else "well",), None, f"patient {i // 20}") for i in range(200)]
    for rows, near in ((several, 10), (rare, 10), (patients, 10)):
        counts = Counter(assign_splits(rows, Table("list.csv")))
        for name in ("validation", "test"):
            assert abs(counts[name] - 0.15 * len(rows)) <= near, counts
    splits = assign_splits(several, Table("list.csv"))
    verbs = Counter(row.labels[0] for row, split in zip(several, splits, strict=True) if split == "test")
    assert len(verbs) == 50 and max(verbs.values()) <= 6


def test_videos_that_are_added_move_few_others():
    rows = [VideoRow(str(i), ("ab"[i % 2],), None, str(i)) for i in range(100)]
    before = assign_splits(rows, Table("list.csv"))
    after = assign_splits([*rows, VideoRow("new", ("a",), None, "new")], Table("list.csv"))
    assert sum(one != other for one, other in zip(before, after, strict=False)) <= 2


@pytest.mark.parametrize(
    ("rows", "name", "message"),
    [
        (["file,class", "a.mp4,x"], "list.csv", "line 2 has no 'path'. It has file, class"),
        (["path,clas", "a.mp4,x"], "list.csv", "line 2 has no 'class'; did you mean clas? It has path, clas"),
        (["path,class", "a.mp4,x", "a.mp4,"], "list.csv", "line 3: class is empty"),
        (
            ["path,class,split", "a.mp4,x,fold 1"],
            "list.csv",
            "line 2: split is 'fold 1'; expected one of train, validation, test",
        ),
        (["path,class,begin,end", "a.mp4,x,3,2"], "list.csv", "line 2: the segment from 3.0 to 2.0 s is empty"),
        (["path,class,begin", "a.mp4,x,3"], "list.csv", "begin and end are '3' and None"),
        (["path,class", "b.mp4,x"], "list.csv", "b.mp4, which does not exist"),
        (["path,class", "a.mp4,x,y"], "list.csv", "line 2 has more cells than the header; put quotes around"),
        (["path,class"], "list.csv", "lists no videos"),
        (["[1]"], "list.jsonl", "line 1: found [1], expected an object"),
        (["{"], "list.jsonl", "cannot be read: Expecting property name"),
        (['{"path": "a.mp4", "class": {"a": 1}}'], "list.jsonl", "line 1: class is {'a': 1}; expected a text"),
        (['{"path": "a.mp4", "class": ["a", "b"]}'], "list.jsonl", "line 1: class is ['a', 'b']; expected a text"),
        (['{"path": "a.mp4", "class": NaN}'], "list.jsonl", "line 1: class is nan; expected a text"),
        (['{"path": ["a.mp4"], "class": "a"}'], "list.jsonl", "line 1: path is ['a.mp4']; expected a text"),
        (["a.mp4 x"], "list.txt", "ends in '.txt'; expected .csv"),
    ],
)
def test_a_malformed_table_names_file_and_line(rows, name, message, tmp_path):
    with pytest.raises(UserError) as error:
        Table(write_table(tmp_path, *rows, name=name)).open("train")
    assert message in str(error.value) and str(tmp_path) in str(error.value)


def test_malformed_classes_and_numbers_name_their_column(tmp_path):
    for settings, rows, message in (
        ({"targets": ("EF",)}, ["path,class,EF", "a.mp4,x,high"], "line 2: EF is 'high'; expected a number"),
        ({"targets": ("EF",)}, ["path,class,EF", "a.mp4,x,nan"], "line 2: EF is 'nan'; expected a number"),
        ({"targets": ("EF",)}, ["path,class,EF", "a.mp4,x,"], "line 2: EF is empty"),
        ({"multi_label": ("acts",)}, ["path,class,act", "a.mp4,x,y"], "line 2 has no 'acts'; did you mean act?"),
        ({"multi_label": ("acts",)}, ["path,class,acts", "a.mp4,x,;"], "no row names a class in acts"),
    ):
        with pytest.raises(UserError) as error:
            Table(write_table(tmp_path, *rows), **settings).open("train")
        assert message in str(error.value)
    with pytest.raises(ValueError, match="EF, EF"):
        Table("list.csv", labels=("EF",), targets=("EF",))
    with pytest.raises(ValueError, match="empty"):
        Table("list.csv", labels=())


def test_an_error_about_a_malformed_folder_names_what_is_missing(tmp_path):
    for dataset, message in (
        (Folder(str(tmp_path / "no")), "there is no folder"),
        (Folder(touch(tmp_path / "flat", "a.mp4")), "has no videos; expected"),
        (Folder(touch(tmp_path / "odd", "test/x/a.mp4")), "has test and no train"),
        (
            Folder(touch(tmp_path / "two", *(f"{n}/x/a.mp4" for n in ("train", "val", "validation")))),
            "has both val and",
        ),
        (Table(str(tmp_path / "no.csv")), "cannot be read: No such file"),
        (Folder(touch(tmp_path / "few", "x/a.mp4")), "leaves none of its 1 videos for the validation split"),
    ):
        with pytest.raises(UserError, match=message):
            dataset.open("validation")
    for fractions in ({"test": -0.1}, {"validation": 0.6, "test": 0.4}):
        with pytest.raises(ValueError, match="expected fractions"):
            Folder("x", **fractions)


def test_settings_survive_a_round_trip():
    for dataset in (Folder("videos", label="action"), Table("list.csv", labels=("verb", "noun"))):
        assert from_dict(to_dict(dataset)) == dataset
