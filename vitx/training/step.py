"""One step of training, and the state that it changes."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jaxtyping import Array, Float

from vitx.tasks.task import LossOutput, Task
from vitx.training.gradients import Batch, Gradients, plain


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

    def with_averaged(self, variables: dict[str, Any]) -> "TrainState":
        """Returns the state with other variables to evaluate."""
        return self.replace(ema=variables) if self.ema else self.replace(variables=variables)


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
    batch: Batch,
    *,
    model: nn.Module,
    task: Task,
    optimizer: optax.GradientTransformation,
    seed: int,
    ema_decay: float | None,
    ema_warmup: bool = False,
    gradients: Gradients = plain,
) -> tuple[TrainState, dict[str, Float[Array, ""]]]:
    """Returns (next state, figures of this step).

    The key of a step is fold_in(key(seed), step). Figures are the weighted sums of the task, "weight", the mean
    "loss", the "gradient_norm" before clipping and the "parameter_norm" after the step. Where the loss or the gradient
    is not finite the step is "skipped", 1 instead of 0: it counts, and changes nothing else.
    """
    key = jax.random.fold_in(jax.random.key(seed), state.step)
    collections = {name: value for name, value in state.variables.items() if name != "params"}
    weight = jnp.maximum(batch["weight"].sum(), 1e-9)

    def loss(params: Any, batch: Batch, key: Array) -> tuple[Float[Array, ""], LossOutput]:
        variables = {"params": params, **collections}
        losses, aux = task.loss(model, variables, batch, key=key, step=state.step, train=True)
        return (losses * batch["weight"]).sum() / weight, aux

    params = state.variables["params"]
    (value, aux), gradient = gradients(loss, params, batch, key)
    updates, optimizer_state = optimizer.update(gradient, state.optimizer, params)
    figures = {**aux.metric_sums, "loss": value, "gradient_norm": optax.tree.norm(gradient)}
    variables = {"params": optax.apply_updates(params, updates), **collections, **aux.collections}
    decay = jnp.minimum(ema_decay, (1 + state.step) / (10 + state.step)) if ema_warmup else ema_decay
    ema = optax.incremental_update(variables, state.ema, 1 - decay) if state.ema else state.ema
    finite = jnp.isfinite(value) & jnp.isfinite(figures["gradient_norm"])
    variables, optimizer_state, ema = jax.tree.map(
        lambda new, old: jnp.where(finite, new, old),
        (variables, optimizer_state, ema),
        (state.variables, state.optimizer, state.ema),
    )
    figures |= {"parameter_norm": optax.tree.norm(variables["params"]), "skipped": 1.0 - finite}
    return TrainState(state.step + 1, variables, optimizer_state, ema), figures
