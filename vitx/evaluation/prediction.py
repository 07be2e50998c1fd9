"""Prediction: the answers about one clip, and the clip itself, which a notebook shows beside them."""

from collections.abc import Callable, Mapping

import numpy as np
from jaxtyping import UInt8
from matplotlib.figure import Figure

from vitx.evaluation.report import clip_strip, encode_png

MAX_CLASSES = 4
"""Greatest number of classes of a label in the picture."""


class Prediction(dict[str, dict[str, float]]):
    """{label: {class or value: number}} of a clip: a dictionary that a notebook shows with the clip.

    Attributes:
        frames: the clip as the model reads it, before normalisation; the first view of several.
        format_answer: function from one class or value and its number to the text in the picture.
    """

    def __init__(
        self,
        answers: Mapping[str, dict[str, float]],
        frames: UInt8[np.ndarray, "t h w c"],
        format_answer: Callable[[Mapping[str, float]], str],
    ):
        super().__init__(answers)
        self.frames = frames
        self.format_answer = format_answer

    def figure(self) -> Figure:
        """Returns the clip and the answers beside it as one picture."""
        lines = [
            f"{label}: {self.format_answer({name: number})}"
            for label, answer in self.items()
            for name, number in list(answer.items())[:MAX_CLASSES]
        ]
        return clip_strip(self.frames[None], [[(line, None) for line in lines]])

    def _repr_png_(self) -> bytes:  # how a notebook shows it
        return encode_png(self.figure(), dpi=150)
