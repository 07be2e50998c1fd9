"""Counts every model again and writes the tables of this folder, and the index of models in docs/models.md.

python experiments/tables/make.py                   # two minutes on one core; nothing is trained or downloaded
python experiments/tables/make.py --keep_counts     # after a new recipe or printed accuracy: seconds
"""

import argparse
import csv
import io
import itertools
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from vitx.analysis import published, published_tables
from vitx.analysis.model_index import format_index, model_index, variant_key
from vitx.console import progress_bar
from vitx.models import FAMILIES

REPOSITORY = Path(__file__).resolve().parents[2]
COUNTS = REPOSITORY / "vitx" / "analysis" / "counts.csv"
RECIPES = COUNTS.with_name("recipes.csv")
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
    """Returns all counts, computed now, as the text of a table."""
    counted = ((key, published.count(key)) for key in progress_bar(keys(), desc="counting", unit=" models"))
    rows = ((*key, cost.params, cost.macs) for key, cost in counted)
    return _csv(("model", "fields", "frames", "size", "params", "macs"), rows)


def recipes_csv() -> str:
    """Returns the recipes of our variants: the experiments that bear their names."""
    known, paths = set(names()), sorted((REPOSITORY / "experiments").glob("*/*.py"))
    rows = ((path.stem, path.relative_to(REPOSITORY).as_posix()) for path in paths if path.stem in known)
    return _csv(("model", "path"), rows)


def _csv(header: Iterable[str], rows: Iterable[Iterable[Any]]) -> str:
    file = io.StringIO()
    csv.writer(file, lineterminator="\n").writerows((header, *rows))
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keep_counts", action="store_true", help="write the pages from the counts that are stored")
    if not parser.parse_args().keep_counts:
        COUNTS.write_text(counts_csv())
    RECIPES.write_text(recipes_csv())
    for path, text in pages().items():
        path.write_text(text)


if __name__ == "__main__":
    main()
