"""Single-label classification, of one label or of several at once."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int
from scipy.special import softmax

from vitx.configuration import register
from vitx.data.sources import Source
from vitx.errors import UserError
from vitx.evaluation.evaluate import Predictions
from vitx.evaluation.metrics import classification_figures, confusion, per_class
from vitx.evaluation.report import Results, Section, clip_strip, confusion_matrix, table
from vitx.tasks.imbalance import Counts, balanced_weights, class_counts, focal_cross_entropy, log_priors
from vitx.tasks.task import Answer, Names, Supervised


@register
@dataclasses.dataclass(frozen=True)
class Classification(Supervised):
    """Cross-entropy over classes; with several heads the mean of theirs.

    Attributes:
        label_smoothing: share of the target spread evenly over all classes.
        class_balance: beta, by which classes weigh in the loss as the inverse of their effective number of training
            examples (Cui et al. 2019): 0 weighs all alike, 0.99 or 0.999 is usual, 1 is the inverse of their number.
        focus: gamma of focal loss (Lin et al. 2017, equation 4), which makes little of what is right already.
        logit_adjustment: tau, by which the logarithm of every class's share of the training examples is added to its
            logit in training (Menon et al. 2021, equation 10).
        counts: ((label, examples of each class), ...) of training; () takes them from the training split.
        action: labels, such as ("verb", "noun"), that make an action together: "action/top1" in evaluation counts the
            examples in which all of them are right, as EPIC-KITCHENS does.
        average: whether "logits" of the views of a video are averaged, or "probabilities".
        Others: as `Supervised`.
    """

    label_smoothing: float = 0.0
    class_balance: float = 0.0
    focus: float = 0.0
    logit_adjustment: float = 0.0
    counts: Counts = ()
    action: tuple[str, ...] = ()
    average: Literal["logits", "probabilities"] = "logits"

    headline: ClassVar[Mapping[str, str]] = {"loss": "{:.3f}", "top1": "{:.1f} %", "top5": "{:.1f} %"}
    curves: ClassVar[Mapping[str, str]] = {"loss": "", "top1": "(%)"}

    def __post_init__(self):
        for name in ("label_smoothing", "class_balance"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected 0 to 1")
        if self.focus < 0 or self.logit_adjustment < 0:
            raise ValueError(
                f"focus is {self.focus} and logit_adjustment {self.logit_adjustment}; expected none below 0"
            )

    def fitted(self, source: Source) -> "Classification":
        if self.counts or not (self.class_balance or self.logit_adjustment):
            return self
        return dataclasses.replace(self, counts=class_counts(source))

    def outputs(self, model: nn.Module, label_names: Names) -> dict[str, tuple[str, ...]]:
        heads = super().outputs(model, label_names)
        missing = [label for label in self.action if label not in heads]
        if missing or (self.action and "action" in heads):
            raise UserError(
                f"task.action names {', '.join(self.action)} and the model predicts {', '.join(heads)}; expected some "
                "of these, and none that is called action"
            )
        return heads

    def target(self, name: str, labels: Int[Array, "batch"], width: int) -> Float[Array, "batch classes"]:
        return optax.smooth_labels(jax.nn.one_hot(labels, width), self.label_smoothing)

    def head_loss(
        self,
        name: str,
        outputs: Float[Array, "batch classes"],
        target: Float[Array, "batch classes"],
        labels: Int[Array, "batch"],
    ) -> tuple[Float[Array, "batch"], dict[str, Float[Array, "batch"]]]:
        counts, logits = dict(self.counts).get(name), outputs
        if counts is not None and self.logit_adjustment:
            logits = logits + self.logit_adjustment * log_priors(counts)
        if counts is not None and self.class_balance:
            target = target * balanced_weights(counts, self.class_balance)
        return focal_cross_entropy(logits, target, self.focus), {"top1": 100.0 * (outputs.argmax(-1) == labels)}

    def to_average(self, outputs: Float[Array, "batch classes"]) -> Float[Array, "batch classes"]:
        return outputs if self.average == "logits" else jax.nn.softmax(outputs)

    def from_average(self, average: Float[Array, "batch classes"]) -> Float[Array, "batch classes"]:
        return average if self.average == "logits" else jnp.log(jnp.maximum(average, 1e-30))

    def metrics(self, predictions: Predictions) -> dict[str, float | int]:
        figures = super().metrics(predictions)
        if not self.action:
            return figures
        labels = np.stack([predictions.labels[label] for label in self.action])
        said = np.stack([predictions.outputs[label].argmax(axis=1) for label in self.action])
        there = (labels >= 0).all(axis=0)
        right = (said == labels).all(axis=0)[there]
        return figures | {"action/top1": 100 * float(right.mean()) if there.any() else 0.0}

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
