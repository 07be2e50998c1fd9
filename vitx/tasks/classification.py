"""Single-label classification of one label or of several at once.

Letters in shapes: b batch, n examples, k classes.
"""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int

from vitx.configuration import register
from vitx.data.sources import Source
from vitx.errors import UserError
from vitx.evaluation.evaluate import Predictions
from vitx.evaluation.metrics import classification_metric_names, classification_metrics
from vitx.tasks.imbalance import Counts, balanced_weights, class_counts, focal_cross_entropy, log_priors
from vitx.tasks.task import Names, PerExample, Supervised


@register
@dataclasses.dataclass(frozen=True)
class Classification(Supervised):
    """Cross-entropy over classes; the mean over heads where there are several.

    See `Supervised` for inherited fields.

    Attributes:
        label_smoothing: fraction of the target that is spread evenly over all classes.
        class_balance: beta of class-balanced loss (Cui et al. 2019), which weights a class by the inverse of its
            effective number of training examples. 0: equal weights; 0.99 or 0.999: usual; 1: inverse frequency.
        focal_gamma: gamma of focal loss (Lin et al. 2017, equation 4), which reduces the loss of examples that are
            already classified well; 0 is plain cross-entropy.
        logit_adjustment: tau of logit adjustment (Menon et al. 2021, equation 10): tau times the log of a class's
            frequency in training is added to its logit during training.
        counts: ((label, training examples of each class), ...); () counts them in the training split.
        action: labels, such as ("verb", "noun"), that form an action together. "action/top1" in evaluation is the
            accuracy of predicting all of them correctly, as in EPIC-KITCHENS.
        average: average "logits" or "probabilities" over the views of a video.
    """

    label_smoothing: float = 0.0
    class_balance: float = 0.0
    focal_gamma: float = 0.0
    logit_adjustment: float = 0.0
    counts: Counts = ()
    action: tuple[str, ...] = ()
    average: Literal["logits", "probabilities"] = "logits"

    label_ndim: ClassVar[int] = 0

    def __post_init__(self):
        for name in ("label_smoothing", "class_balance"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected 0 to 1")
        for name in ("focal_gamma", "logit_adjustment"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}; expected at least 0")

    def fit(self, source: Source) -> "Classification":
        if self.counts or not (self.class_balance or self.logit_adjustment):
            return self
        return dataclasses.replace(self, counts=class_counts(source))

    def output_names(self, model: nn.Module, label_names: Names) -> dict[str, tuple[str, ...]]:
        heads = super().output_names(model, label_names)
        # A softmax over one class is always 1: its loss is 0 and nothing is learnt.
        for label, names in heads.items():
            if len(names) == 1:
                raise UserError(
                    f"{label} has one class, {names[0]}; expected at least two: add videos of another class, or videos "
                    "that show none"
                )
        missing = [label for label in self.action if label not in heads]
        if missing or (self.action and "action" in heads):
            raise UserError(
                f"task.action names {', '.join(self.action)} and the model predicts {', '.join(heads)}; expected some "
                'of these labels, and no label called "action"'
            )
        return heads

    def target(self, name: str, labels: Int[Array, "b"], width: int) -> Float[Array, "b k"]:
        return optax.smooth_labels(jax.nn.one_hot(labels, width), self.label_smoothing)

    def head_loss(
        self, name: str, outputs: Float[Array, "b k"], target: Float[Array, "b k"], labels: Int[Array, "b"]
    ) -> tuple[PerExample, dict[str, PerExample]]:
        counts, logits = dict(self.counts).get(name), outputs
        if counts is not None and self.logit_adjustment:
            logits = logits + self.logit_adjustment * log_priors(counts)
        if counts is not None and self.class_balance:
            target = target * balanced_weights(counts, self.class_balance)
        loss = focal_cross_entropy(logits, target, self.focal_gamma)
        return loss, {"top1": 100.0 * (outputs.argmax(-1) == labels)}

    def to_average(self, outputs: Float[Array, "b k"]) -> Float[Array, "b k"]:
        return outputs if self.average == "logits" else jax.nn.softmax(outputs)

    def from_average(self, average: Float[Array, "b k"]) -> Float[Array, "b k"]:
        # The floor keeps the logarithm of a probability that underflowed to 0 finite.
        return average if self.average == "logits" else jnp.log(jnp.maximum(average, 1e-30))

    def has_label(self, labels: Int[Array | np.ndarray, "b"]) -> Bool[Array | np.ndarray, "b"]:
        return labels >= 0

    def head_metrics(
        self, outputs: Float[np.ndarray, "n k"], labels: Int[np.ndarray, "n"]
    ) -> Mapping[str, float | int]:
        return classification_metrics(outputs, labels)

    def head_metric_names(self, num_outputs: int) -> tuple[str, ...]:
        return classification_metric_names(num_outputs)

    def metrics(self, predictions: Predictions) -> dict[str, float | int]:
        metrics = super().metrics(predictions)
        if not self.action:
            return metrics
        labels = np.stack([predictions.labels[label] for label in self.action])
        predicted = np.stack([predictions.outputs[label].argmax(axis=1) for label in self.action])
        valid = (labels >= 0).all(axis=0)
        if not valid.any():
            return metrics
        correct = (predicted == labels).all(axis=0)[valid]
        return metrics | {"action/top1": 100 * float(correct.mean())}

    def metric_names(self, output_names: Names) -> tuple[str, ...]:
        names = super().metric_names(output_names)
        return (*names, "action/top1") if self.action else names
