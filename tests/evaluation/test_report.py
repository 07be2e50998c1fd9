"""The report: a part for each split, pictures, and Markdown that class names cannot break."""

from pathlib import Path

import numpy as np
import pytest
from flax import linen as nn
from matplotlib.figure import Figure

from vitx.errors import UserError
from vitx.evaluation.evaluate import Predictions
from vitx.evaluation.report import (
    Picture,
    Results,
    Section,
    clip_strip,
    confusion_matrix,
    learning_curves,
    table,
    write_report,
)

ROWS = [
    {"step": 1, "split": "train", "loss": 2.0, "motion/top1": 10.0, "motion/loss": 1.0},
    {"step": 2, "split": "train", "loss": 1.0, "motion/top1": 20.0, "motion/loss": 1.0},
    {"step": 2, "split": "spike", "loss": 9.0, "median": 1.0},
    {"step": 2, "split": "other_camera", "views": "1x1", "loss": 1.5, "motion/top1": 15.0},
]


def write(workdir, split, text, **changes):
    predictions = Predictions({}, {}, np.arange(3), (7,), "1x1", ("clip.mp4: Invalid data",))
    results = Results(nn.Dense(1), {}, split, predictions, {}, np.zeros((0, 1, 1, 1, 3), np.uint8), np.arange(0))
    picture = Picture("some.png", "a caption", Figure())
    arguments = {
        "title": "a run",
        "facts": ["Seed: 3"],
        "rows": ROWS,
        "curves": {"loss": "", "top1": "(%)"},
        "results": results,
        "checkpoint": "step 2 of 2",
        "metrics": {"loss": 1.5, "motion/top1": 100.0, "examples": 3},
        "intervals": {"motion/top1": (43.8, 100.0)},
        "sections": [Section("Classes", [text, picture, table(("class", "videos"), [("a|b", 3)])])],
    }
    return write_report(workdir, **(arguments | changes)).read_text()


@pytest.mark.usefixtures("pictures")
def test_a_split_has_metrics_problems_sections_and_pictures(tmp_path):
    report = write(tmp_path, "test", "first text")
    for line in (
        "# a run",
        "- Seed: 3",
        "## Test split, 1x1 views",
        "Checkpoint: step 2 of 2.",
        "Over 3 of 4 videos; these cannot be read:",
        "- clip.mp4: Invalid data",
        "| loss | 1.50 |  |",
        "| motion/top1 | 100.00 | 43.8 to 100.0 |",
        "| examples | 3 |  |",
        "### Classes",
        "first text",
        "![a caption](test_some.png)",
        r"| a\|b | 3 |",
    ):
        assert line in report.splitlines()
    assert {path.name for path in tmp_path.iterdir()} == {"report.md", "curves.png", "test_some.png"}
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in tmp_path.glob("*.png"))


def test_another_split_adds_its_part_and_the_same_split_replaces_its_own(tmp_path):
    write(tmp_path, "test", "first text")
    both = write(tmp_path, "validation", "second text")
    assert "first text" in both and "second text" in both
    again = write(tmp_path, "test", "third text", facts=["Seed: 4"])
    assert "first text" not in again and "second text" in again and "third text" in again
    assert again.count("# a run") == 1 and again.count("## Test split") == again.count("## Validation split") == 1
    assert "Seed: 3" not in again and again.count("## Learning curves") == 1
    assert again == write(tmp_path, "test", "third text", facts=["Seed: 4"])


def test_curves_are_drawn_for_training_and_every_evaluated_split():
    loss, top1 = learning_curves(ROWS, {"loss": "", "top1": "(%)"}).axes
    assert loss.get_title().strip() == "loss" and top1.get_title() == "motion/top1 (%)"
    for axes in (loss, top1):
        assert [line.get_label() for line in axes.lines] == ["train", "other_camera"]
    np.testing.assert_array_equal(loss.lines[0].get_xydata(), [[1, 2], [2, 1]])


def test_names_of_classes_are_drawn_as_they_are():
    names = ["$_$", "__background__", "a$b$c"]
    figure = confusion_matrix(np.eye(3, dtype=int), names, "$\\frac$")
    figure.draw_without_rendering()
    shown = [label.get_text() for label in figure.axes[0].get_xticklabels()]
    assert shown == [r"\$_\$", "\u200b__background__", r"a\$b\$c"]


def test_long_captions_stay_inside_the_picture_of_clips():
    caption = "tubelets_and_temporal_layer_seed0: anticlockwise"
    figure = clip_strip(np.zeros((2, 4, 6, 6, 3), np.uint8), [[(caption, True), ("short", False)]] * 2)
    figure.draw_without_rendering()
    texts = [text for text in figure.axes[0].texts if text.get_text() == caption]
    assert len(texts) == 2 and all(text.get_window_extent().x1 <= figure.bbox.x1 for text in texts)


def test_a_report_that_may_not_be_written_is_a_user_error(tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "write_bytes", refuse)
    with pytest.raises(UserError, match=r"curves\.png"):
        write(tmp_path, "test", "text")
