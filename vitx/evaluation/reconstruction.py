"""Pictures of masked clips: true, masked and reconstructed frames. Letters in shapes: t frames, h height, w width."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure

from vitx.evaluation.rollout import draw_rows

Clip = Float[np.ndarray, "t h w 3"]

GREY = 0.5  # value of masked pixels
MAX_FRAMES = 8


def reconstruction_strip(clips: Sequence[tuple[Clip, Clip, Float[np.ndarray, "t h w 1"]]]) -> Figure:
    """Draws true, masked and reconstructed frames of each clip in three rows, at most eight frames of each.

    Args:
        clips: (true frames, frames with masked pixels as predicted, 1 where a pixel is visible), in [0, 1].
    """
    (frames, height, width), count = clips[0][0].shape[:3], len(clips)
    shown = np.linspace(0, frames - 1, min(frames, MAX_FRAMES)).round().astype(int)
    figure = Figure(figsize=(1.1 * len(shown) + 1.2, 1.1 * 3 * height / width * count + 0.5), layout="constrained")
    for axes, (true, predicted, visible) in zip(figure.subplots(count, 1, squeeze=False)[:, 0], clips, strict=True):
        masked = true * visible + GREY * (1 - visible)
        rows = {"true": [*true[shown]], "masked": [*masked[shown]], "reconstructed": [*predicted[shown]]}
        draw_rows(axes, rows, [f"frame {index}" for index in shown])
    return figure
