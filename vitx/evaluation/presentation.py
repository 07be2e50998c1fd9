"""How the results of each task are presented: terminal lines, report sections, answers of `vitx predict`.

`presenter_for(task)` chooses a presenter by the task's class, inherited classes included. A new task works with the
default one; to give it another, register a subclass of `Presenter` in the file of the task:

    presenter_for.register(MyTask, MyPresenter)
"""

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float
from scipy.special import expit, softmax

from vitx.evaluation.evaluate import Predictions, select_labelled
from vitx.evaluation.frames import FRAME_METRICS
from vitx.evaluation.metrics import average_precisions, confusion, per_class
from vitx.evaluation.reconstruction import reconstruction_strip
from vitx.evaluation.report import Picture, Results, Section, bars, clip_strip, confusion_matrix, scatter, table
from vitx.evaluation.rollout import NAMES, animation, errors_over_time, strip, to_rgb
from vitx.tasks.classification import Classification
from vitx.tasks.frame_prediction import SOURCES, FramePrediction
from vitx.tasks.masked_prediction import MaskedPrediction
from vitx.tasks.multilabel import MultiLabel
from vitx.tasks.regression import Regression
from vitx.tasks.task import COUNT_METRICS, Names, Task

MAX_ROLLOUTS = 3  # clips in the report's pictures of predicted frames

Answer = dict[str, dict[str, float]]


@dataclasses.dataclass(frozen=True)
class Presenter:
    """Presents the results of a task; this default shows all metrics and every predicted value.

    Attributes:
        task: the task, whose settings may matter.
    """

    task: Any

    formats: ClassVar[Mapping[str, str]] = {}
    """{last component of a metric's name: format} of the metrics in `headline`; all metrics where it is empty."""
    curves: ClassVar[Mapping[str, str]] = {"loss": ""}
    """{last component of a metric's name: unit} of the metrics that the report draws against steps."""

    def headline(
        self, metrics: Mapping[str, float | int], intervals: Mapping[str, tuple[float, float]] | None = None
    ) -> str:
        """Returns the main metrics as one line for the terminal, accuracies with their 95 % intervals if given."""
        if not self.formats:
            return ", ".join(f"{name} {value:.4g}" for name, value in metrics.items() if name not in COUNT_METRICS)
        formats = {name: self.formats.get(name.split("/")[-1]) for name in metrics}
        ranges = {name: f" ({low:.1f} to {high:.1f})" for name, (low, high) in (intervals or {}).items()}
        shown = {name: form.format(metrics[name]) + ranges.get(name, "") for name, form in formats.items() if form}
        return ", ".join(f"{name} {value}" for name, value in shown.items())

    def sections(self, results: Results) -> Sequence[Section]:
        """Returns sections of the report that follow metrics and learning curves."""
        return ()

    def tables(self, predictions: Predictions, names: Names) -> dict[str, Any]:
        """Returns results beyond metrics, such as tables by class, as strictly valid JSON data."""
        return {}

    def probabilities(self, logits: Float[np.ndarray, "*n _"]) -> Float[np.ndarray, "*n _"] | None:
        """Returns the probabilities of the classes of a label, or None for a task that predicts none."""
        return None

    @property
    def predicts_probabilities(self) -> bool:
        """Whether `probabilities` returns an array, not None."""
        return self.probabilities(np.zeros(1, np.float32)) is not None

    def answer(self, outputs: Mapping[str, Float[np.ndarray, "_"]], names: Names, top: int) -> Answer:
        """Returns {label: {class or value: number}} for one video, the `top` best first where they are ranked."""
        return {
            label: {name: float(value) for name, value in zip(names[label], values, strict=True)}
            for label, values in outputs.items()
        }

    def format_answer(self, answer: Mapping[str, float]) -> str:
        """Returns the answer for one label as text."""
        return ", ".join(f"{name} {value:.4g}" for name, value in answer.items())


class ClassificationPresenter(Presenter):
    """Confusion matrices, tables by class, and clips with their predicted classes."""

    formats: ClassVar[Mapping[str, str]] = {"loss": "{:.3f}", "top1": "{:.1f} %", "top5": "{:.1f} %"}
    curves: ClassVar[Mapping[str, str]] = {"loss": "", "top1": "(%)"}

    def sections(self, results: Results) -> Sequence[Section]:
        heads = [self._head_section(results, label) for label in results.predictions.outputs]
        return [*heads, self._clips_section(results)]

    def _head_section(self, results: Results, label: str) -> Section:
        logits, labels = select_labelled(self.task, results.predictions, label)
        names = results.names[label]
        figure = confusion_matrix(confusion(logits, labels), names, f"{label}, {results.split} split")
        columns = per_class(logits, labels)
        rows = [
            (
                name,
                *(_format_percent(columns[metric][i]) for metric in ("precision", "recall", "f1")),
                columns["support"][i],
            )
            for i, name in enumerate(names)
        ]
        picture = Picture(f"confusion_{label}.png", "confusion matrix", figure)
        classes = table(("class", "precision %", "recall %", "F1 %", "videos"), rows)
        return Section(
            label.capitalize(), [picture, *_describe_absent_classes(names, columns["support"].tolist()), classes]
        )

    def _clips_section(self, results: Results) -> Section:
        predictions = results.predictions
        captions = [
            [
                _format_caption(
                    label, results.names[label], int(logits[row].argmax()), int(predictions.labels[label][row])
                )
                for label, logits in predictions.outputs.items()
            ]
            for row in results.shown
        ]
        picture = Picture("predictions.png", "clips with predictions", clip_strip(results.clips, captions))
        return Section("Predictions", ["Decoded clips with predicted classes; wrong ones are red.", picture])

    def tables(self, predictions: Predictions, names: Names) -> dict[str, Any]:
        """Returns {"per_class": {label: {class: {precision, ..., support}}}, "confusion"}; None without an example."""
        classes, counts = {}, {}
        for label in predictions.outputs:
            logits, labels = select_labelled(self.task, predictions, label)
            columns = per_class(logits, labels)
            classes[label] = {
                name: {metric: _nan_to_none(column[i].item()) for metric, column in columns.items()}
                for i, name in enumerate(names[label])
            }
            counts[label] = confusion(logits, labels).tolist()
        return {"per_class": classes, "confusion": counts}

    def probabilities(self, logits: Float[np.ndarray, "*n _"]) -> Float[np.ndarray, "*n _"]:
        return softmax(logits, axis=-1)

    def answer(self, outputs: Mapping[str, Float[np.ndarray, "_"]], names: Names, top: int) -> Answer:
        return {label: _select_top(self.probabilities(logits), names[label], top) for label, logits in outputs.items()}

    def format_answer(self, answer: Mapping[str, float]) -> str:
        return _format_percentages(answer)


class MultiLabelPresenter(Presenter):
    """Average precision of every class."""

    formats: ClassVar[Mapping[str, str]] = {"loss": "{:.3f}", "mAP": "{:.1f} %"}
    curves: ClassVar[Mapping[str, str]] = {"loss": "", "mAP": "(%)"}

    def sections(self, results: Results) -> Sequence[Section]:
        sections = []
        for label, classes in self.tables(results.predictions, results.names)["per_class"].items():
            precisions = {name: row["average_precision"] for name, row in classes.items()}
            figure = bars(precisions, "average precision (%)", f"{label}, {results.split} split")
            support = [row["support"] for row in classes.values()]
            rows = [
                (name, _format_percent(precision), videos)
                for (name, precision), videos in zip(precisions.items(), support, strict=True)
            ]
            picture = Picture(f"precision_{label}.png", "average precision of every class", figure)
            rows = table(("class", "average precision %", "videos"), rows)
            sections.append(
                Section(label.capitalize(), [picture, *_describe_absent_classes(list(classes), support), rows])
            )
        return sections

    def tables(self, predictions: Predictions, names: Names) -> dict[str, Any]:
        """Returns {"per_class": {label: {class: {average_precision, support}}}}; None without an example."""
        classes = {}
        for label in predictions.outputs:
            logits, labels = select_labelled(self.task, predictions, label)
            precisions, support = average_precisions(logits, labels), labels.sum(axis=0)
            classes[label] = {
                name: {
                    "average_precision": _nan_to_none(float(precisions[i])),
                    "support": int(support[i]),
                }
                for i, name in enumerate(names[label])
            }
        return {"per_class": classes}

    def probabilities(self, logits: Float[np.ndarray, "*n _"]) -> Float[np.ndarray, "*n _"]:
        return expit(logits)

    def answer(self, outputs: Mapping[str, Float[np.ndarray, "_"]], names: Names, top: int) -> Answer:
        return {label: _select_top(self.probabilities(logits), names[label], top) for label, logits in outputs.items()}

    def format_answer(self, answer: Mapping[str, float]) -> str:
        return _format_percentages(answer)


class RegressionPresenter(Presenter):
    """Predicted against true values."""

    formats: ClassVar[Mapping[str, str]] = {"loss": "{:.3f}", "mae": "{:.3g}", "rmse": "{:.3g}", "r2": "{:.3f}"}
    curves: ClassVar[Mapping[str, str]] = {"loss": "", "mae": ""}

    def sections(self, results: Results) -> Sequence[Section]:
        sections = []
        for label in results.predictions.outputs:
            values, labels = select_labelled(self.task, results.predictions, label)
            figure = scatter(values, labels, results.names[label], f"{label}, {results.split} split")
            picture = Picture(f"values_{label}.png", "predicted against true values", figure)
            sections.append(Section(label.capitalize(), [picture]))
        return sections


class FramePredictionPresenter(Presenter):
    """Metrics beside those of the baselines, and pictures of predicted frames."""

    formats: ClassVar[Mapping[str, str]] = {"loss": "{:.4f}", "mse": "{:.2f}", "ssim": "{:.3f}"}

    def sections(self, results: Results) -> Sequence[Section]:
        outputs = results.predictions.outputs
        means = [
            (metric, *(f"{outputs[metric + source].mean():.3f}" for source in SOURCES)) for metric in FRAME_METRICS
        ]
        frames = [
            (name, *(f"{outputs[f'mse{source}'][:, i].mean():.1f}" for source in SOURCES))
            for i, name in enumerate(results.names["mse"])
        ]
        per_frame = self.tables(results.predictions, results.names)["per_frame"]
        columns = NAMES.values()
        comparison = [
            "Means over frames and sequences; mse, mae and cross_entropy are summed over the pixels of a frame.",
            table(("metric", *columns), means),
            "mse of each frame:",
            table(("frame", *columns), frames),
            Picture("errors.png", "mse of each predicted frame", errors_over_time(per_frame)),
        ]
        legend = "Truth, forecast and its error: red where too bright, blue where too dark."
        return [
            Section("Forecast and baselines", comparison),
            Section("Forecasts", [legend, *self._pictures(results)]),
        ]

    def _pictures(self, results: Results) -> list[Picture]:
        context, truth = self.task.split_clip(results.model, jnp.asarray(results.clips[:MAX_ROLLOUTS]))
        predict = jax.jit(results.model.apply, out_shardings=_replicated_sharding(results))
        predicted = to_rgb(np.asarray(predict(results.variables, context)))
        whole = to_rgb(np.concatenate([context, truth], axis=1))
        pairs = list(zip(whole, predicted, strict=True))
        num_context = context.shape[1]
        return [
            Picture("rollout.png", "forecasts beside the truth", strip(pairs, num_context)),
            Picture("rollout.gif", "the same as an animation", animation(pairs, num_context)),
        ]

    def tables(self, predictions: Predictions, names: Names) -> dict[str, Any]:
        """Returns {"per_frame": {metric: mean over examples for every predicted frame}}."""
        outputs = predictions.outputs.items()
        return {"per_frame": {name: values.mean(axis=0).tolist() for name, values in outputs if name != "loss"}}

    def answer(self, outputs: Mapping[str, Float[np.ndarray, "_"]], names: Names, top: int) -> Answer:
        """Returns {"forecast" or baseline: metrics on the last frames of one video}."""
        return {
            source.strip("/") or "forecast": {
                metric: float(outputs[metric + source].mean()) for metric in FRAME_METRICS
            }
            for source in SOURCES
        }

    def format_answer(self, answer: Mapping[str, float]) -> str:
        return ", ".join(f"{name} {value:.3f}" for name, value in answer.items())


class MaskedPredictionPresenter(Presenter):
    """Pictures of true, masked and reconstructed frames."""

    formats: ClassVar[Mapping[str, str]] = {"loss": "{:.4f}", "psnr": "{:.2f} dB"}
    curves: ClassVar[Mapping[str, str]] = {"loss": "", "psnr": "(dB)"}

    def sections(self, results: Results) -> Sequence[Section]:
        clips = results.clips[:MAX_ROLLOUTS]
        reconstruct = functools.partial(self.task.reconstruct, results.model)
        predicted, visible = jax.jit(reconstruct, out_shardings=_replicated_sharding(results))(results.variables, clips)
        triples = zip(clips.astype(np.float32) / 255, np.asarray(predicted), np.asarray(visible), strict=True)
        figure = reconstruction_strip(list(triples))
        text = f"Grey cubes are masked, {results.model.mask_ratio:.0%} of each frame; the model predicts their pixels."
        if self.task.normalise_cubes:
            text += " Predictions of normalised pixels are drawn with the mean and deviation of the true cube."
        picture = Picture("reconstructions.png", "true, masked and reconstructed frames", figure)
        return [Section("Reconstructions", [text, picture])]

    def format_answer(self, answer: Mapping[str, float]) -> str:
        return f"{answer['mean']:.4g}"


@functools.singledispatch
def presenter_for(task: Task) -> Presenter:
    """Returns the presenter registered for the class of a task, or the default one."""
    return Presenter(task)


presenter_for.register(Classification, ClassificationPresenter)
presenter_for.register(MultiLabel, MultiLabelPresenter)
presenter_for.register(Regression, RegressionPresenter)
presenter_for.register(FramePrediction, FramePredictionPresenter)
presenter_for.register(MaskedPrediction, MaskedPredictionPresenter)


def _replicated_sharding(results: Results) -> jax.sharding.NamedSharding:
    """Returns the sharding of arrays that every process reads: a process cannot read the shards of others."""
    mesh = jax.tree.leaves(results.variables)[0].sharding.mesh
    return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())


def _describe_absent_classes(names: Sequence[str], support: Sequence[float | int] | np.ndarray) -> list[str]:
    absent = [name for name, videos in zip(names, support, strict=True) if not videos]
    if not absent:
        return []
    return [f"{len(absent)} of {len(names)} classes have no video and count in no mean: {', '.join(absent)}."]


def _nan_to_none(metric: float | int) -> float | int | None:
    return None if math.isnan(metric) else metric


def _format_percent(metric: float | np.floating | None) -> str:
    return "" if metric is None or math.isnan(metric) else f"{metric:.1f}"


def _select_top(probabilities: Float[np.ndarray, "k"], names: Sequence[str], top: int) -> dict[str, float]:
    return {names[i]: float(probabilities[i]) for i in probabilities.argsort()[::-1][:top]}


def _format_percentages(answer: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {100 * probability:.1f} %" for name, probability in answer.items())


def _format_caption(label: str, names: Sequence[str], predicted: int, true: int) -> tuple[str, bool]:
    correct = predicted == true or true < 0
    return f"{label}: {names[predicted]}" + ("" if correct else f" (true: {names[true]})"), correct
