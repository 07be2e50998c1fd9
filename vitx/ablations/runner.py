"""Runs an ablation: every process takes one free cell after another, until all are settled."""

import contextlib
import glob
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePath

import jax
from jax.experimental.compilation_cache import compilation_cache

from vitx import strict_json
from vitx.ablations.cells import FAILED, CellResults, run_cell
from vitx.ablations.description import Ablation, load_ablation
from vitx.ablations.estimate import Estimates, estimate
from vitx.ablations.leases import Leases
from vitx.ablations.pictures import write_pictures
from vitx.ablations.plan import Cell, Plan, claim_folder, create_plan
from vitx.ablations.tables import Table, build_table, write_table
from vitx.console import prefix_messages
from vitx.errors import Preempted, RunError, UserError
from vitx.training.logs import log_info

POLL_SECONDS = 5.0  # between two checks of the cells that other processes train


def ablate(
    ablation: Ablation | str | Path,
    workdir: str | PurePath,
    *,
    rows: Sequence[str] | None = None,
    seeds: Sequence[int] | None = None,
    jobs: int = 1,
    dry_run: bool = False,
) -> Table | Estimates:
    """Runs what is missing of an ablation, and writes its tables and pictures.

    Any number of processes, on any number of machines, may run the same ablation in one folder. What was stopped
    resumes; what is finished is never trained again; what failed is tried once more by each new call.

    Args:
        ablation: an ablation, or the path of a file that defines one.
        workdir: folder of the ablation, also in a bucket.
        rows: names or patterns of the rows to run; None for all.
        seeds: seeds to run; None for the ablation's.
        jobs: processes that this one starts to share the cells; 1 runs them in this process.
        dry_run: run nothing.

    Returns:
        The table, of all cells that are finished; with `dry_run` the estimated time and cost of each cell.

    Raises:
        UserError: the ablation is refused; the message lists every problem with the name of its row.
        Preempted: a stop was requested; the same call resumes.
    """
    if jobs < 1:
        raise UserError(f"jobs is {jobs}; expected at least 1")
    file = None if isinstance(ablation, Ablation) else Path(ablation)
    if jobs > 1 and file is None:
        raise UserError(f"jobs is {jobs}; expected the path of a file, which other processes can read, or 1 job")
    plan = create_plan(load_ablation(file) if file is not None else ablation, workdir, rows=rows, seeds=seeds)
    if dry_run:
        return estimate(plan)
    claim_folder(plan)
    with share_programs(plan):
        if jobs == 1:
            run_cells(plan)
        else:
            _run_in_processes(plan, file, jobs)
    return write_results(plan)


@contextlib.contextmanager
def share_programs(plan: Plan) -> Iterator[None]:
    """Keeps compiled programs on disk until the ablation ends: cells that differ in the seed alone share theirs.

    A cache that the user has chosen stays.
    """
    if plan.ablation.base.training.compilation_cache or jax.config.jax_compilation_cache_dir:
        yield
        return
    with tempfile.TemporaryDirectory(prefix="vitx_programs_") as folder:
        jax.config.update("jax_compilation_cache_dir", folder)
        compilation_cache.reset_cache()  # JAX asks for the folder once, when it first compiles
        try:
            yield
        finally:
            jax.config.update("jax_compilation_cache_dir", None)
            compilation_cache.reset_cache()


def run_cells(plan: Plan, *, name_lines: bool = False) -> None:
    """Trains cells that no other process has, until every selected cell is finished or has failed.

    A failure of an earlier call is tried again; one that another process meets meanwhile is not.

    Args:
        plan: plan with the cells.
        name_lines: begin each line that is printed with the cell, as processes of one terminal need it.
    """
    results, leases = CellResults(plan.workdir), Leases(plan.workdir / "leases")
    known = results.names()
    before = {cell.name: results.read_failure(cell) for cell in plan.cells if cell.name + FAILED in known}

    def is_open(cell: Cell, names: set[str]) -> bool:
        if f"{cell.name}.json" in names:
            return False
        return cell.name + FAILED not in names or results.read_failure(cell) == before.get(cell.name)

    waited = False
    while pending := _find_open_cells(plan, results, is_open):
        progress = False
        for cell in pending:
            lease = leases.take(cell.name)
            if lease is None:
                continue
            try:
                # Another process may have finished the cell since the list was read.
                if is_open(cell, results.names()):
                    done = len(plan.cells) - len(pending)
                    log_info(f"{done} of {len(plan.cells)} cells are settled; row {cell.row!r}, seed {cell.seed}")
                    prefix = f"{cell.row}, seed {cell.seed}: " if name_lines else ""
                    with prefix_messages(prefix):
                        progress = run_cell(cell, lease, results)
            finally:
                lease.release()
            if progress:
                break
        if not progress and len(_find_open_cells(plan, results, is_open)) == len(pending):
            if not waited:
                log_info(f"{len(pending)} cells are with other processes; waiting for them")
            waited = True
            time.sleep(POLL_SECONDS)


def _find_open_cells(plan: Plan, results: CellResults, is_open: Callable[[Cell, set[str]], bool]) -> list[Cell]:
    names = results.names()
    return [cell for cell in plan.cells if is_open(cell, names)]


def write_results(plan: Plan) -> Table:
    """Writes the tables and pictures of all finished cells; returns the table."""
    table = build_table(plan)
    write_table(table, plan.workdir)
    write_pictures(plan, table)
    return table


def _run_in_processes(plan: Plan, file: Path, jobs: int) -> None:
    """Starts processes that share the cells, and waits for them.

    Raises:
        Preempted: they were asked to stop, and saved.
        RunError: all of them ended before every cell was settled.
    """
    rows = [glob.escape(row) for row in dict.fromkeys(cell.row for cell in plan.cells)]  # a name is no pattern
    selected = strict_json.dumps({"rows": rows, "seeds": list(dict.fromkeys(cell.seed for cell in plan.cells))})
    command = [sys.executable, "-m", "vitx", "ablate", str(file), "--workdir", str(plan.workdir)]
    command.append(f"--worker={selected}")  # one word: names may begin with a dash
    results = CellResults(plan.workdir)
    failures = {
        cell.name: results.read_failure(cell) for cell in plan.cells
    }  # failures of earlier calls, which are tried again
    programs = jax.config.jax_compilation_cache_dir
    environment = os.environ | ({"JAX_COMPILATION_CACHE_DIR": programs} if programs else {})
    workers = [subprocess.Popen(command, env=environment) for _ in range(jobs)]
    try:
        statuses = [worker.wait() for worker in workers]
    except BaseException:
        for worker in workers:
            worker.terminate()
        for worker in workers:
            worker.wait()
        raise
    if 75 in statuses:
        raise Preempted("stopped; the same command resumes")
    finished = results.names()
    left = [cell for cell in plan.cells if f"{cell.name}.json" not in finished]
    missing = [cell for cell in left if results.read_failure(cell) == failures[cell.name]]
    if missing:
        raise RunError(
            f"{len(missing)} of {len(plan.cells)} cells are not settled, and the processes ended with "
            f"{statuses}; the same command resumes"
        )
