"""Every example of a split once, whatever the batch size and the number of devices."""

import contextlib
import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float, Int, Shaped, UInt8
from tqdm import tqdm

from vitx.data.pipeline import Data, decode_error
from vitx.data.sources import Source
from vitx.errors import RunError
from vitx.layers.partition import process_shard, to_devices
from vitx.models import on_device

SHOWN = 20  # unreadable videos that are told one by one


@dataclasses.dataclass(frozen=True)
class Predictions:
    """What a model says of a split, example by example.

    Attributes:
        outputs: {label: logits [examples, classes]} or what else the task predicts, averaged over views.
        labels: {label: true classes [examples], or values [examples, k]}.
        index: each example's number in the split.
        unreadable: numbers of the examples that could not be read; they are in none of the above.
        views: "clips x crops" of each video, as every printed accuracy names them.
        errors: what is wrong with each unreadable example.
    """

    outputs: dict[str, Float[np.ndarray, "examples _"]]
    labels: dict[str, Shaped[np.ndarray, "examples ..."]]
    index: Int[np.ndarray, "examples"]
    unreadable: tuple[int, ...]
    views: str
    errors: tuple[str, ...] = ()

    @property
    def over(self) -> str:
        """What its figures are over, as every line that prints them says."""
        return f"{self.views} views, {len(self.index)} of {len(self.index) + len(self.unreadable)} videos"

    def problems(self) -> list[str]:
        """Returns what is wrong with the first of the videos that could not be read."""
        more = len(self.unreadable) - SHOWN
        return [*self.errors[:SHOWN], *([f"and {more} more"] if more > 0 else [])]

    def complaint(self) -> str:
        """Returns `problems` as lines for the terminal."""
        return "\n  ".join([f"{len(self.unreadable)} videos cannot be read and count in no metric:", *self.problems()])


@functools.partial(jax.jit, static_argnames=("model", "task"))
def predict(
    variables: Any,
    video: UInt8[Array, "batch views frames height width 3"],
    views: Int[Array, "batch"],
    *,
    model: nn.Module,
    task: Any,
) -> dict[str, Float[Array, "batch _"]] | Float[Array, "batch _"]:
    """Returns logits averaged, as the task does, over the first so many views of each video; the model sees one view of
    the batch at a time, and stops after the last that any video has."""

    def add(number: Int[Array, ""], sums: Any) -> Any:
        there = (number < views)[:, None]
        outputs = task.predict(model, variables, jax.lax.dynamic_index_in_dim(video, number, axis=1, keepdims=False))
        return jax.tree.map(lambda total, each: total + jnp.where(there, task.to_average(each), 0), sums, outputs)

    shapes = jax.eval_shape(functools.partial(task.predict, model), variables, video[:, 0])
    sums = jax.lax.fori_loop(0, views.max(), add, jax.tree.map(lambda each: jnp.zeros(each.shape, each.dtype), shapes))
    return jax.tree.map(lambda total: task.from_average(total / views[:, None]), sums)


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
    """Returns the model's predictions for every example of the source.

    Args:
        variables: of the model, on the devices of `sharding`.
        sharding: of a batch.
        split: its name, for people.

    Raises:
        RunError: not one of the videos can be read.
    """
    model = on_device(model, sharding.mesh.devices.flat[0])
    replicated = jax.sharding.NamedSharding(sharding.mesh, jax.sharding.PartitionSpec())
    batches = data.eval_batches(source, **process_shard(sharding))
    columns: list[dict[str, Any]] = []
    with contextlib.closing(batches), tqdm(desc=f"{split} split", total=len(source), unit=" clips", leave=False) as bar:
        for batch in batches:
            del batch["decode_seconds"], batch["failed"]
            rows = to_devices(batch, sharding)
            views = rows.pop("video"), rows.pop("views")
            with jax.set_mesh(sharding.mesh):
                logits = task.named(predict(variables, *views, model=model, task=task), rows["labels"])
            columns.append(jax.device_get(jax.device_put({"outputs": logits, **rows}, replicated)))
            bar.update(int((columns[-1]["index"] < len(source)).sum()))
    table = jax.tree.map(lambda *column: np.concatenate(column), *columns)
    table = jax.tree.map(lambda column: column[: len(source)], table)
    read = table["weight"] > 0
    errors = tuple(map(decode_error, table["error"][~read]))
    if not read.any():
        raise RunError(f"none of the {len(source)} videos of the {split} split can be read: {errors[0]}")
    whole = jax.tree.map(lambda column: column[read], table)
    averaged = getattr(task, "average", None)
    return Predictions(
        outputs=whole["outputs"],
        labels={name: label for name, label in whole["labels"].items() if name in whole["outputs"]},
        index=whole["index"],
        unreadable=tuple(int(index) for index in table["index"][~read]),
        errors=errors,
        views=data.views + (" probability-averaged" if averaged == "probabilities" and data.max_views > 1 else ""),
    )
