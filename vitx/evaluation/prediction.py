"""Prediction: the answers about one clip, and the clip itself, which a notebook shows beside them."""

from collections.abc import Mapping

import numpy as np
from jaxtyping import UInt8
from matplotlib.figure import Figure

from vitx.evaluation.report import clip_strip, encode_png

LINES = 4
"""Greatest number of classes of a label in the picture."""


class Prediction(dict[str, dict[str, float]]):
    """{label: {class or value: number}} of a clip: a dictionary that a notebook shows with the clip.

    Attributes:
        frames: the clip as the model reads it, before normalisation; the first view of several.
        percent: whether the numbers are probabilities, which the picture shows in percent.
    """

    def __init__(self, answers: Mapping[str, dict[str, float]], frames: UInt8[np.ndarray, "t h w 3"], percent: bool):
        super().__init__(answers)
        self.frames = frames
        self.percent = percent

    def figure(self) -> Figure:
        """Returns the clip and the answers beside it as one picture."""
        form = "{:.1%}" if self.percent else "{:.4g}"
        lines = [
            f"{label}: {name} {form.format(number)}"
            for label, answer in self.items()
            for name, number in list(answer.items())[:LINES]
        ]
        return clip_strip(self.frames[None], [[(line, None) for line in lines]])

    def _repr_png_(self) -> bytes:  # how a notebook shows it
        return encode_png(self.figure(), dpi=150)
