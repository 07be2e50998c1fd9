"""What papers print of a model's cost, beside what is counted here."""

import csv
import dataclasses
import fnmatch
from collections.abc import Iterator, Sequence
from importlib import resources
from typing import Any

from vitx.analysis.cost import clip_of, count_cost
from vitx.models import create_model


@dataclasses.dataclass(frozen=True)
class Printed:
    """One row of `published.csv`, which names the source of each.

    Attributes:
        model: its name here.
        fields: settings of the model that was printed, where they are not the named one's.
        params_m: parameters in millions, or None.
        gmacs: multiply-accumulates of one view in units of 10⁹ (printed as "GFLOPs"), or None.
        source: paper and table.
        note: what one must know to compare.
    """

    model: str
    fields: dict[str, int]
    params_m: float | None
    gmacs: float | None
    source: str
    note: str


def printed(patterns: Sequence[str] = ("*",)) -> Iterator[Printed]:
    """Yields the rows of models whose names match a shell pattern."""
    with resources.files("vitx.analysis").joinpath("published.csv").open() as file:
        for row in csv.DictReader(file):
            if any(fnmatch.fnmatch(row["model"], pattern) for pattern in patterns):
                settings = {name: int(value) for name, value in (field.split("=") for field in row["fields"].split())}
                settings |= {"num_frames": int(row["frames"]), "image_size": int(row["size"])}
                figures = (row["printed_params_M"], row["printed_gmacs"])
                params_m, gmacs = (float(figure) if figure else None for figure in figures)
                yield Printed(row["model"], settings, params_m, gmacs, row["source"], row["note"])


def compared(row: Printed) -> dict[str, Any]:
    """Returns what is counted here beside what is printed, and by how many percent of the latter it differs."""
    model = create_model(row.model, **row.fields)
    cost = count_cost(model, clip_of(model))

    def deviation(counted: float, printed: float | None) -> float | None:
        return None if printed is None else 100 * (counted - printed) / printed

    return {
        "model": row.model,
        "frames": model.num_frames,
        "size": model.image_size,
        "params": cost.params,
        "printed_params_M": row.params_m,
        "params_deviation_%": deviation(cost.params / 1e6, row.params_m),
        "macs": cost.macs,
        "printed_GMACs": row.gmacs,
        "macs_deviation_%": deviation(cost.macs / 1e9, row.gmacs),
        "source": row.source,
        "note": row.note,
    }
