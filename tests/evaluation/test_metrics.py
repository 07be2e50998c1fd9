"""Figures of a classifier, against counts by hand."""

import numpy as np
import pytest

from vitx.evaluation.metrics import classification_metrics, confusion, per_class

pytestmark = pytest.mark.smoke


def test_figures_by_hand():
    labels = np.array([0, 0, 1, 2])
    logits = np.log(np.array([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.2, 0.6, 0.2], [0.5, 0.3, 0.2]]))
    figures = classification_metrics(logits, labels)
    assert figures["top1"] == 50
    assert figures["loss"] == pytest.approx(-np.mean(np.log([0.7, 0.1, 0.6, 0.2])))
    assert figures["macro_recall"] == pytest.approx(100 * np.mean([0.5, 1, 0]))
    assert figures["macro_precision"] == pytest.approx(100 * np.mean([0.5, 0.5, 0]))
    assert figures["macro_f1"] == pytest.approx(100 * np.mean([0.5, 2 / 3, 0]))
    assert "top5" not in figures
    np.testing.assert_array_equal(confusion(logits, labels), [[1, 1, 0], [0, 1, 0], [1, 0, 0]])
    np.testing.assert_array_equal(per_class(logits, labels)["support"], [2, 1, 1])


def test_top5():
    logits = np.tile(np.arange(8.0), (8, 1))
    assert classification_metrics(logits, np.arange(8))["top5"] == pytest.approx(100 * 5 / 8)
