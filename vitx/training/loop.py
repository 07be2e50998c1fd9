"""The one training loop: devices, data, model and optimiser, shardings, step, restore, loop."""

import collections
import contextlib
import dataclasses
import functools
import math
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from tqdm import tqdm

from vitx.checkpoints import Checkpoints, abstract_state
from vitx.configuration import free, register
from vitx.data.pipeline import Data
from vitx.data.sources import Source
from vitx.errors import RunError
from vitx.evaluation.evaluate import evaluate
from vitx.tasks.task import Task
from vitx.training.logs import MetricsLog, Stopwatch, say
from vitx.training.optimizers import Optimizer
from vitx.training.sharding import Mesh, batch_sharding, state_shardings, to_devices
from vitx.training.step import TrainState, init_state, train_step

IN_FLIGHT = 2  # steps handed to the devices before the first of them is looked at
NORMS = ("loss", "gradient_norm", "parameter_norm")  # figures of a whole step; one that is not finite stops the run
WARM_UP = 20  # steps left out of the share of time that the run waits for input


@register
@dataclasses.dataclass(frozen=True)
class Training:
    """How long and how a run trains.

    Attributes:
        steps: optimiser steps.
        seed: of the parameters, the order of the data and all that is random; seed and step are all there is.
        ema_decay: of the average of parameters that is evaluated instead of the last ones; None for no average.
        initialise_from: what the parameters start from: a vitx run, a Hugging Face directory, or a file of weights, an
            image network's too (see `vitx.load_pretrained`); None starts from the seed.
        monitor: validation figure by which the best checkpoint is chosen; losses and errors are best low.
        mesh: how devices share the work.
        log_every: steps between rows of training figures.
        evaluate_every: steps between evaluations on the validation split; 0 evaluates after the last only.
        checkpoint_every: steps between checkpoints.
        keep_checkpoints: newest checkpoints kept beside the best.
    """

    steps: int = 1000
    seed: int = 0
    ema_decay: float | None = None
    initialise_from: str | None = None
    monitor: str = "loss"
    mesh: Mesh = free(Mesh())
    log_every: int = free(50)
    evaluate_every: int = free(0)
    checkpoint_every: int = free(500)
    keep_checkpoints: int = free(2)

    def __post_init__(self):
        for name, least in (("steps", 1), ("log_every", 1), ("checkpoint_every", 1), ("evaluate_every", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}; expected at least {least}")
        if self.keep_checkpoints < 2:
            raise ValueError(
                f"keep_checkpoints is {self.keep_checkpoints}; expected at least 2: a damaged one needs one before it"
            )


@dataclasses.dataclass(frozen=True)
class Trained:
    """Where a run stands when it ends.

    Attributes:
        state: on the devices.
        sharding: of a batch on those devices.
        resumed_at: the step that this process went on from; None for a new run.
        best_step: the checkpoint that is best by the monitored figure.
        figures: {"input_wait_percent": of the time after the first steps, "decode_core_percent": of all cores}.
    """

    state: TrainState
    sharding: jax.sharding.NamedSharding
    resumed_at: int | None
    best_step: int | None
    figures: dict[str, float]


def train(
    *,
    model: nn.Module,
    task: Task,
    data: Data,
    optimizer: Optimizer,
    settings: Training,
    sources: dict[str, Source],
    workdir: Path,
    clock: Stopwatch,
    record: Mapping[str, Any] | None = None,
    initialise: Callable[[Any], Any] | None = None,
) -> Trained:
    """Trains, or goes on training, in a run's folder until `settings.steps` are done.

    Args:
        sources: {"train": ..., "validation": ...}.
        workdir: the run's folder; its newest whole checkpoint is where training goes on.
        clock: gets the time of "compile", "train", "evaluate" and "checkpoint".
        record: JSON data that travels with every checkpoint: settings, names of classes.
        initialise: from the abstract variables, with shardings, to those that a new run starts with.

    Raises:
        UserError: settings that do not fit together or this machine.
        RunError: the loss is no longer finite, or too many videos cannot be read.
    """
    # Devices
    mesh = settings.mesh.make(data.batch_size)
    data = data.for_devices(mesh.size)
    rows, everywhere = batch_sharding(mesh), jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())

    # Model and optimiser: shapes first, then shardings, then arrays born where they belong
    transformation = optimizer.make(settings.steps)
    batch_shapes = task.batch_spec(data, sources["train"], rows)
    init = functools.partial(
        init_state, model, task, transformation, seed=settings.seed, with_ema=settings.ema_decay is not None
    )
    shapes = jax.eval_shape(init, batch_shapes)
    shardings = state_shardings(shapes, mesh)

    # Step
    step = functools.partial(
        train_step,
        model=model,
        task=task,
        optimizer=transformation,
        seed=settings.seed,
        ema_decay=settings.ema_decay,
    )
    with clock("compile"):
        jitted = jax.jit(step, donate_argnums=0, out_shardings=(shardings, everywhere))
        compiled = jitted.lower(abstract_state(shapes, shardings), batch_shapes).compile()

    with contextlib.ExitStack() as stack:
        # Restore
        checkpoints = stack.enter_context(Checkpoints(workdir / "checkpoints", keep=settings.keep_checkpoints))
        restored = checkpoints.restore_newest(_parts(abstract_state(shapes, shardings)), say)
        if restored is None:
            with clock("compile"):
                state = jax.jit(lambda: init(batch_shapes), out_shardings=shardings)()
            if initialise is not None:
                variables = initialise(abstract_state(shapes, shardings).variables)
                ema = jax.tree.map(jnp.copy, variables) if state.ema else {}
                state = state.replace(variables=variables, ema=ema)
            progress: dict[str, Any] = {"best": None, "counters": {"replaced": 0}, "unreadable": [], "window": {}}
        else:
            parts, progress = restored
            state = _state(parts)
            say(f"going on from step {progress['step']}")
        first = int(state.step)
        log = stack.enter_context(MetricsLog(workdir, lambda row: row["step"] <= first))

        # Loop
        best, counters = progress["best"], collections.Counter(progress["counters"])
        unreadable = set(progress["unreadable"])
        process = {"process": jax.process_index(), "processes": jax.process_count()}
        batches = data.train_batches(sources["train"], settings.seed, range(first, settings.steps), **process)
        stack.enter_context(contextlib.closing(batches))
        bar = stack.enter_context(tqdm(desc="training", total=settings.steps, initial=first, unit=" steps"))
        meter, whole = _Meter(progress["window"]), _Meter()
        pending: collections.deque[tuple[int, Any]] = collections.deque()

        def look(in_flight: int) -> None:
            while len(pending) > in_flight:
                number, figures = pending.popleft()
                figures = {name: float(value) for name, value in jax.device_get(figures).items()}
                if not all(math.isfinite(figures[name]) for name in NORMS):
                    raise RunError(_not_finite(number, figures, checkpoints))
                meter.add(figures)

        def save(number: int) -> None:
            with clock("checkpoint"):
                log.sync()
                checkpoints.best_step = best and best["step"]
                progress = {"best": best, "counters": dict(counters), "window": dict(meter.sums)}
                progress["unreadable"] = sorted(unreadable)
                checkpoints.save(number, _parts(state), {**(record or {}), **progress})

        for number in range(first + 1, settings.steps + 1):
            with clock("train"):
                began = time.perf_counter()
                batch = next(batches)
                waited, decoded = time.perf_counter() - began, float(batch.pop("decode_seconds").sum())
                counters["replaced"] += int(batch["replaced"].sum())
                for index in {int(index) for index in batch.pop("failed") if index >= 0} - unreadable:
                    unreadable.add(index)
                    say(f"a clip is replaced by another: {data.problem(sources['train'], index)}")
                    if len(unreadable) > data.max_unreadable * len(sources["train"]):
                        raise RunError(_too_many(unreadable, len(sources["train"]), data.max_unreadable))
                with jax.transfer_guard("disallow"):
                    state, figures = compiled(state, to_devices(batch, rows))
                pending.append((number, figures))
                last = number == settings.steps
                due = number % settings.log_every == 0 or last
                saving = number % settings.checkpoint_every == 0 or last
                evaluating = last or (settings.evaluate_every > 0 and number % settings.evaluate_every == 0)
                look(0 if due or saving or evaluating else IN_FLIGHT)
                for each in (meter, whole):
                    each.took(time.perf_counter() - began, waited, decoded)
            bar.update()
            if number == first + WARM_UP:
                whole = _Meter()
            if due:
                figures = meter.figures(data.batch_size)
                figures |= {"replaced": counters["replaced"], "unreadable": len(unreadable)}
                log.write(number, "train", figures)
                bar.set_postfix_str(f"loss {figures['loss']:.3f}, {figures['clips_per_second']:.0f} clips/s")
                meter = _Meter()
            if evaluating:
                with clock("evaluate"):
                    bar.clear()
                    predictions = evaluate(model, task, state.averaged, data, sources["validation"], rows)
                    figures = task.metrics(predictions)
                log.write(number, "val", figures)
                value, old = figures[settings.monitor], best if best and best["metric"] == settings.monitor else None
                better = old is None or task.better(settings.monitor, value, old["value"])
                if better:
                    best = {"step": number, "metric": settings.monitor, "value": value}
                say(f"step {number}: validation ({predictions.views} views) {task.described(figures)}")
                saving = saving or better
            if saving:
                save(number)
        with clock("checkpoint"):
            checkpoints.wait()
    return Trained(
        state,
        rows,
        first if restored else None,
        best and best["step"],
        whole.shares() if first < settings.steps else {},
    )


class _Meter:
    """Sums of figures and of time over some steps.

    Attributes:
        sums: of the steps' figures; with "looks", how many steps they are of. A checkpoint keeps them.
    """

    def __init__(self, sums: Mapping[str, float] | None = None) -> None:
        self.sums: collections.Counter[str] = collections.Counter(sums or {})
        self.steps = 0
        self.seconds = self.waited = self.decoded = 0.0

    def took(self, seconds: float, waited: float, decoded: float) -> None:
        self.steps += 1
        self.seconds, self.waited, self.decoded = self.seconds + seconds, self.waited + waited, self.decoded + decoded

    def add(self, figures: dict[str, float]) -> None:
        self.sums.update(figures | {"looks": 1})

    def shares(self) -> dict[str, float]:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        seconds = max(self.seconds, 1e-9)
        return {
            "input_wait_percent": 100 * self.waited / seconds,
            "decode_core_percent": 100 * self.decoded / seconds / cores,
        }

    def figures(self, batch_size: int) -> dict[str, float]:
        per_step = {name: self.sums[name] / self.sums["looks"] for name in NORMS}
        means = {
            name: total / max(self.sums.get(f"{name.split('/')[0]}/weight", self.sums["weight"]), 1e-9)
            for name, total in self.sums.items()
            if name not in (*per_step, "looks") and name.split("/")[-1] != "weight"
        }
        return per_step | means | {"clips_per_second": batch_size * self.steps / self.seconds} | self.shares()


def _parts(state: TrainState) -> dict[str, Any]:
    """The state as checkpoints hold it: in parts that restore apart."""
    progress = {"step": state.step, "state": state.optimizer}
    return {"variables": state.variables, "optimizer": progress} | ({"ema": state.ema} if state.ema else {})


def _state(parts: dict[str, Any]) -> TrainState:
    progress = parts["optimizer"]
    return TrainState(progress["step"], parts["variables"], progress["state"], parts.get("ema", {}))


def _too_many(unreadable: set[int], videos: int, allowed: float) -> str:
    return (
        f"{len(unreadable)} of {videos} training videos cannot be read so far, more than data.max_unreadable = "
        f"{allowed:g} of them; training stopped. Mend or remove the files told above, or let more be replaced "
        f"(--data.max_unreadable {min(2 * len(unreadable) / videos, 1):.2g}): the same command then goes on"
    )


def _not_finite(step: int, figures: dict[str, float], checkpoints: Checkpoints) -> str:
    checkpoints.wait()
    steps = checkpoints.steps()
    good = (
        f"the last good checkpoint is {checkpoints.directory / str(steps[-1])}"
        if steps
        else "there is no checkpoint yet"
    )
    return (
        f"step {step}: the loss is {figures['loss']}, the norm of the gradient {figures['gradient_norm']} and of the "
        f"parameters {figures['parameter_norm']}; training "
        f"stopped and {good}. The same command goes on from there and meets the same step; to get past it start "
        f"a new folder with --training.initialise_from {checkpoints.directory.parent} and a lower "
        "--optimizer.peak_lr or a --optimizer.clip_norm"
    )
