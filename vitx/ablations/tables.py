"""The table of an ablation: collected from its finished cells, written as Markdown, LaTeX, CSV and JSON."""

import csv
import dataclasses
import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import PurePath
from typing import Any

import numpy as np
from jaxtyping import Float

from vitx import configuration, storage, strict_json
from vitx.ablations.cells import CellResults
from vitx.ablations.plan import COSTS, Cell, Plan
from vitx.ablations.statistics import (
    Difference,
    compare_clips,
    compare_seeds,
    correct_for_rows,
    mean_and_deviation,
)
from vitx.console import escape
from vitx.evaluation.evaluate import Predictions
from vitx.evaluation.examples import example_metric, load_predictions, predictions_path
from vitx.evaluation.report import table as markdown_table
from vitx.tasks.task import Task

HEADS = {
    "params": "params",
    "gmacs": "GMACs / view",
    "clips_per_second": "clips / s",
    "peak_memory_mib": "peak MiB",
    "seconds": "seconds",
}
_LATEX = str.maketrans(
    {character: "\\" + character for character in "&%$#_{}"}
    | {"~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "\\": r"\textbackslash{}"}
    | {"|": r"\textbar{}", "<": r"\textless{}", ">": r"\textgreater{}"}
)
DIFFERENCE_HEADS = ("row", "metric", "difference", "interval", "p", "verdict")
EXACT = ("params", "gmacs")  # columns that the settings determine


@dataclasses.dataclass(frozen=True)
class TableRow:
    """One row of the table.

    Attributes:
        name: name of the row.
        seeds: seeds of its finished cells.
        values: {column: (mean, sample standard deviation or None)} over those seeds.
        failures: {seed: reason} of cells that failed.
    """

    name: str
    seeds: tuple[int, ...]
    values: Mapping[str, tuple[float | int, float | None]]
    failures: Mapping[int, str]


@dataclasses.dataclass(frozen=True)
class Table:
    """The table of an ablation.

    Attributes:
        header: dataset, split, views, seeds, hardware, commit and versions, as text by name.
        columns: names of its columns.
        rows: its rows.
        differences: tested differences from the reference row.
    """

    header: Mapping[str, str]
    columns: tuple[str, ...]
    rows: tuple[TableRow, ...]
    differences: tuple[Difference, ...]

    def __str__(self) -> str:
        return to_markdown(self)

    def _repr_markdown_(self) -> str:  # how a notebook shows it
        return to_markdown(self)


def build_table(plan: Plan) -> Table:
    """Returns the table of all finished cells of an ablation, selected or not."""
    results, cells = CellResults(plan.workdir), plan.all_cells()
    records = {cell.name: record for cell in cells if (record := results.read_result(cell)) is not None}
    rows = []
    for row in plan.ablation.rows:
        own = [cell for cell in cells if cell.row == row.name]
        done = [cell for cell in own if cell.name in records]
        failed = {cell.seed: results.read_failure(cell) for cell in own if cell.name not in records}
        failures = {seed: failure["reason"] for seed, failure in failed.items() if failure}
        values = _average_values(plan, row.name, [records[cell.name] for cell in done])
        rows.append(TableRow(row.name, tuple(cell.seed for cell in done), values, failures))
    differences = _test_differences(plan, [cell for cell in cells if cell.name in records], records)
    return Table(_describe_conditions(plan, [*records.values()]), plan.columns, tuple(rows), tuple(differences))


def write_table(table: Table, workdir: PurePath) -> None:
    """Writes table.md, .tex, .csv and .json into a folder."""
    for suffix, write in FORMATS.items():
        storage.write_text(workdir / f"table.{suffix}", escape(write(table), lines=True))


def to_markdown(table: Table) -> str:
    """Returns the table with its header, differences and failures as Markdown."""
    lines = [*(f"- {name}: {text}" for name, text in table.header.items()), ""]
    head = ("row", "seeds", *(HEADS.get(column, column) for column in table.columns))
    rows = [(row.name, len(row.seeds), *_format_cells(table, row, " ± ")) for row in table.rows]
    lines += markdown_table(head, rows)
    if table.differences:
        reference = table.differences[0].reference
        lines += ["", f"Differences from {reference!r}, 95 % intervals, p-values with Holm's correction:", ""]
        lines += markdown_table(DIFFERENCE_HEADS, format_differences(table.differences))
        lines += ["", f"Tests: {'; '.join(dict.fromkeys(d.basis for d in table.differences))}."]
    failures = [f"- {failure}" for failure in _list_failures(table)]
    return "\n".join(map(escape, [*lines, *(["", "Failed:", "", *failures] if failures else [])])) + "\n"


def _list_failures(table: Table) -> list[str]:
    """Returns a line for each cell that failed: row, seed and reason."""
    return [
        f"{row.name}, seed {seed}: {' '.join(reason.split())}"
        for row in table.rows
        for seed, reason in row.failures.items()
    ]


def to_latex(table: Table) -> str:
    """Returns the table and its differences for LaTeX with the package booktabs."""
    head = ("row", *(HEADS.get(column, column) for column in table.columns))
    lines = [rf"% {name}: {' '.join(text.split())}" for name, text in table.header.items()]
    lines += [f"% failed: {escape(failure)}" for failure in _list_failures(table)]
    lines += [rf"\begin{{tabular}}{{l{'r' * len(table.columns)}}}", r"\toprule"]
    lines += [" & ".join(map(_escape_latex, head)) + r" \\", r"\midrule"]
    for row in table.rows:
        cells = [cell.replace("±", r"$\pm$") for cell in _format_cells(table, row, " ± ")]
        lines.append(" & ".join([_escape_latex(row.name), *cells]) + r" \\")
    lines += [r"\bottomrule", r"\end{tabular}"]
    if table.differences:
        lines += ["", rf"% differences from {escape(table.differences[0].reference)}, p-values with Holm's correction"]
        lines += [r"\begin{tabular}{llrrrl}", r"\toprule", " & ".join(DIFFERENCE_HEADS) + r" \\", r"\midrule"]
        lines += [" & ".join(map(_escape_latex, row)) + r" \\" for row in format_differences(table.differences)]
        lines += [r"\bottomrule", r"\end{tabular}"]
    return "\n".join(lines) + "\n"


def to_csv(table: Table) -> str:
    """Returns the table as comma-separated values, unrounded: a mean and a deviation for each column."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    names = [name for column in table.columns for name in (column, f"{column}_std")]
    writer.writerow(["row", "seeds", *map(escape, names), "failures"])
    for row in table.rows:
        values = [value for column in table.columns for value in row.values.get(column, (None, None))]
        failures = "; ".join(f"seed {seed}: {reason}" for seed, reason in row.failures.items())
        numbers = ["" if value is None else value for value in values]
        writer.writerow([escape(row.name), len(row.seeds), *numbers, escape(failures)])
    return file.getvalue()


def to_json(table: Table) -> str:
    """Returns the whole table, header and differences included, as one JSON object."""
    rows = [
        {
            "row": row.name,
            "seeds": row.seeds,
            "values": {column: {"mean": mean, "std": std} for column, (mean, std) in row.values.items()},
            "failures": {str(seed): reason for seed, reason in row.failures.items()},
        }
        for row in table.rows
    ]
    differences = [dataclasses.asdict(d) | {"verdict": d.verdict} for d in table.differences]
    data = {"header": table.header, "columns": table.columns, "rows": rows, "differences": differences}
    return strict_json.dumps(data, indent=2) + "\n"


FORMATS: dict[str, Callable[[Table], str]] = {"md": to_markdown, "tex": to_latex, "csv": to_csv, "json": to_json}


def stack_examples(
    task: Task, predictions: Sequence[Predictions], column: str
) -> tuple[np.ndarray, Float[np.ndarray, "s n"]] | None:
    """Returns (indices, metric of each clip in each set of predictions) over the clips that all of them have.

    Args:
        task: task of the runs.
        predictions: predictions of the same split, such as one for each seed.
        column: name of the metric.

    Returns:
        None where the metric is no mean over clips, or no clip is common to all.
    """
    values = [example_metric(task, found, column) for found in predictions]
    if any(found is None for found in values):
        return None
    common = predictions[0].index
    for found in predictions[1:]:
        common = np.intersect1d(common, found.index)
    if not len(common):
        return None
    rows = [v[np.searchsorted(found.index, common)] for v, found in zip(values, predictions, strict=True)]
    return common, np.stack(rows)


def has_same_clips(one: Predictions, other: Predictions) -> bool:
    """Returns whether two sets of predictions have equal numbers of clips, and equal labels where they share clips."""
    common, rows, others = np.intersect1d(one.index, other.index, return_indices=True)
    labels = [name for name in one.labels if name in other.labels]
    total = [len(found.index) + len(found.unreadable) for found in (one, other)]
    same = all(np.array_equal(one.labels[name][rows], other.labels[name][others], equal_nan=True) for name in labels)
    return len(common) > 0 and total[0] == total[1] and same


def pair_examples(
    tasks: Sequence[Task], predictions: Sequence[Sequence[Predictions]], column: str
) -> tuple[Float[np.ndarray, "s n"], Float[np.ndarray, "s n"]] | None:
    """Returns a metric of each clip with each seed for two rows, over the clips that all predictions have.

    Args:
        tasks: the task of each row.
        predictions: the predictions of each row, one for each seed.
        column: name of the metric.

    Returns:
        None where the metric is no mean over clips, or no clip is common to all.
    """
    stacked = [stack_examples(*row, column) for row in zip(tasks, predictions, strict=True)]
    if any(pair is None for pair in stacked):
        return None
    (index, values), (other_index, others) = stacked
    common, places, other_places = np.intersect1d(index, other_index, return_indices=True)
    return (values[:, places], others[:, other_places]) if len(common) else None


def _average_values(
    plan: Plan, row: str, records: Sequence[Mapping[str, Any]]
) -> dict[str, tuple[float | int, float | None]]:
    params, macs = plan.costs.get(row, (None, None))
    exact = {"params": params, "gmacs": None if macs is None else macs / 1e9}
    values = {}
    for column in plan.columns:
        if column in EXACT:
            if exact[column] is not None:
                values[column] = (exact[column], None)
            continue
        found = [record[column] if column in COSTS else record["metrics"].get(column) for record in records]
        found = [value for value in found if value is not None]
        if found:
            values[column] = mean_and_deviation(found)
    return values


def _test_differences(plan: Plan, cells: Sequence[Cell], records: Mapping[str, Any]) -> list[Difference]:
    """Returns the differences of every row with cells from the reference, over the seeds that both have."""
    metrics = [column for column in plan.columns if column not in COSTS]
    by_row: dict[str, dict[int, Cell]] = {}
    for cell in cells:
        by_row.setdefault(cell.row, {})[cell.seed] = cell
    reference = by_row.pop(plan.reference, {})
    reference_found = {seed: _load_predictions(cell, records[cell.name]) for seed, cell in reference.items()}
    differences = []
    for row, own in by_row.items():
        seeds = [seed for seed in own if seed in reference]
        if not seeds:
            continue
        row_found = {seed: _load_predictions(own[seed], records[own[seed].name]) for seed in seeds}
        both = row_found, reference_found
        known = [found[seed] for seed in seeds for found in both if found[seed] is not None]
        can_pair = len(known) == 2 * len(seeds) and all(has_same_clips(known[0], found) for found in known)
        for column in metrics:
            tasks = own[seeds[0]].experiment.task, reference[seeds[0]].experiment.task
            if can_pair:
                predictions = [[found[seed] for seed in seeds] for found in both]
                pair = pair_examples(tasks, predictions, column)
                if pair is not None:
                    differences.append(compare_clips(row, plan.reference, column, *pair))
                    continue
            pairs = [[records[cells_of[s].name]["metrics"].get(column) for s in seeds] for cells_of in (own, reference)]
            if None not in pairs[0] + pairs[1]:
                differences.append(compare_seeds(row, plan.reference, column, *pairs))
    return correct_for_rows(differences)


def _load_predictions(cell: Cell, record: Mapping[str, Any]) -> Predictions | None:
    """Returns the predictions that the metrics of a record come from, None where they are gone."""
    path = predictions_path(cell.folder, "test")
    if not storage.exists(path):
        return None
    step, found = load_predictions(path)  # `vitx evaluate CELL` may have replaced them by those of another checkpoint
    return found if (step, found.views) == (record["step"], record["views"]) else None


def _describe_conditions(plan: Plan, records: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    data = plan.ablation.base.data

    def distinct(name: str, default: str) -> str:
        return "; ".join(dict.fromkeys(str(r[name]) for r in records if r.get(name) is not None)) or default

    examples = dict.fromkeys(f"{r['metrics']['examples']} clips" for r in records if "examples" in r["metrics"])
    versions = {name: "; ".join(dict.fromkeys(r["versions"][name] for r in records)) for name in ("python", "jax")}
    return {
        "dataset": describe_part(data.dataset),
        "split": ", ".join(["test", " or ".join(examples)]) if examples else "test",
        "views": distinct("views", data.views),
        "mean ± sample standard deviation over seeds": ", ".join(map(str, dict.fromkeys(r["seed"] for r in records)))
        or "none",
        "hardware": distinct("hardware", "none yet"),
        "commit": distinct("commit", "unknown"),
        "versions": ", ".join(f"{name} {text}" for name, text in versions.items() if text) or "none yet",
        "date": distinct("date", "none yet"),
    }


def describe_part(part: Any) -> str:
    """Returns a part as text, with its settings that are not defaults; a machine's, such as folders, are left out."""
    if not dataclasses.is_dataclass(part):
        return str(part)
    defaults = {field.name: field.default for field in dataclasses.fields(part)}
    shown = [
        f"{name}={describe_part(value)}"
        for name, value in configuration.settings(part).items()
        if value != defaults[name] and not configuration.is_mutable_on_resume(part, name)
    ]
    return f"{type(part).__name__}({', '.join(shown)})"


def _format_cells(table: Table, row: TableRow, between: str) -> list[str]:
    failed = "failed" if row.failures and not row.seeds else "-"
    return [
        format_value(column, *row.values[column], between=between) if column in row.values else failed
        for column in table.columns
    ]


def format_value(column: str, mean: float | int, deviation: float | None, *, between: str = " ± ") -> str:
    """Returns a value as text: parameters in full, costs with three digits, losses with three decimals, others one."""
    if column == "params":
        return f"{mean:,.0f}"
    if column in COSTS:
        form = "{:,.0f}" if abs(mean) >= 100 else "{:.3g}"
    else:
        form = "{:.3f}" if column.split("/")[-1] == "loss" else "{:.1f}"
    return form.format(mean) + ("" if deviation is None else between + form.format(deviation))


def format_differences(differences: Sequence[Difference]) -> list[tuple[str, ...]]:
    """Returns (row, metric, difference, interval, p, verdict) of each difference as text."""
    rows = []
    for d in differences:
        form = "{:+.4f}" if d.column.split("/")[-1] == "loss" else "{:+.2f}"
        bounds = "-" if d.low is None else f"{form.format(d.low)} to {form.format(d.high)}"
        p = "-" if d.p is None else f"{d.p:.2g}" if d.p >= 1e-4 else "<0.0001"
        rows.append((d.row, d.column, form.format(d.mean), bounds, p, d.verdict))
    return rows


def _escape_latex(text: str) -> str:
    text = escape(text).translate(_LATEX)
    # After the \\ of a row before, LaTeX takes these for its own.
    return f"{{}}{text}" if text.startswith(("[", "*")) else text
