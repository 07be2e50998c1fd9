"""Multi-label classification: every class is there or not, whatever the others are."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float
from scipy.special import expit

from vitx.configuration import register
from vitx.evaluation.evaluate import Predictions
from vitx.evaluation.metrics import average_precisions, multilabel_figures
from vitx.evaluation.report import Results, Section, bars, table
from vitx.tasks.task import Answer, Names, Supervised

TINY = 1e-7  # keeps the logarithm of a probability finite


@register
@dataclasses.dataclass(frozen=True)
class MultiLabel(Supervised):
    """Binary cross-entropy of every class, averaged over classes; labels are 1 or 0 for each class.

    Attributes:
        label_smoothing: share of the target moved to one half.
        focus: gamma of focal loss (Lin et al. 2017, equation 4), which makes little of what is right already.
        average: whether "logits" of the views of a video are averaged, or "probabilities".
        Others: as `Supervised`.
    """

    label_smoothing: float = 0.0
    focus: float = 0.0
    average: Literal["logits", "probabilities"] = "logits"

    headline: ClassVar[Mapping[str, str]] = {"loss": "{:.3f}", "mAP": "{:.1f} %"}
    curves: ClassVar[Mapping[str, str]] = {"loss": "", "mAP": "(%)"}

    def __post_init__(self):
        if not 0 <= self.label_smoothing <= 1 or self.focus < 0:
            raise ValueError(
                f"label_smoothing is {self.label_smoothing} and focus {self.focus}; expected 0 to 1 and at least 0"
            )

    def target(self, name: str, labels: Float[Array, "batch classes"], width: int) -> Float[Array, "batch classes"]:
        return jnp.nan_to_num(labels) * (1 - self.label_smoothing) + 0.5 * self.label_smoothing

    def head_loss(
        self,
        name: str,
        outputs: Float[Array, "batch classes"],
        target: Float[Array, "batch classes"],
        labels: Float[Array, "batch classes"],
    ) -> tuple[Float[Array, "batch"], dict[str, Float[Array, "batch"]]]:
        if self.focus:
            losses = optax.sigmoid_focal_loss(outputs, target, gamma=self.focus)
        else:
            losses = optax.sigmoid_binary_cross_entropy(outputs, target)
        return losses.mean(axis=-1), {}

    def to_average(self, outputs: Float[Array, "batch classes"]) -> Float[Array, "batch classes"]:
        return outputs if self.average == "logits" else jax.nn.sigmoid(outputs)

    def from_average(self, average: Float[Array, "batch classes"]) -> Float[Array, "batch classes"]:
        return average if self.average == "logits" else jnp.log(average + TINY) - jnp.log1p(TINY - average)

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
            picture = f"precision_{label}.png"
            lines = [f"![average precision of every class]({picture})", ""]
            lines += table(
                ("class", "average precision %", "videos"),
                [(name, f"{row['average_precision']:.1f}", row["support"]) for name, row in rows.items()],
            )
            heights = {name: row["average_precision"] for name, row in rows.items()}
            drawn = bars(heights, "average precision (%)", f"{label}, {results.split} split")
            sections.append(Section(label.capitalize(), lines, {picture: drawn}))
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
