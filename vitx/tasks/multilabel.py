"""Multi-label classification: each class is present or absent, independently of the others.

Letters in shapes: b batch, n examples, k classes.
"""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float

from vitx.configuration import register
from vitx.evaluation.metrics import MULTILABEL_METRICS, multilabel_metrics
from vitx.tasks.task import PerExample, Supervised

TINY = 1e-7  # keeps the logarithm of a probability finite in float32


@register
@dataclasses.dataclass(frozen=True)
class MultiLabel(Supervised):
    """Binary cross-entropy averaged over classes; labels are 1 or 0 for each class.

    See `Supervised` for inherited fields.

    Attributes:
        label_smoothing: fraction of the target that is moved to one half.
        focal_gamma: gamma of focal loss (Lin et al. 2017, equation 4), which reduces the loss of examples that are
            already classified well; 0 is plain cross-entropy.
        average: average "logits" or "probabilities" over the views of a video.
    """

    label_smoothing: float = 0.0
    focal_gamma: float = 0.0
    average: Literal["logits", "probabilities"] = "logits"

    label_ndim: ClassVar[int] = 1

    def __post_init__(self):
        if not 0 <= self.label_smoothing <= 1:
            raise ValueError(f"label_smoothing is {self.label_smoothing}; expected 0 to 1")
        if self.focal_gamma < 0:
            raise ValueError(f"focal_gamma is {self.focal_gamma}; expected at least 0")

    def target(self, name: str, labels: Float[Array, "b k"], width: int) -> Float[Array, "b k"]:
        return jnp.nan_to_num(labels) * (1 - self.label_smoothing) + 0.5 * self.label_smoothing

    def head_loss(
        self, name: str, outputs: Float[Array, "b k"], target: Float[Array, "b k"], labels: Float[Array, "b k"]
    ) -> tuple[PerExample, dict[str, PerExample]]:
        if self.focal_gamma:
            losses = optax.sigmoid_focal_loss(outputs, target, gamma=self.focal_gamma)
        else:
            losses = optax.sigmoid_binary_cross_entropy(outputs, target)
        return losses.mean(axis=-1), {}

    def to_average(self, outputs: Float[Array, "b k"]) -> Float[Array, "b k"]:
        return outputs if self.average == "logits" else jax.nn.sigmoid(outputs)

    def from_average(self, average: Float[Array, "b k"]) -> Float[Array, "b k"]:
        return average if self.average == "logits" else jnp.log(average + TINY) - jnp.log1p(TINY - average)

    def has_label(self, labels: Float[Array | np.ndarray, "b k"]) -> Bool[Array | np.ndarray, "b"]:
        return (labels == labels).all(axis=-1)  # NaN differs from itself; the comparison works in NumPy and JAX

    def head_metrics(
        self, outputs: Float[np.ndarray, "n k"], labels: Float[np.ndarray, "n k"]
    ) -> Mapping[str, float | int]:
        return multilabel_metrics(outputs, labels)

    def head_metric_names(self, num_outputs: int) -> tuple[str, ...]:
        return MULTILABEL_METRICS
