"""The index of named models: family, paper, cost, published accuracies, weights that can be loaded, recipe."""

import csv
import fnmatch
from collections.abc import Sequence
from importlib import resources
from typing import Any

from vitx.analysis.published import Count, Key, PublishedRow, count, published_rows, read_counts
from vitx.models import VARIANTS

COLUMNS = ("model", "family", "paper", "input", "parameters", "GMACs", "published top-1, views", "weights", "recipe")


def variant_key(name: str) -> Key:
    """Returns the key of our count of a named variant at its own shape."""
    return name, "", "", ""


def model_index(names: Sequence[str]) -> list[dict[str, Any]]:
    """Returns one row of `COLUMNS` for each name; numbers as counts, not in millions.

    Models of somebody's own are counted now; what is not known of them is "".
    """
    counts, facts = read_counts(), _read_facts()
    return [_row(name, counts, facts) for name in names]


def format_index(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Returns the lines of a Markdown table."""
    lines = [f"| {' | '.join(COLUMNS)} |", "| --- | --- | --- | --- | ---: | ---: | --- | --- | --- |"]
    for row in rows:
        shown = row | {
            "model": f"`{row['model']}`",
            "parameters": f"{row['parameters']:,}",
            "GMACs": f"{row['GMACs']:,.2f}",
            "recipe": f"[recipe](../{row['recipe']})" if row["recipe"] else "",
        }
        lines.append(f"| {' | '.join(str(shown[column]) for column in COLUMNS)} |")
    return lines


def _row(name: str, counts: dict[Key, Count], facts: Sequence[dict[str, str]]) -> dict[str, Any]:
    known = next((row for row in facts if fnmatch.fnmatch(name, row["pattern"])), {})
    counted = counts.get(variant_key(name)) or count(variant_key(name))
    frames, height, width, _ = VARIANTS[name].input_shape
    return {
        "model": name,
        "family": known.get("family", ""),
        "paper": known.get("paper", ""),
        "input": f"{frames} x {height} x {width}",
        "parameters": counted.params,
        "GMACs": counted.macs / 1e9,
        "published top-1, views": _accuracies(name),
        "weights": known.get("weights", ""),
        "recipe": known.get("recipe", ""),
    }


def _accuracies(name: str) -> str:
    """Returns the highest published accuracy on each dataset, of the rows that name their views."""
    best: dict[str, PublishedRow] = {}
    for row in published_rows([name]):
        if row.is_variant and row.top1 and row.views:
            best[row.dataset] = max(best.get(row.dataset, row), row, key=lambda row: float(row.top1))
    return ", ".join(f"{dataset} {row.top1} ({row.views})" for dataset, row in best.items())


def _read_facts() -> list[dict[str, str]]:
    """Returns what is known of the variants, by the first pattern that matches."""
    with resources.files("vitx.analysis").joinpath("models.csv").open() as file:
        return list(csv.DictReader(file))
