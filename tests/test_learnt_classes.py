"""Names of classes mean the same in every command: training, evaluation, resuming, extending, prediction."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from vitx.configuration import register
from vitx.data.aligned import align_classes, open_split
from vitx.data.class_names import match_classes, number_duplicates
from vitx.data.encoding import encode_video
from vitx.data.files import Videos
from vitx.data.sources import label_columns
from vitx.errors import UserError
from vitx.run import load_run, train
from vitx.tasks.classification import Classification

SHADES = {"dark": 10, "grey": 120, "light": 240}


@dataclasses.dataclass(frozen=True)
class Shades:
    """Clips of one shade each, the classes as a file names them."""

    names: tuple[str, ...]
    labelled: bool = True

    @property
    def label_names(self):
        return {"class": self.names}

    def __len__(self):
        return 12

    def name(self, index):
        return f"clip {index}"

    def __getitem__(self, index):
        word = sorted(SHADES)[index % 3]
        video = np.full((4, 24, 24, 3), SHADES[word], np.uint8)
        spelled = [name.strip().replace("dusk", "dark") for name in self.names]
        label = spelled.index(word) if word in spelled else -1
        return {"video": encode_video(video), "labels": {"class": label}}


@register
@dataclasses.dataclass(frozen=True)
class ShadesOnDisk:
    file: str

    def open(self, split):
        return Shades(tuple(json.loads(Path(self.file).read_text())))


@pytest.fixture(scope="module")
def trained(small, tmp_path_factory):
    """(experiment, run's folder, file of the classes' names)."""
    root = tmp_path_factory.mktemp("learnt")
    file = root / "classes.json"
    file.write_text(json.dumps(["dark", "grey", "light"]))
    changes = {"data.dataset": ShadesOnDisk(str(file)), "model.num_classes": 3, "task": Classification()}
    experiment = small.override(
        {**changes, "training.steps": 4, "training.monitor": "loss", "training.ema_decay": None}
    )
    train(experiment, root / "run")
    return experiment, root / "run", file


def rename(trained, tmp_path, names):
    """Returns (experiment, a copy of the run), with other names of classes in the data."""
    experiment, workdir, file = trained
    shutil.copytree(workdir, tmp_path / "run")
    file.write_text(json.dumps(names))
    return experiment, tmp_path / "run"


@pytest.fixture(autouse=True)
def _names_as_before(request):
    yield
    if "trained" in request.fixturenames:
        request.getfixturevalue("trained")[2].write_text(json.dumps(["dark", "grey", "light"]))


@pytest.mark.parametrize("names", [["light", "dark", "grey"], [" light", "grey ", "dark"]])
def test_equal_classes_in_another_order_are_matched_by_name(names, trained, tmp_path):
    before = load_run(trained[1]).evaluate()
    _, workdir = rename(trained, tmp_path, names)
    after = load_run(workdir).evaluate()
    assert after["class/top1"] == before["class/top1"] and after["loss"] == pytest.approx(before["loss"])
    assert after["confusion"] == before["confusion"] and after["per_class"] == before["per_class"]


CHANGED = [["dark", "grey", "bright"], ["dark", "grey"], ["dark", "grey", "light", "new"], ["dark", "dark", "light"]]


@pytest.mark.parametrize("names", CHANGED)
def test_other_classes_are_refused_with_both_lists(names, trained, tmp_path):
    experiment, workdir = rename(trained, tmp_path, names)
    run = load_run(workdir)
    extended = experiment.override({"training.steps": 6})
    for command in (
        run.evaluate,
        lambda: train(experiment, workdir),
        lambda: train(extended, workdir, extend=True),
    ):
        with pytest.raises(UserError) as error:
            command()
        if len(set(names)) == len(names):
            assert ", ".join(names) in str(error.value) and "dark, grey, light" in str(error.value)
    clip = tmp_path / "clip.mp4"
    clip.write_bytes(encode_video(np.full((4, 24, 24, 3), 240, np.uint8)))
    (answer,) = run.predict([clip]).values()
    assert set(answer["class"]) == {"dark", "grey", "light"}


def test_a_run_is_extended_with_the_order_that_it_began_with(trained, tmp_path):
    experiment, workdir = rename(trained, tmp_path, ["grey", "light", "dark"])
    run = train(experiment.override({"training.steps": 5}), workdir, extend=True)
    assert (
        run.output_names == {"class": ("dark", "grey", "light")}
        and load_run(workdir, "last").output_names == run.output_names
    )


# Comparison of names


def test_labels_of_all_kinds_follow_their_names():
    columns = {
        "class": np.array([0, 1, 2, -1]),
        "acts": np.float32([[1, 0], [0, 1], [np.nan, np.nan], [1, 1]]),
        "EF": np.float32([[1], [2], [3], [4]]),
    }
    names = {"class": ("a", "b", "c"), "acts": ("x", "y"), "EF": ("EF",)}
    same = Videos(label_names=names, paths=("1", "2", "3", "4"), labels=columns)
    learnt = {"class": ("c", "a", "b"), "acts": ("y", "x")}
    aligned = align_classes(same, learnt, "here", "there")
    moved = label_columns(aligned)
    np.testing.assert_array_equal(moved["class"], [1, 2, 0, -1])
    np.testing.assert_array_equal(moved["acts"], [[0, 1], [1, 0], [np.nan, np.nan], [1, 1]])
    np.testing.assert_array_equal(moved["EF"], columns["EF"])
    assert aligned[2]["labels"]["class"] == 0 and aligned.label_names["class"] == ("c", "a", "b")
    assert align_classes(same, {"class": ("a", "b", "c ")}, "here", "there").label_names["class"] == ("a", "b", "c ")
    assert align_classes(same, {"class": ("a", "b", "c")}, "here", "there") is same


def test_a_list_of_many_classes_shows_those_that_differ():
    ours, theirs = [f"class {i}" for i in range(400)], [f"class {i}" for i in range(399)] + ["odd one"]
    with pytest.raises(UserError, match="class 399") as error:
        match_classes({"class": ours}, {"class": theirs}, "here", "there")
    assert "odd one" in str(error.value) and len(str(error.value)) < 1000


def test_classes_of_one_name_are_numbered():
    assert number_duplicates(("walk", "run", "walk ")) == ("walk (0)", "run", "walk  (2)")


# Labels outside the classes


@dataclasses.dataclass(frozen=True)
class Labelled:
    values: tuple
    names: tuple[str, ...] = ("a", "b")
    video: str | bytes = "x.mp4"

    @property
    def label_names(self):
        return {"class": self.names}

    def open(self, split):
        return self

    def __len__(self):
        return len(self.values)

    def name(self, index):
        return f"clip {index}"

    def __getitem__(self, index):
        return {"video": self.video, "labels": {"class": self.values[index]}}


WRONG = [
    (0, 2),
    (0, np.int64(7)),
    (0, "b"),
    (0, True),
    (0, 1.0),
    (0, np.float32([1])),
    (0, np.float32([1, np.inf])),
    (0, [0, 1]),
    (0, None),
]


@pytest.mark.parametrize("values", WRONG)
def test_a_label_outside_the_classes_is_found_when_the_dataset_is_opened(values):
    with pytest.raises(UserError, match="clip 1: class"):
        open_split(Labelled(values), "train")


@pytest.mark.parametrize("values", [(-1, -1), (np.float32([np.nan] * 2),)])
def test_labels_that_are_all_missing_are_refused(values):
    with pytest.raises(UserError, match="class"):
        open_split(Labelled(values), "train")


def test_sound_labels_are_accepted_and_others_are_found_where_videos_are_bytes(trained):
    for values in ((0, 1, -1), (np.float32([1, 0]), np.float32([np.nan, np.nan])), (np.int64(1), np.uint8(0))):
        assert len(open_split(Labelled(values), "train")) == len(values)
    video = encode_video(np.zeros((4, 24, 24, 3), np.uint8))
    source = open_split(Labelled((0, 5), video=video), "train")
    with pytest.raises(UserError, match="clip 1: class is 5"):
        list(trained[0].data.eval_batches(source))
    with pytest.raises(UserError, match="'a'"):
        open_split(Labelled((0, 1), names=("a", " a")), "train")


def test_one_class_alone_is_refused(small):
    with pytest.raises(UserError, match="one class, a"):
        Classification().output_names(small.model.clone(num_classes=1), {"class": ("a",)})
