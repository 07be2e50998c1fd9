"""The one training loop: `train` sets up, restores, compiles and runs it.

`run_steps` is the loop itself. `vitx.training.setup` builds what stays the same, and `vitx.training.trainer.Trainer`
does what the loop asks for: a step, a row of metrics, an evaluation, a checkpoint.
"""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import PurePath
from typing import Any

import jax

from vitx.checkpoints import Checkpoints
from vitx.configuration import mutable_on_resume, register, setting
from vitx.data.sources import Source
from vitx.locks import FolderLock
from vitx.models.budgets import Budget
from vitx.training.faults import PreemptionGuard
from vitx.training.logs import log_info
from vitx.training.overview import write_overview
from vitx.training.progress import Progress
from vitx.training.setup import Setup, compile_step, create_state, set_up
from vitx.training.sharding import Mesh
from vitx.training.step import TrainState
from vitx.training.stopwatch import Stopwatch
from vitx.training.trainer import Saver, Trainer
from vitx.training.validation import ValidationSet


@register
@dataclasses.dataclass(frozen=True)
class Training:
    """How long and in which way a run trains.

    Attributes:
        steps: optimiser steps.
        seed: seed of parameters, data order and everything random; seed and step determine a run.
        ema_decay: decay of the moving average of parameters that is evaluated in place of the last ones; None keeps no
            average.
        ema_warmup: whether the average starts with a short memory: its decay is at most (1 + step) / (10 + step).
        num_micro_batches: number of parts of a batch that are computed one after another, to save memory. The result
            equals that of the whole batch except for batch norm, and for mixup, cutmix, dropout and drop path, which
            each micro-batch draws independently (see `vitx.training.gradients.accumulate_gradients`).
        budgets: tokens, frames and sizes at which one model is to serve (docs/fewer_tokens.md): every step draws one
            of them from seed and step. Empty trains on whole clips.
        initialise_from: weights that the run starts from: a vitx run, a Hugging Face directory, or a file of weights,
            also of an image network (see `vitx.load_pretrained`); None draws them from the seed.
        precise_bn_batches: number of the next training batches over which the statistics of batch normalisation are
            averaged before each evaluation (see `vitx.training.statistics`); 0 evaluates with running statistics.
        monitor: validation metric by which the best checkpoint is chosen; losses and errors are better when lower.
        mesh: how devices share the work.
        log_every: steps between rows of training metrics.
        evaluate_every: steps between evaluations on the validation split; 0 evaluates after the last step only.
        validation_sets: further sets to evaluate on, each with its own cadence.
        checkpoint_every: steps between checkpoints.
        keep_checkpoints: newest checkpoints to keep beside the best.
        patience: evaluations without a better monitored metric after which the run ends; None trains to the last step.
        max_skipped: steps that may be skipped, because their loss or gradient is not finite, before the run stops.
        spike_deviations: a loss is logged as a spike, with the examples of its batch, if it exceeds the median of the
            last 100 by this many median absolute deviations, each at least 1 % of the first loss; None logs no spikes.
        hang_minutes: minutes after which a step that does not end ends the process; None waits forever.
        profile_steps: first and last step that `jax.profiler` traces into the run's folder `profile`.
        compilation_cache: folder of JAX's persistent cache, where compiled programs are kept for later runs; "off"
            keeps none. None takes the folder in JAX_COMPILATION_CACHE_DIR; without that variable, commands take one in
            the user's cache folder (see `vitx.compiled_programs`).
        wandb: project of Weights & Biases that metrics also go to (`pip install 'vitx[wandb]'`); None uses the
            local log alone.
    """

    steps: int = 1000
    seed: int = 0
    ema_decay: float | None = None
    ema_warmup: bool = False
    num_micro_batches: int = 1
    budgets: tuple[Budget, ...] = ()
    initialise_from: str | None = setting(None, is_path=True)
    precise_bn_batches: int = 0
    monitor: str = "loss"
    mesh: Mesh = mutable_on_resume(Mesh())
    log_every: int = mutable_on_resume(50)
    evaluate_every: int = mutable_on_resume(0)
    validation_sets: tuple[ValidationSet, ...] = mutable_on_resume(())
    checkpoint_every: int = mutable_on_resume(500)
    keep_checkpoints: int = mutable_on_resume(2)
    patience: int | None = mutable_on_resume(None)
    max_skipped: int = mutable_on_resume(10)
    spike_deviations: float | None = mutable_on_resume(10.0)
    hang_minutes: float | None = mutable_on_resume(None)
    profile_steps: tuple[int, int] | None = mutable_on_resume(None)
    compilation_cache: str | None = mutable_on_resume(None)
    wandb: str | None = mutable_on_resume(None)

    def __post_init__(self):
        bounds = {"steps": 1, "log_every": 1, "checkpoint_every": 1, "num_micro_batches": 1, "patience": 1}
        bounds |= {"evaluate_every": 0, "max_skipped": 0, "precise_bn_batches": 0}
        for name, bound in bounds.items():
            if getattr(self, name) is not None and getattr(self, name) < bound:
                raise ValueError(f"{name} is {getattr(self, name)}; expected at least {bound}")
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"seed is {self.seed}; expected 0 to {2**32 - 1}")
        if self.ema_decay is not None and not 0 <= self.ema_decay < 1:
            raise ValueError(f"ema_decay is {self.ema_decay}; expected 0 to below 1, such as 0.999, or None")
        if self.ema_warmup and self.ema_decay is None:
            raise ValueError("ema_warmup is True and ema_decay None; expected a decay, such as 0.999, or no warm-up")
        if self.hang_minutes is not None and not self.hang_minutes > 0:
            raise ValueError(f"hang_minutes is {self.hang_minutes}; expected a time above 0, or None to wait forever")
        if self.spike_deviations is not None and not self.spike_deviations >= 0:
            raise ValueError(f"spike_deviations is {self.spike_deviations}; expected a number from 0, or None")
        if self.profile_steps is not None and not 1 <= self.profile_steps[0] <= self.profile_steps[1]:
            raise ValueError(f"profile_steps is {self.profile_steps}; expected a first step, from 1, and a last one")
        if self.profile_steps is not None and self.profile_steps[0] > self.steps:
            raise ValueError(f"profile_steps is {self.profile_steps}; the run has {self.steps} steps")
        if self.keep_checkpoints < 2:
            # If the newest checkpoint is damaged, the run resumes from the one before it.
            raise ValueError(f"keep_checkpoints is {self.keep_checkpoints}; expected at least 2")
        names = [validation_set.name for validation_set in self.validation_sets]
        if len(set(names)) < len(names):
            raise ValueError(f"validation_sets are named {', '.join(names)}; expected different names")


@dataclasses.dataclass(frozen=True)
class TrainingResult:
    """Where a run stands when training ends.

    Attributes:
        state: parameters and optimiser state, on the devices.
        sharding: sharding of a batch on those devices.
        resumed_at: step that this process resumed from; None for a new run.
        best_step: step of the checkpoint that is best by the monitored metric.
        time_percentages: "input_wait_percent" and "decode_core_percent" of the steps after the first WARM_UP_STEPS;
            empty if there were none.
    """

    state: TrainState
    sharding: jax.sharding.NamedSharding
    resumed_at: int | None
    best_step: int | None
    time_percentages: dict[str, float]


def train(
    experiment: Any,
    sources: Mapping[str, Source],
    workdir: PurePath,
    *,
    guard: PreemptionGuard,
    clock: Stopwatch,
    lock: FolderLock | None = None,
    record: Mapping[str, Any] | None = None,
    initialise: Callable[[Any], Any] | None = None,
) -> TrainingResult:
    """Trains in a run's folder, or resumes there, until all steps are done or patience ends.

    Args:
        experiment: `vitx.experiment.Experiment`; its task is fitted to the training split.
        sources: {"train": ..., "validation": ...}, and one source for each of `training.validation_sets`.
        workdir: the run's folder; training resumes from its newest whole checkpoint.
        guard: requests to stop, as an entered context manager.
        clock: gets the time of "restore", "initialise", "compile", "input", "train", "evaluate" and "checkpoint".
        lock: this process's lock of the folder; nothing is saved after it is lost.
        record: JSON data that travels with every checkpoint: settings, names of classes.
        initialise: returns the variables that a new run starts from, given their shapes and shardings; None draws
            them from the seed.

    Raises:
        UserError: settings that do not fit together, or not this machine.
        RunError: too many losses are not finite, or too many videos cannot be read.
        Preempted: the process was asked to stop; the state is saved.
    """
    setup = set_up(experiment, sources)
    experiment, settings = setup.experiment, setup.experiment.training
    with Checkpoints(workdir / "checkpoints", keep=settings.keep_checkpoints) as checkpoints:
        # Restored state, or a new one
        state, saved = restore_or_create_state(checkpoints, setup, initialise, clock)
        if saved is None:
            variables, mesh = setup.abstract.variables, setup.batch_sharding.mesh
            write_overview(workdir / "overview.md", experiment, variables, mesh, len(sources["train"]))
        progress = Progress.from_record(saved or {}, settings.spike_deviations)
        start = int(state.step)
        finished = start >= settings.steps or progress.is_patience_exhausted(settings.patience)

        # Compiled step; a finished run needs none
        with clock("compile"):
            step = None if finished else compile_step(setup)

        # Loop
        saver = Saver(checkpoints, lock or FolderLock(), record or {})
        trainer = Trainer(
            setup,
            sources,
            workdir,
            state=state,
            progress=progress,
            compiled_step=step,
            saver=saver,
            guard=guard,
            clock=clock,
        )
        del state  # the trainer owns it now: its first step donates the buffers
        with trainer, guard.defer(), trainer.explain_divergence():
            run_steps(trainer, start, settings)
        with clock("checkpoint"):
            checkpoints.wait()
    return TrainingResult(
        state=trainer.state,
        sharding=setup.batch_sharding,
        resumed_at=None if saved is None else start,
        best_step=progress.best.step,
        time_percentages=trainer.overall.time_percentages() if trainer.overall.steps else {},
    )


def run_steps(trainer: Trainer, start: int, settings: Training) -> None:
    """Steps, logs, evaluates and saves, until all steps are done or patience ends.

    Args:
        trainer: the run.
        start: number of steps that were finished before.
        settings: how long and how often.
    """
    best, evaluator = trainer.progress.best, trainer.evaluator
    # A run that was stopped between a step and its evaluations begins with those that are missing.
    pending = evaluator.select_known(trainer.progress.pending)
    for step in range(start if pending else start + 1, settings.steps + 1):
        if step > start and trainer.progress.is_patience_exhausted(settings.patience):
            log_info(f"stopping early: {best.num_since} evaluations in a row were not better than step {best.step}")
            break
        last = step == settings.steps
        log_due = last or step % settings.log_every == 0
        save_due = last or step % settings.checkpoint_every == 0
        due = evaluator.list_due(step, last=last)
        evaluations = due if step > start else pending
        stopping = improved = False
        if step > start:
            stopping = trainer.take_step(step, wait=bool(log_due or save_due or evaluations))
            if log_due:
                trainer.log_metrics(step)
        if evaluations:
            improved = trainer.evaluate(step, evaluations)
        is_over = last or trainer.progress.is_patience_exhausted(settings.patience)
        # Where patience ends the run, the sets that are not due get their last evaluation, too.
        others = [name for name in evaluator.list_due(step, last=is_over) if name not in (*due, *evaluations)]
        if others:
            trainer.evaluate(step, tuple(others))
        if stopping:
            trainer.save_and_stop(step)
        # After a skipped step the parameters may have diverged: a save at the usual interval would replace a good
        # checkpoint. Other saves follow an evaluation, which raises `DivergedError` where outputs are not numbers.
        if improved or is_over or (save_due and trainer.results.last_was_finite):
            trainer.save(step)


def restore_or_create_state(
    checkpoints: Checkpoints, setup: Setup, initialise: Callable[[Any], Any] | None, clock: Stopwatch
) -> tuple[TrainState, dict[str, Any] | None]:
    """Returns the newest whole checkpoint's state and record, or a new run's state and None.

    Args:
        checkpoints: the run's checkpoints.
        setup: shapes and shardings of the state, and how it is drawn.
        initialise: see `create_state`.
        clock: gets the time of "restore" and "initialise".
    """
    with clock("restore"):
        restored = checkpoints.restore_newest(TrainState.to_parts(setup.abstract), log_info)
    if restored is None:
        with clock("initialise"):
            return create_state(setup, initialise), None
    parts, record = restored
    log_info(f"resuming from step {record['step']}")
    return TrainState.from_parts(parts), record
