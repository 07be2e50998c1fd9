"""report.md: what a run learnt, in metrics, tables and pictures; each evaluated split has a part of its own.

Letters in shapes: n examples, k classes or values, t frames, h height, w width.
"""

import dataclasses
import io
import re
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

import numpy as np
from flax import linen as nn
from jaxtyping import Float, Int, UInt8
from matplotlib.figure import Figure

from vitx import storage
from vitx.console import escape
from vitx.evaluation.evaluate import Predictions
from vitx.evaluation.figures import count_columns, plain_text
from vitx.fonts import add_fallback_fonts

Rows = Sequence[Mapping[str, Any]]
BLUE, ORANGE, GREY, GREEN, RED = "#2f6db3", "#d9822b", "#8a8a8a", "#1c6b2a", "#b3261e"
# How evaluated splits are marked, in the order of their rows.
MARKERS = ((ORANGE, "o"), (GREY, "s"), (GREEN, "^"), (RED, "v"))


def learning_curves(rows: Rows, curves: Mapping[str, str]) -> Figure:
    """Draws metrics against steps: training as a line, evaluated splits with markers.

    Args:
        rows: rows of metrics.jsonl. Those of an evaluation have "views".
        curves: {last component of a metric's name: unit} of the metrics to draw; of losses only the overall "loss".
    """
    drawn = curve_points(rows, curves)
    splits = list(dict.fromkeys(row["split"] for row in rows if "views" in row))
    styles = [("train", BLUE, "")]
    styles += [(split, *MARKERS[i % len(MARKERS)]) for i, split in enumerate(splits)]
    figure = Figure(figsize=(4.2 * max(len(drawn), 1), 3.2), layout="constrained")
    panels = figure.subplots(1, max(len(drawn), 1), squeeze=False)[0]
    for axes, (name, points) in zip(panels, drawn.items(), strict=False):
        for split, colour, marker in styles:
            if split in points:
                axes.plot(*zip(*points[split], strict=True), color=colour, marker=marker, markersize=4, label=split)
        axes.set(xlabel="step", title=f"{name} {curves[name.split('/')[-1]]}")
        axes.grid(alpha=0.25)
        axes.legend(frameon=False)
    return figure


def curve_points(rows: Rows, curves: Mapping[str, str]) -> dict[str, dict[str, list[tuple[int, Any]]]]:
    """Returns {metric: {split: (step, value) pairs in the order of steps}} of training and of the evaluated splits.

    Args:
        rows: rows of metrics.jsonl. Those of an evaluation have "views"; those with other settings are left out.
        curves: as for `learning_curves`.
    """
    rows = [row for row in rows if "settings" not in row]
    drawn = {name for row in rows for name in row if name.split("/")[-1] in curves and not name.endswith("/loss")}
    splits = {"train", *(row["split"] for row in rows if "views" in row)}
    shown = sorted((row for row in rows if row["split"] in splits), key=lambda row: row["step"])
    points: dict[str, dict[str, list[tuple[int, Any]]]] = {}
    for name in sorted(drawn, key=lambda name: (name != "loss", name)):
        points[name] = {}
        for row in shown:
            if name in row:
                points[name].setdefault(row["split"], []).append((row["step"], row[name]))
    return points


def confusion_matrix(counts: Int[np.ndarray, "k k"], names: Sequence[str], title: str) -> Figure:
    """Draws how often each true class (row) was predicted as each class (column), in percent of the row."""
    percent = 100 * counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    side = min(1.6 + 0.5 * len(names), 14)
    figure = Figure(figsize=(side + 0.6, side), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(percent, cmap="Blues", vmin=0, vmax=100)
    ticks = range(len(names))
    shown = list(map(plain_text, names))
    axes.set_xticks(ticks, shown, rotation=45, ha="right")
    axes.set_yticks(ticks, shown)
    axes.set(xlabel="predicted", ylabel="true", title=plain_text(title))
    if len(names) <= 25:
        for row, column in np.ndindex(percent.shape):
            if counts[row, column]:
                colour = "white" if percent[row, column] > 55 else "black"
                text = f"{percent[row, column]:.0f}"
                axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=8)
    figure.colorbar(image, ax=axes, shrink=0.8, label="% of the true class")
    return figure


CAPTION_COLOURS = {True: GREEN, False: RED, None: "black"}


def clip_strip(clips: UInt8[np.ndarray, "n t h w c"], captions: Sequence[Sequence[tuple[str, bool | None]]]) -> Figure:
    """Draws decoded clips, one a row with at most eight frames, and captions beside them.

    Args:
        clips: decoded clips, RGB first.
        captions: (text, whether it is correct, None where that is not known) of each line beside each clip.
    """
    shown = np.linspace(0, clips.shape[1] - 1, min(clips.shape[1], 8)).round().astype(int)
    # In inches, on one pair of axes: a pair for each frame takes three to eight times as long to draw.
    frame_height = clips.shape[2] / clips.shape[3]
    row_height = max(frame_height, 0.2 * max(map(len, captions), default=0)) + 0.1
    # a character of a caption takes about 0.078 inches
    longest = max((count_columns(line) for lines in captions for line, _ in lines), default=0)
    width, height = 1.1 * len(shown) + max(2.6, 0.078 * longest + 0.3), row_height * len(clips) + 0.3
    figure = Figure(figsize=(width, height))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    lefts = 1.1 * np.arange(len(shown)) + 0.1
    for left, index in zip(lefts, shown, strict=True):
        axes.text(left + 0.5, 0.2, f"frame {index}", ha="center", fontsize=8)
    for middle, clip, lines in zip(0.3 + row_height * (np.arange(len(clips)) + 0.5), clips, captions, strict=True):
        bottom, top = middle + frame_height / 2, middle - frame_height / 2
        for left, frame in zip(lefts, clip[shown], strict=True):
            axes.imshow(frame[..., :3], extent=(left, left + 1, bottom, top), aspect="auto")
        for i, (line, correct) in enumerate(lines):
            below = middle + 0.2 * (i - (len(lines) - 1) / 2)
            axes.text(lefts[-1] + 1.1, below, plain_text(line), va="center", fontsize=9, color=CAPTION_COLOURS[correct])
    axes.set(xlim=(0, width), ylim=(height, 0))  # imshow has moved them
    add_fallback_fonts(figure)
    return figure


def scatter(
    values: Float[np.ndarray, "n k"], labels: Float[np.ndarray, "n k"], names: Sequence[str], title: str
) -> Figure:
    """Draws predicted against true values, one panel for each name; correct predictions are on the diagonal."""
    figure = Figure(figsize=(4.2 * len(names), 4.2), layout="constrained")
    figure.suptitle(plain_text(title))
    for i, (axes, name) in enumerate(zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True)):
        both = np.concatenate([values[:, i], labels[:, i]])
        axes.plot([both.min(), both.max()], [both.min(), both.max()], color=GREY, linewidth=1)
        axes.scatter(labels[:, i], values[:, i], s=12, alpha=0.5, color=BLUE, linewidths=0)
        axes.set(xlabel=plain_text(f"true {name}"), ylabel=plain_text(f"predicted {name}"), aspect="equal")
        axes.grid(alpha=0.25)
    return figure


def bars(heights: Mapping[str, float | None], unit: str, title: str) -> Figure:
    """Draws one bar for each class, the longest on top; classes without a value (None) are left out."""
    known = sorted((height, name) for name, height in heights.items() if height is not None)
    figure = Figure(figsize=(6.0, min(1.2 + 0.22 * max(len(known), 1), 40)), layout="constrained")
    axes = figure.subplots()
    axes.barh([plain_text(name) for _, name in known], [height for height, _ in known], color=BLUE)
    axes.set(xlabel=unit, title=plain_text(title), xlim=(0, 100))
    axes.margins(y=0.01)
    axes.grid(alpha=0.25, axis="x")
    return figure


@dataclasses.dataclass(frozen=True)
class Picture:
    """A picture in the report.

    Attributes:
        file: name of its file; the split's name is put before it.
        caption: what it shows, for those who cannot see it.
        content: a figure, or the bytes of the file.
    """

    file: str
    caption: str
    content: Figure | bytes


@dataclasses.dataclass(frozen=True)
class Section:
    """A part of the report on one split.

    Attributes:
        title: heading.
        blocks: paragraphs, tables (lists of lines) and pictures, in order.
    """

    title: str
    blocks: Sequence[str | list[str] | Picture]


@dataclasses.dataclass(frozen=True)
class Results:
    """Everything about an evaluated split from which a presenter writes its sections.

    Attributes:
        model: evaluated model.
        variables: variables of the model, on the devices.
        split: name of the evaluated split.
        predictions: predictions of every example.
        names: {label: names of its classes or values}.
        clips: some decoded examples.
        shown: rows of `clips` in the predictions.
    """

    model: nn.Module
    variables: Any
    split: str
    predictions: Predictions
    names: Mapping[str, tuple[str, ...]]
    clips: UInt8[np.ndarray, "n t h w c"]
    shown: Int[np.ndarray, "n"]


def write_report(
    workdir: PurePath,
    *,
    title: str,
    facts: Sequence[str],
    rows: Rows,
    curves: Mapping[str, str],
    results: Results,
    checkpoint: str,
    metrics: Mapping[str, float | int],
    intervals: Mapping[str, tuple[float, float]],
    sections: Sequence[Section],
    changed: Mapping[str, tuple[Any, Any]] | None = None,
) -> PurePath:
    """Writes report.md and its pictures into a work directory, and keeps what it says of other splits.

    Args:
        workdir: work directory of the run.
        title: heading of the report.
        facts: lines about the run as a whole.
        rows: rows of metrics.jsonl.
        curves: metrics to draw against steps, as in `learning_curves`.
        results: results of the split.
        checkpoint: the evaluated checkpoint, such as "step 40 of 40".
        metrics: metrics of the split.
        intervals: 95 % intervals of those that are accuracies.
        sections: sections of the task's presenter.
        changed: {setting: (value in config.json, value here)} of the evaluation.

    Returns:
        The path of report.md.
    """
    path, split = workdir / "report.md", results.split
    curve = Picture("curves.png", "learning curves", learning_curves(rows, curves))
    lines = [f"# {title}", "", *(f"- {fact}" for fact in facts), "", "## Learning curves", ""]
    lines = [*map(escape, lines), *_format_blocks([curve], workdir, "")]
    parts = _read_parts(storage.read_text(path) if storage.exists(path) else "")
    part = _describe_split(results, checkpoint, metrics, intervals, changed or {})
    for section in sections:
        part += [f"### {section.title}", "", *_format_blocks(section.blocks, workdir, f"{split}_")]
    parts[split] = "\n".join(map(escape, part))
    for name, part in parts.items():
        lines += [f"<!-- split {name} -->", part.strip("\n"), f"<!-- end {name} -->", ""]
    storage.write_text(path, "\n".join(lines))
    return path


def table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> list[str]:
    """Returns the lines of a Markdown table: text in the first column, numbers in the others."""
    ruler = ["---"] + ["---:"] * (len(header) - 1)
    lines = [[escape(str(cell)).replace("|", r"\|") for cell in cells] for cells in (header, ruler, *rows)]
    return [f"| {' | '.join(cells)} |" for cells in lines]


def encode_png(figure: Figure, *, dpi: int = 110) -> bytes:
    """Returns a figure as a PNG file."""
    add_fallback_fonts(figure)
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=dpi)
    return file.getvalue()


def _describe_split(
    results: Results,
    checkpoint: str,
    metrics: Mapping[str, float | int],
    intervals: Mapping[str, tuple[float, float]],
    changed: Mapping[str, tuple[Any, Any]],
) -> list[str]:
    predictions = results.predictions
    read, unreadable = len(predictions.index), len(predictions.unreadable)
    lines = [f"## {results.split.capitalize()} split, {predictions.views} views", "", f"Checkpoint: {checkpoint}.", ""]
    for path, (trained, here) in changed.items():
        lines += [f"- {path}: {here!r} here, {trained!r} in config.json"]
    lines += [""] if changed else []
    lines += [f"Over {read} of {read + unreadable} videos" + ("; these cannot be read:" if unreadable else ".")]
    lines += ["", *(f"- {problem}" for problem in predictions.list_errors())] if unreadable else []
    ranges = {name: f"{low:.1f} to {high:.1f}" for name, (low, high) in intervals.items()}
    values = [
        (name, f"{value:.2f}" if isinstance(value, float) else value, ranges.get(name, ""))
        for name, value in metrics.items()
    ]
    return [*lines, "", *table(("metric", "value", "95 % interval"), values), ""]


def _format_blocks(blocks: Sequence[str | list[str] | Picture], workdir: PurePath, prefix: str) -> list[str]:
    """Returns blocks as lines of Markdown, and writes their pictures."""
    lines = []
    for block in blocks:
        if isinstance(block, Picture):
            # The name of a label is part of it, and one such as "x/../.." must not lead out of the folder.
            file = prefix + re.sub(r"[^\w.-]", "_", block.file)
            _save(block.content, workdir / file)
            lines += [f"![{block.caption}]({file})", ""]
        else:
            lines += [*([block] if isinstance(block, str) else block), ""]
    return lines


def _save(content: Figure | bytes, path: PurePath) -> None:
    storage.write_bytes(path, encode_png(content) if isinstance(content, Figure) else content)


def _read_parts(report: str) -> dict[str, str]:
    """Returns {split: Markdown} of the splits that a report has already."""
    found = re.findall(r"^<!-- split (.*?) -->\n(.*?)^<!-- end \1 -->$", report, re.MULTILINE | re.DOTALL)
    return dict(found)
