"""Timeline: probabilities of classes over a long video, and its segments below. In shapes: n windows, k classes."""

from collections.abc import Mapping, Sequence, Set

import matplotlib
import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MultipleLocator

from vitx.console import escape
from vitx.evaluation.figures import count_columns, plain_text
from vitx.evaluation.predictor import Predictor, VideoPrediction
from vitx.evaluation.segments import Segment, Thresholds, cell_bounds
from vitx.fonts import add_fallback_fonts

COLOURS = (0, 1, 2, 3, 4, 5, 6, 8)  # indices into tab10, without its grey
MAX_CLASSES = len(COLOURS)  # classes of a label that get a line
MINUTES_FROM = 120.0  # times of longer videos, in seconds, are written as minutes
GREY = "#8a8a8a"
LINES_HEIGHT, ROW_HEIGHT = 2.6, 0.27  # height in inches of the lines of a label, and of a row of segments
LETTER_WIDTH = 0.0085  # width of a letter on a bar, as a fraction of the width of the axes
MIN_LETTERS = 8  # a name that is cut keeps at least so many letters
MINUTE_STEPS, MAX_TICKS = (15, 30, 60, 120, 300, 600, 900, 1800, 3600), 10  # seconds from tick to tick

Colour = tuple[float, float, float, float]


def timeline(
    prediction: VideoPrediction, predictor: Predictor, segments: Sequence[Segment], thresholds: Thresholds
) -> Figure:
    """Draws the probabilities of the classes of each label against time, and its segments below.

    Args:
        prediction: a video in sliding windows.
        predictor: what predicted it.
        segments: its segments.
        thresholds: the thresholds of the segments, drawn as dotted lines.
    """
    labels, bounds = list(prediction.outputs), cell_bounds(prediction.windows)
    packed = [_pack([segment for segment in segments if segment.label == label]) for label in labels]
    heights = [height for rows in packed for height in (LINES_HEIGHT, ROW_HEIGHT * max(len(rows), 1))]
    figure = Figure(figsize=(10.0, sum(heights) + 0.9 * len(labels) + 0.4), layout="constrained")
    grid = figure.add_gridspec(len(heights), 1, height_ratios=heights)
    figure.suptitle(_shorten(prediction.path, 100), fontsize=11)
    in_minutes = bounds[-1] > MINUTES_FROM
    for number, (label, rows) in enumerate(zip(labels, packed, strict=True)):
        probabilities, names = predictor.presenter.probabilities(prediction.outputs[label]), predictor.names[label]
        shown = _shown_classes(probabilities, names, {segment.class_name for row in rows for segment in row})
        lines = figure.add_subplot(grid[2 * number])
        strip = figure.add_subplot(grid[2 * number + 1], sharex=lines)
        _draw_lines(lines, bounds, probabilities, names, shown, thresholds)
        lines.set_title(_shorten(label, 60), fontsize=10, loc="left")
        _draw_segments(strip, rows, shown, float(bounds[-1] - bounds[0]))
        strip.set_xlabel("time, minutes" if in_minutes else "time, seconds", fontsize=9)
        if in_minutes:
            step = next((x for x in MINUTE_STEPS if bounds[-1] / x <= MAX_TICKS), bounds[-1] // MAX_TICKS)
            strip.xaxis.set_major_locator(MultipleLocator(step))
            strip.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{round(x) // 60}:{round(x) % 60:02}"))
    add_fallback_fonts(figure)
    return figure


def _shown_classes(
    probabilities: Float[np.ndarray, "n k"], names: Sequence[str], with_segments: Set[str]
) -> dict[str, Colour]:
    """Returns {class: colour} of the classes that are drawn: those with segments, then the most probable."""
    peaks = dict(zip(names, probabilities.max(axis=0).tolist(), strict=True))
    ranked = sorted(names, key=lambda name: (name in with_segments, peaks[name]), reverse=True)[:MAX_CLASSES]
    return {name: matplotlib.colormaps["tab10"](i) for i, name in zip(COLOURS, ranked, strict=False)}


def _draw_lines(
    axes: Axes,
    bounds: Float[np.ndarray, " _"],
    probabilities: Float[np.ndarray, "n k"],
    names: Sequence[str],
    shown: Mapping[str, Colour],
    thresholds: Thresholds,
) -> None:
    for name, colour in shown.items():
        values = probabilities[:, list(names).index(name)]
        # Each moment has the value of one window: steps, not slopes between windows.
        axes.stairs(100 * values, bounds, baseline=None, color=colour, linewidth=1.8, label=_shorten(name, 28))
    for threshold in (thresholds.low, thresholds.high):
        axes.axhline(100 * threshold, color=GREY, linewidth=0.9, linestyle=":")
    axes.set_ylim(0, 103)
    axes.set_xlim(bounds[0], bounds[-1])
    axes.set_ylabel("probability, %", fontsize=9)
    axes.tick_params(labelsize=9, labelbottom=False)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9, loc="upper left", bbox_to_anchor=(1.0, 1.03))


def _pack(segments: Sequence[Segment]) -> list[list[Segment]]:
    """Returns rows of segments that do not overlap, as few as possible."""
    rows: list[list[Segment]] = []
    for segment in segments:
        row = next((row for row in rows if row[-1].end <= segment.start + 1e-9), None)
        if row is None:
            rows.append([segment])
        else:
            row.append(segment)
    return rows


def _draw_segments(axes: Axes, rows: Sequence[Sequence[Segment]], shown: Mapping[str, Colour], seconds: float) -> None:
    """Draws segments as bars with their classes, where those have room."""
    for number, row in enumerate(rows):
        for segment in row:
            length = segment.end - segment.start
            colour = shown.get(segment.class_name, GREY)
            axes.barh(number, length, left=segment.start, height=0.84, color=colour, edgecolor="white", linewidth=0.8)
            fits = int(length / seconds / LETTER_WIDTH)
            if fits >= min(count_columns(segment.class_name), MIN_LETTERS):
                text, middle = _shorten(segment.class_name, fits), segment.start + length / 2
                axes.text(middle, number, text, ha="center", va="center_baseline", fontsize=8, color="white")
    if not rows:
        axes.text(0.5, 0.5, "no segments", transform=axes.transAxes, ha="center", va="center", fontsize=9, color=GREY)
    axes.set_ylim(max(len(rows), 1) - 0.5, -0.5)
    axes.set_yticks([])
    axes.tick_params(labelsize=9)
    axes.spines[["top", "right", "left"]].set_visible(False)


def _shorten(text: str, length: int) -> str:
    """Returns a text of at most so many letters' width, its middle left out, as matplotlib draws it."""
    text = escape(text)
    length = length * len(text) // max(count_columns(text), 1)
    if len(text) > length:
        half = max((length - 1) // 2, 1)
        text = f"{text[:half]}…{text[-half:]}"
    return plain_text(text)
