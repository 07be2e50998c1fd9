"""Costs of models as papers print them, and how ours compare."""

import csv
import dataclasses
import fnmatch
from collections.abc import Iterator, Sequence
from importlib import resources
from typing import Any

from vitx.analysis.cost import count_cost
from vitx.models import create_model


@dataclasses.dataclass(frozen=True)
class PublishedCost:
    """One row of `published.csv`, which names the source of every number.

    Attributes:
        model: name of our variant.
        fields: settings of the published model that differ from the variant's.
        params_m: parameters in millions, or None.
        gmacs: multiply-accumulates of one view in units of 10⁹ (printed as "GFLOPs"), or None.
        source: paper and table.
        note: what to know before comparing.
    """

    model: str
    fields: dict[str, int]
    params_m: float | None
    gmacs: float | None
    source: str
    note: str


def published_costs(patterns: Sequence[str] = ("*",)) -> Iterator[PublishedCost]:
    """Yields the rows of models whose names match a shell pattern."""
    with resources.files("vitx.analysis").joinpath("published.csv").open() as file:
        for row in csv.DictReader(file):
            if any(fnmatch.fnmatch(row["model"], pattern) for pattern in patterns):
                settings = {name: int(value) for name, value in (field.split("=") for field in row["fields"].split())}
                settings |= {"num_frames": int(row["frames"]), "image_size": int(row["size"])}
                values = (row["printed_params_M"], row["printed_gmacs"])
                params_m, gmacs = (float(value) if value else None for value in values)
                yield PublishedCost(row["model"], settings, params_m, gmacs, row["source"], row["note"])


def compare(row: PublishedCost) -> dict[str, Any]:
    """Returns our counts beside the published ones, with the deviation in percent of the latter."""
    model = create_model(row.model, **row.fields)
    cost = count_cost(model, model.input_shape)

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
