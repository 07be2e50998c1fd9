"""A mixture: every example comes, as often as weights ask, with its own labels and none of the others."""

import collections
import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vitx.configuration import Words, from_dict, override, register, to_dict
from vitx.data.encoding import encode_video
from vitx.data.mixture import Mixture
from vitx.data.pipeline import Data
from vitx.data.sources import MovingDigits, label_arrays, label_columns
from vitx.errors import UserError
from vitx.run import load_run, train

KINDS = {  # (label, names, an example's value)
    "letters": ("class", ("a", "b"), lambda i: i % 2),
    "more": ("class", ("b", "c", "d"), lambda i: i % 3),
    "value": ("EF", ("EF",), lambda i: np.float32([i])),
    "set": ("acts", ("x", "y"), lambda i: np.float32([1, i % 2])),
    "odd": ("class", ("a", "b"), lambda i: np.float32([1, 0])),
}


@register
@dataclasses.dataclass(frozen=True)
class Tinted:
    """Videos of one colour, of one kind of label."""

    kind: str
    size: int = 4

    @property
    def label_names(self) -> Mapping[str, tuple[str, ...]]:
        label, names, _ = KINDS[self.kind]
        return {label: names}

    def open(self, split: str) -> "Tinted":
        return self

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        label, _, value = KINDS[self.kind]
        video = encode_video(np.full((3, 8, 8, 3), 10 * index, np.uint8), options={"qp": "0"})
        return {"video": video, "labels": {label: value(index)}}


def test_classes_of_one_label_are_merged_and_other_labels_are_missing():
    source = Mixture((Tinted("letters"), Tinted("more"), Tinted("value"), Tinted("set"))).open("validation")
    assert source.label_names == {"class": ("a", "b", "c", "d"), "EF": ("EF",), "acts": ("x", "y")}
    assert len(source) == 16
    columns = label_columns(source)
    np.testing.assert_array_equal(columns["class"], [0, 1, 0, 1, 1, 2, 3, 1] + 8 * [-1])
    np.testing.assert_array_equal(columns["EF"][:, 0], [*8 * [np.nan], 0, 1, 2, 3, *4 * [np.nan]])
    np.testing.assert_array_equal(columns["acts"][12:], [[1, 0], [1, 1], [1, 0], [1, 1]])
    for i in range(16):
        for label, value in label_arrays(source[i]).items():
            np.testing.assert_array_equal(value, columns[label][i])
            assert value.dtype == columns[label].dtype
    with pytest.raises(UserError, match="different labels class"):
        Mixture((Tinted("letters"), Tinted("odd"))).open("train")


@settings(max_examples=20, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 40), st.floats(0.1, 10)), min_size=1, max_size=4))
def test_weights_are_proportions_and_every_example_occurs(parts):
    sizes, weights = zip(*parts, strict=True)
    source = Mixture(tuple(Tinted("letters", size) for size in sizes), weights).open("train")
    assert all(count >= size for count, size in zip(source.counts, sizes, strict=True))
    wanted = len(source) * np.array(weights) / sum(weights)
    assert np.abs(source.counts - wanted).max() <= 1
    seen = collections.Counter((sources, place) for sources, place in map(source._locate, range(len(source))))
    for kind, size, count in zip(source.sources, sizes, source.counts, strict=True):
        if source.sources.count(kind) == 1:
            assert {seen[kind, place] for place in range(size)} <= {count // size, -(-count // size)}
    assert len(Mixture(source.sources, weights).open("test")) == sum(sizes)


def test_batches_are_a_function_of_the_seed_and_the_step():
    dataset = Mixture((Tinted("letters", 5), Tinted("value", 10)), (3.0, 1.0))
    data = Data(dataset, num_frames=2, frame_stride=1, image_size=(8, 8), batch_size=8, eval_batch_size=8)
    source = dataset.open("train")
    assert source.counts == (30, 10)
    whole = list(data.train_batches(source, 0, range(0, 5)))
    for ours, theirs in zip(whole[2:], data.train_batches(source, 0, range(2, 5)), strict=True):
        np.testing.assert_array_equal(ours["video"], theirs["video"])
        np.testing.assert_array_equal(ours["labels"]["EF"], theirs["labels"]["EF"])
    assert sum((batch["labels"]["class"] >= 0).sum() for batch in whole) == 30
    assert sum(np.isfinite(batch["labels"]["EF"]).sum() for batch in whole) == 10


def test_settings_survive_a_round_trip_and_are_checked(digits):
    dataset = Mixture((Tinted("letters"), digits), (1.0, 2.0))
    assert from_dict(to_dict(dataset)) == dataset
    assert override(dataset, {"weights": Words(["3.0", "1.0"])}).weights == (3.0, 1.0)
    for fields, message in (
        ({"datasets": ()}, "datasets is empty"),
        ({"weights": (1.0,)}, "for each of 2 datasets"),
        ({"weights": (1.0, 0.0)}, "a number above 0"),
    ):
        with pytest.raises(ValueError, match=message):
            dataclasses.replace(dataset, **fields)
    with pytest.raises(UserError, match=r"data\.dataset\.weights"):
        Mixture((Tinted("letters"), Tinted("letters")), (1.0, 1e9)).open("train")


def test_a_run_learns_a_head_for_each_label(small, tmp_path, digits):
    """From training to named predictions; an example counts for its own heads only."""
    mixture = Mixture((digits, Tinted("letters", 6)), (1.0, 1.0))
    heads = (("motion", 8), ("class", 2), ("appearance", 10))
    experiment = small.override({"data.dataset": mixture, "model.num_classes": heads, "training.steps": 3})
    train(experiment, tmp_path / "run")
    metrics = load_run(tmp_path / "run").evaluate()
    assert isinstance(digits, MovingDigits) and metrics["examples"] == 19 + 6
    assert {"motion/top1", "class/top1", "appearance/top1"} <= metrics.keys()
    assert sum(map(sum, metrics["confusion"]["class"])) == 6 and sum(map(sum, metrics["confusion"]["motion"])) == 19
    (tmp_path / "clip.mp4").write_bytes(Tinted("letters")[1]["video"])
    answer = load_run(tmp_path / "run").predict([tmp_path / "clip.mp4"])[str(tmp_path / "clip.mp4")]
    assert set(answer["class"]) == {"a", "b"} and len(answer) == 3
