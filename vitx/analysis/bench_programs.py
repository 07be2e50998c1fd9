"""Compiled programs of a benchmark: what they compute, the memory that they need, and the peak to compare them with."""

import dataclasses
import functools
import time
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from vitx.analysis import peers
from vitx.analysis.cost import count_cost
from vitx.errors import UserError, as_user_error
from vitx.limits import available_memory
from vitx.models import resolve_implementation

OPTIMIZER = optax.sgd(peers.LEARNING_RATE, peers.MOMENTUM)
PRODUCTS = 4  # matrix products in one call, so that the start of a call does not count
PEAK_CALLS = 6


@dataclasses.dataclass(frozen=True)
class Programs:
    """Forward pass and training step of a model, compiled for one batch.

    Attributes:
        model: the model, without dropout, with the implementation of the device.
        batch: number of clips.
        device: where the programs run.
        forward: from (variables, clips) to outputs.
        step: from (state, clips) to (state, loss); it donates the state.
        seconds: time that compiling both took, or reading them from the cache of compiled programs.
    """

    model: nn.Module
    batch: int
    device: jax.Device
    forward: jax.stages.Compiled
    step: jax.stages.Compiled
    seconds: float

    @property
    def needed_bytes(self) -> int:
        """Memory of a benchmark: the step's, and the weights and results that the forward pass keeps beside it."""
        analysis = self.forward.memory_analysis()
        kept = analysis.argument_size_in_bytes + analysis.output_size_in_bytes
        return max(program_bytes(self.step) + kept, program_bytes(self.forward))

    def bytes_beside(self, against: str | None) -> int:
        """Memory of a benchmark beside an original: its clips, weights, gradients and momentum are counted.

        The residuals of its backward pass are not known, so it may need more.
        """
        arguments = self.forward.memory_analysis().argument_size_in_bytes
        return self.needed_bytes + (3 * arguments if against is not None else 0)


def compile_programs(name: str, model: nn.Module, batch: int, device: jax.Device) -> Programs:
    """Compiles a model's programs from shapes alone: nothing is allocated for weights or clips.

    Raises:
        UserError: the model does not accept its clips or the batch size.
    """
    model = without_dropout(model, device)
    began = time.perf_counter()
    with as_user_error(of=name), jax.default_device(device):
        variables = jax.eval_shape(model.init, jax.random.key(0), abstract_clips(model, 1))
        forward = jax.jit(model.apply).lower(variables, abstract_clips(model, batch)).compile()
    step = compile_step(name, model, batch, device)
    return Programs(model, batch, device, forward, step, time.perf_counter() - began)


def without_dropout(model: nn.Module, device: jax.Device) -> nn.Module:
    """Returns the model without dropout and stochastic depth, with the implementation of a device."""
    quiet = {field: 0.0 for field in ("dropout_rate", "drop_path_rate") if hasattr(model, field)}
    return resolve_implementation(model.copy(**quiet), device)


def abstract_clips(model: nn.Module, batch: int) -> jax.ShapeDtypeStruct:
    """Returns the shape and type of some clips for a model."""
    return jax.ShapeDtypeStruct((batch, *model.input_shape), jnp.float32)


def compile_step(name: str, model: nn.Module, batch: int, device: jax.Device) -> jax.stages.Compiled:
    """Compiles the training step alone, from (state, clips) to (state, loss); see `compile_programs`."""
    with as_user_error(of=name), jax.default_device(device):
        variables = jax.eval_shape(model.init, jax.random.key(0), abstract_clips(model, 1))
        state = variables, jax.eval_shape(OPTIMIZER.init, variables["params"])
        step = jax.jit(functools.partial(train_step, model), donate_argnums=0)
        return step.lower(state, abstract_clips(model, batch)).compile()


def check_fits(name: str, batch: int, needed: int, device: jax.Device) -> None:
    """Raises UserError where a benchmark would need more bytes of memory than its device has free."""
    free = free_bytes(device)
    if free is not None and needed > free:
        raise UserError(
            f"{name} with --batch {batch} needs {needed:,} bytes of memory and {free:,} are free; expected less. Set a "
            "smaller --batch or --num_frames, or a remat_policy"
        )


def free_bytes(device: jax.Device) -> int | None:
    """Returns the bytes that can be allocated on a device, None where that is not known."""
    if device.platform == "cpu":
        return available_memory()
    statistics = device.memory_stats() or {}
    if "bytes_limit" not in statistics:
        return None
    return statistics["bytes_limit"] - statistics.get("bytes_in_use", 0)


def program_bytes(program: jax.stages.Compiled) -> int:
    """Returns the needs of a compiled program: arguments, results and temporaries."""
    needs = program.memory_analysis()
    # donated arguments are counted among the outputs, too
    arrays = needs.argument_size_in_bytes + needs.output_size_in_bytes - needs.alias_size_in_bytes
    return int(needs.temp_size_in_bytes + arrays)


def count_macs(model: nn.Module) -> int | None:
    """Returns the multiply-accumulates of one clip, None for a model whose loops have no known length."""
    try:
        return count_cost(model, model.input_shape).macs
    except ValueError:
        return None


def matmul_peak(device: jax.Device, dtype: str) -> float:
    """Measures the operations per second of large matrix products on a device; the best of several calls."""
    size = 1024 if device.platform == "cpu" else 8192

    @jax.jit
    def multiply(x: jax.Array, w: jax.Array) -> jax.Array:
        for _ in range(PRODUCTS):
            x = x @ w
        return x

    x, w = (jax.random.normal(jax.random.key(seed), (size, size), dtype) * size**-0.5 for seed in (0, 1))
    x, w = jax.device_put((x, w), device)
    seconds = []
    for _ in range(PEAK_CALLS):
        began = time.perf_counter()
        multiply(x, w).block_until_ready()
        seconds.append(time.perf_counter() - began)
    return 2 * PRODUCTS * size**3 / min(seconds)


def train_step(model: nn.Module, state: Any, video: jax.Array) -> tuple[Any, jax.Array]:
    """Returns ((variables, optimiser state) after a step, loss before it). The labels are 0, 1, 2, ..."""
    variables, optimizer_state = state
    collections = {name: value for name, value in variables.items() if name != "params"}

    def loss(params: Any) -> tuple[jax.Array, Any]:
        outputs, after = model.apply({"params": params, **collections}, video, train=True, mutable=list(collections))
        return sum(map(_compute_loss, jax.tree.leaves(outputs))), after

    (value, after), gradient = jax.value_and_grad(loss, has_aux=True)(variables["params"])
    updates, optimizer_state = OPTIMIZER.update(gradient, optimizer_state)
    params = optax.apply_updates(variables["params"], updates)
    return ({"params": params, **collections, **after}, optimizer_state), value


def _compute_loss(outputs: jax.Array) -> jax.Array:
    if outputs.ndim != 2:
        return jnp.square(outputs).mean()
    labels = jnp.arange(len(outputs)) % outputs.shape[-1]
    return optax.softmax_cross_entropy_with_integer_labels(outputs, labels).mean()
