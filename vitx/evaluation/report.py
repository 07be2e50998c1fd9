"""report.md: what a run learnt, in figures, tables and pictures."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int, UInt8
from matplotlib.figure import Figure

from vitx.checkpoints import told
from vitx.evaluation.evaluate import Predictions
from vitx.evaluation.metrics import confusion, per_class

Rows = Sequence[Mapping[str, Any]]
BLUE, ORANGE, GREY, GREEN, RED = "#2f6db3", "#d9822b", "#8a8a8a", "#1c6b2a", "#b3261e"


def learning_curves(rows: Rows) -> Figure:
    """Returns a picture of loss and top-1 against steps: training as a line, validation with marks."""
    names = sorted({name for row in rows for name in row if name == "loss" or name.endswith("top1")}, key=_loss_first)
    figure = Figure(figsize=(4.2 * len(names), 3.2), layout="constrained")
    for axes, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        for split, colour, marker in (("train", BLUE, ""), ("val", ORANGE, "o"), ("test", GREY, "s")):
            points = sorted((row["step"], row[name]) for row in rows if row["split"] == split and name in row)
            if points:
                axes.plot(*zip(*points, strict=True), color=colour, marker=marker, markersize=4, label=split)
        axes.set(xlabel="step", title=name if name.endswith("loss") else f"{name} (%)")
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


def write(
    workdir: Path,
    *,
    title: str,
    facts: Sequence[str],
    split: str,
    figures: Mapping[str, float],
    rows: Rows,
    predictions: Predictions,
    classes: Mapping[str, tuple[str, ...]],
    problems: Sequence[str],
    clips: UInt8[np.ndarray, "clips frames height width 3"],
    shown: Int[np.ndarray, "clips"],
) -> Path:
    """Writes report.md and its pictures into a run's folder; returns its path.

    Args:
        facts: lines on the run as a whole.
        split: whose predictions they are.
        figures: of the split.
        rows: of metrics.jsonl.
        classes: {label: names of its classes}.
        problems: what is wrong with the videos that could not be read.
        clips: examples to show, and `shown` their rows in the predictions.
    """
    lines = [f"# {title}", "", *(f"- {fact}" for fact in facts), ""]
    read, missing = len(predictions.index), len(predictions.unreadable)
    lines += [f"## {split.capitalize()} split, {predictions.views} views", ""]
    lines += [f"Over {read} of {read + missing} videos" + ("; these cannot be read:" if missing else ".")]
    lines += ["", *(f"- {problem}" for problem in problems)] if problems else []
    lines += ["", *_table(("figure", "value"), [(name, f"{value:.2f}") for name, value in figures.items()]), ""]
    _save(learning_curves(rows), workdir / "curves.png")
    lines += ["## Learning curves", "", "![learning curves](curves.png)", ""]
    for label, logits in predictions.outputs.items():
        picture = f"confusion_{label}.png"
        counts = confusion(logits, predictions.labels[label])
        _save(confusion_matrix(counts, classes[label], f"{label}, {split} split"), workdir / picture)
        columns = per_class(logits, predictions.labels[label])
        table = [
            (
                name,
                *(f"{columns[column][i]:.1f}" for column in ("precision", "recall", "f1")),
                f"{columns['support'][i]}",
            )
            for i, name in enumerate(classes[label])
        ]
        lines += [f"## {label.capitalize()}", "", f"![confusion matrix](confusion_{label}.png)", ""]
        lines += [*_table(("class", "precision %", "recall %", "F1 %", "videos"), table), ""]
    captions = [
        [
            _caption(label, classes[label], int(logits[row].argmax()), int(predictions.labels[label][row]))
            for label, logits in predictions.outputs.items()
        ]
        for row in shown
    ]
    _save(clip_strip(clips, captions), workdir / "predictions.png")
    lines += ["## Predictions", "", "Decoded clips and what the model says of them; red where it is wrong.", ""]
    lines += ["![clips with predictions](predictions.png)", ""]
    path = workdir / "report.md"
    with told(path):
        draft = path.with_suffix(".tmp")
        draft.write_text("\n".join(lines))
        draft.replace(path)
    return path


def _caption(label: str, names: Sequence[str], said: int, true: int) -> tuple[str, bool]:
    return f"{label}: {names[said]}" + ("" if said == true else f" (true: {names[true]})"), said == true


def _loss_first(name: str) -> tuple[bool, str]:
    return name != "loss", name


def _save(figure: Figure, path: Path) -> None:
    with told(path):
        figure.savefig(path, dpi=110)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    ruler = ["---"] + ["---:"] * (len(header) - 1)
    return [f"| {' | '.join(cells)} |" for cells in (header, ruler, *rows)]
