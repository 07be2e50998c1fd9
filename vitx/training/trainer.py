"""A run while it trains: its state on the devices, and the actions that the loop calls at each step."""

import contextlib
import dataclasses
import functools
import math
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import PurePath
from typing import Any, NoReturn

import jax

from vitx.checkpoints import Checkpoints
from vitx.console import progress_bar
from vitx.data.pipeline import device_entries
from vitx.data.sources import Source
from vitx.errors import DivergedError, Preempted
from vitx.layers.partition import process_shard, to_devices
from vitx.locks import FolderLock
from vitx.training.faults import PreemptionGuard, exit_after
from vitx.training.logs import MetricsLog, Profiler, log_info
from vitx.training.progress import Meter, Progress, check_monitor, peak_steps_per_second
from vitx.training.results import StepResults
from vitx.training.setup import Setup
from vitx.training.statistics import precise_statistics
from vitx.training.step import TrainState
from vitx.training.stopwatch import Stopwatch
from vitx.training.validation import Evaluator

MAX_IN_FLIGHT = 2  # steps that may be unfinished on the devices after another one is handed over
WARM_UP_STEPS = 20  # left out of a run's overall fraction of time spent waiting for input
MESSAGE_SECONDS = 30.0  # between lines of progress where there is no progress bar


@dataclasses.dataclass(frozen=True)
class Saver:
    """Saves a run.

    Attributes:
        checkpoints: checkpoints of the run.
        lock: this process's lock of the folder; nothing is saved after it is lost.
        record: JSON data that travels with every checkpoint beside the progress.
    """

    checkpoints: Checkpoints
    lock: FolderLock
    record: Mapping[str, Any]

    def save(self, step: int, state: TrainState, progress: Progress) -> None:
        """Starts to save the state after a step."""
        self.lock.check()
        self.checkpoints.best_step = progress.best.step
        self.checkpoints.save(step, state.to_parts(), {**self.record, **progress.to_record()})


class Trainer:
    """Trains, evaluates, logs and saves one run; a context manager that closes its data, its log and its profiler.

    Attributes:
        state: parameters, optimiser state and step, on the devices.
        progress: counters, best metric and loss history; saved with every checkpoint.
        results: steps in flight.
        evaluator: evaluates on the validation sets.
        overall: time of all steps after the first WARM_UP_STEPS.
    """

    def __init__(
        self,
        setup: Setup,
        sources: Mapping[str, Source],
        workdir: PurePath,
        *,
        state: TrainState,
        progress: Progress,
        compiled_step: Callable[[TrainState, Any], tuple[TrainState, Any, Any]] | None,
        saver: Saver,
        guard: PreemptionGuard,
        clock: Stopwatch,
    ) -> None:
        """Prepares training from `state` on.

        Args:
            setup: what stays the same: settings, shapes and shardings.
            sources: {split: its examples}.
            workdir: the run's folder.
            state: parameters, optimiser state and step to continue from.
            progress: counters, best metric and loss history to continue from.
            compiled_step: from (state, batch) to (state, metrics, examples), on the devices; None takes no step.
            saver: saves the run.
            guard: requests to stop.
            clock: gets the time of each phase.
        """
        self.state, self.progress, self.overall = state, progress, Meter()
        self._setup, self._experiment, self._sharding = setup, setup.experiment, setup.batch_sharding
        self._sources, self._compiled_step = sources, compiled_step
        self._saver, self._guard, self._clock = saver, guard, clock
        self._start = int(state.step)
        self._messages = Throttle(MESSAGE_SECONDS)
        experiment, sharding = setup.experiment, setup.batch_sharding
        model, task, data, settings = experiment.model, experiment.task, experiment.data, experiment.training
        variables, devices = setup.abstract.variables, [*sharding.mesh.devices.flat]
        compute = experiment.optimizer.compute_learning_rates
        self._learning_rates = functools.partial(compute, variables["params"], settings.steps)
        # Steps of several budgets cost differently, so there is no single peak.
        peak = None if settings.budgets else peak_steps_per_second(model, task, variables, setup.batch_shapes, devices)
        self._peak_steps = peak
        self._log = MetricsLog(workdir, lambda row: row["step"] <= self._start, settings.wandb)
        self._profiler = Profiler(workdir / "profile", settings.profile_steps)
        self.results = StepResults(
            progress,
            self._log,
            num_examples=len(sources["train"]),
            max_unreadable=data.max_unreadable,
            max_skipped=settings.max_skipped,
        )
        cadence = {"validation": settings.evaluate_every} | {s.name: s.every for s in settings.validation_sets}
        self.evaluator = Evaluator(
            model=model, task=task, data=data, sources=sources, cadence=cadence, sharding=sharding, log=self._log
        )

    def __enter__(self) -> "Trainer":
        data, settings = self._experiment.data, self._experiment.training
        steps = range(self._start, settings.steps)
        with contextlib.ExitStack() as stack:  # closes what is open if a later one cannot be opened
            stack.enter_context(self._log)
            stack.enter_context(self._profiler)
            batches = data.train_batches(self._sources["train"], settings.seed, steps, **process_shard(self._sharding))
            self._batches = stack.enter_context(contextlib.closing(batches))
            bar = progress_bar(desc="training", total=settings.steps, initial=self._start, unit=" steps")
            self._bar = stack.enter_context(bar)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exception: Any) -> None:
        self._stack.__exit__(*exception)

    def take_step(self, step: int, *, wait: bool) -> bool:
        """Hands one step to the devices; returns whether the run was asked to stop after it.

        Args:
            step: the step, from 1.
            wait: whether to collect all steps in flight, because something is due after this one.
        """
        progress = self.progress
        with self._clock("train"), self._profiler.step(step), exit_after(self._experiment.training.hang_minutes):
            began = time.perf_counter()
            with self._clock("input"):
                batch = next(self._batches)
            waited, decoded = time.perf_counter() - began, float(batch["decode_seconds"].sum())
            on_devices = to_devices(device_entries(batch), self._sharding)
            with jax.transfer_guard("disallow"):  # an implicit transfer would stall every step
                self.state, metrics, examples = self._compiled_step(self.state, on_devices)
            self.results.add(step, metrics, examples)
            stopping = self._guard.requested(step)
            # The first step is waited for, so that its time is known.
            wait = wait or stopping or self._profiler.ends_at(step) or step == self._start + 1
            self.results.collect(0 if wait else MAX_IN_FLIGHT)
            seconds = time.perf_counter() - began
        progress.productive_seconds += seconds
        progress.meter.add_time(seconds, waited, decoded)
        if step > self._start + WARM_UP_STEPS:
            self.overall.add_time(seconds, waited, decoded)
        self._bar.update()
        return stopping

    def log_metrics(self, step: int) -> None:
        """Writes a row of training metrics since the last row, and shows it in the terminal."""
        data = self._experiment.data
        row = self.progress.next_row(data.batch_size, self._peak_steps)
        row["epoch"] = step * data.batch_size / (data.num_repeats * max(len(self._sources["train"]), 1))
        # A skipped step leaves the optimiser's own count of updates behind the number of the step.
        row |= self._learning_rates(step - 1 - self.progress.counters["skipped"])
        self._log.write(step, "train", row)
        self._show_progress(step, row)

    def _show_progress(self, step: int, row: Mapping[str, float]) -> None:
        summary = f"loss {row.get('loss', math.nan):.3f}, {row['clips_per_second']:.0f} clips/s"
        self._bar.set_postfix_str(summary)
        if self._bar.disable and self._messages.is_ready():
            steps = self._experiment.training.steps
            left = (steps - step) * row["seconds_per_step"]
            log_info(f"step {step} of {steps}: {summary}, about {format_seconds(left)} left")

    def evaluate(self, step: int, names: tuple[str, ...]) -> bool:
        """Evaluates on some validation sets; returns whether the monitored metric is the best so far.

        Args:
            step: number of finished steps.
            names: names of the sets.

        Raises:
            Preempted: the process was asked to stop; the step is saved, and is evaluated when the run resumes.
        """
        settings, task = self._experiment.training, self._experiment.task
        self.progress.pending = names
        try:
            # A request to stop may interrupt an evaluation: it is repeated when the run resumes.
            with self._clock("evaluate"), self._guard.allow():
                self._bar.clear()  # the bar of the evaluation takes its line
                if settings.precise_bn_batches:
                    self.state = self.with_precise_statistics(step)
                evaluations = {name: self.evaluator(name, step, self.state.eval_variables) for name in names}
                if "validation" in evaluations:
                    check_monitor(settings.monitor, evaluations["validation"].metrics)
        except Preempted:
            self.save_and_stop(step)
        self.progress.pending = ()
        for evaluation in evaluations.values():
            self.evaluator.record(evaluation)
        if "validation" not in evaluations:
            return False
        value = evaluations["validation"].metrics[settings.monitor]
        return self.progress.best.update(step, settings.monitor, value, task.is_better)

    def with_precise_statistics(self, step: int) -> TrainState:
        """Returns the state with statistics of batch normalisation averaged over the next training batches."""
        settings, data = self._experiment.training, self._experiment.data
        steps = range(step, step + settings.precise_bn_batches)
        batches = data.train_batches(self._sources["train"], settings.seed, steps, **process_shard(self._sharding))
        state = self.state
        with contextlib.closing(batches), jax.set_mesh(self._sharding.mesh):
            on_devices = (to_devices(device_entries(batch), self._sharding) for batch in batches)
            parts = {"model": self._experiment.model, "task": self._experiment.task, "seed": settings.seed}
            found = precise_statistics(state.eval_variables, on_devices, step=state.step, **parts)
        shardings = jax.tree.map(lambda leaf: leaf.sharding, state.eval_variables)
        return state.with_eval_variables(jax.device_put(found, shardings))

    def save(self, step: int) -> None:
        """Saves a checkpoint in the background."""
        with self._clock("checkpoint"):
            self._log.sync()  # first, because a checkpoint must never be newer than the log
            self._saver.save(step, self.state, self.progress)

    def save_and_stop(self, step: int) -> NoReturn:
        """Saves, waits until everything is on disk, and raises `Preempted`."""
        self.save(step)
        self._saver.checkpoints.wait()
        raise Preempted(f"stopped after step {step}, which is saved; the same command resumes from there")

    @contextlib.contextmanager
    def explain_divergence(self) -> Iterator[None]:
        """Adds to a `DivergedError` which checkpoint remains, and how to continue."""
        try:
            yield
        except DivergedError as error:
            self._saver.checkpoints.wait()
            raise DivergedError(f"{error}. {_describe_recovery(self._saver.checkpoints)}") from error


class Throttle:
    """Limits how often something happens: `is_ready` returns True at most once in `seconds`."""

    def __init__(self, seconds: float) -> None:
        self._seconds, self._last = seconds, time.monotonic()

    def is_ready(self) -> bool:
        """Returns whether enough time has passed since the last time."""
        now = time.monotonic()
        if now - self._last < self._seconds:
            return False
        self._last = now
        return True


def format_seconds(seconds: float) -> str:
    """Returns a duration as people write it: 45 s, 12 min, 3.5 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _describe_recovery(checkpoints: Checkpoints) -> str:
    """Returns how to continue after a divergence."""
    steps = checkpoints.steps()
    if not steps:
        return (
            "Training stopped before the first checkpoint; start again in a new folder with a lower "
            "--optimizer.peak_lr, a longer warm-up or a --optimizer.clip_norm"
        )
    return (
        f"Training stopped; the last checkpoint is {checkpoints.directory / str(steps[-1])}. The same command resumes "
        "from it and would diverge at the same step. To continue, start in a new folder with "
        f"--training.initialise_from {checkpoints.directory.parent} and a lower --optimizer.peak_lr or a "
        "--optimizer.clip_norm"
    )
