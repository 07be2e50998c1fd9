"""One step of training, and the state that it changes."""

import functools
from collections.abc import Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jaxtyping import Array, Float, UInt32

from vitx.models.base import resize_position_tables
from vitx.models.budgets import Budget
from vitx.parameters import to_32_bits
from vitx.tasks.task import BUDGET_KEY, LossOutput, Task
from vitx.training.gradients import Batch, GradientFn, ValueAndGradient, compute_gradient

INIT_KEY = 2**32 - 1  # folded into the seed's key in place of a step; no run has as many steps


@flax.struct.dataclass
class TrainState:
    """All that training changes; the state and the seed determine how a run continues.

    Attributes:
        step: number of finished steps, int32.
        variables: {"params": ..., and collections such as batch statistics}.
        optimizer: state of the Optax transformation.
        ema: exponential moving average of the variables, or {} without one. Batch statistics are averaged beside the
            parameters: the statistics of the last step fit the last parameters, not the average.
    """

    step: Any  # an array; in abstract states a shape or a sharding
    variables: dict[str, Any]
    optimizer: Any
    ema: dict[str, Any]

    @property
    def eval_variables(self) -> dict[str, Any]:
        """Variables to evaluate: the average where there is one."""
        return self.ema or self.variables

    def to_parts(self) -> dict[str, Any]:
        """Returns the state as checkpoints hold it: in parts that can be restored separately."""
        optimizer = {"step": self.step, "state": self.optimizer}
        return {"variables": self.variables, "optimizer": optimizer} | ({"ema": self.ema} if self.ema else {})

    @classmethod
    def from_parts(cls, parts: dict[str, Any]) -> "TrainState":
        """Inverse of `to_parts`."""
        optimizer = parts["optimizer"]
        return cls(optimizer["step"], parts["variables"], optimizer["state"], parts.get("ema", {}))

    def with_eval_variables(self, variables: dict[str, Any]) -> "TrainState":
        """Returns the state with other variables to evaluate."""
        return self.replace(ema=variables) if self.ema else self.replace(variables=variables)


def init_state(
    model: nn.Module,
    task: Task,
    optimizer: optax.GradientTransformation,
    batch: Any,
    seed: int | UInt32[Array, ""],
    *,
    with_ema: bool,
) -> TrainState:
    """Returns the state before the first step: a pure function of the seed."""
    variables = dict(task.init(model, jax.random.fold_in(jax.random.key(seed), INIT_KEY), batch))
    return start_from_variables(variables, optimizer, with_ema=with_ema)


def start_from_variables(
    variables: dict[str, Any], optimizer: optax.GradientTransformation, *, with_ema: bool
) -> TrainState:
    """Returns the state before the first step; that of an optimiser may hold the first parameters."""
    # The step donates the state's buffers, and XLA rejects one that is donated twice: the average gets copies.
    ema = jax.tree.map(jnp.copy, variables) if with_ema else {}
    return TrainState(jnp.zeros((), jnp.int32), variables, to_32_bits(optimizer.init(variables["params"])), ema)


def train_step(
    state: TrainState,
    batch: Batch,
    *,
    model: nn.Module,
    task: Task,
    optimizer: optax.GradientTransformation,
    seed: int | UInt32[Array, ""],
    ema_decay: float | None,
    ema_warmup: bool = False,
    gradient_fn: GradientFn = compute_gradient,
    budgets: Sequence[Budget] = (),
) -> tuple[TrainState, dict[str, Float[Array, ""]]]:
    """Returns (next state, metrics of this step).

    The key of a step is fold_in(key(seed), step). One of the budgets, if there are any, is drawn with that key.
    Metrics are the task's weighted sums, "weight", the mean "loss", the "gradient_norm" before clipping and the
    "parameter_norm" after the step. A step whose loss or gradient is not finite is skipped: "skipped" is 1, the step is
    counted, and nothing else changes.
    """
    key = jax.random.fold_in(jax.random.key(seed), state.step)
    collections = {name: value for name, value in state.variables.items() if name != "params"}
    # Of the whole batch, since the losses of micro-batches are added; examples without a label do not dilute the mean.
    total_weight = jnp.maximum(task.example_weights(model, batch).sum(), 1e-9)

    def differentiate(budget: Budget, params: Any, batch: Batch, key: Array) -> ValueAndGradient:
        fitted = budget.fit_model(model)

        def loss(params: Any, batch: Batch, key: Array) -> tuple[Float[Array, ""], LossOutput]:
            variables = resize_position_tables({"params": params, **collections}, model, fitted)
            clips = {**batch, "video": budget.fit_video(batch["video"])}
            losses, aux = task.loss(fitted, variables, clips, key=key, step=state.step, train=True)
            return (losses * task.example_weights(fitted, batch)).sum() / total_weight, aux

        return gradient_fn(loss, params, batch, key)

    params = state.variables["params"]
    # The switch is around the gradient: around the loss, it would keep residuals for every budget.
    branches = [functools.partial(differentiate, budget) for budget in budgets or (Budget(),)]
    budget_index = jax.random.randint(jax.random.fold_in(key, BUDGET_KEY), (), 0, len(branches))
    (loss_value, aux), gradient = jax.lax.switch(budget_index, branches, params, batch, key)
    updates, optimizer_state = optimizer.update(gradient, state.optimizer, params)
    metrics = {**aux.metric_sums, "loss": loss_value, "gradient_norm": optax.tree.norm(gradient)}
    variables = {"params": optax.apply_updates(params, updates), **collections, **aux.collections}
    decay = jnp.minimum(ema_decay, (1 + state.step) / (10 + state.step)) if ema_warmup else ema_decay
    ema = optax.incremental_update(variables, state.ema, 1 - decay) if state.ema else state.ema
    finite = jnp.isfinite(loss_value) & jnp.isfinite(metrics["gradient_norm"])
    variables, optimizer_state, ema = jax.tree.map(
        # With JAX_ENABLE_X64 updates are promoted to 64 bits; the state keeps its types.
        lambda new, old: jnp.where(finite, new.astype(old.dtype), old),
        (variables, optimizer_state, ema),
        (state.variables, state.optimizer, state.ema),
    )
    metrics |= {"parameter_norm": optax.tree.norm(variables["params"]), "skipped": 1.0 - finite}
    return TrainState(state.step + 1, variables, optimizer_state, ema), metrics
