"""Pictures of forecasts beside the truth: a strip for the report, and as they move."""

import io
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure
from PIL import Image

Clip = Float[np.ndarray, "_ height width 3"]
Image3 = Float[np.ndarray, "_ _ 3"]
GAP = 2  # pixels between frames
SEEN, MADE = np.array([0.55, 0.55, 0.55]), np.array([0.85, 0.51, 0.17])  # colours of frames that are given, and made


def to_rgb(frames: Float[np.ndarray, "... channels"]) -> Float[np.ndarray, "... 3"]:
    """Returns grey or coloured frames as RGB in [0, 1]."""
    return np.broadcast_to(np.clip(frames, 0, 1), (*frames.shape[:-1], 3))


def error(forecast: Clip, truth: Clip) -> Clip:
    """Returns what is too bright in red, too dark in blue, on white."""
    difference = (np.clip(forecast, 0, 1) - truth).mean(axis=-1, keepdims=True)
    size = np.minimum(np.abs(difference), 1)
    hue = np.where(difference > 0, [0.70, 0.09, 0.11], [0.13, 0.40, 0.67])
    return 1 - size * (1 - hue)


def strip(clips: list[tuple[Clip, Clip]], seen: int, *, most_seen: int = 4) -> Figure:
    """Returns a picture with three rows for each clip: truth, forecast, error; frames from left to right.

    Args:
        clips: (truth, forecast) of each; the truth has `seen` frames more, of which the last few are drawn.
    """
    first = max(seen - most_seen, 0)
    frames, height, width = clips[0][0].shape[:3]
    columns = frames - first
    figure = Figure(figsize=(0.62 * columns + 1.0, 0.62 * height / width * 3 * len(clips) + 0.5), layout="constrained")
    for axes, (truth, forecast) in zip(figure.subplots(len(clips), 1, squeeze=False)[:, 0], clips, strict=True):
        blank = np.ones((seen - first, height, width, 3))
        rows = ([*truth[first:]], [*blank, *forecast], [*blank, *error(forecast, truth[seen:])])
        axes.imshow(np.concatenate([_side_by_side(row) for row in rows]), interpolation="nearest")
        axes.set_yticks([(height + GAP) * (i + 0.5) for i in range(3)], ["truth", "forecast", "error"], fontsize=8)
        numbers = [str(i) if i <= 0 else f"+{i}" for i in range(first - seen + 1, frames - seen + 1)]
        axes.set_xticks([(width + GAP) * (i + 0.5) for i in range(columns)], numbers, fontsize=8)
        axes.axvline((width + GAP) * (seen - first) - GAP / 2, color=tuple(MADE), linewidth=1.5)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
    return figure


def animation(clips: list[tuple[Clip, Clip]], seen: int, *, scale: int = 2, milliseconds: int = 180) -> bytes:
    """Returns a GIF of truth (left) and forecast, a row for each clip; a frame that is made has a border of its own."""
    pictures = []
    for i in range(len(clips[0][0])):
        rows = []
        for truth, forecast in clips:
            right = _framed(truth[i], SEEN) if i < seen else _framed(forecast[i - seen], MADE)
            rows.append(_side_by_side([_framed(truth[i], SEEN), right]))
        pixels = np.concatenate(rows).repeat(scale, axis=0).repeat(scale, axis=1)
        pictures.append(Image.fromarray((255 * pixels).round().astype(np.uint8)))
    file = io.BytesIO()
    pictures[0].save(file, "GIF", save_all=True, append_images=pictures[1:], duration=milliseconds, loop=0)
    return file.getvalue()


def _side_by_side(frames: Sequence[Image3]) -> Image3:
    """Frames in a row, with a gap on the right of and under each."""
    padded = [np.pad(frame, ((0, GAP), (0, GAP), (0, 0)), constant_values=1.0) for frame in frames]
    return np.concatenate(padded, axis=1)


def _framed(frame: Image3, colour: Float[np.ndarray, "3"]) -> Image3:
    framed = np.empty((frame.shape[0] + 2, frame.shape[1] + 2, 3))
    framed[:] = colour
    framed[1:-1, 1:-1] = frame
    return framed
