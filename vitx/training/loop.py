"""The one training loop: devices, data, model and optimiser, shardings, step, restore, loop."""

import collections
import contextlib
import dataclasses
import functools
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from tqdm import tqdm

from vitx.checkpoints import Checkpoints, abstract_state
from vitx.configuration import mutable_on_resume, register
from vitx.data.pipeline import Data, decode_error
from vitx.data.sources import Source
from vitx.errors import Preempted, RunError, UserError
from vitx.evaluation.evaluate import evaluate
from vitx.evaluation.presentation import presenter_for
from vitx.layers.partition import batch_sharding, process_shard, to_devices
from vitx.models import on_device
from vitx.tasks.task import Task
from vitx.training.faults import Notices, ended_after
from vitx.training.logs import MetricsLog, Profiler, Stopwatch, say
from vitx.training.optimizers import Optimizer
from vitx.training.progress import NORMS, Meter, Progress, check_monitor, peak_steps
from vitx.training.sharding import Mesh, state_shardings
from vitx.training.statistics import precise
from vitx.training.step import TrainState, init_state, train_step

IN_FLIGHT = 2  # steps handed to the devices before the first of them is looked at
WARM_UP = 20  # steps left out of the share of time that the run waits for input


@register
@dataclasses.dataclass(frozen=True)
class Training:
    """How long and how a run trains.

    Attributes:
        steps: optimiser steps.
        seed: of the parameters, the order of the data and all that is random; seed and step are all there is.
        ema_decay: of the average of parameters that is evaluated instead of the last ones; None for no average.
        ema_warmup: whether the average begins with a short memory: its decay is at most (1 + step) / (10 + step).
        accumulate: micro-batches that a batch is taken in, one after the other, for less memory; equal to the one
            batch but for batch norm, and for mixup, cutmix, dropout and drop path, which each micro-batch draws anew
            (see `vitx.training.gradients.accumulated`).
        initialise_from: what the parameters start from: a vitx run, a Hugging Face directory, or a file of weights, an
            image network's too (see `vitx.load_pretrained`); None starts from the seed.
        precise_bn_batches: training batches, those that come next, over which the statistics of batch normalisation are
            averaged before each evaluation (see `vitx.training.statistics`); 0 evaluates with the running ones.
        monitor: validation figure by which the best checkpoint is chosen; losses and errors are best low.
        mesh: how devices share the work.
        log_every: steps between rows of training figures.
        evaluate_every: steps between evaluations on the validation split; 0 evaluates after the last only.
        checkpoint_every: steps between checkpoints.
        keep_checkpoints: newest checkpoints kept beside the best.
        patience: evaluations without a better monitored figure after which the run ends; None trains to the last step.
        max_skipped: steps that may be skipped, because their loss or gradient is not finite, before the run stops.
        spike_deviations: a loss above the median of the last 100 by more than so many times their median distance
            from it is told, with the examples of its batch; None tells none.
        hang_minutes: time after which a step that does not end is ended with the process; None waits for ever.
        profile_steps: the first and the last step that `jax.profiler` traces into the run's folder `profile`.
        compilation_cache: folder where compiled programs are kept for the next run, of any experiment (JAX's
            persistent cache); None leaves that to JAX_COMPILATION_CACHE_DIR.
    """

    steps: int = 1000
    seed: int = 0
    ema_decay: float | None = None
    ema_warmup: bool = False
    accumulate: int = 1
    initialise_from: str | None = None
    precise_bn_batches: int = 0
    monitor: str = "loss"
    mesh: Mesh = mutable_on_resume(Mesh())
    log_every: int = mutable_on_resume(50)
    evaluate_every: int = mutable_on_resume(0)
    checkpoint_every: int = mutable_on_resume(500)
    keep_checkpoints: int = mutable_on_resume(2)
    patience: int | None = mutable_on_resume(None)
    max_skipped: int = mutable_on_resume(10)
    spike_deviations: float | None = mutable_on_resume(10.0)
    hang_minutes: float | None = mutable_on_resume(None)
    profile_steps: tuple[int, int] | None = mutable_on_resume(None)
    compilation_cache: str | None = mutable_on_resume(None)

    def __post_init__(self):
        least = {"steps": 1, "log_every": 1, "checkpoint_every": 1, "accumulate": 1, "patience": 1}
        for name, bound in (least | {"evaluate_every": 0, "max_skipped": 0, "precise_bn_batches": 0}).items():
            if getattr(self, name) is not None and getattr(self, name) < bound:
                raise ValueError(f"{name} is {getattr(self, name)}; expected at least {bound}")
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"seed is {self.seed}; expected 0 to {2**32 - 1}")
        if self.ema_decay is not None and not 0 <= self.ema_decay < 1:
            raise ValueError(f"ema_decay is {self.ema_decay}; expected 0 to below 1, such as 0.999, or None")
        if self.hang_minutes is not None and not self.hang_minutes > 0:
            raise ValueError(f"hang_minutes is {self.hang_minutes}; expected a time above 0, or None to wait for ever")
        if self.spike_deviations is not None and not self.spike_deviations >= 0:
            raise ValueError(f"spike_deviations is {self.spike_deviations}; expected none below 0, or None")
        if self.profile_steps is not None and not 1 <= self.profile_steps[0] <= self.profile_steps[1]:
            raise ValueError(f"profile_steps is {self.profile_steps}; expected a first step, from 1, and a last one")
        if self.profile_steps is not None and self.profile_steps[0] > self.steps:
            raise ValueError(f"profile_steps is {self.profile_steps}; the run has {self.steps} steps")
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
    notices: Notices,
    record: Mapping[str, Any] | None = None,
    initialise: Callable[[Any], Any] | None = None,
) -> Trained:
    """Trains, or goes on training, in a run's folder until `settings.steps` are done.

    Args:
        sources: {"train": ..., "validation": ...}.
        workdir: the run's folder; its newest whole checkpoint is where training goes on.
        clock: gets the time of "compile", "restore", "train", "evaluate" and "checkpoint".
        notices: to stop; entered.
        record: JSON data that travels with every checkpoint: settings, names of classes.
        initialise: from the abstract variables, with shardings, to those that a new run starts with.

    Raises:
        UserError: settings that do not fit together or this machine.
        RunError: too many losses are not finite, or too many videos cannot be read.
        Preempted: a notice to stop came, and what was learnt is saved.
    """
    # Devices
    mesh = settings.mesh.make(data.batch_size, model)
    data = data.for_devices(mesh.size)
    rows, everywhere = batch_sharding(mesh), jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())

    if (share := rows.shard_shape((data.batch_size,))[0]) % settings.accumulate:
        raise UserError(
            f"the {share} clips of a batch that each device has do not divide into {settings.accumulate} micro-batches "
            "(training.accumulate); choose data.batch_size or training.accumulate so that they do"
        )

    micro, groups = data.batch_size // settings.accumulate, getattr(model, "norm_groups", 1)
    if micro % groups:
        raise UserError(
            f"a batch of {micro} clips (data.batch_size, by training.accumulate) does not divide into {groups} groups "
            "(model.norm_groups); choose them so that it does"
        )

    # Model and optimiser: shapes first, then shardings, then arrays born where they belong
    model = on_device(model, mesh.devices.flat[0])
    transformation = optimizer.make(settings.steps)
    batch_shapes = task.batch_spec(data, sources["train"], rows)
    init = functools.partial(
        init_state, model, task, transformation, seed=settings.seed, with_ema=settings.ema_decay is not None
    )
    shapes = jax.eval_shape(init, batch_shapes)
    if settings.precise_bn_batches and "batch_stats" not in shapes.variables:
        raise UserError(
            f"training.precise_bn_batches is {settings.precise_bn_batches} and {type(model).__name__} has no batch "
            "normalisation; leave it 0"
        )
    shardings = state_shardings(shapes, mesh)

    # Step
    one_step = functools.partial(
        train_step,
        model=model,
        task=task,
        optimizer=transformation,
        seed=settings.seed,
        ema_decay=settings.ema_decay,
        ema_warmup=settings.ema_warmup,
        gradients=optimizer.gradients(settings.accumulate),
    )

    def step(state: TrainState, batch: Any) -> Any:
        return *one_step(state, batch), {name: batch[name] for name in ("index", "failed", "error")}

    # figures and numbers of examples go to every process, so that all count the same
    jitted = jax.jit(step, donate_argnums=0, out_shardings=(shardings, everywhere, everywhere))

    with contextlib.ExitStack() as stack:
        # Restore
        checkpoints = stack.enter_context(Checkpoints(workdir / "checkpoints", keep=settings.keep_checkpoints))
        with clock("restore"):
            restored = checkpoints.restore_newest(_parts(abstract_state(shapes, shardings)), say)
        if restored is None:
            with clock("compile"):
                state = jax.jit(lambda: init(batch_shapes), out_shardings=shardings)()
            if initialise is not None:
                variables = initialise(abstract_state(shapes, shardings).variables)
                ema = jax.tree.map(jnp.copy, variables) if state.ema else {}
                state = state.replace(variables=variables, ema=ema)
        else:
            state = _state(restored[0])
            say(f"going on from step {restored[1]['step']}")
        progress = Progress.of({} if restored is None else restored[1], settings.spike_deviations)

        def ends() -> bool:
            return settings.patience is not None and progress.stale >= settings.patience

        first = int(state.step)
        if first < settings.steps and not ends():  # a finished run answers at once
            with clock("compile"), jax.set_mesh(mesh):
                compiled = jitted.lower(abstract_state(shapes, shardings), batch_shapes).compile()
        log = stack.enter_context(MetricsLog(workdir, lambda row: row["step"] <= first))

        # Loop
        steps = range(first, settings.steps)
        batches = data.train_batches(sources["train"], settings.seed, steps, **process_shard(rows))
        stack.enter_context(contextlib.closing(batches))
        bar = stack.enter_context(tqdm(desc="training", total=settings.steps, initial=first, unit=" steps"))
        profiler = stack.enter_context(Profiler(workdir / "profile", settings.profile_steps))
        peak = peak_steps(model, task, shapes.variables, batch_shapes, mesh.devices.flatten().tolist())
        whole, pending = Meter(), collections.deque()  # pending: (step, its figures and its examples, on the devices)
        sound = True  # whether the last step that was looked at was
        unread: tuple[int, ...] = ()  # validation videos that were told

        def replaced(errors: dict[int, str], count: int) -> None:
            progress.counters["replaced"] += count
            for index in sorted(errors.keys() - progress.unreadable):
                progress.unreadable.add(index)
                say(f"a clip is replaced by another: {errors[index]}")
                if len(progress.unreadable) > data.max_unreadable * len(sources["train"]):
                    raise RunError(_too_many(progress.unreadable, len(sources["train"]), data.max_unreadable))

        def look(in_flight: int) -> None:
            nonlocal sound
            while len(pending) > in_flight:
                number, *reported = pending.popleft()
                figures, examples = jax.device_get(reported)
                figures = {name: float(value) for name, value in figures.items()}
                failed, errors = examples["failed"].tolist(), map(decode_error, examples["error"])
                unreadable = [(index, error) for index, error in zip(failed, errors, strict=True) if index >= 0]
                replaced(dict(unreadable), len(unreadable))
                sound = not figures.pop("skipped")
                if not sound:
                    progress.counters["skipped"] += 1
                    say(f"step {number} is skipped: loss {figures['loss']}, gradient {figures['gradient_norm']}")
                if progress.counters["skipped"] > settings.max_skipped or not math.isfinite(figures["parameter_norm"]):
                    told = ", ".join(f"the {name.replace('_', ' ')} {figures[name]}" for name in NORMS)
                    why = f"step {number}: {told}; {progress.counters['skipped']} steps were skipped so far"
                    raise RunError(_stopped(why, checkpoints))
                if sound:
                    progress.meter.add(figures)
                    if (median := progress.spikes.judge(figures["loss"])) is not None:
                        examples = examples["index"].tolist()
                        log.write(number, "spike", {"loss": figures["loss"], "median": median, "examples": examples})
                        say(f"step {number}: loss {figures['loss']:.3f}, after {median:.3f}, of examples {examples}")

        def save(number: int) -> None:
            with clock("checkpoint"):
                log.sync()
                checkpoints.best_step = progress.best and progress.best["step"]
                checkpoints.save(number, _parts(state), {**(record or {}), **progress.record()})

        def precisely(number: int, variables: Any) -> Any:
            steps = range(number, number + settings.precise_bn_batches)
            batches = data.train_batches(sources["train"], settings.seed, steps, **process_shard(rows))
            with contextlib.closing(batches), jax.set_mesh(mesh):
                placed = (to_devices({name: batch[name] for name in batch_shapes}, rows) for batch in batches)
                found = precise(variables, placed, model=model, task=task, seed=settings.seed, step=state.step)
            return jax.device_put(found, shardings.variables)

        def stop(number: int) -> None:
            save(number)
            checkpoints.wait()
            raise Preempted(f"stopped after step {number}, which is saved; the same command goes on from there")

        stack.enter_context(notices.deferred())
        # a step that was saved before it could be evaluated is looked at once more
        for number in range(first + progress.evaluated, settings.steps + 1):
            if ends():
                say(f"{progress.stale} evaluations brought nothing better than step {progress.best['step']}: this ends")
                break
            last = number == settings.steps
            due = number % settings.log_every == 0 or last
            saving = number % settings.checkpoint_every == 0 or last
            better = stopping = False
            evaluating = last or (settings.evaluate_every > 0 and number % settings.evaluate_every == 0)
            if number > first:
                with clock("train"), profiler.step(number), ended_after(settings.hang_minutes):
                    began = time.perf_counter()
                    batch = next(batches)
                    waited, decoded = time.perf_counter() - began, float(batch.pop("decode_seconds").sum())
                    placed = to_devices(batch, rows)
                    with jax.transfer_guard("disallow"):
                        state, *reported = compiled(state, placed)
                    pending.append((number, *reported))
                    stopping = notices.came(number)
                    look(0 if due or saving or evaluating or stopping or profiler.ends(number) else IN_FLIGHT)
                    took = time.perf_counter() - began
                    progress.counted += took
                    for each in (progress.meter, whole):
                        each.took(took, waited, decoded)
                bar.update()
                if number == first + WARM_UP:
                    whole = Meter()
                if due:
                    figures = progress.row(data.batch_size, peak)
                    log.write(number, "train", figures)
                    loss = figures.get("loss", math.nan)
                    bar.set_postfix_str(f"loss {loss:.3f}, {figures['clips_per_second']:.0f} clips/s")
            progress.evaluated = not evaluating
            if evaluating:
                try:
                    with clock("evaluate"), notices.heeded():
                        bar.clear()
                        if settings.precise_bn_batches:
                            state = state.with_averaged(precisely(number, state.averaged))
                        predictions = evaluate(model, task, state.averaged, data, sources["validation"], rows)
                        if any(np.isnan(each).any() for each in predictions.outputs.values()):
                            why = f"step {number}: what the model says of the validation split is not a number"
                            raise RunError(_stopped(why, checkpoints))
                        figures = task.metrics(predictions)
                        check_monitor(settings.monitor, figures)
                        if predictions.unreadable != unread and (unread := predictions.unreadable):
                            say(predictions.complaint())
                except Preempted:
                    stop(number)
                progress.evaluated = True
                log.write(number, "val", {"views": predictions.views, **figures})
                better = progress.judge(number, settings.monitor, figures[settings.monitor], task.is_better)
                say(f"step {number}: validation ({predictions.over}) {presenter_for(task).headline(figures)}")
            if stopping:
                stop(number)
            # where steps are skipped the parameters may be beyond help, and the checkpoints before them are not
            if (saving and sound) or better or last or ends():
                save(number)
        with clock("checkpoint"):
            checkpoints.wait()
    return Trained(
        state,
        rows,
        first if restored else None,
        progress.best and progress.best["step"],
        whole.shares() if first < settings.steps else {},
    )


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


def _stopped(why: str, checkpoints: Checkpoints) -> str:
    checkpoints.wait()
    steps = checkpoints.steps()
    if not steps:
        return (
            f"{why}; training stopped before the first checkpoint. Start again in a new folder with a lower "
            "--optimizer.peak_lr, a longer warm-up or a --optimizer.clip_norm"
        )
    last = f"the last checkpoint is {checkpoints.directory / str(steps[-1])}"
    return (
        f"{why}; training stopped and {last}. The same command goes on from there and meets the same steps "
        "(--training.max_skipped is how many may be skipped); to get past them start a new folder with "
        f"--training.initialise_from {checkpoints.directory.parent} and a lower --optimizer.peak_lr or a "
        "--optimizer.clip_norm"
    )
