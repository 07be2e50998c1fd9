"""One step of training, and the state that it changes."""

from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jaxtyping import Array, Float

from vitx.tasks.task import Task

Gradients = Callable[[Callable[[Any], tuple[Array, Any]], Any], tuple[tuple[Array, Any], Any]]


@flax.struct.dataclass
class TrainState:
    """All that training changes; with the seed, all that a run is.

    Attributes:
        step: finished steps, int32.
        variables: {"params": ..., and collections such as batch statistics}.
        optimizer: Optax's state.
        ema: exponential moving average of the variables, or {} without one. Batch statistics are averaged beside the
            parameters: the last ones are those of the last parameters, and would not fit the average.
    """

    step: Any  # an array; in abstract states a shape or a sharding
    variables: dict[str, Any]
    optimizer: Any
    ema: dict[str, Any]

    @property
    def averaged(self) -> dict[str, Any]:
        """The variables to evaluate: the average where there is one."""
        return self.ema or self.variables


def plain_gradients(loss: Callable[[Any], tuple[Array, Any]], params: Any) -> tuple[tuple[Array, Any], Any]:
    """Returns ((loss, aux), gradient by the parameters)."""
    return jax.value_and_grad(loss, has_aux=True)(params)


def init_state(
    model: nn.Module, task: Task, optimizer: optax.GradientTransformation, batch: Any, seed: int, *, with_ema: bool
) -> TrainState:
    """Returns the state before the first step: a pure function of the seed."""
    variables = dict(task.init(model, jax.random.fold_in(jax.random.key(seed), 0xFFFFFFFF), batch))
    # a copy, because the step donates the state's buffers and none may be given twice
    ema = jax.tree.map(jnp.copy, variables) if with_ema else {}
    return TrainState(jnp.zeros((), jnp.int32), variables, optimizer.init(variables["params"]), ema)


def train_step(
    state: TrainState,
    batch: Any,
    *,
    model: nn.Module,
    task: Task,
    optimizer: optax.GradientTransformation,
    seed: int,
    ema_decay: float | None,
    gradients: Gradients = plain_gradients,
) -> tuple[TrainState, dict[str, Float[Array, ""]]]:
    """Returns (next state, figures of this step).

    The key of a step is fold_in(key(seed), step). Figures are the weighted sums of the task, "weight", the mean
    "loss", the "gradient_norm" before clipping and the "parameter_norm" after the step.
    """
    key = jax.random.fold_in(jax.random.key(seed), state.step)
    collections = {name: value for name, value in state.variables.items() if name != "params"}

    def loss(params: Any) -> tuple[Array, Any]:
        variables = {"params": params, **collections}
        losses, aux = task.loss(model, variables, batch, key=key, step=state.step, train=True)
        return (losses * batch["weight"]).sum() / jnp.maximum(batch["weight"].sum(), 1e-9), aux

    params = state.variables["params"]
    (value, aux), gradient = gradients(loss, params)
    updates, optimizer_state = optimizer.update(gradient, state.optimizer, params)
    params = optax.apply_updates(params, updates)
    figures = {**aux.sums, "loss": value, "gradient_norm": optax.tree.norm(gradient)}
    figures["parameter_norm"] = optax.tree.norm(params)
    variables = {"params": params, **collections, **aux.collections}
    ema = optax.incremental_update(variables, state.ema, 1 - ema_decay) if state.ema else state.ema
    return TrainState(state.step + 1, variables, optimizer_state, ema), figures
