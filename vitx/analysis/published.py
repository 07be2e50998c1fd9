"""Costs and accuracies of models as papers and repositories print them, and how our counts compare.

`published.csv` has a printed row a line, with its source; `counts.csv` what we count for the models of these rows and
for every named variant at its own shape. `experiments/tables/make.py` writes the second.
"""

import ast
import csv
import dataclasses
import fnmatch
import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from typing import Any

from flax import linen as nn

from vitx.analysis.cost import Cost, count_cost
from vitx.models import create_model

TOLERANCE = 1.0  # percent; a row that deviates more states its reason
Key = tuple[str, str, str, str]  # model, fields, frames, size, as in the columns


@dataclasses.dataclass(frozen=True)
class PublishedRow:
    """One row of `published.csv`; numbers are kept as they are printed, "" where nothing is.

    Attributes:
        table: name of our table, such as "vivit".
        name: what the source calls the row.
        model: name of our variant.
        fields: settings of the published model that differ from the variant's, "num_classes=174 window=(4,7,7)".
        frames: frames of the view; "" for the variant's own shape.
        size: height and width of the view in pixels.
        params_m: parameters in millions.
        gmacs: multiply-accumulates of one view in units of 10⁹ (printed as "GFLOPs").
        dataset: dataset of the accuracy.
        views: temporal clips x spatial crops of the accuracy.
        top1: top-1 accuracy in percent, mAP for Charades.
        source: paper or repository, and its table.
        reason: why our count deviates from a printed one.
        note: what to know before comparing.
    """

    table: str
    name: str
    model: str
    fields: str
    frames: str
    size: str
    params_m: str
    gmacs: str
    dataset: str
    views: str
    top1: str
    source: str
    reason: str
    note: str

    @property
    def key(self) -> Key:
        """What our counts depend on."""
        return self.model, self.fields, self.frames, self.size

    @property
    def is_checked(self) -> bool:
        """Whether the numbers come from the paper or repository itself, not from works that cite it."""
        return "not checked" not in self.source

    @property
    def is_variant(self) -> bool:
        """Whether the published model is the variant itself, but for its number of classes."""
        names = [field.split("=")[0] for field in self.fields.split()]
        return names in ([], ["num_classes"])


@dataclasses.dataclass(frozen=True)
class Count:
    """Our count of a model: parameters and multiply-accumulates of one view."""

    params: int
    macs: int


def published_rows(patterns: Sequence[str] = ("*",)) -> Iterator[PublishedRow]:
    """Yields the rows of models whose names match a shell pattern."""
    with resources.files("vitx.analysis").joinpath("published.csv").open() as file:
        for row in csv.DictReader(file):
            if any(fnmatch.fnmatch(row["model"], pattern) for pattern in patterns):
                yield PublishedRow(**row)


def read_counts() -> dict[Key, Count]:
    """Returns the counts that the tables were written from."""
    with resources.files("vitx.analysis").joinpath("counts.csv").open() as file:
        return {
            (row["model"], row["fields"], row["frames"], row["size"]): Count(int(row["params"]), int(row["macs"]))
            for row in csv.DictReader(file)
        }


def build_model(key: Key) -> nn.Module:
    """Returns the model of a row, at the row's shape."""
    name, words, frames, size = key
    fields = {path: ast.literal_eval(value) for path, value in (word.split("=") for word in words.split())}
    model = create_model(name, num_classes=fields.pop("num_classes", 400))
    return model.with_input_shape(int(frames) if frames else None, (int(size), int(size)) if size else None, **fields)


@functools.cache
def count(key: Key) -> Cost:
    """Counts the cost of a row's model; rows that share a model are counted once."""
    model = build_model(key)
    return count_cost(model, model.input_shape)


def deviation(counted: float, printed: str) -> float | None:
    """Returns how much our count is above the printed one, in percent of the latter; None where nothing is printed."""
    return 100 * (counted - float(printed)) / float(printed) if printed else None


def is_rounded(counted: float, printed: str) -> bool:
    """Returns whether a printed number is ours, rounded or cut off to the digits that are printed."""
    scale = 10 ** len(printed.partition(".")[2])
    return round(float(printed) * scale) in (round(counted * scale), math.floor(counted * scale))


def list_deviations(row: PublishedRow, counted: Count | Cost) -> list[str]:
    """Returns the numbers of a row that need a reason: "parameters" unlike ours rounded, "GMACs" beyond `TOLERANCE`."""
    names = []
    if row.params_m and not is_rounded(counted.params / 1e6, row.params_m):
        names.append("parameters")
    gmacs = counted.macs / 1e9
    if row.gmacs and not is_rounded(gmacs, row.gmacs) and abs(deviation(gmacs, row.gmacs)) > TOLERANCE:
        names.append("GMACs")
    return names


def compare_row(row: PublishedRow) -> Mapping[str, Any]:
    """Returns our counts, computed now, beside the published ones."""
    cost = count(row.key)
    frames, height, _, _ = cost.clip
    return {
        "model": row.model,
        "frames": frames,
        "size": height,
        "params": cost.params,
        "printed_params_M": float(row.params_m) if row.params_m else None,
        "params_deviation_%": deviation(cost.params / 1e6, row.params_m),
        "macs": cost.macs,
        "printed_GMACs": float(row.gmacs) if row.gmacs else None,
        "macs_deviation_%": deviation(cost.macs / 1e9, row.gmacs),
        "source": row.source,
        "note": row.reason or row.note,
    }
