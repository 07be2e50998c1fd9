"""Single-label classification, of one label or of several at once."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jax.sharding import NamedSharding
from jaxtyping import Array, Float, UInt8

from vitx.configuration import register
from vitx.data.pipeline import Data
from vitx.data.sources import Source
from vitx.errors import UserError
from vitx.evaluation.evaluate import Predictions
from vitx.evaluation.metrics import classification_figures

Batch = Mapping[str, Any]
Variables = Mapping[str, Any]


@flax.struct.dataclass
class Aux:
    """What a loss reports beside the loss itself.

    Attributes:
        sums: {name: weighted sum over the batch}; with "weight", the sum of weights that they are divided by.
        collections: the model's collections that training changes (batch statistics).
    """

    sums: dict[str, Float[Array, ""]]
    collections: dict[str, Any]


@register
@dataclasses.dataclass(frozen=True)
class Classification:
    """Cross-entropy over classes; with several heads the mean of theirs.

    Attributes:
        label: the label to learn where the data has several and the model one head.
        label_smoothing: share of the target spread evenly over all classes.
        mean: of the pixels, in [0, 1], one for each channel; subtracted in the step.
        std: of the pixels, likewise; divided by.
    """

    label: str | None = None
    label_smoothing: float = 0.0
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)

    def classes(self, model: nn.Module, label_names: Mapping[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
        """Returns {label: names of its classes} of what the model predicts, in the order of its heads.

        Raises:
            UserError: the model's heads are not labels of the data, or differ in their number of classes.
        """
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

    def init(self, model: nn.Module, key: Array, batch: Batch) -> Variables:
        """Returns the model's variables; `batch` gives the shapes alone."""
        video = jnp.zeros((1, *batch["video"].shape[1:]), batch["video"].dtype)
        return model.init(key, self.normalised(video))

    def batch_spec(self, data: Data, source: Source, sharding: NamedSharding) -> Batch:
        """Returns the shapes, types and sharding of a global training batch."""
        rows = (data.batch_size,)
        shape = functools.partial(jax.ShapeDtypeStruct, sharding=sharding)
        return {
            "video": shape((*rows, data.num_frames, *data.image_size, 3), jnp.uint8),
            "labels": {name: shape(rows, jnp.int32) for name in source.label_names},
            "weight": shape(rows, jnp.float32),
            "index": shape(rows, jnp.int32),
            "replaced": shape(rows, jnp.bool_),
        }

    def metrics(self, predictions: Predictions) -> dict[str, float | int]:
        """Returns figures by name: "loss", the mean of the heads', and "motion/top1" and its like, in percent."""
        heads = {
            name: classification_figures(logits, predictions.labels[name])
            for name, logits in predictions.outputs.items()
        }
        loss = sum(figures["loss"] for figures in heads.values()) / len(heads)
        counts = {"examples": len(predictions.index), "unreadable": len(predictions.unreadable)}
        return (
            {"loss": loss}
            | {f"{head}/{name}": x for head, figures in heads.items() for name, x in figures.items()}
            | counts
        )

    def loss(
        self, model: nn.Module, variables: Variables, batch: Batch, *, key: Array, step: Array, train: bool
    ) -> tuple[Float[Array, "batch"], Aux]:
        """Returns (loss of each example, sums and changed collections)."""
        rngs = {name: jax.random.fold_in(key, i) for i, name in enumerate(("dropout", "drop_path"))}
        changing = [name for name in variables if train and name != "params"]
        outputs, collections = model.apply(
            variables, self.normalised(batch["video"]), train=train, rngs=rngs, mutable=changing
        )
        heads, weight = self.named(outputs, batch["labels"]), batch["weight"]
        sums = {"weight": weight.sum()}
        losses = []
        for name, logits in heads.items():
            labels = batch["labels"][name]
            targets = optax.smooth_labels(jax.nn.one_hot(labels, logits.shape[-1]), self.label_smoothing)
            losses.append(optax.softmax_cross_entropy(logits.astype(jnp.float32), targets))
            sums[f"{name}/loss"] = (losses[-1] * weight).sum()
            sums[f"{name}/top1"] = 100 * ((logits.argmax(-1) == labels) * weight).sum()
        return jnp.mean(jnp.stack(losses), axis=0), Aux(sums, collections)

    def predict(
        self, model: nn.Module, variables: Variables, video: UInt8[Array, "batch frames height width 3"]
    ) -> Any:
        """Returns the model's logits in evaluation mode, float32."""
        outputs = model.apply(variables, self.normalised(video), train=False)
        return jax.tree.map(lambda logits: logits.astype(jnp.float32), outputs)

    def named(self, outputs: Any, labels: Mapping[str, Any]) -> dict[str, Float[Array, "batch classes"]]:
        """Returns the model's outputs by label."""
        return dict(outputs) if isinstance(outputs, Mapping) else {self.label or next(iter(labels)): outputs}

    def normalised(self, video: UInt8[Array, "*batch 3"]) -> Float[Array, "*batch 3"]:
        """Returns (video / 255 - mean) / std, float32."""
        return (video.astype(jnp.float32) / 255 - jnp.asarray(self.mean)) / jnp.asarray(self.std)
