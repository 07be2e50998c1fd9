"""Multi-label classification: every class is there or not, whatever the others are."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float
from scipy.special import expit

from vitx.configuration import register
from vitx.evaluation.evaluate import Predictions
from vitx.evaluation.metrics import average_precisions, multilabel_figures
from vitx.evaluation.report import Results, Section, table
from vitx.tasks.task import Answer, Names, Supervised


@register
@dataclasses.dataclass(frozen=True)
class MultiLabel(Supervised):
    """Binary cross-entropy of every class, averaged over classes; labels are 1 or 0 for each class.

    Attributes:
        label_smoothing: share of the target moved to one half.
        Others: as `Supervised`.
    """

    label_smoothing: float = 0.0

    headline: ClassVar[Mapping[str, str]] = {"loss": "{:.3f}", "mAP": "{:.1f} %"}
    curves: ClassVar[Mapping[str, str]] = {"loss": "", "mAP": "(%)"}

    def head_loss(
        self, name: str, outputs: Float[Array, "batch classes"], labels: Float[Array, "batch classes"]
    ) -> tuple[Float[Array, "batch"], dict[str, Float[Array, "batch"]]]:
        targets = jnp.nan_to_num(labels) * (1 - self.label_smoothing) + 0.5 * self.label_smoothing
        return optax.sigmoid_binary_cross_entropy(outputs, targets).mean(axis=-1), {}

    def present(self, labels: Float[Array | np.ndarray, "batch classes"]) -> Bool[Array | np.ndarray, "batch"]:
        return (labels == labels).all(axis=-1)  # NaN is not itself

    def head_figures(
        self, outputs: Float[np.ndarray, "examples classes"], labels: Float[np.ndarray, "examples classes"]
    ) -> Mapping[str, float]:
        return multilabel_figures(outputs, labels)

    def blank_label(self, classes: int) -> np.ndarray:
        return np.ones((1, classes), np.float32)

    def sections(self, results: Results) -> Sequence[Section]:
        sections = []
        for label, rows in self.details(results.predictions, results.names)["per_class"].items():
            lines = table(
                ("class", "average precision %", "videos"),
                [(name, f"{row['average_precision']:.1f}", row["support"]) for name, row in rows.items()],
            )
            sections.append(Section(label.capitalize(), lines, {}))
        return sections

    def details(self, predictions: Predictions, names: Names) -> dict[str, Any]:
        tables = {}
        for label, outputs in predictions.outputs.items():
            labels = predictions.labels[label]
            there = self.present(labels)
            precisions, support = average_precisions(outputs[there], labels[there]), labels[there].sum(axis=0)
            tables[label] = {
                name: {"average_precision": float(precisions[i]), "support": int(support[i])}
                for i, name in enumerate(names[label])
            }
        return {"per_class": tables}

    def answers(self, outputs: Mapping[str, Float[np.ndarray, " _"]], names: Names, top: int) -> Answer:
        answers = {}
        for label, logits in outputs.items():
            order = logits.argsort()[::-1][:top]
            answers[label] = {names[label][i]: float(expit(logits[i])) for i in order}
        return answers
