"""What stays the same while a run trains: devices, data, model and optimiser, shardings and the compiled step."""

import contextlib
import dataclasses
import functools
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from vitx.checkpoints import abstract_state
from vitx.data.pipeline import device_entries
from vitx.data.sources import Source
from vitx.errors import UserError
from vitx.layers.partition import batch_sharding
from vitx.models import resolve_implementation
from vitx.training.results import EXAMPLE_COLUMNS
from vitx.training.sharding import state_shardings
from vitx.training.step import TrainState, init_state, start_from_variables, train_step


@dataclasses.dataclass(frozen=True)
class Setup:
    """What a run needs beside its state: settings that fit the devices, and shapes and shardings of all arrays.

    Attributes:
        experiment: the experiment, its model and data fitted to the devices.
        optimizer: the Optax transformation.
        init: returns the state before the first step, drawn from a seed.
        abstract: shapes, types and shardings of the state.
        batch_shapes: shapes, types and shardings of a batch.
        batch_sharding: sharding of a batch, whose rows are divided over the devices.
    """

    experiment: Any
    optimizer: optax.GradientTransformation
    init: Callable[[np.uint32], TrainState]
    abstract: TrainState
    batch_shapes: Mapping[str, Any]
    batch_sharding: jax.sharding.NamedSharding


def set_up(experiment: Any, sources: Mapping[str, Source]) -> Setup:
    """Returns what training needs on these devices; allocates nothing on them. See `train` for the arguments.

    Raises:
        UserError: settings that do not fit together, or not this machine.
    """
    # Devices
    settings, task = experiment.training, experiment.task
    mesh = settings.mesh.build(experiment.data.batch_size, experiment.model)
    sharding = batch_sharding(mesh)
    model = resolve_implementation(experiment.model, mesh.devices.flat[0])

    # Data
    data = experiment.data.for_devices(mesh.size)
    check_batch_divides(data.batch_size, settings.num_micro_batches, sharding, getattr(model, "norm_groups", 1))
    batch_shapes = task.batch_spec(data, sources["train"], sharding)

    # Model and optimiser: shapes only. `create_state` creates each array on the devices that keep it.
    optimizer = experiment.optimizer.build(settings.steps)
    with_ema = settings.ema_decay is not None
    init = functools.partial(init_state, model, task, optimizer, batch_shapes, with_ema=with_ema)
    shapes = jax.eval_shape(init, np.uint32(settings.seed))
    check_batch_statistics(settings, model, shapes)

    # Shardings
    abstract = abstract_state(shapes, state_shardings(shapes, mesh))
    experiment = dataclasses.replace(experiment, model=model, data=data)
    return Setup(experiment, optimizer, init, abstract, batch_shapes, sharding)


def create_state(setup: Setup, initialise: Callable[[Any], Any] | None) -> TrainState:
    """Returns the state before the first step, every array created where it belongs.

    Args:
        setup: shapes and shardings of the state, and how it is drawn.
        initialise: returns variables to start from in place of those drawn; None keeps the drawn ones.
    """
    shardings = jax.tree.map(lambda leaf: leaf.sharding, setup.abstract)
    # The seed is an argument of this program and of the step's: runs that differ in the seed alone find both in JAX's
    # persistent cache.
    if initialise is None:
        return jax.jit(setup.init, out_shardings=shardings)(np.uint32(setup.experiment.training.seed))
    start = functools.partial(start_from_variables, optimizer=setup.optimizer, with_ema=bool(setup.abstract.ema))
    return jax.jit(start, out_shardings=shardings)(initialise(setup.abstract.variables))


def bind_step(experiment: Any, optimizer: optax.GradientTransformation) -> Callable[..., Any]:
    """Returns `train_step` with the parts and settings of an experiment, called as step(state, batch, seed=seed)."""
    settings = experiment.training
    return functools.partial(
        train_step,
        model=experiment.model,
        task=experiment.task,
        optimizer=optimizer,
        ema_decay=settings.ema_decay,
        ema_warmup=settings.ema_warmup,
        gradient_fn=experiment.optimizer.build_gradient_fn(settings.num_micro_batches),
        budgets=settings.budgets,
    )


def compile_step(setup: Setup) -> Callable[[TrainState, Any], tuple[TrainState, Any, Any]]:
    """Returns the compiled training step: from (state, batch) to (state, metrics, examples)."""
    one_step = bind_step(setup.experiment, setup.optimizer)

    def step(state: TrainState, batch: Any, seed: Any) -> tuple[TrainState, Any, Any]:
        return *one_step(state, batch, seed=seed), {name: batch[name] for name in EXAMPLE_COLUMNS}

    # Metrics and examples go to every process, so that all of them count the same skipped steps and unreadable videos.
    mesh = setup.batch_sharding.mesh
    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    shardings = jax.tree.map(lambda leaf: leaf.sharding, setup.abstract)
    jitted = jax.jit(step, donate_argnums=0, out_shardings=(shardings, everywhere, everywhere))
    with jax.set_mesh(mesh):
        seed = jax.jit(lambda: jnp.uint32(setup.experiment.training.seed), out_shardings=everywhere)()
        compiled = jitted.lower(setup.abstract, setup.batch_shapes, seed=seed).compile()
    return functools.partial(compiled, seed=seed)


def measure_step_seconds(experiment: Any, source: Source, *, steps: int = 5) -> float:
    """Returns the median seconds of a compiled training step on one device, with the batch already on the device.

    Args:
        experiment: `vitx.experiment.Experiment`.
        source: training split.
        steps: steps to measure.
    """
    experiment = experiment.for_labels(source.label_names)
    settings, model = experiment.training, resolve_implementation(experiment.model, jax.devices()[0])
    experiment = dataclasses.replace(experiment, model=model, task=experiment.task.fit(source))
    optimizer = experiment.optimizer.build(settings.steps)
    with contextlib.closing(experiment.data.train_batches(source, settings.seed, range(1))) as batches:
        batch = jax.device_put(device_entries(next(batches)))
    with_ema = settings.ema_decay is not None
    init = functools.partial(init_state, model, experiment.task, optimizer, with_ema=with_ema)
    state = jax.jit(lambda: init(batch, settings.seed))()
    step = jax.jit(functools.partial(bind_step(experiment, optimizer), seed=settings.seed), donate_argnums=0)
    seconds = []
    for _ in range(steps + 1):
        began = time.perf_counter()
        state, _ = jax.block_until_ready(step(state, batch))
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds[1:])  # the first one compiles


def check_batch_divides(
    batch_size: int, num_micro_batches: int, sharding: jax.sharding.NamedSharding, norm_groups: int
) -> None:
    """Raises UserError unless a batch divides into micro-batches, and these into groups of batch normalisation."""
    per_device = sharding.shard_shape((batch_size,))[0]
    if per_device % num_micro_batches:
        raise UserError(
            f"training.num_micro_batches is {num_micro_batches}; expected a divisor of the {per_device} clips of a "
            "batch on each device. Choose data.batch_size or training.num_micro_batches accordingly"
        )
    micro_batch = batch_size // num_micro_batches
    if micro_batch % norm_groups:
        raise UserError(
            f"model.norm_groups is {norm_groups}; expected a divisor of the {micro_batch} clips of a micro-batch "
            "(data.batch_size divided by training.num_micro_batches)"
        )


def check_batch_statistics(settings: Any, model: Any, shapes: TrainState) -> None:
    """Raises UserError where statistics of batch normalisation are to be averaged and the model has none."""
    if settings.precise_bn_batches and "batch_stats" not in shapes.variables:
        raise UserError(
            f"training.precise_bn_batches is {settings.precise_bn_batches} and {type(model).__name__} has no batch "
            "normalisation; set it to 0"
        )
