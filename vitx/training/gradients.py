"""How the gradient of a step is taken: in one piece, in micro-batches, sharpness-aware, past frozen parameters.

Each is a function of (loss, params, batch, key) -> ((loss, aux), gradient by the parameters), and those that take
another one are made of it: sharpness_aware(accumulated(plain, 4), 0.05). A loss is a function of (params, batch, key),
additive over the examples of the batch: what it divides by is the whole batch's.
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
Gradients = Callable[[Loss, Any, Batch, Array], tuple[tuple[Float[Array, ""], LossOutput], Any]]


def plain(loss: Loss, params: Any, batch: Batch, key: Array) -> tuple[tuple[Float[Array, ""], LossOutput], Any]:
    """The gradient of the whole batch at once."""
    return jax.value_and_grad(loss, has_aux=True)(params, batch, key)


def accumulated(gradients: Gradients, parts: int) -> Gradients:
    """The sum of the gradients of so many micro-batches, one after the other: as much less memory for activations.

    It equals the gradient of the one batch, but for what is drawn, and what a model makes of a batch as a whole. Each
    micro-batch draws its own dropout, drop path, mixup and cutmix, from fold_in(key, its number). Batch norm normalises
    by the statistics of the micro-batch; its running ones move once in a step, towards the mean of those of the
    micro-batches: of means that is the one batch's, of variances it lacks that of the means.

    Examples are dealt out in turn, so that every device has its share of each micro-batch.
    """

    def summed(loss: Loss, params: Any, batch: Batch, key: Array) -> tuple[tuple[Float[Array, ""], LossOutput], Any]:
        dealt = jax.tree.map(lambda rows: rows.reshape(-1, parts, *rows.shape[1:]).swapaxes(0, 1), batch)

        def add(total: Any, part: tuple[Array, Batch]) -> tuple[Any, Any]:
            number, rows = part
            (value, aux), gradient = gradients(loss, params, rows, jax.random.fold_in(key, number))
            return jax.tree.map(jnp.add, total, gradient), ((value, aux.metric_sums), aux.collections)

        zero = jax.tree.map(jnp.zeros_like, params)
        gradient, (figures, collections) = jax.lax.scan(add, zero, (jnp.arange(parts), dealt))
        value, sums = jax.tree.map(lambda each: each.sum(0), figures)
        return (value, LossOutput(sums, jax.tree.map(lambda each: each.mean(0), collections))), gradient

    return summed


def sharpness_aware(gradients: Gradients, rho: float) -> Gradients:
    """The gradient at params + rho g / |g|, where g is that at params (Foret et al. 2021, algorithm 1).

    Loss, figures and batch statistics are those at params; both gradients see the same dropout.
    """

    def ahead(loss: Loss, params: Any, batch: Batch, key: Array) -> tuple[tuple[Float[Array, ""], LossOutput], Any]:
        figures, uphill = gradients(loss, params, batch, key)
        length = rho / (optax.tree.norm(uphill) + 1e-12)
        _, gradient = gradients(loss, jax.tree.map(lambda p, g: p + length * g, params, uphill), batch, key)
        return figures, gradient

    return ahead


def past_frozen(gradients: Gradients, frozen: Callable[[Any], Any]) -> Gradients:
    """Gradients that are zero for frozen parameters, and cost nothing there.

    Args:
        frozen: from parameters to which of them are.
    """

    def moving(loss: Loss, params: Any, batch: Batch, key: Array) -> tuple[tuple[Float[Array, ""], LossOutput], Any]:
        stays = frozen(params)

        def stopped(params: Any, batch: Batch, key: Array) -> tuple[Float[Array, ""], LossOutput]:
            halted = jax.tree.map(lambda p, stay: jax.lax.stop_gradient(p) if stay else p, params, stays)
            return loss(halted, batch, key)

        return gradients(stopped, params, batch, key)

    return moving
