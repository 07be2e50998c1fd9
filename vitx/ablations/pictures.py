"""Pictures of an ablation and of runs that are compared: learning curves with bands, accuracy against cost."""

import io
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from vitx import storage
from vitx.ablations.plan import COSTS, Cell, Plan
from vitx.ablations.tables import Table
from vitx.training.logs import read_metrics

Rows = Sequence[Mapping[str, Any]]
_PAIRED = matplotlib.colormaps["tab20"].colors
COLOURS = _PAIRED[::2] + _PAIRED[1::2]  # dark ones first: a light one is hard to see beside its dark twin


def write_pictures(plan: Plan, table: Table) -> None:
    """Writes curves and pareto as PNG and SVG into the ablation's folder, as far as there are results."""
    seeds = {row.name: row.seeds for row in table.rows}
    cells: dict[str, list[Cell]] = {}
    for cell in plan.all_cells():
        if cell.seed in seeds[cell.row]:
            cells.setdefault(cell.row, []).append(cell)
    metrics = [column for column in table.columns if column not in COSTS]
    if cells:
        runs = {row: [read_metrics(cell.folder) for cell in own] for row, own in cells.items()}
        save_figure(learning_curves(runs, metrics), plan.workdir / "curves")
    points = {
        row.name: row.values for row in table.rows if "gmacs" in row.values and any(m in row.values for m in metrics)
    }
    if points:
        task = plan.ablation.base.task
        higher = {metric: not task.is_better(metric, 0.0, 1.0) for metric in metrics}
        save_figure(pareto(points, higher), plan.workdir / "pareto")


def learning_curves(runs: Mapping[str, Sequence[Rows]], metrics: Sequence[str]) -> Figure:
    """Draws the loss of training and metrics of validation against steps.

    Args:
        runs: {name: rows of metrics.jsonl of each seed}. Lines are means, bands one standard deviation over seeds.
        metrics: metrics of the validation split to draw.
    """
    panels = [("train", "loss"), *(("validation", metric) for metric in metrics)]
    figure = Figure(figsize=(4.6 * len(panels), 3.6 + 0.22 * (len(runs) // 4)), layout="constrained")
    for axes, (split, metric) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        for number, (name, seeds) in enumerate(runs.items()):
            curves = [{r["step"]: r[metric] for r in rows if r["split"] == split and metric in r} for rows in seeds]
            steps = sorted(set.intersection(*map(set, curves))) if curves else []
            if not steps:
                continue
            values = np.array([[curve[step] for step in steps] for curve in curves], np.float64)
            mean, deviation = values.mean(axis=0), values.std(axis=0, ddof=1) if len(values) > 1 else 0.0
            colour = COLOURS[number % len(COLOURS)]
            axes.plot(steps, mean, color=colour, marker="o" if len(steps) < 12 else "", markersize=3, label=name)
            axes.fill_between(steps, mean - deviation, mean + deviation, color=colour, alpha=0.2, linewidth=0)
        axes.set(xlabel="step", title=f"{metric}, {split}")
        axes.grid(alpha=0.25)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="outside lower center", ncols=min(len(labels), 4), frameon=False, fontsize=8)
    return figure


def pareto(points: Mapping[str, Mapping[str, tuple[float | int, float | None]]], higher: Mapping[str, bool]) -> Figure:
    """Draws metrics against GMACs of one view, with the rows that none beats at lower or equal cost joined by a line.

    Args:
        points: {row: {column: (mean, standard deviation or None)}}, "gmacs" among the columns.
        higher: {metric: whether it is best when high} of the metrics to draw.
    """
    figure = Figure(figsize=(5.0 * len(higher), 3.8 + 0.22 * (len(points) // 4)), layout="constrained")
    for axes, (metric, is_higher) in zip(
        figure.subplots(1, len(higher), squeeze=False)[0], higher.items(), strict=True
    ):
        for number, (name, values) in enumerate(points.items()):
            if metric not in values:
                continue
            mean, deviation = values[metric]
            colour = COLOURS[number % len(COLOURS)]
            axes.errorbar(values["gmacs"][0], mean, yerr=deviation, color=colour, marker="o", label=name, capsize=2)
        known = {name: (v["gmacs"][0], v[metric][0]) for name, v in points.items() if metric in v}
        front = [known[name] for name in pareto_front(known, is_higher=is_higher)]
        axes.plot(*zip(*front, strict=True), color="#8a8a8a", linewidth=1, drawstyle="steps-post", zorder=0)
        axes.set(xlabel="GMACs per view", title=f"{metric}, test", xscale="log")
        axes.grid(alpha=0.25, which="both")
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(len(labels), 4), frameon=False, fontsize=8)
    return figure


def pareto_front(points: Mapping[str, tuple[float, float]], *, is_higher: bool = True) -> list[str]:
    """Returns the names whose value no other reaches at lower or equal cost, cheapest first.

    Args:
        points: {name: (cost, value)}.
        is_higher: whether high values are best.
    """
    sign = -1 if is_higher else 1
    front, best = [], np.inf
    for name, (_, value) in sorted(points.items(), key=lambda item: (item[1][0], sign * item[1][1])):
        if sign * value < best:
            front, best = [*front, name], sign * value
    return front


def save_figure(figure: Figure, path: PurePath) -> None:
    """Writes a figure as PATH.png and PATH.svg."""
    for suffix in ("png", "svg"):
        file = io.BytesIO()
        # Fixed identifiers and no date: the same results give the same file.
        with matplotlib.rc_context({"svg.hashsalt": "vitx"}):
            figure.savefig(file, format=suffix, dpi=110, metadata={"Date": None} if suffix == "svg" else None)
        storage.write_bytes(path.with_name(f"{path.name}.{suffix}"), file.getvalue())
