"""Regression of one or several values for each video, such as an ejection fraction.

Letters in shapes: b batch, n examples, k values.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from jaxtyping import Array, Bool, Float, UInt8

from vitx.configuration import register
from vitx.data.sources import Source, label_columns
from vitx.evaluation.metrics import REGRESSION_METRICS, regression_metrics
from vitx.tasks.task import PerExample, Supervised, Variables

Moments = tuple[tuple[str, tuple[float, ...], tuple[float, ...]], ...]  # (label, means, standard deviations) of each

ERRORS = {
    "squared": optax.squared_error,
    "absolute": lambda outputs, target: jnp.abs(outputs - target),
    "huber": optax.huber_loss,
}


@register
@dataclasses.dataclass(frozen=True)
class Regression(Supervised):
    """An error of standardised values; predictions and metrics are in the units of the data.

    See `Supervised` for inherited fields.

    Attributes:
        error: loss to minimise: the mean "squared" or "absolute" error, or "huber": squared below one standard
            deviation and linear above.
        moments: ((label, means, standard deviations), ...) that standardise the values; () estimates them from the
            training split.
    """

    error: Literal["squared", "absolute", "huber"] = "squared"
    moments: Moments = ()

    label_ndim: ClassVar[int] = 1
    lower_is_better: ClassVar[tuple[str, ...]] = ("loss", "mae", "rmse")

    def fit(self, source: Source) -> "Regression":
        if self.moments:
            return self
        moments = []
        for name, column in label_columns(source).items():
            if column.ndim == 2:
                means = tuple(map(float, np.nanmean(column, axis=0)))
                # a constant value has deviation 0, by which nothing can be divided
                stds = tuple(float(std) or 1.0 for std in np.nanstd(column, axis=0))
                moments.append((name, means, stds))
        return dataclasses.replace(self, moments=tuple(moments))

    def target(self, name: str, labels: Float[Array, "b k"], width: int) -> Float[Array, "b k"]:
        mean, std = self._moments(name)
        return (jnp.nan_to_num(labels) - mean) / std

    def head_loss(
        self, name: str, outputs: Float[Array, "b k"], target: Float[Array, "b k"], labels: Float[Array, "b k"]
    ) -> tuple[PerExample, dict[str, PerExample]]:
        loss, error = ERRORS[self.error](outputs, target), jnp.abs(outputs - target)
        return loss.mean(axis=-1), {"mae": (error * self._moments(name)[1]).mean(axis=-1)}

    def predict(
        self, model: nn.Module, variables: Variables, video: UInt8[Array, "b t h w c"]
    ) -> dict[str, Float[Array, "b k"]]:
        """Returns values by label, in the units of the data, float32."""
        labels = {name: () for name, _, _ in self.moments}
        outputs = self.outputs_by_label(super().predict(model, variables, video), labels)
        return {name: output * self._moments(name)[1] + self._moments(name)[0] for name, output in outputs.items()}

    def has_label(self, labels: Float[Array | np.ndarray, "b k"]) -> Bool[Array | np.ndarray, "b"]:
        return (labels == labels).all(axis=-1)  # NaN differs from itself; the comparison works in NumPy and JAX

    def head_metrics(
        self, outputs: Float[np.ndarray, "n k"], labels: Float[np.ndarray, "n k"]
    ) -> Mapping[str, float | int]:
        return regression_metrics(outputs, labels)

    def head_metric_names(self, num_outputs: int) -> tuple[str, ...]:
        return REGRESSION_METRICS

    def _moments(self, name: str) -> tuple[Any, Any]:
        mean, std = next((mean, std) for label, mean, std in self.moments if label == name)
        return np.asarray(mean, np.float32), np.asarray(std, np.float32)
