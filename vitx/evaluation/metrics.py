"""Metrics of predictions, computed by scikit-learn.

Letters in shapes: n examples, k classes or values.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from scipy.special import log_softmax

MULTILABEL_METRICS = ("loss", "mAP", "mAP_labelled", "absent_classes")
REGRESSION_METRICS = ("loss", "mae", "rmse", "r2")


def classification_metrics(logits: Float[np.ndarray, "n k"], labels: Int[np.ndarray, "n"]) -> dict[str, float | int]:
    """Returns the metrics named by `classification_metric_names`: loss in nats, the others in percent.

    Macro averages are means over the classes that have an example, as in scikit-learn's balanced accuracy; the other
    classes are counted by `absent_classes`.
    """
    sk = _sklearn_metrics()
    classes = np.arange(logits.shape[1])
    present = np.unique(labels)
    top1 = logits.argmax(axis=1)
    precision, recall, f1, _ = sk.precision_recall_fscore_support(
        labels, top1, average="macro", labels=present, zero_division=0
    )
    metrics = {
        "loss": -log_softmax(logits.astype(np.float64), axis=1)[np.arange(len(labels)), labels].mean(),
        "top1": 100 * sk.accuracy_score(labels, top1),
    }
    if len(classes) > 5:
        metrics["top5"] = 100 * sk.top_k_accuracy_score(labels, logits, k=5, labels=classes)
    metrics |= {"macro_precision": 100 * precision, "macro_recall": 100 * recall, "macro_f1": 100 * f1}
    return {name: float(metric) for name, metric in metrics.items()} | {"absent_classes": len(classes) - len(present)}


def classification_metric_names(num_classes: int) -> tuple[str, ...]:
    """Returns the names of the metrics of a classifier; top5 needs more than five classes."""
    top = ("top1", "top5") if num_classes > 5 else ("top1",)
    return ("loss", *top, "macro_precision", "macro_recall", "macro_f1", "absent_classes")


def per_class(logits: Float[np.ndarray, "n k"], labels: Int[np.ndarray, "n"]) -> Mapping[str, np.ndarray]:
    """Returns {precision, recall, f1 (percent), support: array over classes}; NaN for a class without an example."""
    num_classes = logits.shape[1]
    if not len(labels):  # scikit-learn 1.9 (2026-11) refuses empty arrays
        unknown = np.full(num_classes, np.nan)
        return {"precision": unknown, "recall": unknown, "f1": unknown, "support": np.zeros(num_classes, int)}
    sk = _sklearn_metrics()
    columns = sk.precision_recall_fscore_support(
        labels, logits.argmax(axis=1), labels=np.arange(logits.shape[1]), zero_division=0
    )
    names = ("precision", "recall", "f1")
    percent = {
        name: np.where(columns[3] > 0, 100 * column, np.nan) for name, column in zip(names, columns, strict=False)
    }
    return percent | {"support": columns[3]}


def confusion(logits: Float[np.ndarray, "n k"], labels: Int[np.ndarray, "n"]) -> Any:
    """Returns counts [true class, predicted class]."""
    if not len(labels):  # as above
        return np.zeros((logits.shape[1],) * 2, int)
    sk = _sklearn_metrics()
    return sk.confusion_matrix(labels, logits.argmax(axis=1), labels=np.arange(logits.shape[1]))


def average_precisions(logits: Float[np.ndarray, "n k"], labels: Float[np.ndarray, "n k"]) -> Float[np.ndarray, "k"]:
    """Returns the average precision of every class in percent; NaN for a class without an example."""
    sk = _sklearn_metrics()
    present = labels.any(axis=0)
    columns = range(labels.shape[1])
    return np.array(
        [100 * sk.average_precision_score(labels[:, i], logits[:, i]) if present[i] else np.nan for i in columns]
    )


def multilabel_metrics(logits: Float[np.ndarray, "n k"], labels: Float[np.ndarray, "n k"]) -> dict[str, float | int]:
    """Returns loss (nats, the mean over classes), mAP and mAP_labelled in percent, and absent_classes.

    Both are means over the classes that have an example; absent_classes counts the others. mAP_labelled ranks examples
    without any class behind all others, as the evaluation code of Charades does.
    """
    logits = logits.astype(np.float64)
    loss = np.logaddexp(0, logits) - logits * labels
    metrics: dict[str, float | int] = {"loss": float(loss.mean())}
    for name, rows in (("mAP", slice(None)), ("mAP_labelled", labels.any(axis=1))):
        precisions = average_precisions(logits[rows], labels[rows])
        known = precisions[~np.isnan(precisions)]
        metrics[name] = float(known.mean()) if len(known) else 0.0
    return metrics | {"absent_classes": int((~labels.any(axis=0)).sum())}


def regression_metrics(values: Float[np.ndarray, "n k"], labels: Float[np.ndarray, "n k"]) -> dict[str, float]:
    """Returns loss (the mean squared error), mae, rmse and r2, means over the values, in their units.

    r2 is undefined for fewer than two examples and then returned as 0.
    """
    sk = _sklearn_metrics()
    metrics = {
        "loss": sk.mean_squared_error(labels, values),
        "mae": sk.mean_absolute_error(labels, values),
        "rmse": sk.root_mean_squared_error(labels, values),
        "r2": sk.r2_score(labels, values) if len(labels) > 1 else 0.0,
    }
    return {name: float(metric) for name, metric in metrics.items()}


def _sklearn_metrics() -> Any:
    """Imports scikit-learn's metrics: slow to import, and no training step needs them."""
    from sklearn import metrics

    return metrics
