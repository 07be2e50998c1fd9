"""report.md: what a run learnt, in figures, tables and pictures."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from flax import linen as nn
from jaxtyping import Float, Int, UInt8
from matplotlib.figure import Figure

from vitx.evaluation.evaluate import Predictions
from vitx.storage import report_io_errors

Rows = Sequence[Mapping[str, Any]]
BLUE, ORANGE, GREY, GREEN, RED = "#2f6db3", "#d9822b", "#8a8a8a", "#1c6b2a", "#b3261e"


def learning_curves(rows: Rows, curves: Mapping[str, str]) -> Figure:
    """Returns a picture of figures against steps: training as a line, validation with marks.

    Args:
        curves: {last word of a figure's name: its unit} of those to draw; the loss only of all labels together.
    """
    drawn = {name for row in rows for name in row if name.split("/")[-1] in curves and not name.endswith("/loss")}
    names = sorted(drawn, key=_loss_first)
    figure = Figure(figsize=(4.2 * len(names), 3.2), layout="constrained")
    for axes, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        for split, colour, marker in (("train", BLUE, ""), ("val", ORANGE, "o"), ("test", GREY, "s")):
            points = sorted((row["step"], row[name]) for row in rows if row["split"] == split and name in row)
            if points:
                axes.plot(*zip(*points, strict=True), color=colour, marker=marker, markersize=4, label=split)
        axes.set(xlabel="step", title=f"{name} {curves[name.split('/')[-1]]}")
        axes.grid(alpha=0.25)
        axes.legend(frameon=False)
    return figure


def confusion_matrix(counts: Int[np.ndarray, "classes classes"], names: Sequence[str], title: str) -> Figure:
    """Returns a picture of how often each class (row) was taken for each (column), in percent of the row."""
    share = 100 * counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    side = min(1.6 + 0.5 * len(names), 14)
    figure = Figure(figsize=(side + 0.6, side), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(share, cmap="Blues", vmin=0, vmax=100)
    ticks = range(len(names))
    axes.set_xticks(ticks, names, rotation=45, ha="right")
    axes.set_yticks(ticks, names)
    axes.set(xlabel="predicted", ylabel="true", title=title)
    if len(names) <= 25:
        for row, column in np.ndindex(share.shape):
            if counts[row, column]:
                colour = "white" if share[row, column] > 55 else "black"
                axes.text(column, row, f"{share[row, column]:.0f}", ha="center", va="center", color=colour, fontsize=8)
    figure.colorbar(image, ax=axes, shrink=0.8, label="% of the true class")
    return figure


def clip_strip(
    clips: UInt8[np.ndarray, "clips frames height width 3"], captions: Sequence[Sequence[tuple[str, bool]]]
) -> Figure:
    """Returns a picture of decoded clips, one a row, at most eight frames of each, with what was predicted.

    Args:
        captions: for each clip its lines of text, and whether what each says is right.
    """
    shown = np.linspace(0, clips.shape[1] - 1, min(clips.shape[1], 8)).round().astype(int)
    figure = Figure(figsize=(1.1 * len(shown) + 2.6, 1.15 * len(clips)), layout="constrained")
    grid = figure.subplots(len(clips), len(shown) + 1, squeeze=False, width_ratios=[1] * len(shown) + [2.2])
    for row, clip, lines in zip(grid, clips, captions, strict=True):
        for axes, frame in zip(row, clip[shown], strict=False):
            axes.imshow(frame)
        for axes in row:
            axes.set_axis_off()
        for i, (line, right) in enumerate(lines):
            height = 0.5 + 0.22 * ((len(lines) - 1) / 2 - i)
            row[-1].text(0, height, line, va="center", fontsize=9, color=GREEN if right else RED)
    for axes, index in zip(grid[0], shown, strict=False):
        axes.set_title(f"frame {index}", fontsize=8)
    return figure


def scatter(
    values: Float[np.ndarray, "examples values"],
    labels: Float[np.ndarray, "examples values"],
    names: Sequence[str],
    title: str,
) -> Figure:
    """Returns a picture of predicted against true values, one panel for each name; right is on the diagonal."""
    figure = Figure(figsize=(4.2 * len(names), 4.2), layout="constrained")
    figure.suptitle(title)
    for i, (axes, name) in enumerate(zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True)):
        both = np.concatenate([values[:, i], labels[:, i]])
        axes.plot([both.min(), both.max()], [both.min(), both.max()], color=GREY, linewidth=1)
        axes.scatter(labels[:, i], values[:, i], s=12, alpha=0.5, color=BLUE, linewidths=0)
        axes.set(xlabel=f"true {name}", ylabel=f"predicted {name}", aspect="equal")
        axes.grid(alpha=0.25)
    return figure


def bars(heights: Mapping[str, float | None], unit: str, title: str) -> Figure:
    """Returns a picture of one number for each class, the greatest on top; classes without one (None) are left out."""
    known = sorted((height, name) for name, height in heights.items() if height is not None)
    figure = Figure(figsize=(6.0, min(1.2 + 0.22 * max(len(known), 1), 40)), layout="constrained")
    axes = figure.subplots()
    axes.barh([name for _, name in known], [height for height, _ in known], color=BLUE)
    axes.set(xlabel=unit, title=title, xlim=(0, 100))
    axes.margins(y=0.01)
    axes.grid(alpha=0.25, axis="x")
    return figure


@dataclasses.dataclass(frozen=True)
class Section:
    """A part of the report.

    Attributes:
        title: its heading.
        lines: of Markdown.
        pictures: {file that the lines show: what is drawn in it, or its bytes}.
    """

    title: str
    lines: Sequence[str]
    pictures: Mapping[str, Figure | bytes]


@dataclasses.dataclass(frozen=True)
class Results:
    """A split through a model: what a report tells of.

    Attributes:
        model: that was evaluated.
        variables: of it, on the devices.
        split: whose predictions they are.
        predictions: of every example.
        names: {label: names of its classes or values}.
        clips: some examples, and `shown` their rows in the predictions.
        shown: rows in the predictions.
    """

    model: nn.Module
    variables: Any
    split: str
    predictions: Predictions
    names: Mapping[str, tuple[str, ...]]
    clips: UInt8[np.ndarray, "clips frames height width 3"]
    shown: Int[np.ndarray, "clips"]


def write(
    workdir: Path,
    *,
    title: str,
    facts: Sequence[str],
    figures: Mapping[str, float],
    rows: Rows,
    curves: Mapping[str, str],
    results: Results,
    problems: Sequence[str],
    sections: Sequence[Section],
) -> Path:
    """Writes report.md and its pictures into a run's folder; returns its path.

    Args:
        facts: lines on the run as a whole.
        figures: of the split.
        rows: of metrics.jsonl.
        curves: of figures that are drawn against steps, as in `learning_curves`.
        results: of the split.
        problems: what is wrong with the videos that could not be read.
        sections: what the task tells.
    """
    predictions = results.predictions
    lines = [f"# {title}", "", *(f"- {fact}" for fact in facts), ""]
    read, missing = len(predictions.index), len(predictions.unreadable)
    lines += [f"## {results.split.capitalize()} split, {predictions.views} views", ""]
    lines += [f"Over {read} of {read + missing} videos" + ("; these cannot be read:" if missing else ".")]
    lines += ["", *(f"- {problem}" for problem in problems)] if problems else []
    lines += [
        "",
        *table(
            ("figure", "value"),
            [(name, f"{value:.2f}" if isinstance(value, float) else value) for name, value in figures.items()],
        ),
        "",
    ]
    drawn = Section(
        "Learning curves", ["![learning curves](curves.png)"], {"curves.png": learning_curves(rows, curves)}
    )
    for section in (drawn, *sections):
        lines += [f"## {section.title}", "", *section.lines, ""]
        for file, picture in section.pictures.items():
            with report_io_errors(workdir / file):
                if isinstance(picture, bytes):
                    (workdir / file).write_bytes(picture)
                else:
                    picture.savefig(workdir / file, dpi=110)
    path = workdir / "report.md"
    with report_io_errors(path):
        draft = path.with_suffix(".tmp")
        draft.write_text("\n".join(lines))
        draft.replace(path)
    return path


def table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> list[str]:
    """Returns a Markdown table, its first column text and the others numbers."""
    ruler = ["---"] + ["---:"] * (len(header) - 1)
    return [f"| {' | '.join(map(str, cells))} |" for cells in (header, ruler, *rows)]


def _loss_first(name: str) -> tuple[bool, str]:
    return name != "loss", name
