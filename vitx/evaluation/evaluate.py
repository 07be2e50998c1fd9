"""Evaluation: predictions for every example of a split once, whatever the batch size and the number of devices.

Letters in shapes: b batch, n examples, v views, t frames, h height, w width; _ classes or values of a head.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float, Int, Shaped, UInt8

from vitx.console import progress_bar
from vitx.data.pipeline import Data, decode_error, device_entries
from vitx.data.sources import Source
from vitx.errors import RunError
from vitx.layers.partition import process_shard, to_devices
from vitx.models import resolve_implementation

MAX_ERRORS = 20  # unreadable videos that are listed by name


@dataclasses.dataclass(frozen=True)
class Predictions:
    """Predictions of a model for the examples of a split.

    Attributes:
        outputs: {label: logits, or what else the task predicts, [examples, ...]}, averaged over views.
        labels: {label: true classes [examples], or values [examples, k]}.
        index: index of each example in the split.
        unreadable: indices of the examples that could not be read; the arrays above leave them out.
        views: "clips x crops" of each video, which is printed with every accuracy.
        errors: why each unreadable example could not be read.
    """

    outputs: dict[str, Float[np.ndarray, "n _"]]
    labels: dict[str, Shaped[np.ndarray, "n ..."]]
    index: Int[np.ndarray, "n"]
    unreadable: tuple[int, ...]
    views: str
    errors: tuple[str, ...] = ()

    @property
    def coverage(self) -> str:
        """Views and number of videos, which every printed line of metrics names."""
        return f"{self.views} views, {len(self.index)} of {len(self.index) + len(self.unreadable)} videos"

    def list_errors(self) -> list[str]:
        """Returns why the first unreadable videos could not be read, a line each."""
        more = len(self.unreadable) - MAX_ERRORS
        return [*self.errors[:MAX_ERRORS], *([f"and {more} more"] if more > 0 else [])]

    def describe_errors(self) -> list[str]:
        """Returns `list_errors` as lines for the terminal."""
        head = f"{len(self.unreadable)} videos cannot be read and count in no metric:"
        return [head, *(f"  {error}" for error in self.list_errors())]


def evaluate(
    model: nn.Module,
    task: Any,
    variables: Any,
    data: Data,
    source: Source,
    sharding: jax.sharding.NamedSharding,
    *,
    split: str = "validation",
) -> Predictions:
    """Predicts every example of a source.

    Args:
        model: the model.
        task: the task that it has learnt.
        variables: variables of the model, on the devices of `sharding`.
        data: settings of decoding and views.
        source: examples to evaluate.
        sharding: sharding of a batch.
        split: name of the split in messages.

    Raises:
        RunError: none of the videos can be read.
    """
    model = resolve_implementation(model, sharding.mesh.devices.flat[0])
    batches = data.eval_batches(source, **process_shard(sharding))
    bar = progress_bar(desc=f"{split} split", total=len(source), unit=" clips", leave=False)
    results = []
    with contextlib.closing(batches), bar:
        for batch in batches:
            results.append(_predict_batch(model, task, variables, batch, sharding))
            bar.update(int((results[-1]["index"] < len(source)).sum()))

    # Rows are in the order of the source; those beyond its length fill the last batch.
    table = jax.tree.map(lambda *parts: np.concatenate(parts)[: len(source)], *results)
    read = table["weight"] > 0
    errors = tuple(map(decode_error, table["error"][~read]))
    if not read.any():
        raise RunError(f"none of the {len(source)} videos of the {split} split can be read: {errors[0]}")
    readable = jax.tree.map(lambda column: column[read], table)
    averaged = " probability-averaged" if task.average == "probabilities" and data.max_views > 1 else ""
    return Predictions(
        outputs=readable["outputs"],
        labels={name: label for name, label in readable["labels"].items() if name in readable["outputs"]},
        index=readable["index"],
        unreadable=tuple(table["index"][~read].tolist()),
        errors=errors,
        views=data.views + averaged,
    )


def select_labelled(task: Any, predictions: Predictions, label: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns (outputs, labels) of the examples that have a label.

    Args:
        task: the task that was learnt.
        predictions: predictions of a split.
        label: name of the label.
    """
    valid = np.asarray(task.has_label(predictions.labels[label]))
    return predictions.outputs[label][valid], predictions.labels[label][valid]


def _predict_batch(
    model: nn.Module, task: Any, variables: Any, batch: Mapping[str, Any], sharding: jax.sharding.NamedSharding
) -> dict[str, Any]:
    """Returns the rows of a global batch without its videos, with "outputs" added, on every host."""
    rows = to_devices(device_entries(batch), sharding)
    video, views = rows.pop("video"), rows.pop("views")
    with jax.set_mesh(sharding.mesh):
        outputs = task.outputs_by_label(predict(variables, video, views, model=model, task=task), rows["labels"])
    # Replicated first, since a process can read the shards of its own devices alone.
    replicated = jax.sharding.NamedSharding(sharding.mesh, jax.sharding.PartitionSpec())
    return jax.device_get(jax.device_put({"outputs": outputs, **rows}, replicated))


@functools.partial(jax.jit, static_argnames=("model", "task"))
def predict(
    variables: Any, video: UInt8[Array, "b v t h w c"], views: Int[Array, "b"], *, model: nn.Module, task: Any
) -> dict[str, Float[Array, "b _"]] | Float[Array, "b _"]:
    """Returns the task's outputs for each video, averaged over its views.

    Args:
        variables: variables of the model.
        video: views of each video, padded to a common number.
        views: number of views of each video; the others are ignored.
        model: the model.
        task: the task, which chooses what is averaged.
    """

    # One view of the batch at a time, so that memory does not grow with the number of views.
    def add_view(number: Int[Array, ""], sums: Any) -> Any:
        valid = (number < views)[:, None]
        outputs = task.predict(model, variables, jax.lax.dynamic_index_in_dim(video, number, axis=1, keepdims=False))
        return jax.tree.map(lambda total, x: total + jnp.where(valid, task.to_average(x), 0), sums, outputs)

    shapes = jax.eval_shape(functools.partial(task.predict, model), variables, video[:, 0])
    zeros = jax.tree.map(lambda shape: jnp.zeros(shape.shape, shape.dtype), shapes)
    sums = jax.lax.fori_loop(0, views.max(), add_view, zeros)
    return jax.tree.map(lambda total: task.from_average(total / views[:, None]), sums)
