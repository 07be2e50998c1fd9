"""What a task defines: how a model is initialised, its loss, its predictions and its metrics.

A new task is a subclass in a file of its own. How its results are presented is chosen by
`vitx.evaluation.presentation.presenter_for`.

Letters in shapes: b batch, n examples, t frames, h height, w width, c colour channels; _ classes or values of a head.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.sharding import NamedSharding
from jaxtyping import Array, Bool, Float, UInt8

from vitx.data.pipeline import ERROR_BYTES, Data
from vitx.data.sources import Source, label_arrays
from vitx.errors import UserError, as_user_error
from vitx.evaluation.evaluate import Predictions
from vitx.layers.partition import entry_sharding
from vitx.models.base import init_variables
from vitx.tasks.mixing import Mixing, partner

# Folded into a step's key, one number for each use: no two may draw the same random numbers.
DROPOUT_KEY, DROP_PATH_KEY, MIXING_KEY, MASK_KEY, BUDGET_KEY = range(5)
CLIP_SHAPE_HINT = "; clips have the shape of data.num_frames and data.image_size"
COUNT_METRICS = ("examples", "unreadable")  # every evaluation has them, whatever the heads

Batch = Mapping[str, Any]
Variables = Mapping[str, Any]
Names = Mapping[str, tuple[str, ...]]
Outputs = Float[Array, "b _"]
PerExample = Float[Array, "b"]


@flax.struct.dataclass
class LossOutput:
    """What a loss returns beside the loss of each example.

    Attributes:
        metric_sums: {name: weighted sum over the batch}. "weight" is the sum of weights by which the sums are divided;
            "motion/weight" replaces it for metrics of the label "motion", which some examples may lack.
        collections: model collections that training changes (batch statistics).
    """

    metric_sums: dict[str, Float[Array, ""]]
    collections: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Task:
    """Base class of tasks.

    Attributes:
        mean: mean of the pixels in [0, 1], one for each channel; subtracted on the device.
        std: standard deviation of the pixels, one for each channel; the difference is divided by it.
    """

    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)

    average: ClassVar[str] = "outputs"
    """What is averaged over the views of a video: the name of what `to_average` returns."""
    lower_is_better: ClassVar[tuple[str, ...]] = ("loss",)
    """Last components of the names of metrics that improve by falling."""

    def fit(self, source: Source) -> "Task":
        """Returns this task with settings estimated from the training split; checkpoints store them."""
        return self

    def output_names(self, model: nn.Module, label_names: Names) -> dict[str, tuple[str, ...]]:
        """Returns {label: names of its classes or values} for the model's heads, in their order.

        Raises:
            UserError: the model does not fit the labels of the data.
        """
        raise NotImplementedError

    def init(self, model: nn.Module, key: Array, batch: Batch) -> Variables:
        """Returns the initial variables of the model; only the shapes of `batch` matter.

        Raises:
            UserError: the model does not accept clips of this shape.
        """
        video = jnp.zeros((1, *batch["video"].shape[1:]), batch["video"].dtype)
        with as_user_error(CLIP_SHAPE_HINT):
            return init_variables(model, key, self.normalise(video))

    def batch_spec(self, data: Data, source: Source, sharding: NamedSharding) -> Batch:
        """Returns the shapes, types and shardings of a global training batch."""

        def per_example(shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct((data.batch_size, *shape), dtype, sharding=sharding)

        video = (data.batch_size, data.num_frames, *data.image_size, data.channels)
        return {
            "video": jax.ShapeDtypeStruct(video, jnp.uint8, sharding=entry_sharding("video", len(video), sharding)),
            "labels": {name: per_example(label.shape, label.dtype) for name, label in label_arrays(source[0]).items()},
            "weight": per_example((), jnp.float32),
            "index": per_example((), jnp.int32),
            "unreadable_index": per_example((), jnp.int32),
            "error": per_example((ERROR_BYTES,), jnp.uint8),
        }

    def loss(
        self, model: nn.Module, variables: Variables, batch: Batch, *, key: Array, step: Array, train: bool
    ) -> tuple[PerExample, LossOutput]:
        """Returns (loss of each example, metric sums and changed collections)."""
        raise NotImplementedError

    def example_weights(self, model: nn.Module, batch: Batch) -> PerExample:
        """Returns the weight of each example in the mean loss; 0 for an example that has nothing to learn from."""
        return batch["weight"]

    def check_label_kinds(self, output_names: Names, labels: Mapping[str, np.ndarray]) -> None:
        """Raises UserError for labels of another kind than the task learns.

        Args:
            output_names: {label: names of its classes or values} of the model's heads.
            labels: labels of one example, as `label_arrays` returns them.
        """

    def apply(
        self,
        model: nn.Module,
        variables: Variables,
        video: Float[Array, "b ..."],
        *,
        key: Array,
        train: bool,
        **inputs: Any,
    ) -> tuple[Any, dict[str, Any]]:
        """Returns (outputs of the model, collections that training changes).

        `inputs` are further arguments of the model, such as `keep`.
        """
        rngs = {"dropout": jax.random.fold_in(key, DROPOUT_KEY), "drop_path": jax.random.fold_in(key, DROP_PATH_KEY)}
        mutable = [name for name in variables if train and name != "params"]
        return model.apply(variables, video, train=train, rngs=rngs, mutable=mutable, **inputs)

    def predict(self, model: nn.Module, variables: Variables, video: UInt8[Array, "b t h w c"]) -> Any:
        """Returns the model's outputs in evaluation mode, float32."""
        outputs = model.apply(variables, self.normalise(video), train=False)
        return jax.tree.map(lambda output: output.astype(jnp.float32), outputs)

    def to_average(self, outputs: Outputs) -> Outputs:
        """Returns what is averaged over the views of a video: the outputs, or a function of them."""
        return outputs

    def from_average(self, average: Outputs) -> Outputs:
        """Returns the outputs that `to_average` maps to this average."""
        return average

    def outputs_by_label(self, outputs: Any, labels: Mapping[str, Any]) -> dict[str, Outputs]:
        """Returns the outputs of `predict` as {label: outputs}, also where the model has one unnamed head.

        Args:
            outputs: outputs of the model.
            labels: {label: ...} of the data; only the names matter.
        """
        return dict(outputs)

    def metrics(self, predictions: Predictions) -> dict[str, float | int]:
        """Returns metrics by name, "loss" among them; accuracies such as "motion/top1" are in percent."""
        raise NotImplementedError

    def metric_names(self, output_names: Names) -> tuple[str, ...]:
        """Returns the names of all metrics that `metrics` may return.

        Args:
            output_names: {label: names of its classes or values}; see the method of this name.
        """
        raise NotImplementedError

    def is_better(self, name: str, value: float, than: float) -> bool:
        """Returns whether a metric of this name is better at `value` than at `than`; see `lower_is_better`."""
        return value < than if name.split("/")[-1] in self.lower_is_better else value > than

    def normalise(self, video: UInt8[Array | np.ndarray, "*b c"]) -> Float[Array, "*b c"]:
        """Returns (video / 255 - mean) / std, float32; a fourth channel, motion, is divided by 255."""
        num_extra = video.shape[-1] - 3
        mean = jnp.array((*self.mean, *[0.0] * num_extra), jnp.float32)
        std = jnp.array((*self.std, *[1.0] * num_extra), jnp.float32)
        return (video.astype(jnp.float32) / 255 - mean) / std


@dataclasses.dataclass(frozen=True)
class Supervised(Task):
    """Base class of tasks with labels: each head of the model learns the label of its name.

    A negative class or a NaN value marks an example without that label; the example counts neither
    in the loss nor in the metrics of that label. See `Task` for inherited fields.

    Attributes:
        label: label to learn when the data has several and the model one head.
        mixing: mixup and cutmix in training. Training metrics are computed on the mixed clips.
    """

    label: str | None = None
    mixing: Mixing = Mixing()

    label_ndim: ClassVar[int | None] = None
    """Dimensions of an example's label: 0 is the number of its class, 1 is as many floats as the label has names; None
    takes both."""

    def output_names(self, model: nn.Module, label_names: Names) -> dict[str, tuple[str, ...]]:
        heads = self._heads(model, label_names)
        for name, classes in heads:
            if len(label_names.get(name, ())) != classes:
                labels = ", ".join(f"{label} ({len(names)} classes)" for label, names in label_names.items())
                raise UserError(f"the model predicts {name} with {classes} classes; the data has {labels}")
        return {name: label_names[name] for name, _ in heads}

    def _heads(self, model: nn.Module, label_names: Names) -> Sequence[tuple[str, int]]:
        """Returns (label, number of classes) of each head."""
        if not hasattr(model, "num_classes"):
            raise UserError(
                f"{type(model).__name__} has no num_classes; {type(self).__name__} needs a model that predicts labels. "
                "Choose another model, or the task of this one: FramePrediction for a forecaster of frames, "
                "MaskedPrediction for a masked autoencoder"
            )
        if not label_names:
            raise UserError(
                f"found data without labels; {type(self).__name__} needs one: choose another data.dataset, or a task "
                "that needs none (FramePrediction, MaskedPrediction)"
            )
        if isinstance(model.num_classes, tuple):
            return model.num_classes
        if self.label is None and len(label_names) > 1:
            raise UserError(
                f"the data has the labels {', '.join(label_names)} and the model one head; name the one to learn "
                "(task.label), or give the model a head for each (model.num_classes=((name, classes), ...))"
            )
        return ((self._only_label(label_names), model.num_classes),)

    def check_label_kinds(self, output_names: Names, labels: Mapping[str, np.ndarray]) -> None:
        if self.label_ndim is None:
            return
        expected = ("the number of a class", "a list of floats")[self.label_ndim]
        for name in output_names:
            if labels[name].ndim != self.label_ndim:
                raise UserError(
                    f"found {labels[name].tolist()} as the label {name}; {type(self).__name__} learns {expected}: "
                    "choose another task.label or task (Classification for a class, MultiLabel for several at once, "
                    "Regression for values)"
                )

    def outputs_by_label(self, outputs: Any, labels: Mapping[str, Any]) -> dict[str, Outputs]:
        return dict(outputs) if isinstance(outputs, Mapping) else {self._only_label(labels): outputs}

    def _only_label(self, labels: Mapping[str, Any]) -> str:
        """Returns the label that a model with one unnamed head learns."""
        return self.label or next(iter(labels))

    def target(self, name: str, labels: Array, width: int) -> Outputs:
        """Returns the target of one head, [batch, width]; anything finite for examples without the label."""
        raise NotImplementedError

    def head_loss(
        self, name: str, outputs: Outputs, target: Outputs, labels: Array
    ) -> tuple[PerExample, dict[str, PerExample]]:
        """Returns (loss of one head, other metrics) of each example; examples without the label are masked later."""
        raise NotImplementedError

    def has_label(self, labels: Array | np.ndarray) -> Bool[Array | np.ndarray, "b"]:
        """Returns the mask of examples that have a label."""
        raise NotImplementedError

    def loss(
        self, model: nn.Module, variables: Variables, batch: Batch, *, key: Array, step: Array, train: bool
    ) -> tuple[PerExample, LossOutput]:
        video = self.normalise(batch["video"])
        mixes = train and bool(self.mixing)
        if mixes:
            video, own_weight = self.mixing(jax.random.fold_in(key, MIXING_KEY), video, self._may_mix(batch))
        outputs, collections = self.apply(model, variables, video, key=key, train=train)
        sums, total, count = {"weight": batch["weight"].sum()}, 0.0, 0.0
        for name, output in self.outputs_by_label(outputs, batch["labels"]).items():
            labels = batch["labels"][name]
            valid = self.has_label(labels)
            target = self.target(name, labels, output.shape[-1])
            if mixes:
                target = own_weight[:, None] * target + (1 - own_weight[:, None]) * partner(target)
            loss, metrics = self.head_loss(name, output.astype(jnp.float32), target, labels)
            # `where`, not a product with the mask: 0 * NaN would be NaN
            total, count = total + jnp.where(valid, loss, 0), count + valid
            weight = batch["weight"] * valid
            sums[f"{name}/weight"] = weight.sum()
            for metric, values in ({"loss": loss} | metrics).items():
                sums[f"{name}/{metric}"] = (jnp.where(valid, values, 0) * weight).sum()
        return total / jnp.maximum(count, 1), LossOutput(sums, collections)

    def example_weights(self, model: nn.Module, batch: Batch) -> PerExample:
        heads, labels = getattr(model, "num_classes", None), batch["labels"]
        names = [name for name, _ in heads] if isinstance(heads, tuple) else [self._only_label(labels)]
        return batch["weight"] * jnp.any(jnp.stack([self.has_label(labels[name]) for name in names]), axis=0)

    def _may_mix(self, batch: Batch) -> Bool[Array, "b"]:
        """Returns the mask of clips with a weight whose partner has the same set of labels."""
        mask = batch["weight"] > 0
        for labels in batch["labels"].values():
            valid = self.has_label(labels)
            mask &= valid == partner(valid)
        return mask

    def head_metrics(self, outputs: Float[np.ndarray, "n _"], labels: np.ndarray) -> Mapping[str, float | int]:
        """Returns metrics of one head, "loss" among them; all examples have the label."""
        raise NotImplementedError

    def head_metric_names(self, num_outputs: int) -> tuple[str, ...]:
        """Returns the names of the metrics of a head with so many classes or values."""
        raise NotImplementedError

    def metrics(self, predictions: Predictions) -> dict[str, float | int]:
        """Returns "loss", the mean over heads, metrics of each head ("motion/top1") and counts of examples.

        A head without any labelled example has no metrics.
        """
        heads = {}
        for name, outputs in predictions.outputs.items():
            labels = predictions.labels[name]
            valid = self.has_label(labels)
            if valid.any():
                heads[name] = self.head_metrics(outputs[valid], labels[valid])
        losses = [metrics["loss"] for metrics in heads.values()]
        counts = {"examples": len(predictions.index), "unreadable": len(predictions.unreadable)}
        return (
            ({"loss": sum(losses) / len(losses)} if losses else {})
            | {f"{head}/{name}": x for head, metrics in heads.items() for name, x in metrics.items()}
            | counts
        )

    def metric_names(self, output_names: Names) -> tuple[str, ...]:
        heads = [f"{head}/{name}" for head, row in output_names.items() for name in self.head_metric_names(len(row))]
        return ("loss", *heads, *COUNT_METRICS)
