"""Presenters: chosen by the task's class, and strictly valid JSON in what they return."""

import dataclasses
import json

import numpy as np
import pytest
from flax import linen as nn

from vitx.evaluation.evaluate import Predictions
from vitx.evaluation.presentation import ClassificationPresenter, Presenter, RegressionPresenter, presenter_for
from vitx.evaluation.report import Results
from vitx.tasks.classification import Classification
from vitx.tasks.multilabel import MultiLabel
from vitx.tasks.regression import Regression
from vitx.tasks.task import Task

NAMES = {"a": ("x", "y", "z")}
LOGITS = np.array([[2.0, 0, 0], [0, 1, 0], [0, 3, 0]], np.float32)
LABELS = {
    Classification: np.array([0, 1, 0]),  # no example of z
    MultiLabel: np.array([[1, 0, 0], [1, 1, 0], [0, 1, 0]], np.float32),
    Regression: np.array([[1, 2, 3], [0, 0, 1], [5, 1, 2]], np.float32),
}


def predictions_of(kind):
    return Predictions({"a": LOGITS}, {"a": LABELS[kind]}, np.arange(3), (), "1x1")


def results_of(kind):
    clips = np.zeros((1, 2, 4, 4, 3), np.uint8)
    return Results(nn.Dense(1), {}, "test", predictions_of(kind), NAMES, clips, np.arange(1))


class OwnTask(Task):
    """A task of somebody's own."""


@dataclasses.dataclass(frozen=True)
class OwnClassification(Classification):
    """A task derived from ours."""


def test_a_task_gets_the_presenter_of_its_class_or_of_the_one_it_inherits_from():
    assert type(presenter_for(Regression())) is RegressionPresenter
    assert type(presenter_for(OwnClassification())) is ClassificationPresenter
    assert type(presenter_for(OwnTask())) is Presenter


def test_the_default_presenter_shows_all_metrics_and_values():
    presenter = presenter_for(OwnTask())
    assert presenter.headline({"loss": 0.5, "a/error": 2.0, "examples": 3, "unreadable": 0}) == "loss 0.5, a/error 2"
    answer = presenter.answer({"a": np.array([0.25, 2.0, 3.0])}, NAMES, 1)
    assert answer == {"a": {"x": 0.25, "y": 2.0, "z": 3.0}}
    assert presenter.format_answer(answer["a"]) == "x 0.25, y 2, z 3"
    results = results_of(Regression)
    assert presenter.tables(results.predictions, NAMES) == {} and presenter.sections(results) == ()


def test_headline_has_the_main_metrics_alone():
    metrics = {"loss": 1.0, "a/loss": 1.0, "a/top1": 50.0, "a/macro_f1": 40.0, "examples": 3}
    assert presenter_for(Classification()).headline(metrics) == "loss 1.000, a/loss 1.000, a/top1 50.0 %"
    shown = presenter_for(Classification()).headline(metrics, {"a/top1": (9.5, 90.6)})
    assert shown == "loss 1.000, a/loss 1.000, a/top1 50.0 % (9.5 to 90.6)"


@pytest.mark.parametrize("kind", [Classification, MultiLabel])
def test_answers_are_probabilities_of_the_best_classes(kind):
    presenter = presenter_for(kind())
    answer = presenter.answer({"a": np.array([0.0, 2.0, 1.0])}, NAMES, 2)["a"]
    assert list(answer) == ["y", "z"]
    expected = np.exp(2) / (1 + np.e + np.exp(2)) if kind is Classification else 1 / (1 + np.exp(-2))
    assert answer["y"] == pytest.approx(expected)
    assert presenter.format_answer({"y": 0.5}) == "y 50.0 %"


@pytest.mark.parametrize("kind", [Classification, MultiLabel, Regression])
def test_metric_names_are_those_of_the_metrics_and_everything_is_strict_json(kind):
    task, predictions = kind(), predictions_of(kind)
    metrics = task.metrics(predictions)
    assert set(task.metric_names(NAMES)) == metrics.keys()
    json.dumps([metrics, presenter_for(task).tables(predictions, NAMES)], allow_nan=False)


@pytest.mark.parametrize("kind", [Classification, MultiLabel])
def test_classes_without_a_video_are_counted_and_named(kind):
    task, predictions = kind(), predictions_of(kind)
    assert task.metrics(predictions)["a/absent_classes"] == 1
    results = results_of(kind)
    section = presenter_for(task).sections(results)[0]
    assert any(
        isinstance(block, str) and block.startswith("1 of 3 classes") and "z" in block for block in section.blocks
    )
    table = presenter_for(task).tables(predictions, NAMES)["per_class"]["a"]
    assert table["z"].pop("support") == 0 and set(table["z"].values()) == {None}
    assert all(isinstance(value, float | int) for name in "xy" for value in table[name].values())
