"""How the gradient of a step is taken: at once, in micro-batches, sharpness-aware, skipping frozen parameters.

Every way is a function of (loss, params, batch, key) -> ((loss, aux), gradient by the parameters), and the ways
compose: perturb_parameters(accumulate_gradients(compute_gradient, 4), 0.05). A loss is a function of (params, batch,
key) that is additive over the examples of the batch: a mean divides by the weight of the whole batch, in a micro-batch
too.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from vitx.tasks.task import LossOutput

Batch = Mapping[str, Any]
Loss = Callable[[Any, Batch, Array], tuple[Float[Array, ""], LossOutput]]
ValueAndGradient = tuple[tuple[Float[Array, ""], LossOutput], Any]
GradientFn = Callable[[Loss, Any, Batch, Array], ValueAndGradient]


def compute_gradient(loss: Loss, params: Any, batch: Batch, key: Array) -> ValueAndGradient:
    """Returns the gradient of the whole batch at once."""
    return jax.value_and_grad(loss, has_aux=True)(params, batch, key)


def accumulate_gradients(gradient_fn: GradientFn, num_parts: int) -> GradientFn:
    """Sums the gradients of micro-batches, one after the other, to save the memory of their activations.

    The sum equals the gradient of the whole batch, except for what is drawn at random and for what a model computes
    over a batch. Each micro-batch draws its own dropout, drop path, mixup and cutmix, from fold_in(key, index).
    Batch norm normalises by the statistics of the micro-batch; its running statistics move once in a step, towards the
    mean of those of the micro-batches. The mean of means is that of the whole batch; the mean of variances is smaller,
    since it lacks the variance of the means.

    Args:
        gradient_fn: computes the gradient of a micro-batch.
        num_parts: number of micro-batches.
    """

    def sum_micro_batches(loss: Loss, params: Any, batch: Batch, key: Array) -> ValueAndGradient:
        # Micro-batch i has rows i, i + num_parts, ...: so every device holds its part of each micro-batch already.
        micro_batches = jax.tree.map(lambda rows: rows.reshape(-1, num_parts, *rows.shape[1:]).swapaxes(0, 1), batch)

        def add(total: Any, part: tuple[Array, Batch]) -> tuple[Any, Any]:
            index, rows = part
            (value, aux), gradient = gradient_fn(loss, params, rows, jax.random.fold_in(key, index))
            return jax.tree.map(jnp.add, total, gradient), ((value, aux.metric_sums), aux.collections)

        zeros = jax.tree.map(jnp.zeros_like, params)
        gradient, (metrics, collections) = jax.lax.scan(add, zeros, (jnp.arange(num_parts), micro_batches))
        value, sums = jax.tree.map(lambda per_part: per_part.sum(0), metrics)
        return (value, LossOutput(sums, jax.tree.map(lambda per_part: per_part.mean(0), collections))), gradient

    return sum_micro_batches


def perturb_parameters(gradient_fn: GradientFn, rho: float) -> GradientFn:
    """Takes the gradient at params + rho g / |g|, where g is the gradient at params (Foret et al. 2021, algorithm 1).

    Loss, metrics and batch statistics are those at params; both gradients see the same dropout. `optax.contrib.sam`
    counts this as two optimiser steps and keeps the parameters in its state; here it composes with accumulation.

    Args:
        gradient_fn: computes both gradients.
        rho: distance of the perturbation.
    """

    def differentiate_perturbed(loss: Loss, params: Any, batch: Batch, key: Array) -> ValueAndGradient:
        value_and_aux, ascent = gradient_fn(loss, params, batch, key)
        scale = rho / (optax.tree.norm(ascent) + 1e-12)
        _, gradient = gradient_fn(loss, jax.tree.map(lambda p, g: p + scale * g, params, ascent), batch, key)
        return value_and_aux, gradient

    return differentiate_perturbed


def skip_frozen(gradient_fn: GradientFn, find_frozen: Callable[[Any], Any]) -> GradientFn:
    """Takes gradients that are zero for frozen parameters, and computes none for them.

    Args:
        gradient_fn: computes the gradient.
        find_frozen: returns True for each parameter that is frozen, given the parameters.
    """

    def differentiate_trained(loss: Loss, params: Any, batch: Batch, key: Array) -> ValueAndGradient:
        is_frozen = find_frozen(params)

        def loss_of_trained(params: Any, batch: Batch, key: Array) -> tuple[Float[Array, ""], LossOutput]:
            params = jax.tree.map(lambda p, stop: jax.lax.stop_gradient(p) if stop else p, params, is_frozen)
            return loss(params, batch, key)

        return gradient_fn(loss_of_trained, params, batch, key)

    return differentiate_trained
