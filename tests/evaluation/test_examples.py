"""Intervals of accuracies: Wilson's formula, only for what is correct or wrong, examples without the label left out."""

import numpy as np
import pytest

from vitx.errors import UserError
from vitx.evaluation.evaluate import Predictions
from vitx.evaluation.examples import accuracy_interval, accuracy_intervals, load_predictions, save_predictions
from vitx.tasks.classification import Classification
from vitx.tasks.regression import Regression


def wilson(num_correct, count, z=1.959964):
    centre = (num_correct + z**2 / 2) / (count + z**2)
    half = z / (count + z**2) * np.sqrt(num_correct * (count - num_correct) / count + z**2 / 4)
    return 100 * (centre - half), 100 * (centre + half)


@pytest.mark.parametrize(("num_correct", "count"), [(0, 1), (1, 1), (3, 3), (7, 10), (9_000, 10_000)])
def test_an_interval_is_that_of_wilsons_formula(num_correct, count):
    values = np.array([100.0] * num_correct + [0.0] * (count - num_correct) + [np.nan])
    assert accuracy_interval("motion/top1", values) == pytest.approx(wilson(num_correct, count), abs=1e-3)


@pytest.mark.parametrize(
    ("name", "values"), [("top1", []), ("top1", [np.nan]), ("top1", [0.5, 100.0]), ("mae", [0.0, 100.0])]
)
def test_values_that_are_not_right_or_wrong_have_no_interval(name, values):
    assert accuracy_interval(name, np.array(values)) is None


def test_accuracies_have_intervals_over_the_examples_that_have_the_label():
    outputs = {"verb": np.eye(7, dtype=np.float32)[[0, 1, 2, 3]], "noun": np.eye(2, dtype=np.float32)[[0, 0, 0, 0]]}
    labels = {"verb": np.array([0, 1, 3, 3]), "noun": np.array([0, -1, 0, 1])}
    predictions = Predictions(outputs, labels, np.arange(4), (), "1x1")
    task = Classification(action=("verb", "noun"))
    intervals = accuracy_intervals(task, predictions, task.metrics(predictions))
    expected = {"verb/top1": (3, 4), "verb/top5": (4, 4), "noun/top1": (2, 3), "action/top1": (1, 3)}
    assert intervals.keys() == expected.keys()
    for name, counts in expected.items():
        assert intervals[name] == pytest.approx(wilson(*counts), abs=1e-3)


def test_errors_of_values_have_no_wilson_interval():
    values = {"size": np.zeros((2, 1), np.float32)}
    predictions = Predictions(values, {"size": np.ones((2, 1), np.float32)}, np.arange(2), (), "1x1")
    assert accuracy_intervals(Regression(), predictions, Regression().metrics(predictions)) == {}


def test_predictions_come_back_and_those_that_do_not_fit_together_are_refused(tmp_path):
    path, logits = tmp_path / "predictions_validation.npz", np.eye(3, dtype=np.float32)
    saved = Predictions({"a": logits}, {"a": np.arange(3)}, np.arange(3), (7,), "1x1", ("7: damaged",))
    save_predictions(path, 4, saved)
    step, found = load_predictions(path)
    assert (step, found.unreadable, found.views, found.errors) == (4, (7,), "1x1", ("7: damaged",))
    np.testing.assert_array_equal(found.outputs["a"], logits)
    with np.load(path) as file:
        arrays = dict(file)
    for wrong in ({"index": np.arange(2)}, {"index": np.int32(3)}, {"about": np.array("[]")}, {"about": np.array("{")}):
        np.savez(path, **(arrays | wrong))
        with pytest.raises(UserError, match="--split validation writes it again"):
            load_predictions(path)
