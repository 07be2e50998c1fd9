"""Regression: one value or several for each video, such as an ejection fraction."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from jaxtyping import Array, Bool, Float, UInt8

from vitx.configuration import register
from vitx.data.sources import Source, label_columns
from vitx.evaluation.metrics import regression_figures
from vitx.evaluation.report import Results, Section, scatter
from vitx.tasks.task import Answer, Names, Supervised, Variables

Moments = tuple[tuple[str, tuple[float, ...], tuple[float, ...]], ...]  # (label, means, standard deviations) of each

ERRORS = {
    "squared": optax.squared_error,
    "absolute": lambda outputs, target: jnp.abs(outputs - target),
    "huber": optax.huber_loss,
}


@register
@dataclasses.dataclass(frozen=True)
class Regression(Supervised):
    """An error of standardised values; predictions and figures are in the data's own units.

    Attributes:
        error: what is learnt to be small: the mean "squared" or "absolute" error, or Huber's: squared below one
            standard deviation, linear above.
        moments: ((label, means, standard deviations), ...) by which values are standardised; () takes them from the
            training split.
        Others: as `Supervised`.
    """

    error: Literal["squared", "absolute", "huber"] = "squared"
    moments: Moments = ()

    headline: ClassVar[Mapping[str, str]] = {"loss": "{:.3f}", "mae": "{:.3g}", "rmse": "{:.3g}", "r2": "{:.3f}"}
    curves: ClassVar[Mapping[str, str]] = {"loss": "", "mae": ""}
    best_low: ClassVar[tuple[str, ...]] = ("loss", "mae", "rmse")

    def fitted(self, source: Source) -> "Regression":
        if self.moments:
            return self
        moments = [
            (
                name,
                tuple(map(float, np.nanmean(column, axis=0))),
                tuple(float(std) or 1.0 for std in np.nanstd(column, 0)),
            )
            for name, column in label_columns(source).items()
            if column.ndim == 2
        ]
        return dataclasses.replace(self, moments=tuple(moments))

    def target(self, name: str, labels: Float[Array, "batch values"], width: int) -> Float[Array, "batch values"]:
        mean, std = self._moments(name)
        return (jnp.nan_to_num(labels) - mean) / std

    def head_loss(
        self,
        name: str,
        outputs: Float[Array, "batch values"],
        target: Float[Array, "batch values"],
        labels: Float[Array, "batch values"],
    ) -> tuple[Float[Array, "batch"], dict[str, Float[Array, "batch"]]]:
        loss, error = ERRORS[self.error](outputs, target), jnp.abs(outputs - target)
        return loss.mean(axis=-1), {"mae": (error * self._moments(name)[1]).mean(axis=-1)}

    def predict(
        self, model: nn.Module, variables: Variables, video: UInt8[Array, "batch frames height width 3"]
    ) -> dict[str, Float[Array, "batch values"]]:
        """Returns values in the data's units by label, float32."""
        known = {name: () for name, _, _ in self.moments}
        outputs = self.named(super().predict(model, variables, video), known)
        return {name: output * self._moments(name)[1] + self._moments(name)[0] for name, output in outputs.items()}

    def present(self, labels: Float[Array | np.ndarray, "batch values"]) -> Bool[Array | np.ndarray, "batch"]:
        return (labels == labels).all(axis=-1)  # NaN is not itself

    def head_figures(
        self, outputs: Float[np.ndarray, "examples values"], labels: Float[np.ndarray, "examples values"]
    ) -> Mapping[str, float]:
        return regression_figures(outputs, labels)

    def blank_label(self, classes: int) -> np.ndarray:
        return np.zeros((1, classes), np.float32)

    def sections(self, results: Results) -> Sequence[Section]:
        sections = []
        for label, outputs in results.predictions.outputs.items():
            labels = results.predictions.labels[label]
            there = self.present(labels)
            picture = f"values_{label}.png"
            figure = scatter(outputs[there], labels[there], results.names[label], f"{label}, {results.split} split")
            sections.append(Section(label, [f"![predicted against true values]({picture})"], {picture: figure}))
        return sections

    def answers(self, outputs: Mapping[str, Float[np.ndarray, " _"]], names: Names, top: int) -> Answer:
        return {
            label: {name: float(value) for name, value in zip(names[label], values, strict=True)}
            for label, values in outputs.items()
        }

    def told(self, answer: Mapping[str, float]) -> str:
        return ", ".join(f"{name} {value:.4g}" for name, value in answer.items())

    def _moments(self, name: str) -> tuple[Any, Any]:
        mean, std = next((mean, std) for label, mean, std in self.moments if label == name)
        return np.asarray(mean, np.float32), np.asarray(std, np.float32)
