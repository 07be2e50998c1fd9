"""How long the cells of an ablation will take, and what they compute: estimated, nothing is trained."""

import dataclasses
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from vitx import storage
from vitx.ablations.cells import Results
from vitx.ablations.plan import Cell, Plan
from vitx.analysis import bench
from vitx.console import escape
from vitx.models import resolve_implementation
from vitx.training.overview import count_cost_of

BACKWARD = 3  # forward and backward pass, in forward passes
MEASURABLE_GMACS = 50  # of a training step of the base: larger ones are not run for an estimate
ASSUMED_EFFICIENCY = 0.3  # of a matrix product's rate, where nothing is measured
START_UP_SECONDS = 5.0  # opening the dataset, checkpoints and the report


@dataclasses.dataclass(frozen=True)
class Estimate:
    """What one cell is expected to need.

    Attributes:
        row: name of the row.
        seed: seed of the cell.
        state: "finished", "started" or "missing".
        clips: clips of training.
        gmacs_per_view: multiply-accumulates of one view (10^9); None where they cannot be counted.
        gmacs: those of the whole run: three forward passes for each training clip.
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


def estimate(plan: Plan) -> list[Estimate]:
    """Returns an estimate for every selected cell.

    Times are those of finished cells of the same row; else those of other finished cells, scaled by the
    multiply-accumulates; else they are scaled from a training step of the base, measured here.
    """
    results = Results(plan.workdir)
    finished = {cell.name: result for cell in plan.all_cells() if (result := results.read_result(cell))}
    times: dict[str, list[float]] = {}
    rates = []
    for cell in plan.all_cells():
        if cell.name in finished:
            seconds, gmacs = finished[cell.name]["seconds"], _gmacs(plan, cell)
            times.setdefault(cell.row, []).append(seconds)
            if gmacs:
                rates.append(gmacs / seconds)
    if rates:
        rate, constant, basis = statistics.median(rates), 0.0, "other finished cells"
    elif all(cell.row in times for cell in plan.cells):
        rate, constant, basis = None, 0.0, ""
    else:
        rate, constant, basis = _measure(plan)
    estimates = []
    for cell in plan.cells:
        gmacs = _gmacs(plan, cell)
        if cell.row in times:
            seconds, source = statistics.mean(times[cell.row]), "finished cells of this row"
        elif gmacs is None or rate is None:
            seconds, source = None, "the cost cannot be counted"
        else:
            seconds, source = constant + gmacs / rate, basis
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
    lines.append(f"{len(left)} of {len(estimates)} cells are left: {macs:,.0f} GMACs, about {known / 60:.0f} minutes")
    return "\n".join(map(escape, lines))


def _gmacs(plan: Plan, cell: Cell) -> float | None:
    macs = plan.costs[cell.row][1]
    clips = cell.experiment.training.steps * cell.experiment.data.batch_size
    return None if macs is None else BACKWARD * macs * clips / 1e9


def _measure(plan: Plan) -> tuple[float, float, str]:
    """Returns (GMACs per second, constant seconds of a cell, what was measured)."""
    base = plan.ablation.base
    batch, model = base.data.batch_size, base.model
    shape = (base.data.num_frames, *base.data.image_size, 3)
    macs = count_cost_of(base)[1]
    if macs is None or BACKWARD * macs * batch / 1e9 > MEASURABLE_GMACS:
        return ASSUMED_EFFICIENCY * _matrix_rate(), START_UP_SECONDS, "a matrix product here, at 30 % of its rate"
    quiet = {name: 0.0 for name in ("dropout_rate", "drop_path_rate") if hasattr(model, name)}
    model = resolve_implementation(model.copy(**quiet), jax.devices()[0])
    video = jax.random.normal(jax.random.key(0), (batch, *shape), jnp.float32)
    variables = bench.random_variables(model, video[:1])
    state = (variables, bench.OPTIMIZER.init(variables["params"]))
    began = time.perf_counter()
    step = jax.jit(lambda state, video: bench.train_step(model, state, video)).lower(state, video).compile()
    compile_seconds = time.perf_counter() - began
    seconds = min(_time(lambda: step(state, video)) for _ in range(4))
    rate = BACKWARD * macs * batch / 1e9 / seconds
    return rate, 2 * compile_seconds + START_UP_SECONDS, "a training step of the base, measured here"


def _matrix_rate() -> float:
    x = jnp.ones((1024, 1024))
    product = jax.jit(jnp.matmul)
    return 1024**3 / 1e9 / min(_time(lambda: product(x, x)) for _ in range(4))


def _time(call: Callable[[], Any]) -> float:
    began = time.perf_counter()
    jax.block_until_ready(call())
    return time.perf_counter() - began
