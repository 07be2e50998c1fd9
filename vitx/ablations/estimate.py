"""How long the cells of an ablation will take, and what they compute: estimated, nothing is trained."""

import contextlib
import dataclasses
import functools
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from vitx import storage
from vitx.ablations.cells import CellResults
from vitx.ablations.plan import Cell, Plan
from vitx.analysis.bench import random_variables
from vitx.analysis.bench_programs import OPTIMIZER, train_step, without_dropout
from vitx.console import escape
from vitx.experiment import Experiment
from vitx.training.overview import count_cost_of

BACKWARD = 3  # cost of a forward and a backward pass, in forward passes
MEASURABLE_GMACS = 50  # largest training step of the base that is run for an estimate
ASSUMED_EFFICIENCY = 0.3  # assumed fraction of a matrix product's rate, where no step is measured
START_UP_SECONDS = 5.0  # time to open the dataset, save checkpoints and write the report
READ_BATCHES = 8  # training batches that are read to measure how fast clips are read


@dataclasses.dataclass(frozen=True)
class _Speed:
    """Speed that times are estimated from: the seconds of a cell are `constant + gmacs / rate + clips * clip_seconds`.

    Attributes:
        rate: multiply-accumulates (10^9) in a second; None where they cannot be counted.
        basis: what was measured.
        constant: seconds that every cell takes.
        clip_seconds: seconds to read a clip.
        validation_clips: clips of one validation.
        test_clips: clips of the test.
    """

    rate: float | None
    basis: str
    constant: float = 0.0
    clip_seconds: float = 0.0
    validation_clips: int = 0
    test_clips: int = 0

    def seconds(self, experiment: Experiment, gmacs: float) -> float:
        """Returns the estimated time of a cell, given the GMACs of its training."""
        settings = experiment.training
        validations = settings.steps // settings.evaluate_every if settings.evaluate_every else 1
        clips = settings.steps * experiment.data.batch_size + validations * self.validation_clips + self.test_clips
        return self.constant + gmacs / self.rate + clips * self.clip_seconds


@dataclasses.dataclass(frozen=True)
class Estimate:
    """What one cell is expected to need.

    Attributes:
        row: name of the row.
        seed: seed of the cell.
        state: "finished", "started" or "missing".
        clips: clips of training.
        gmacs_per_view: multiply-accumulates of one view (10^9); None where they cannot be counted.
        gmacs: multiply-accumulates of the whole run (10^9): three forward passes for each training clip.
        seconds: estimated time of the whole run, alone on this machine; None where it cannot be estimated.
        basis: what the time was estimated from.
    """

    row: str
    seed: int
    state: str
    clips: int
    gmacs_per_view: float | None
    gmacs: float | None
    seconds: float | None
    basis: str


class Estimates(list[Estimate]):
    """Estimates of cells, which print as a table with the sum of what is left."""

    def __str__(self) -> str:
        return format_estimates(self)

    def _repr_pretty_(self, printer: Any, _: bool) -> None:  # how a notebook shows them
        printer.text(str(self))


def estimate(plan: Plan) -> Estimates:
    """Returns an estimate for every selected cell.

    Times are those of finished cells of the same row; else those of other finished cells, scaled by the
    multiply-accumulates; else they are scaled from a training step of the base and the reading of its clips, measured
    here.
    """
    results = CellResults(plan.workdir)
    finished = {cell.name: result for cell in plan.all_cells() if (result := results.read_result(cell))}
    times: dict[str, list[float]] = {}
    rates = []
    for cell in plan.all_cells():
        if cell.name in finished and finished[cell.name]["seconds"] is not None:
            seconds, gmacs = finished[cell.name]["seconds"], _count_gmacs(plan, cell)
            times.setdefault(cell.row, []).append(seconds)
            if gmacs:
                rates.append(gmacs / seconds)
    if rates:
        speed = _Speed(statistics.median(rates), "other finished cells")
    elif all(cell.row in times for cell in plan.cells):
        speed = _Speed(None, "")
    else:
        speed = _measure(plan.ablation.base)
    estimates = Estimates()
    for cell in plan.cells:
        gmacs = _count_gmacs(plan, cell)
        if cell.row in times:
            seconds, source = statistics.mean(times[cell.row]), "finished cells of this row"
        elif gmacs is None or speed.rate is None:
            seconds, source = None, "the cost cannot be counted"
        else:
            seconds, source = speed.seconds(cell.experiment, gmacs), speed.basis
        macs = plan.costs[cell.row][1]
        per_view = None if macs is None else macs / 1e9
        started = "started" if storage.exists(cell.folder / "config.json") else "missing"
        state = "finished" if cell.name in finished else started
        clips = cell.experiment.training.steps * cell.experiment.data.batch_size
        estimates.append(Estimate(cell.row, cell.seed, state, clips, per_view, gmacs, seconds, source))
    return estimates


def format_estimates(estimates: list[Estimate]) -> str:
    """Returns the estimates as text, with the sum of what is left."""
    width = max(len(e.row) for e in estimates)
    lines = [f"{'row':{width}}  seed  state        clips  GMACs/view     GMACs  minutes  estimated from"]
    for e in estimates:
        per_view, gmacs = ("" if x is None else f"{x:.4g}" for x in (e.gmacs_per_view, e.gmacs))
        minutes = "" if e.seconds is None else f"{e.seconds / 60:.1f}"
        cells = f"{e.row:{width}}  {e.seed:4}  {e.state:9} {e.clips:8,}  {per_view:>10}  {gmacs:>8}  {minutes:>7}"
        lines.append(f"{cells}  {e.basis}")
    left = [e for e in estimates if e.state != "finished"]
    known = sum(e.seconds for e in left if e.seconds is not None)
    macs = sum(e.gmacs for e in left if e.gmacs is not None)
    unknown = sum(e.seconds is None for e in left)
    also = f", and {unknown} without an estimate" if unknown else ""
    found = f"{macs:,.0f} GMACs, about {known / 60:.0f} min"
    lines.append(f"{len(left)} of {len(estimates)} cells are left: {found}{also}")
    return "\n".join(map(escape, lines))


def _count_gmacs(plan: Plan, cell: Cell) -> float | None:
    macs = plan.costs[cell.row][1]
    clips = cell.experiment.training.steps * cell.experiment.data.batch_size
    return None if macs is None else BACKWARD * macs * clips / 1e9


def _measure(base: Experiment) -> _Speed:
    """Returns the speed of an experiment on this machine."""
    macs = count_cost_of(base)[1]
    gmacs = None if macs is None else BACKWARD * macs * base.data.batch_size / 1e9
    if gmacs is None or gmacs > MEASURABLE_GMACS:
        rate = ASSUMED_EFFICIENCY * _measure_matrix_rate()
        return _Speed(rate, "a matrix product here, at 30 % of its rate", START_UP_SECONDS)
    step_seconds, compile_seconds = _measure_step(base)
    return _Speed(
        rate=gmacs / step_seconds,
        basis="a training step of the base and the reading of its clips, measured here",
        constant=2 * compile_seconds + START_UP_SECONDS,
        clip_seconds=_measure_reading(base),
        validation_clips=len(base.data.dataset.open("validation")) * base.data.max_views,
        test_clips=len(base.data.dataset.open("test")) * base.data.max_views,
    )


def _measure_step(base: Experiment) -> tuple[float, float]:
    """Returns (seconds of a training step, seconds of its compilation)."""
    model = without_dropout(base.model, jax.devices()[0])
    clip = (base.data.num_frames, *base.data.image_size, model.input_shape[-1])
    video = jax.random.normal(jax.random.key(0), (base.data.batch_size, *clip), jnp.float32)
    variables = random_variables(model, video[:1])
    state = (variables, OPTIMIZER.init(variables["params"]))
    began = time.perf_counter()
    step = jax.jit(functools.partial(train_step, model)).lower(state, video).compile()
    compile_seconds = time.perf_counter() - began
    return min(_time_call(lambda: step(state, video)) for _ in range(4)), compile_seconds


def _measure_reading(base: Experiment) -> float:
    """Returns the seconds that a clip takes to be read, with the threads or workers of training."""
    source = base.data.dataset.open("train")
    with contextlib.closing(base.data.train_batches(source, 0, range(READ_BATCHES + 1))) as batches:
        next(batches)  # starts the threads
        began = time.perf_counter()
        for _ in batches:
            pass
    return (time.perf_counter() - began) / (READ_BATCHES * base.data.batch_size)


def _measure_matrix_rate() -> float:
    x = jnp.ones((1024, 1024))
    product = jax.jit(jnp.matmul)
    return 1024**3 / 1e9 / min(_time_call(lambda: product(x, x)) for _ in range(4))


def _time_call(call: Callable[[], Any]) -> float:
    began = time.perf_counter()
    jax.block_until_ready(call())
    return time.perf_counter() - began
