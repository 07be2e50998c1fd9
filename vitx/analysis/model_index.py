"""The index of named models: family, paper, cost, published accuracies, weights that can be loaded, recipe."""

import csv
import fnmatch
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

from vitx.analysis.cost import Cost
from vitx.analysis.published import Count, Key, PublishedRow, count, deviation, published_rows, read_counts
from vitx.models import VARIANTS

COLUMNS = ("model", "family", "paper", "input", "parameters", "GMACs", "published top-1, views", "weights", "recipes")

DIFFERENT_HEADS = 5.0  # percent by which other numbers of classes and frames change parameters


def variant_key(name: str) -> Key:
    """Returns the key of our count of a named variant at its own shape."""
    return name, "", "", ""


def model_index(names: Sequence[str]) -> list[dict[str, Any]]:
    """Returns one row of `COLUMNS` for each name; numbers as counts, not in millions.

    Models of somebody's own are counted now; what is not known of them is "".
    """
    counts, facts, recipes = read_counts(), _read("models.csv"), _read("recipes.csv")
    rows = []
    for name in names:
        key = variant_key(name)
        known = next((row for row in facts if fnmatch.fnmatch(name, row["pattern"])), {}) if key in counts else {}
        own = [row["path"] for row in recipes if row["model"] == name]
        rows.append(_row(name, counts.get(key) or count(key), known, own))
    return rows


def format_index(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Returns the lines of a Markdown table."""
    lines = [f"| {' | '.join(COLUMNS)} |", "| --- | --- | --- | --- | ---: | ---: | --- | --- | --- |"]
    for row in rows:
        shown = row | {
            "model": f"`{row['model']}`",
            "parameters": f"{row['parameters']:,}",
            "GMACs": f"{row['GMACs']:,.2f}",
            "recipes": ", ".join(f"[{path.split('/')[-2]}](../{path})" for path in row["recipes"]),
        }
        lines.append(f"| {' | '.join(str(shown[column]) for column in COLUMNS)} |")
    return lines


def _row(name: str, counted: Count | Cost, known: Mapping[str, str], recipes: list[str]) -> dict[str, Any]:
    frames, height, width, _ = VARIANTS[name].input_shape
    paper, shape = known.get("paper", ""), f"{frames} x {height} x {width}"
    return {
        "model": name,
        "family": known.get("family", ""),
        "paper": paper,
        "input": shape,
        "parameters": counted.params,
        "GMACs": counted.macs / 1e9,
        "published top-1, views": _accuracies(name, counted, paper, shape),
        "weights": known.get("weights", ""),
        "recipes": recipes,
    }


def _accuracies(name: str, counted: Count | Cost, paper: str, shape: str) -> str:
    """Returns one published accuracy on each dataset, of the checked rows that name their views.

    The model's own paper comes before repositories, and these before other papers, which may cite; then the variant's
    own input comes before others, which are named; then the highest is taken. Rows that print other parameters than
    ours are of other networks.
    """

    def priority(row: PublishedRow) -> tuple[bool, bool, bool, float]:
        is_own_paper = bool(paper) and row.source.startswith(paper)
        return is_own_paper, not row.source.startswith("arXiv:"), _input(row) in ("", shape), float(row.top1)

    best: dict[str, PublishedRow] = {}
    for row in published_rows([name]):
        is_same = abs(deviation(counted.params / 1e6, row.params_m) or 0) < DIFFERENT_HEADS
        if is_same and row.is_variant and row.is_checked and row.top1 and row.views:
            best[row.dataset] = max(best.get(row.dataset, row), row, key=priority)
    return ", ".join(f"{dataset} {row.top1} ({_views(row, shape)})" for dataset, row in best.items())


def _input(row: PublishedRow) -> str:
    """Returns the view's shape as the index prints it; "" for the variant's own."""
    return f"{row.frames} x {row.size} x {row.size}" if row.frames and row.size else ""


def _views(row: PublishedRow, shape: str) -> str:
    return row.views if _input(row) in ("", shape) else f"{row.views}, input {_input(row)}"


def _read(file: str) -> list[dict[str, str]]:
    """Returns the rows of a table beside this module; `models.csv` is read by the first pattern that matches."""
    with resources.files("vitx.analysis").joinpath(file).open() as lines:
        return list(csv.DictReader(lines))
