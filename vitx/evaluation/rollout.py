"""Pictures of predicted frames beside the truth: a strip of frames and an animation.

Letters in shapes: h height, w width.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from vitx.data.encoding import encode_gif
from vitx.evaluation.report import BLUE, GREY, ORANGE

Clip = Float[np.ndarray, "_ h w 3"]
Frame = Float[np.ndarray, "_ _ 3"]
GAP = 2  # pixels between frames
CONTEXT_BORDER, PREDICTED_BORDER = np.array([0.55, 0.55, 0.55]), np.array([0.85, 0.51, 0.17])  # grey, orange
NAMES = {"": "forecast", "/copy": "last frame copied", "/linear": "linear extrapolation"}
"""{suffix of a metric: what it belongs to}: the model, then the baselines."""


def to_rgb(frames: Float[np.ndarray, "... channels"]) -> Float[np.ndarray, "... 3"]:
    """Returns grey or coloured frames as RGB, clipped to [0, 1]."""
    return np.broadcast_to(np.clip(frames, 0, 1), (*frames.shape[:-1], 3))


def error_map(predicted: Clip, truth: Clip) -> Clip:
    """Returns the error on white: red where the prediction is too bright, blue where it is too dark."""
    difference = (np.clip(predicted, 0, 1) - truth).mean(axis=-1, keepdims=True)
    magnitude = np.minimum(np.abs(difference), 1)
    hue = np.where(difference > 0, [0.70, 0.09, 0.11], [0.13, 0.40, 0.67])
    return 1 - magnitude * (1 - hue)


def strip(clips: list[tuple[Clip, Clip]], num_context: int, *, max_context: int = 4) -> Figure:
    """Draws truth, forecast and error of each clip in three rows, frames from left to right.

    Args:
        clips: (truth, prediction) of each clip; the truth begins with the context frames.
        num_context: number of context frames.
        max_context: number of context frames that are drawn; earlier ones are left out.
    """
    first = max(num_context - max_context, 0)
    frames, height, width = clips[0][0].shape[:3]
    columns = frames - first
    figure = Figure(figsize=(0.62 * columns + 1.0, 0.62 * height / width * 3 * len(clips) + 0.5), layout="constrained")
    for axes, (truth, predicted) in zip(figure.subplots(len(clips), 1, squeeze=False)[:, 0], clips, strict=True):
        white = np.ones((num_context - first, height, width, 3))
        errors = error_map(predicted, truth[num_context:])
        rows = ([*truth[first:]], [*white, *predicted], [*white, *errors])
        # frame 0 is the last one of the context
        numbers = [str(i) if i <= 0 else f"+{i}" for i in range(first - num_context + 1, frames - num_context + 1)]
        draw_rows(axes, dict(zip(("truth", "forecast", "error"), rows, strict=True)), numbers)
        axes.axvline((width + GAP) * (num_context - first) - GAP / 2, color=tuple(PREDICTED_BORDER), linewidth=1.5)
    return figure


def draw_rows(axes: Axes, rows: Mapping[str, Sequence[Frame]], numbers: Sequence[str]) -> None:
    """Draws rows of frames as one picture, with the name of each row on its left and numbers below the columns."""
    height, width = next(iter(rows.values()))[0].shape[:2]
    axes.imshow(np.concatenate([_side_by_side(row) for row in rows.values()]), interpolation="nearest")
    axes.set_yticks([(height + GAP) * (i + 0.5) for i in range(len(rows))], rows, fontsize=8)
    axes.set_xticks([(width + GAP) * (i + 0.5) for i in range(len(numbers))], numbers, fontsize=8)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def animation(
    clips: list[tuple[Clip, Clip]], num_context: int, *, scale: int = 2, frame_milliseconds: int = 180
) -> bytes:
    """Returns a GIF of truth (left) and forecast (right), a row for each clip; predicted frames have another border.

    Args:
        clips: (truth, prediction) of each clip; the truth begins with the context frames.
        num_context: number of context frames.
        scale: factor by which pixels are enlarged.
        frame_milliseconds: time for which a frame is shown.
    """
    pictures = []
    for i in range(len(clips[0][0])):
        rows = []
        for truth, predicted in clips:
            left = _add_border(truth[i], CONTEXT_BORDER)
            right = left if i < num_context else _add_border(predicted[i - num_context], PREDICTED_BORDER)
            rows.append(_side_by_side([left, right]))
        pixels = np.concatenate(rows).repeat(scale, axis=0).repeat(scale, axis=1)
        pictures.append((255 * pixels).round().astype(np.uint8))
    return encode_gif(np.stack(pictures), frame_milliseconds=frame_milliseconds)


def errors_over_time(per_frame: Mapping[str, Sequence[float]], metric: str = "mse") -> Figure:
    """Draws a metric of every predicted frame, beside that of the baselines without a model.

    Args:
        per_frame: {metric, or metric/baseline: its mean for every predicted frame}, as `Run.evaluate` returns it.
        metric: the metric to draw.
    """
    figure = Figure(figsize=(5.6, 3.2), layout="constrained")
    axes = figure.subplots()
    for (source, name), colour, marker in zip(NAMES.items(), (ORANGE, GREY, BLUE), "os^", strict=True):
        values = per_frame[metric + source]
        axes.plot(range(1, len(values) + 1), values, color=colour, marker=marker, markersize=4, label=name)
    axes.set(xlabel="predicted frame", ylabel=metric, ylim=(0, None), xticks=range(1, len(values) + 1))
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    return figure


def _side_by_side(frames: Sequence[Frame]) -> Frame:
    """Returns frames in one row, with a gap on the right of and below each frame."""
    padded = [np.pad(frame, ((0, GAP), (0, GAP), (0, 0)), constant_values=1.0) for frame in frames]
    return np.concatenate(padded, axis=1)


def _add_border(frame: Frame, colour: Float[np.ndarray, "3"]) -> Frame:
    framed = np.empty((frame.shape[0] + 2, frame.shape[1] + 2, 3))
    framed[:] = colour
    framed[1:-1, 1:-1] = frame
    return framed
