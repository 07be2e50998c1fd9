"""Writes the tables of docs/recipes.md from the docstrings of experiments: python docs/write_recipes.py."""

import ast
import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "recipes.md"
BEGIN, END = "<!-- written by docs/write_recipes.py -->\n", "<!-- end -->\n"
EXPECTED = re.compile(
    r"^Expected: (?P<result>.+?)(, (?P<views>\d+x\d) views)? \((?P<source>.+)\)\. Not run here\.$", re.M
)


@dataclasses.dataclass(frozen=True)
class Recipe:
    """A published recipe: an experiment file and what its docstring expects.

    Attributes:
        file: path of the experiment file.
        docstring: text of its docstring.
        result: published accuracy, such as "top-1 80.0 %".
        views: clips x crops of it, such as "4x3"; empty where a task has none.
        source: paper and table, or repository and file.
    """

    file: Path
    docstring: str
    result: str
    views: str
    source: str

    @property
    def path(self) -> str:
        """Path of the file from the root of the repository."""
        return self.file.relative_to(ROOT).as_posix()

    def row(self) -> str:
        """Returns the row of the table."""
        command = _link_command(self.docstring, self.path)
        cells = (self.file.parent.name, f"`{self.file.stem}`", self.result, self.views, self.source, command)
        return f"| {' | '.join(cells)} |"


def _link_command(docstring: str, path: str) -> str:
    """Returns the first command of a docstring, whole, as a link to its file."""
    command = re.search(r"^    (vitx .+)$", docstring, re.M)[1]
    return f"[`{command}`](../{path})"


def find_recipes() -> Iterator[Recipe]:
    """Yields every recipe, by dataset and name."""
    for file in sorted((ROOT / "experiments").glob("*/*.py")):
        docstring = ast.get_docstring(ast.parse(file.read_text())) or ""
        if found := EXPECTED.search(docstring):
            yield Recipe(file, docstring, found["result"], found["views"] or "", found["source"])


def find_sweeps() -> Iterator[tuple[Path, str]]:
    """Yields (file, docstring) of every published table of models or settings, an ablation over a recipe."""
    for file in sorted((ROOT / "experiments").glob("*/*.py")):
        docstring = ast.get_docstring(ast.parse(file.read_text())) or ""
        if file.parent.name != "ablations" and "vitx ablate" in docstring:
            yield file, docstring


def write_table() -> str:
    """Returns both tables in Markdown."""
    lines = ["| dataset | model | expected | views | source | command |", "| --- | --- | --- | --- | --- | --- |"]
    lines += [recipe.row() for recipe in find_recipes()]
    lines += ["", "Tables of the papers, each one file of rows over a recipe:", ""]
    lines += ["| question | command |", "| --- | --- |"]
    for file, docstring in find_sweeps():
        path = file.relative_to(ROOT).as_posix()
        lines.append(f"| {docstring.splitlines()[0]} | {_link_command(docstring, path)} |")
    return "\n".join(lines) + "\n"


def write_page(page: str) -> str:
    """Returns the page with a table of today."""
    before, rest = page.split(BEGIN)
    return before + BEGIN + write_table() + END + rest.split(END)[1]


if __name__ == "__main__":
    PAGE.write_text(write_page(PAGE.read_text()))
