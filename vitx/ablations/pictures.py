"""Pictures of an ablation and of runs that are compared: learning curves with bands, accuracy against cost."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from vitx.ablations.plan import COSTS, Cell, Plan
from vitx.ablations.tables import Table
from vitx.evaluation.figures import add_legend, choose_style, metric_title, plain_text, save_figure, scale_costs
from vitx.evaluation.presentation import presenter_for
from vitx.training.logs import read_metrics

Rows = Sequence[Mapping[str, Any]]


def write_pictures(plan: Plan, table: Table) -> None:
    """Writes curves and pareto as PNG and SVG into the ablation's folder, as far as there are results."""
    seeds = {row.name: row.seeds for row in table.rows}
    cells: dict[str, list[Cell]] = {}
    for cell in plan.all_cells():
        if cell.seed in seeds[cell.row]:
            cells.setdefault(cell.row, []).append(cell)
    metrics = [column for column in table.columns if column not in COSTS]
    task = plan.ablation.base.task
    units = presenter_for(task).curves
    if cells:
        runs = {row: [read_metrics(cell.folder) for cell in own] for row, own in cells.items()}
        save_figure(learning_curves(runs, metrics, units), plan.workdir / "curves")
    points = {
        row.name: row.values for row in table.rows if "gmacs" in row.values and any(m in row.values for m in metrics)
    }
    if points:
        higher = {metric: not task.is_better(metric, 0.0, 1.0) for metric in metrics}
        save_figure(pareto(points, higher, units), plan.workdir / "pareto")


def learning_curves(runs: Mapping[str, Sequence[Rows]], metrics: Sequence[str], units: Mapping[str, str]) -> Figure:
    """Draws the loss of training and metrics of validation against steps.

    Args:
        runs: {name: rows of metrics.jsonl of each seed}. Lines are means, bands one standard deviation over seeds.
        metrics: metrics of the validation split to draw.
        units: {metric without its label: unit}; see `Presenter.curves`.
    """
    panels = [("train", "loss"), *(("validation", metric) for metric in metrics)]
    figure = Figure(figsize=(4.6 * len(panels), 3.4), layout="constrained")
    for axes, (split, metric) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        for number, (name, seeds) in enumerate(runs.items()):
            # An evaluation with other settings has a row of the same split, and is no point of the curve.
            drawn = [[r for r in rows if r["split"] == split and metric in r and "settings" not in r] for rows in seeds]
            curves = [{row["step"]: row[metric] for row in rows} for rows in drawn]
            steps = sorted(set.intersection(*map(set, curves))) if curves else []
            if not steps:
                continue
            values = np.array([[curve[step] for step in steps] for curve in curves], np.float64)
            mean, deviation = values.mean(axis=0), values.std(axis=0, ddof=1) if len(values) > 1 else 0.0
            style = choose_style(number)
            axes.plot(
                steps,
                mean,
                markevery=max(len(steps) // 4, 1),
                markersize=4,
                linewidth=1,
                label=plain_text(name),
                **style,
            )
            alpha = 0.2 if len(runs) <= 10 else 0.08
            axes.fill_between(steps, mean - deviation, mean + deviation, color=style["color"], alpha=alpha, linewidth=0)
        axes.set(xlabel="step", title=metric_title(metric, split, units))
        axes.grid(alpha=0.25)
    add_legend(figure)
    return figure


def pareto(
    points: Mapping[str, Mapping[str, tuple[float | int, float | None]]],
    higher: Mapping[str, bool],
    units: Mapping[str, str],
) -> Figure:
    """Draws metrics against GMACs of one view, with a line through the rows that none beats at lower or equal cost.

    Args:
        points: {row: {column: (mean, standard deviation or None)}}, "gmacs" among the columns.
        higher: {metric: whether it is best when high} of the metrics to draw.
        units: as for `learning_curves`.
    """
    higher = {metric: best for metric, best in higher.items() if any(metric in values for values in points.values())}
    figure = Figure(figsize=(5.0 * max(len(higher), 1), 3.6), layout="constrained")
    if not higher:  # no finished row has any of the metrics
        return figure
    for axes, (metric, is_higher) in zip(
        figure.subplots(1, len(higher), squeeze=False)[0], higher.items(), strict=True
    ):
        for number, (name, values) in enumerate(points.items()):
            if metric not in values:
                continue
            mean, deviation = values[metric]
            axes.errorbar(
                values["gmacs"][0], mean, yerr=deviation, label=plain_text(name), capsize=2, **choose_style(number)
            )
        known = {name: (v["gmacs"][0], v[metric][0]) for name, v in points.items() if metric in v}
        front = [known[name] for name in pareto_front(known, is_higher=is_higher)]
        costs = [cost for cost, _ in known.values()]
        front.append((max(costs), front[-1][1]))  # the best row stays the best at any higher cost
        line = {"color": "#8a8a8a", "linewidth": 1, "drawstyle": "steps-post"}
        axes.plot(*zip(*front, strict=True), label="Pareto front", zorder=0, **line)
        axes.set(xlabel="GMACs per view", title=metric_title(metric, "test", units))
        scale_costs(axes, costs)
    add_legend(figure)
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
        # Means of equal accuracies over seeds differ by rounding: a dearer one is not better.
        if sign * value < best and not np.isclose(sign * value, best, rtol=1e-9):
            front, best = [*front, name], sign * value
    return front
