"""What every task is: a loss, figures, and what is told of the results. A new task is a subclass and one file."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.sharding import NamedSharding
from jaxtyping import Array, Float, UInt8

from vitx.data.pipeline import Data
from vitx.data.sources import Source, label_arrays
from vitx.errors import UserError, as_user_error
from vitx.evaluation.evaluate import Predictions
from vitx.evaluation.report import Results, Section
from vitx.layers.partition import placed
from vitx.tasks.mixing import Mixing, other

MIXING_KEY = 2  # what is folded into a step's key for mixing; below are the model's own
CLIPS = "; the clips of the data are of data.num_frames and data.image_size"

Batch = Mapping[str, Any]
Variables = Mapping[str, Any]
Names = Mapping[str, tuple[str, ...]]
Answer = dict[str, dict[str, float]]


@flax.struct.dataclass
class Aux:
    """What a loss reports beside the loss itself.

    Attributes:
        sums: {name: weighted sum over the batch}; with "weight", the sum of weights that they are divided by, and
            "motion/weight" in its place for figures of the label "motion" where not every example has it.
        collections: the model's collections that training changes (batch statistics).
    """

    sums: dict[str, Float[Array, ""]]
    collections: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Task:
    """What all tasks share.

    Attributes:
        mean: of the pixels, in [0, 1], one for each channel; subtracted in the step.
        std: of the pixels, likewise; divided by.
    """

    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)

    headline: ClassVar[Mapping[str, str]] = {"loss": "{:.3f}"}
    """{last word of a figure's name: how it is written}, of the figures that the terminal shows."""
    curves: ClassVar[Mapping[str, str]] = {"loss": ""}
    """{last word: unit} of the figures that the report draws against steps."""
    best_low: ClassVar[tuple[str, ...]] = ("loss",)
    """Last words of the figures of which less is better."""

    def fitted(self, source: Source) -> "Task":
        """Returns this task with the settings that it takes from the training split; they travel with checkpoints."""
        return self

    def outputs(self, model: nn.Module, label_names: Names) -> dict[str, tuple[str, ...]]:
        """Returns {label: names of its classes or values} of what the model predicts, in the order of its heads.

        Raises:
            UserError: the model does not fit the labels of the data.
        """
        raise NotImplementedError

    def init(self, model: nn.Module, key: Array, batch: Batch) -> Variables:
        """Returns the model's variables; `batch` gives the shapes alone.

        Raises:
            UserError: the model does not take such clips.
        """
        video = jnp.zeros((1, *batch["video"].shape[1:]), batch["video"].dtype)
        with as_user_error(CLIPS):
            return model.init(key, self.normalised(video))

    def batch_spec(self, data: Data, source: Source, sharding: NamedSharding) -> Batch:
        """Returns the shapes, types and sharding of a global training batch."""

        def shape(each: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct((data.batch_size, *each), dtype, sharding=sharding)

        video = (data.batch_size, data.num_frames, *data.image_size, 3)
        return {
            "video": jax.ShapeDtypeStruct(video, jnp.uint8, sharding=placed("video", len(video), sharding)),
            "labels": {name: shape(label.shape, label.dtype) for name, label in label_arrays(source[0]).items()},
            "weight": shape((), jnp.float32),
            "index": shape((), jnp.int32),
            "replaced": shape((), jnp.bool_),
            "failed": shape((), jnp.int32),
        }

    def loss(
        self, model: nn.Module, variables: Variables, batch: Batch, *, key: Array, step: Array, train: bool
    ) -> tuple[Float[Array, "batch"], Aux]:
        """Returns (loss of each example, sums and changed collections)."""
        raise NotImplementedError

    def apply(
        self, model: nn.Module, variables: Variables, video: Float[Array, "batch ..."], *, key: Array, train: bool
    ) -> tuple[Any, dict[str, Any]]:
        """Returns (outputs of the model, the collections that training changes)."""
        rngs = {name: jax.random.fold_in(key, i) for i, name in enumerate(("dropout", "drop_path"))}
        changing = [name for name in variables if train and name != "params"]
        return model.apply(variables, video, train=train, rngs=rngs, mutable=changing)

    def predict(
        self, model: nn.Module, variables: Variables, video: UInt8[Array, "batch frames height width 3"]
    ) -> Any:
        """Returns the model's outputs in evaluation mode, float32."""
        outputs = model.apply(variables, self.normalised(video), train=False)
        return jax.tree.map(lambda output: output.astype(jnp.float32), outputs)

    def to_average(self, outputs: Float[Array, "batch _"]) -> Float[Array, "batch _"]:
        """Returns what is averaged over the views of a video: the outputs themselves, or a function of them."""
        return outputs

    def from_average(self, average: Float[Array, "batch _"]) -> Float[Array, "batch _"]:
        """Returns the outputs that belong to such an average."""
        return average

    def named(self, outputs: Any, labels: Mapping[str, Any]) -> dict[str, Float[Array, "batch _"]]:
        """Returns what `predict` gives by name."""
        return dict(outputs)

    def metrics(self, predictions: Predictions) -> dict[str, float | int]:
        """Returns figures by name, "loss" among them, such as "motion/top1" in percent."""
        raise NotImplementedError

    def blank(self, names: Names) -> Predictions:
        """Returns predictions of one example that say nothing: their figures have the names of all figures."""
        raise NotImplementedError

    def sections(self, results: Results) -> Sequence[Section]:
        """Returns what the report tells beside figures and learning curves."""
        return ()

    def details(self, predictions: Predictions, names: Names) -> dict[str, Any]:
        """Returns more than figures, as JSON: tables by class and such."""
        return {}

    def answers(self, outputs: Mapping[str, Float[np.ndarray, " _"]], names: Names, top: int) -> Answer:
        """Returns {label: {class or value: number}} of one video, the most important `top` first."""
        raise NotImplementedError

    def told(self, answer: Mapping[str, float]) -> str:
        """Returns one label's answer as words."""
        return ", ".join(f"{name} {100 * share:.1f} %" for name, share in answer.items())

    def better(self, name: str, value: float, than: float) -> bool:
        """Returns whether a figure is better at one value than at another."""
        return value < than if name.split("/")[-1] in self.best_low else value > than

    def described(self, figures: Mapping[str, float | int]) -> str:
        """Returns the figures of the headline, for a line on the terminal."""
        forms = {name: self.headline.get(name.split("/")[-1]) for name in figures}
        return ", ".join(f"{name} {form.format(figures[name])}" for name, form in forms.items() if form)

    def normalised(self, video: UInt8[Array, "*batch 3"]) -> Float[Array, "*batch 3"]:
        """Returns (video / 255 - mean) / std, float32."""
        return (video.astype(jnp.float32) / 255 - jnp.asarray(self.mean)) / jnp.asarray(self.std)


@dataclasses.dataclass(frozen=True)
class Supervised(Task):
    """What tasks with labels share: each head of the model learns the label of its name.

    A class below 0 and a value that is not a number say that an example has no such label: it counts neither in the
    loss nor in the figures of that label.

    Attributes:
        label: the label to learn where the data has several and the model one head.
        mixing: mixup and cutmix in training; the training figures are then of mixed clips.
        Others: as `Task`.
    """

    label: str | None = None
    mixing: Mixing = Mixing()

    def outputs(self, model: nn.Module, label_names: Names) -> dict[str, tuple[str, ...]]:
        if not hasattr(model, "num_classes"):
            raise UserError(
                f"{type(model).__name__} forecasts frames and has no classes; its task is FramePrediction of "
                "vitx.tasks.frame_prediction (task=FramePrediction() in the experiment file)"
            )
        heads = model.num_classes if isinstance(model.num_classes, tuple) else None
        if heads is None:
            if self.label is None and len(label_names) > 1:
                raise UserError(
                    f"the data has the labels {', '.join(label_names)} and the model one head; name the one to learn "
                    "(task.label), or give the model a head for each (model.num_classes=((name, classes), ...))"
                )
            heads = ((self.label or next(iter(label_names)), model.num_classes),)
        for name, classes in heads:
            if len(label_names.get(name, ())) != classes:
                there = ", ".join(f"{label} ({len(names)} classes)" for label, names in label_names.items())
                raise UserError(f"the model predicts {name} with {classes} classes; the data has {there}")
        return {name: label_names[name] for name, _ in heads}

    def named(self, outputs: Any, labels: Mapping[str, Any]) -> dict[str, Float[Array, "batch _"]]:
        return dict(outputs) if isinstance(outputs, Mapping) else {self.label or next(iter(labels)): outputs}

    def target(self, name: str, labels: Array, width: int) -> Float[Array, "batch _"]:
        """Returns what one head should say, [batch, width]; of an example without the label, anything finite."""
        raise NotImplementedError

    def head_loss(
        self, name: str, outputs: Float[Array, "batch _"], target: Float[Array, "batch _"], labels: Array
    ) -> tuple[Float[Array, "batch"], dict[str, Float[Array, "batch"]]]:
        """Returns (one head's loss, other figures), for each example that has the label."""
        raise NotImplementedError

    def present(self, labels: Array | np.ndarray) -> Array | np.ndarray:
        """Returns which examples have a label, bool [batch]."""
        raise NotImplementedError

    def loss(
        self, model: nn.Module, variables: Variables, batch: Batch, *, key: Array, step: Array, train: bool
    ) -> tuple[Float[Array, "batch"], Aux]:
        video, mixing = self.normalised(batch["video"]), train and bool(self.mixing)
        if mixing:
            video, share = self.mixing(jax.random.fold_in(key, MIXING_KEY), video, self._may_mix(batch))
        outputs, collections = self.apply(model, variables, video, key=key, train=train)
        sums, total, count = {"weight": batch["weight"].sum()}, 0.0, 0.0
        for name, output in self.named(outputs, batch["labels"]).items():
            labels = batch["labels"][name]
            there = self.present(labels)
            target = self.target(name, labels, output.shape[-1])
            if mixing:
                target = share[:, None] * target + (1 - share[:, None]) * other(target)
            loss, figures = self.head_loss(name, output.astype(jnp.float32), target, labels)
            total, count = total + jnp.where(there, loss, 0), count + there
            weight = batch["weight"] * there
            sums[f"{name}/weight"] = weight.sum()
            for figure, values in ({"loss": loss} | figures).items():
                sums[f"{name}/{figure}"] = (jnp.where(there, values, 0) * weight).sum()
        return total / jnp.maximum(count, 1), Aux(sums, collections)

    def _may_mix(self, batch: Batch) -> Array:
        """Returns which clips may be mixed: those that count, where both of a pair have the same labels."""
        may = batch["weight"] > 0
        for labels in batch["labels"].values():
            there = self.present(labels)
            may &= there == other(there)
        return may

    def head_figures(self, outputs: Float[np.ndarray, "examples _"], labels: np.ndarray) -> Mapping[str, float]:
        """Returns one head's figures over the examples that have the label, "loss" among them."""
        raise NotImplementedError

    def metrics(self, predictions: Predictions) -> dict[str, float | int]:
        """Returns figures by name: "loss", the mean of the heads', and "motion/top1" and its like.

        Of a head for which no example has a label there are none.
        """
        heads = {}
        for name, outputs in predictions.outputs.items():
            labels = predictions.labels[name]
            there = self.present(labels)
            if there.any():
                heads[name] = self.head_figures(outputs[there], labels[there])
        losses = [figures["loss"] for figures in heads.values()]
        counts = {"examples": len(predictions.index), "unreadable": len(predictions.unreadable)}
        return (
            ({"loss": sum(losses) / len(losses)} if losses else {})
            | {f"{head}/{name}": x for head, figures in heads.items() for name, x in figures.items()}
            | counts
        )

    def blank_label(self, classes: int) -> np.ndarray:
        """Returns a label of one example, [1, ...]."""
        raise NotImplementedError

    def blank(self, names: Names) -> Predictions:
        return Predictions(
            outputs={label: np.zeros((1, len(each)), np.float32) for label, each in names.items()},
            labels={label: self.blank_label(len(each)) for label, each in names.items()},
            index=np.zeros(1, np.int32),
            unreadable=(),
            views="1x1",
        )
