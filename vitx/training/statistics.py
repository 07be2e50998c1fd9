"""Precise batch normalisation (Wu & Johnson 2021, arXiv:2105.07576, section 3): statistics that are true averages.

Running statistics lag behind the parameters and weight the last batches most. Before an evaluation they are computed
again: the mean and the variance of all values in many training batches, with the parameters as they are.
"""

import functools
import itertools
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Int

from vitx.tasks.task import Task


def precise_statistics(
    variables: Mapping[str, Any],
    batches: Iterable[Any],
    *,
    model: nn.Module,
    task: Task,
    seed: int,
    step: Int[Array, ""],
) -> dict[str, Any]:
    """Returns the variables with batch statistics over all of the batches.

    Every batch is normalised by its own statistics, as in training. A pure function of its arguments.

    Args:
        variables: the model's variables, on the devices; nothing but the statistics changes.
        batches: batches on the devices, all of one size.
        model: the model.
        task: its task.
        seed: the run's seed.
        step: number of finished steps.
    """
    average = None
    for number, batch in zip(map(jnp.int32, itertools.count()), batches, strict=False):
        moments = batch_moments(variables, batch, number, step, model=model, task=task, seed=seed)
        average = moments if average is None else merge_moments(average, moments, number)
    return {**variables, "batch_stats": average}


@functools.partial(jax.jit, static_argnames=("model", "task", "seed"))
def batch_moments(
    variables: Mapping[str, Any],
    batch: Any,
    number: Int[Array, ""],
    step: Int[Array, ""],
    *,
    model: nn.Module,
    task: Task,
    seed: int,
) -> dict[str, Any]:
    """Returns the mean and the variance over one batch, for every batch normalisation of the model."""
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), step), number)
    _, aux = task.loss(model, {**variables, "moments": {}}, batch, key=key, step=step, train=True)
    return aux.collections["moments"]


@jax.jit
def merge_moments(average: Any, moments: Any, number: Int[Array, ""]) -> Any:
    """Returns the mean and the variance of the values in `number` equal batches and one more (Chan et al. 1979)."""
    if "mean" not in average:
        return {name: merge_moments(average[name], moments[name], number) for name in average}
    weight = 1 / (number + 1)
    distance = moments["mean"] - average["mean"]
    var = average["var"] + weight * (moments["var"] - average["var"]) + weight * (1 - weight) * jnp.square(distance)
    return {"mean": average["mean"] + weight * distance, "var": var}
