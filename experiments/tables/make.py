"""Counts every model again and writes the tables of this folder, and the index of models in docs/models.md.

    python experiments/tables/make.py

Takes two minutes on one core; nothing is trained or downloaded.
"""

import csv
import io
import itertools
from pathlib import Path

from tqdm.auto import tqdm

from vitx.analysis import published, published_tables
from vitx.analysis.model_index import format_index, model_index, variant_key
from vitx.models import FAMILIES

REPOSITORY = Path(__file__).resolve().parents[2]
COUNTS = REPOSITORY / "vitx" / "analysis" / "counts.csv"
INDEX = REPOSITORY / "docs" / "models.md"
MARKS = ("<!-- index: written by experiments/tables/make.py -->", "<!-- end of the index -->")


def names() -> list[str]:
    """Returns the names of our own variants; plug-ins may add others."""
    return sorted(name for family in FAMILIES for name in family.VARIANTS)


def keys() -> list[published.Key]:
    """Returns what is counted: the models of published rows, and every variant at its own shape."""
    rows = (row.key for row in published.published_rows())
    return list(dict.fromkeys(itertools.chain(rows, map(variant_key, names()))))


def counts_csv() -> str:
    """Returns all counts, made now, as the text of a table."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(("model", "fields", "frames", "size", "params", "macs"))
    for key in tqdm(keys(), desc="counting", unit=" models"):
        cost = published.count(key)
        writer.writerow((*key, cost.params, cost.macs))
    return file.getvalue()


def pages() -> dict[Path, str]:
    """Returns the text of every page by its path, from the counts that are stored."""
    counts, rows = published.read_counts(), list(published.published_rows())
    texts = {}
    for table in published_tables.TITLES:
        own = [row for row in rows if row.table == table]
        texts[REPOSITORY / "experiments" / "tables" / f"{table}.md"] = published_tables.render(table, own, counts)
    before, rest = INDEX.read_text().split(MARKS[0])
    after = rest.split(MARKS[1])[1]
    index = "\n".join(["", "", *format_index(model_index(names())), "", ""])
    return texts | {INDEX: before + MARKS[0] + index + MARKS[1] + after}


if __name__ == "__main__":
    COUNTS.write_text(counts_csv())
    for path, text in pages().items():
        path.write_text(text)
