"""Single-label classification, of one label or of several at once."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import jax
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int
from scipy.special import softmax

from vitx.configuration import register
from vitx.evaluation.evaluate import Predictions
from vitx.evaluation.metrics import classification_figures, confusion, per_class
from vitx.evaluation.report import Results, Section, clip_strip, confusion_matrix, table
from vitx.tasks.task import Answer, Names, Supervised


@register
@dataclasses.dataclass(frozen=True)
class Classification(Supervised):
    """Cross-entropy over classes; with several heads the mean of theirs.

    Attributes:
        label_smoothing: share of the target spread evenly over all classes.
        Others: as `Supervised`.
    """

    label_smoothing: float = 0.0

    headline: ClassVar[Mapping[str, str]] = {"loss": "{:.3f}", "top1": "{:.1f} %", "top5": "{:.1f} %"}
    curves: ClassVar[Mapping[str, str]] = {"loss": "", "top1": "(%)"}

    def head_loss(
        self, name: str, outputs: Float[Array, "batch classes"], labels: Int[Array, "batch"]
    ) -> tuple[Float[Array, "batch"], dict[str, Float[Array, "batch"]]]:
        targets = optax.smooth_labels(jax.nn.one_hot(labels, outputs.shape[-1]), self.label_smoothing)
        return optax.softmax_cross_entropy(outputs, targets), {"top1": 100.0 * (outputs.argmax(-1) == labels)}

    def present(self, labels: Int[Array | np.ndarray, "batch"]) -> Bool[Array | np.ndarray, "batch"]:
        return labels >= 0

    def head_figures(
        self, outputs: Float[np.ndarray, "examples classes"], labels: Int[np.ndarray, "examples"]
    ) -> Mapping[str, float]:
        return classification_figures(outputs, labels)

    def blank_label(self, classes: int) -> np.ndarray:
        return np.zeros(1, np.int32)

    def sections(self, results: Results) -> Sequence[Section]:
        predictions, sections = results.predictions, []
        for label, logits in predictions.outputs.items():
            logits, labels, names = *self._labelled(predictions, label), results.names[label]
            picture = f"confusion_{label}.png"
            figure = confusion_matrix(confusion(logits, labels), names, f"{label}, {results.split} split")
            columns = per_class(logits, labels)
            rows = [
                (name, *(f"{columns[each][i]:.1f}" for each in ("precision", "recall", "f1")), columns["support"][i])
                for i, name in enumerate(names)
            ]
            lines = [f"![confusion matrix]({picture})", ""]
            lines += table(("class", "precision %", "recall %", "F1 %", "videos"), rows)
            sections.append(Section(label.capitalize(), lines, {picture: figure}))
        captions = [
            [
                _caption(label, results.names[label], int(logits[row].argmax()), int(predictions.labels[label][row]))
                for label, logits in predictions.outputs.items()
            ]
            for row in results.shown
        ]
        lines = ["Decoded clips and what the model says of them; red where it is wrong.", ""]
        lines += ["![clips with predictions](predictions.png)"]
        strip = clip_strip(results.clips, captions)
        return [*sections, Section("Predictions", lines, {"predictions.png": strip})]

    def details(self, predictions: Predictions, names: Names) -> dict[str, Any]:
        tables, counts = {}, {}
        for label in predictions.outputs:
            columns = per_class(*self._labelled(predictions, label))
            tables[label] = {
                name: {figure: column[i].item() for figure, column in columns.items()}
                for i, name in enumerate(names[label])
            }
            counts[label] = confusion(*self._labelled(predictions, label)).tolist()
        return {"per_class": tables, "confusion": counts}

    def answers(self, outputs: Mapping[str, Float[np.ndarray, " _"]], names: Names, top: int) -> Answer:
        answers = {}
        for label, logits in outputs.items():
            shares = softmax(logits)
            order = shares.argsort()[::-1][:top]
            answers[label] = {names[label][i]: float(shares[i]) for i in order}
        return answers

    def _labelled(self, predictions: Predictions, label: str) -> tuple[np.ndarray, np.ndarray]:
        there = predictions.labels[label] >= 0
        return predictions.outputs[label][there], predictions.labels[label][there]


def _caption(label: str, names: Sequence[str], said: int, true: int) -> tuple[str, bool]:
    right = said == true or true < 0
    return f"{label}: {names[said]}" + ("" if right else f" (true: {names[true]})"), right
