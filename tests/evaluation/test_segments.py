"""Segments of invented probabilities, and their timeline."""

import numpy as np
import pytest

from tests.test_fonts import build_font
from vitx.data.files import Folder
from vitx.data.pipeline import Data
from vitx.data.windows import EvaluationReader
from vitx.errors import UserError
from vitx.evaluation.predictor import Predictor, VideoPrediction
from vitx.evaluation.presentation import presenter_for
from vitx.evaluation.segments import Thresholds, cell_bounds, find_segments, hysteresis, segments_of
from vitx.evaluation.timeline import timeline
from vitx.tasks.classification import Classification
from vitx.tasks.multilabel import MultiLabel
from vitx.tasks.regression import Regression

WINDOWS = [(0.0, 2.0), (1.0, 3.0), (2.0, 4.0), (3.0, 5.0), (3.5, 5.5)]


@pytest.mark.parametrize(
    ("values", "runs"),
    [
        ([0.1, 0.5, 0.7, 0.5, 0.1], [(1, 4)]),  # lasts on both sides of the peak
        ([0.5, 0.5, 0.5, 0.5, 0.5], []),  # never reaches the high threshold
        ([0.7, 0.3, 0.7, 0.5, 0.6], [(0, 1), (2, 5)]),  # falls below the low one in between
        ([0.6, 0.4, 0.4, 0.4, 0.6], [(0, 5)]),  # thresholds themselves count
        ([0.0, 0.0, 0.0, 0.0, 0.0], []),
    ],
)
def test_hysteresis_begins_at_the_high_threshold_and_lasts_to_the_low_one(values, runs):
    assert hysteresis(np.array(values), Thresholds(0.4, 0.6)) == runs


def test_hysteresis_with_equal_thresholds_is_one_threshold():
    values = np.random.default_rng(0).uniform(size=200)
    inside = np.zeros(200, bool)
    for first, stop in hysteresis(values, Thresholds(0.5, 0.5)):
        inside[first:stop] = True
    np.testing.assert_array_equal(inside, values >= 0.5)


def test_cells_meet_between_the_centres_of_windows_and_cover_the_video():
    np.testing.assert_allclose(cell_bounds(WINDOWS), [0, 1.5, 2.5, 3.5, 4.25, 5.5])
    np.testing.assert_allclose(cell_bounds([(0.0, 3.0)]), [0, 3])


def test_segments_have_the_times_of_their_cells_and_the_mean_probability():
    probabilities = np.array([[0.9, 0.1], [0.5, 0.5], [0.2, 0.8], [0.1, 0.9], [0.3, 0.7]])
    first, second = find_segments(probabilities, WINDOWS, "motion", ("left", "right"), Thresholds(0.4, 0.6))
    assert (first.start, first.end, first.class_name) == (0, 2.5, "left")
    assert first.score == pytest.approx((0.9 * 1.5 + 0.5) / 2.5)
    assert (second.start, second.end, second.class_name) == (1.5, 5.5, "right")
    assert second.to_row("a.mp4") == {
        "path": "a.mp4", "start": 1.5, "end": 5.5, "label": "motion", "class": "right", "score": second.score,
    }  # fmt: skip


@pytest.mark.parametrize("wrong", [(0.6, 0.4), (-0.1, 0.5), (0.5, 1.5), (float("nan"), 0.5)])
def test_thresholds_out_of_order_are_refused(wrong):
    with pytest.raises(UserError, match=f"{wrong[0]:g} and {wrong[1]:g}"):
        Thresholds(*wrong)


def predictor_of(task, names):
    reader = EvaluationReader(Data(Folder("videos"), num_frames=2, image_size=(8, 8)))
    return Predictor(reader, lambda clips, views: {}, names, presenter_for(task))


@pytest.mark.usefixtures("pictures")
def test_a_timeline_draws_each_label_with_its_segments():
    names = {"motion": ("up", "left $x$", "a class with a very long name indeed, longer than any"), "tags": ("x", "y")}
    rng = np.random.default_rng(0)
    outputs = {label: 3 * rng.normal(size=(5, len(row))).astype(np.float32) for label, row in names.items()}
    video = VideoPrediction("a.mp4", outputs, tuple(WINDOWS), 100, True)
    predictor = predictor_of(MultiLabel(), names)
    segments = segments_of(video, predictor, Thresholds())
    figure = timeline(video, predictor, segments, Thresholds())
    figure.canvas.draw()
    assert [axes.get_title(loc="left") for axes in figure.axes[::2]] == ["motion", "tags"]
    bars = [len(axes.patches) for axes in figure.axes[1::2]]
    assert bars == [sum(segment.label == label for segment in segments) for label in names] and min(bars) > 0


@pytest.mark.parametrize("has", ["", "狗跑步"])
def test_a_timeline_has_names_of_any_script_and_of_the_width_that_they_need(has, install_font, tmp_path):
    if has:
        install_font(build_font(tmp_path / "a.ttf", has))
    names = {"动作": ("狗跑步" * 12, "собака" * 4)}
    video = VideoPrediction("狗.mp4", {"动作": np.array(5 * [[9, 9]], np.float32)}, tuple(WINDOWS), 100, True)
    predictor = predictor_of(MultiLabel(), names)
    segments = segments_of(video, predictor, Thresholds())
    figure = timeline(video, predictor, segments, Thresholds())
    figure.canvas.draw()
    chinese, russian = (text.get_text() for text in figure.axes[0].get_legend().get_texts())
    assert len(russian) == 24 and 10 < len(chinese) <= 14 and ("狗" in chinese) == bool(has) == ("□" not in chinese)


def test_segments_need_probabilities():
    video = VideoPrediction("a.mp4", {"EF": np.zeros((5, 1), np.float32)}, tuple(WINDOWS), 100, True)
    with pytest.raises(UserError, match="Regression"):
        segments_of(video, predictor_of(Regression(), {"EF": ("EF",)}), Thresholds())
    video = VideoPrediction("a.mp4", error="a.mp4: damaged")
    assert segments_of(video, predictor_of(Classification(), {"a": ("x", "y")}), Thresholds()) == []
