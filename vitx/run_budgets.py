"""One trained run at several token budgets: its metrics against its cost, as a table and a picture.

The argument `run` of these functions is a `vitx.run.Run`, whose module imports this one.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from vitx import configuration, storage
from vitx.errors import as_user_error
from vitx.evaluation.dropped_tokens import dropped_tokens
from vitx.evaluation.examples import accuracy_intervals
from vitx.evaluation.figures import add_legend, choose_style, metric_title, save_figure, scale_costs
from vitx.evaluation.presentation import Presenter, presenter_for
from vitx.evaluation.report import table
from vitx.models.budgets import Budget
from vitx.run_evaluation import open_run_split, predict_split, record_evaluation
from vitx.training.logs import log_info, read_metrics
from vitx.training.overview import count_prediction_macs
from vitx.training.processes import is_first_process

Rows = Sequence[Mapping[str, Any]]

HEIGHTS = (5, -11, 13)  # of the labels of each curve in turn, in points from their markers


def evaluate_budgets(run: Any, budgets: Sequence[int], split: str) -> list[dict[str, Any]]:
    """Evaluates a run at each budget; see `Run.evaluate_budgets`. The caller holds the lock."""
    with as_user_error(of="budgets"):
        runs = [_with_budget(run, budget) for budget in budgets]  # all budgets are checked before the first is compiled
    task, rows, presenter = run.experiment.task, [], presenter_for(run.experiment.task)
    known = read_metrics(run.workdir) if is_first_process() else []  # a damaged row is reported before the work
    source = open_run_split(run, split)
    for budget, budgeted in zip(budgets, runs, strict=True):
        data = budgeted.experiment.data
        predictions = predict_split(budgeted, split, source)
        metrics = task.metrics(predictions)
        changed = {path: new for path, (_, new) in budgeted.changed.items()}
        about = {
            "views": predictions.views,
            **({"settings": changed} if changed else {}),
            "reducer": _describe_reducer(budgeted.experiment.model.reducer),
            "clip": "x".join(map(str, (data.num_frames, *data.image_size))),
            "num_tokens": budget,
            "gmacs": count_prediction_macs(budgeted.experiment.model, task, run.variables, data) / 1e9,
        }
        dropped = dropped_tokens(budgeted.experiment.model, task, data, source, predictions)
        rows.append({"step": run.step, "split": split, **about, **metrics, **dropped})
        headline = presenter.headline(metrics, accuracy_intervals(task, predictions, metrics))
        log_info(f"step {run.step}: {split} split ({predictions.coverage}), {budget} tokens: {headline}")
        record_evaluation(run.workdir, rows[-1])
    if is_first_process():
        # earlier evaluations of the same checkpoint, such as those of other clips, stay in table and picture
        settings = [row.get("settings") for row in rows]
        known = [row for row in known if (row["step"], row["split"]) == (run.step, split) and "num_tokens" in row]
        shown = [*(row for row in known if row.get("settings") not in settings), *rows]
        path = run.workdir / f"budgets_{split}"
        storage.write_text(path.with_name(f"{path.name}.md"), "\n".join(describe_budgets(shown, presenter)) + "\n")
        save_figure(draw_budgets(shown, presenter), path)
        log_info(f"see {path}.md, .png and .svg")
    return rows


def describe_budgets(rows: Rows, presenter: Presenter) -> list[str]:
    """Returns the lines of a Markdown table of rows that `evaluate_budgets` has returned, cheapest first."""
    metrics, drops = _drawn_metrics(rows, presenter), any("dropped_tokens" in row for row in rows)
    cells = [
        (
            row["reducer"],
            row["clip"],
            row["views"],
            row["num_tokens"],
            f"{row['gmacs']:.4g}",
            *(f"{row['dropped_tokens']:.1f} %" if "dropped_tokens" in row else "-" for _ in range(drops)),
            *(f"{row[name]:.2f}" for name in metrics),
        )
        for row in sorted(rows, key=lambda row: row["gmacs"])
    ]
    titles = [f"{name} {presenter.curves[name.rpartition('/')[2]]}".rstrip() for name in metrics]
    return table(("reducer", "clip", "views", "tokens", "GMACs per view", *["dropped tokens"] * drops, *titles), cells)


def draw_budgets(rows: Rows, presenter: Presenter) -> Figure:
    """Draws each metric of such rows against GMACs of one view, a line for each reducer, shape of clips and views."""
    metrics, curves = _drawn_metrics(rows, presenter), dict.fromkeys(map(_describe_curve, rows))
    figure = Figure(figsize=(5.0 * len(metrics), 3.6), layout="constrained")
    for axes, metric in zip(figure.subplots(1, len(metrics), squeeze=False)[0], metrics, strict=True):
        for number, curve in enumerate(curves):
            members = [row for row in rows if _describe_curve(row) == curve]
            points = sorted((row["gmacs"], row[metric], row["num_tokens"]) for row in members)
            costs, values, budgets = zip(*points, strict=True)
            style = choose_style(number)
            axes.plot(costs, values, label=", ".join(curve), **style)
            # Points of several curves lie side by side at the same value, so each writes at a height of its own.
            place = {"xytext": (0, HEIGHTS[number % len(HEIGHTS)]), "textcoords": "offset points", "ha": "center"}
            for point in zip(costs, values, budgets, strict=True):
                axes.annotate(point[2], point[:2], color=style["color"], fontsize=7, **place)
        axes.set(
            xlabel="GMACs per view (points: tokens)", title=metric_title(metric, rows[0]["split"], presenter.curves)
        )
        axes.margins(y=0.15)  # room for the numbers of tokens
        scale_costs(axes, [row["gmacs"] for row in rows])
    add_legend(figure)
    return figure


def _describe_curve(row: Mapping[str, Any]) -> tuple[str, ...]:
    """Returns the reducer, clip and views that the points of a line share."""
    return row["reducer"], row["clip"], f"{row['views']} views"


def _describe_reducer(reducer: Any) -> str:
    """Returns the type of a reducer, and its settings that are not the defaults; without its budget."""
    changed = {
        field.name: value
        for field in dataclasses.fields(reducer)
        if field.name != "budget" and (value := getattr(reducer, field.name)) != field.default
    }
    name = type(reducer).__name__
    return f"{name}({', '.join(f'{field}={value}' for field, value in changed.items())})" if changed else name


def _drawn_metrics(rows: Rows, presenter: Presenter) -> list[str]:
    """Returns the metrics that rows have and a presenter draws, of losses only the overall one."""
    names = dict.fromkeys(name for row in rows for name in row)
    return [name for name in names if name.rpartition("/")[2] in presenter.curves and not name.endswith("/loss")]


def _with_budget(run: Any, budget: int) -> Any:
    """Returns the run with another token budget, among its changed settings, too."""
    model = Budget(num_tokens=budget).fit_model(run.experiment.model)
    experiment = dataclasses.replace(run.experiment, model=model)
    changed = dict(run.changed)
    for path, (before, new) in configuration.differences(run.experiment, experiment).items():
        changed[path] = (run.changed.get(path, (before,))[0], new)
    return dataclasses.replace(run, experiment=experiment, changed=changed)
