"""Pictures of masked clips: true, masked and reconstructed frames. Letters in shapes: t frames, h height, w width."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure

Clip = Float[np.ndarray, "t h w 3"]

GREY = 0.5  # of masked pixels
MAX_FRAMES = 8
ROWS = ("true", "masked", "reconstructed")


def reconstruction_strip(
    clips: Sequence[tuple[Clip, Clip, Float[np.ndarray, "t h w 1"]]], frames_per_token: int
) -> Figure:
    """Draws true, masked and reconstructed frames of each clip in three rows, at most eight frames of each.

    Args:
        clips: (true frames, frames with masked pixels as predicted, 1 where a pixel is visible), in [0, 1].
        frames_per_token: frames of a tubelet; of these the first is drawn.
    """
    (frames, height, width), count = clips[0][0].shape[:3], len(clips)
    times = frames // frames_per_token
    shown = frames_per_token * np.linspace(0, times - 1, min(times, MAX_FRAMES)).round().astype(int)
    figure = Figure(figsize=(1.1 * len(shown) + 1.2, 1.15 * 3 * height / width * count), layout="constrained")
    grid = figure.subplots(3 * count, len(shown), squeeze=False)
    for i, (true, predicted, visible) in enumerate(clips):
        masked = true * visible + GREY * (1 - visible)
        for row, label, clip in zip(grid[3 * i : 3 * i + 3], ROWS, (true, masked, predicted), strict=True):
            for axes, frame in zip(row, clip[shown], strict=True):
                axes.imshow(frame, interpolation="nearest")
                axes.set(xticks=[], yticks=[])
                axes.spines[:].set_visible(False)
            row[0].set_ylabel(label, fontsize=8)
    for axes, index in zip(grid[0], shown, strict=True):
        axes.set_title(f"frame {index}", fontsize=8)
    return figure
