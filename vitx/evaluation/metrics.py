"""Figures of a classifier; scikit-learn computes them."""

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
