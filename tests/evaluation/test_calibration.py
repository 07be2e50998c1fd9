"""Temperature scaling: the minimum that a grid finds, calibration errors by hand, and files that come back."""

import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit, softmax

from vitx.errors import UserError
from vitx.evaluation.calibration import (
    MAX_TEMPERATURE,
    MIN_TEMPERATURE,
    calibration_of_split,
    confidences,
    expected_calibration_error,
    fit_calibration,
    fit_temperature,
    load_calibration,
    negative_log_likelihood,
    reliability,
    reliability_diagram,
    save_calibration,
    scale_logits,
)
from vitx.evaluation.evaluate import Predictions
from vitx.tasks.classification import Classification
from vitx.tasks.multilabel import MultiLabel
from vitx.tasks.regression import Regression


def drawn(temperature, several, n=4000, k=5, seed=0):
    """Logits whose labels are drawn from the probabilities at a temperature."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 3, (n, k))
    if several:
        return logits, (rng.uniform(size=(n, k)) < expit(logits / temperature)).astype(np.float32)
    cumulative = softmax(logits / temperature, axis=1).cumsum(axis=1)
    return logits, (cumulative < rng.uniform(size=(n, 1))).sum(axis=1).clip(max=k - 1)


def predictions_of(logits, labels):
    return Predictions({"a": logits.astype(np.float32)}, {"a": labels}, np.arange(len(labels)), (), "1x1")


@settings(max_examples=20, deadline=None)
@given(st.sampled_from([0.3, 1.0, 2.5]), st.booleans(), st.integers(0, 99), st.integers(2, 40))
def test_the_temperature_is_the_minimum_of_a_fine_grid(temperature, several, seed, n):
    logits, labels = drawn(temperature, several, n=n, k=3, seed=seed)
    fitted = fit_temperature(lambda inverse: negative_log_likelihood(logits, labels, inverse))
    grid = 1 / np.geomspace(MIN_TEMPERATURE, MAX_TEMPERATURE, 2000)
    losses = [negative_log_likelihood(logits, labels, inverse) for inverse in grid]
    assert negative_log_likelihood(logits, labels, 1 / fitted) <= min(losses) + 1e-6
    if 2 * MIN_TEMPERATURE < fitted < MAX_TEMPERATURE / 2:  # near the bounds the loss is flat
        assert fitted == pytest.approx(1 / grid[np.argmin(losses)], rel=0.02)


@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_the_temperature_of_the_labels_is_found_and_the_error_vanishes(several, temperature):
    logits, labels = drawn(temperature, several)
    task = MultiLabel() if several else Classification()
    found = fit_calibration(task, predictions_of(logits, labels), 7, {})
    (label,) = found.labels.values()
    assert label.temperature == pytest.approx(temperature, rel=0.05) and label.examples == len(labels)
    assert label.calibrated_loss < label.loss and label.calibrated_ece < 2 < label.ece
    (of_split,) = calibration_of_split(task, predictions_of(logits, labels), found).values()
    assert of_split["ece"] == pytest.approx(label.ece) and of_split["calibrated_ece"] == pytest.approx(
        label.calibrated_ece
    )


def test_scaling_keeps_the_order_of_classes():
    logits, labels = drawn(2.0, False, n=200)
    found = fit_calibration(Classification(), predictions_of(logits, labels), 7, {})
    scaled = scale_logits({"a": logits, "b": logits}, found.temperatures)
    np.testing.assert_array_equal(scaled["a"].argmax(1), logits.argmax(1))
    np.testing.assert_array_equal(scaled["b"], logits)


def test_temperatures_are_bounded_where_none_is_best():
    """Where all predictions are correct the loss of every low temperature rounds to 0, so that one of them is found."""
    logits = np.array([[4.0, 0], [0, 4]])
    correct, wrong = (
        fit_temperature(lambda inverse, labels=labels: negative_log_likelihood(logits, labels, inverse))
        for labels in (np.array([0, 1]), np.array([1, 0]))
    )
    assert MIN_TEMPERATURE <= correct < 0.2 and wrong == pytest.approx(MAX_TEMPERATURE, rel=1e-2)


def test_calibration_error_by_hand():
    """Three bins: 0.2 confident and never correct; 0.9 and 0.8 confident, half of them correct."""
    confidence, correct = np.array([0.2, 0.9, 0.8, 0.9, 0.8]), np.array([False, True, False, True, False])
    assert expected_calibration_error(confidence, correct, 3) == pytest.approx(100 * (0.2 + 4 * 0.35) / 5)
    mean, accuracy, counts = reliability(confidence, correct, 3)
    np.testing.assert_allclose(mean, [0.2, np.nan, 0.85])
    np.testing.assert_allclose(accuracy, [0, np.nan, 0.5])
    assert counts.tolist() == [1, 0, 4] and reliability(np.ones(2), np.ones(2, bool), 3)[2].tolist() == [0, 0, 2]


def test_labels_that_examples_lack_count_in_nothing():
    logits, labels = drawn(2.0, False, n=100)
    with_gaps = np.where(np.arange(100) < 50, labels, -1)
    found = fit_calibration(Classification(), predictions_of(logits, with_gaps), 7, {})
    alone = fit_calibration(Classification(), predictions_of(logits[:50], labels[:50]), 7, {})
    assert found.labels == alone.labels and found.labels["a"].examples == 50
    with pytest.raises(UserError, match="validation"):
        fit_calibration(Classification(), predictions_of(logits, np.full(100, -1)), 7, {})
    with pytest.raises(UserError, match="Regression"):
        fit_calibration(Regression(), predictions_of(logits, logits), 7, {})


def test_a_calibration_comes_back_from_its_file_and_a_damaged_one_is_refused(tmp_path):
    assert load_calibration(tmp_path) is None
    found = fit_calibration(Classification(), predictions_of(*drawn(2.0, False, n=50)), 7, {"data.eval_clips": 4})
    path = save_calibration(tmp_path, found)
    assert load_calibration(tmp_path) == found
    data = json.loads(path.read_text())
    label = dataclasses.asdict(found.labels["a"])
    temperatures = (0, -1, "2", 1e-300, None)  # 1e-300 is 0 in float32
    labels = ({}, *(label | {"temperature": value} for value in temperatures), label | {"ece": "small"})
    for wrong in ({"format": 9}, {"step": "x"}, *({"labels": {"a": fields}} for fields in labels)):
        path.write_text(json.dumps(data | wrong))
        with pytest.raises(UserError, match=r"calibration\.json.*--calibrate"):
            load_calibration(tmp_path)


def test_a_run_without_mistakes_and_one_that_guesses_are_described_as_such():
    logits, labels = np.eye(4) * 20, np.arange(4)
    for truth, words in ((labels, "all predictions are correct"), ((labels + 1) % 4, "no better than chance")):
        (line,) = fit_calibration(Classification(), predictions_of(logits, truth), 7, {}).describe()
        assert words in line
    (line,) = fit_calibration(Classification(), predictions_of(*drawn(2.0, False, n=99)), 7, {}).describe()
    assert line.endswith("validation videos")


def test_logits_that_are_not_finite_are_refused():
    logits, labels = drawn(2.0, False, n=9)
    logits[3, 1] = np.nan
    with pytest.raises(UserError, match="a that are not finite"):
        fit_calibration(Classification(), predictions_of(logits, labels), 7, {})


@pytest.mark.usefixtures("pictures")
def test_a_reliability_diagram_has_a_panel_for_before_and_after():
    logits, labels = drawn(2.0, False, n=100)
    figure = reliability_diagram({"before": confidences(logits, labels), "after": confidences(logits / 2, labels)}, "a")
    figure.canvas.draw()
    assert [axes.get_title().split(":")[0] for axes in figure.axes[:2]] == ["before", "after"]
