"""Rows of metrics as a table that a notebook shows."""

import collections
import html
from collections.abc import Sequence
from typing import Any

MAX_ROWS, MAX_COLUMNS = 40, 10  # of the shown table; the list has all


class MetricsTable(list[dict[str, Any]]):
    """Rows of metrics.jsonl: a list of {step, split, metrics by name}, which a notebook shows as a table."""

    def columns(self) -> list[str]:
        """Returns the names of all columns, "step" and "split" first."""
        return list(dict.fromkeys(["step", "split", *(name for row in self for name in row)]))

    def _repr_html_(self) -> str:
        # What training and evaluations both have comes first, such as the loss and top-1.
        counts = collections.Counter(name for row in self for name in row)
        columns = sorted(self.columns(), key=lambda name: -counts[name])[:MAX_COLUMNS]
        rows: Sequence[dict[str, Any]] = self[-MAX_ROWS:]
        head = "".join(f"<th>{html.escape(name)}</th>" for name in columns)
        body = "".join(
            "<tr>" + "".join(f"<td>{html.escape(_format(row.get(name)))}</td>" for name in columns) + "</tr>"
            for row in rows
        )
        hidden = len(self) - len(rows)
        note = f"<p>the last {len(rows)} of {len(self)} rows</p>" if hidden else ""
        return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{note}"


def _format(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
