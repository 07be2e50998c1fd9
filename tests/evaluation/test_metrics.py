"""Metrics of a classifier, against counts by hand and scikit-learn."""

import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score

from vitx.evaluation.metrics import classification_metric_names, classification_metrics, confusion, per_class


def test_classification_metrics_match_counts_by_hand():
    labels = np.array([0, 0, 1, 2])
    logits = np.log(np.array([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.2, 0.6, 0.2], [0.5, 0.3, 0.2]]))
    metrics = classification_metrics(logits, labels)
    assert metrics["top1"] == 50
    assert metrics["loss"] == pytest.approx(-np.mean(np.log([0.7, 0.1, 0.6, 0.2])))
    assert metrics["macro_recall"] == pytest.approx(100 * np.mean([0.5, 1, 0]))
    assert metrics["macro_precision"] == pytest.approx(100 * np.mean([0.5, 0.5, 0]))
    assert metrics["macro_f1"] == pytest.approx(100 * np.mean([0.5, 2 / 3, 0]))
    assert "top5" not in metrics and metrics["absent_classes"] == 0
    np.testing.assert_array_equal(confusion(logits, labels), [[1, 1, 0], [0, 1, 0], [1, 0, 0]])
    np.testing.assert_array_equal(per_class(logits, labels)["support"], [2, 1, 1])


def test_macro_averages_leave_out_classes_without_an_example():
    labels, predicted = np.array([0, 0, 2, 2]), np.array([0, 1, 2, 3])
    metrics = classification_metrics(np.eye(5)[predicted], labels)
    assert metrics["absent_classes"] == 3
    with pytest.warns(UserWarning, match="not in y_true"):
        expected = balanced_accuracy_score(labels, predicted)
    assert metrics["macro_recall"] == pytest.approx(100 * expected) == 50
    assert metrics["macro_precision"] == 100 and metrics["macro_f1"] == pytest.approx(100 * 2 / 3)


def test_no_examples_give_no_numbers():
    logits, labels = np.zeros((0, 3)), np.zeros(0, int)
    found = per_class(logits, labels)
    assert found["support"].tolist() == [0, 0, 0] and np.isnan(found["precision"]).all()
    np.testing.assert_array_equal(confusion(logits, labels), np.zeros((3, 3)))


def test_top5_needs_more_than_five_classes():
    logits = np.tile(np.arange(8.0), (8, 1))
    metrics = classification_metrics(logits, np.arange(8))
    assert metrics["top5"] == pytest.approx(100 * 5 / 8)
    assert tuple(metrics) == classification_metric_names(8)
    assert "top5" not in classification_metric_names(5)
