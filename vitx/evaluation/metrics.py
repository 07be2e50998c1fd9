"""Figures of what a model predicts; scikit-learn computes them."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from scipy.special import log_softmax
from sklearn import metrics as sk


def classification_figures(
    logits: Float[np.ndarray, "examples classes"], labels: Int[np.ndarray, "examples"]
) -> dict[str, float]:
    """Returns loss (nats), top1, top5 (where there are more than five classes) and the macro averages, in percent."""
    classes = np.arange(logits.shape[1])
    top1 = logits.argmax(axis=1)
    precision, recall, f1, _ = sk.precision_recall_fscore_support(
        labels, top1, average="macro", labels=classes, zero_division=0
    )
    figures = {
        "loss": -log_softmax(logits.astype(np.float64), axis=1)[np.arange(len(labels)), labels].mean(),
        "top1": 100 * sk.accuracy_score(labels, top1),
    }
    if len(classes) > 5:
        figures["top5"] = 100 * sk.top_k_accuracy_score(labels, logits, k=5, labels=classes)
    figures |= {"macro_precision": 100 * precision, "macro_recall": 100 * recall, "macro_f1": 100 * f1}
    return {name: float(figure) for name, figure in figures.items()}


def per_class(
    logits: Float[np.ndarray, "examples classes"], labels: Int[np.ndarray, "examples"]
) -> Mapping[str, np.ndarray]:
    """Returns {precision, recall, f1 (percent), support: [classes]}."""
    columns = sk.precision_recall_fscore_support(
        labels, logits.argmax(axis=1), labels=np.arange(logits.shape[1]), zero_division=0
    )
    names = ("precision", "recall", "f1")
    return {name: 100 * column for name, column in zip(names, columns, strict=False)} | {"support": columns[3]}


def confusion(logits: Float[np.ndarray, "examples classes"], labels: Int[np.ndarray, "examples"]) -> Any:
    """Returns counts [true class, predicted class]."""
    return sk.confusion_matrix(labels, logits.argmax(axis=1), labels=np.arange(logits.shape[1]))


def average_precisions(
    logits: Float[np.ndarray, "examples classes"], labels: Float[np.ndarray, "examples classes"]
) -> Float[np.ndarray, "classes"]:
    """Returns the average precision of every class in percent; NaN of a class that no example has."""
    there = labels.any(axis=0)
    columns = range(labels.shape[1])
    return np.array(
        [100 * sk.average_precision_score(labels[:, i], logits[:, i]) if there[i] else np.nan for i in columns]
    )


def multilabel_figures(
    logits: Float[np.ndarray, "examples classes"], labels: Float[np.ndarray, "examples classes"]
) -> dict[str, float]:
    """Returns loss (nats, the mean over classes), mAP and mAP_labelled in percent, over the classes that are there.

    mAP_labelled ranks examples of no class at all behind the others, as Charades' own evaluation does.
    """
    logits = logits.astype(np.float64)
    loss = np.logaddexp(0, logits) - logits * labels
    figures = {"loss": float(loss.mean())}
    for name, rows in (("mAP", slice(None)), ("mAP_labelled", labels.any(axis=1))):
        precisions = average_precisions(logits[rows], labels[rows])
        seen = precisions[~np.isnan(precisions)]
        figures[name] = float(seen.mean()) if len(seen) else 0.0
    return figures


def regression_figures(
    values: Float[np.ndarray, "examples values"], labels: Float[np.ndarray, "examples values"]
) -> dict[str, float]:
    """Returns loss (the mean squared error), mae, rmse and r2, means over the values, in their units.

    r2 is 0 of fewer than two examples, of which it cannot be told.
    """
    r2 = sk.r2_score(labels, values) if len(labels) > 1 else 0.0
    squared = sk.mean_squared_error(labels, values)
    figures = {
        "loss": squared,
        "mae": sk.mean_absolute_error(labels, values),
        "rmse": sk.root_mean_squared_error(labels, values),
        "r2": r2,
    }
    return {name: float(figure) for name, figure in figures.items()}
