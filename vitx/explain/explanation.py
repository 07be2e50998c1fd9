"""Explanation: which parts of a clip speak for a class, with its pictures. In shapes: t h w the clip."""

import dataclasses
import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8
from matplotlib.figure import Figure

from vitx.data.encoding import encode_gif, encode_video
from vitx.evaluation.report import encode_png
from vitx.explain import pictures
from vitx.storage import check_ending, write_bytes


@dataclasses.dataclass(frozen=True, repr=False)
class Explanation:
    """Which parts of a clip speak for a class, by one method.

    Attributes:
        frames: the clip as the model gets it, RGB.
        relevance: relevance of every pixel. Only its order and its sign mean something across methods; negative values,
            which occlusion and integrated gradients have, speak against the class.
        method: name of the method.
        label: name of the label that the class belongs to.
        class_name: name of the class.
        probability: what the model gives the class, 0 to 1; None for a task without probabilities.
        frame_rate: frames of the clip a second, for animations.
    """

    frames: UInt8[np.ndarray, "t h w 3"]
    relevance: Float[np.ndarray, "t h w"]
    method: str
    label: str
    class_name: str
    probability: float | None = None
    frame_rate: float = 6.0

    def __repr__(self) -> str:
        return f"Explanation({self.title!r}, {len(self.frames)} frames)"

    @property
    def title(self) -> str:
        """What is explained and how, in one line."""
        probability = "" if self.probability is None else f", {100 * self.probability:.1f} %"
        return f"{self.label}: {self.class_name}{probability}  ({self.method.replace('_', ' ')})"

    @property
    def over_time(self) -> Float[np.ndarray, "t"]:
        """Importance of each frame: its part of all relevance that speaks for the class; sums to 1."""
        frames = np.maximum(self.relevance, 0).sum(axis=(1, 2), dtype=np.float64)
        total = frames.sum()
        return frames / total if total > 0 else np.full(len(frames), 1 / len(frames))

    def overlay(self) -> UInt8[np.ndarray, "t h w 3"]:
        """Returns the frames with what speaks for the class in warm colours."""
        return pictures.overlay(self.frames, self.relevance)

    def figure(self) -> Figure:
        """Returns frames, overlay and the importance of frames over time as one picture."""
        return pictures.strip(self.frames, self.overlay(), self.over_time, self.title)

    def save(self, path: str | Path) -> None:
        """Writes the explanation: a strip of frames (.png), an animation (.gif, .mp4), or the numbers (.npz).

        Raises:
            UserError: another ending.
        """
        path = Path(path)
        write_bytes(path, WRITERS[check_ending(path, WRITERS)](self))

    def _repr_png_(self) -> bytes:  # how a notebook shows it
        return _to_png(self)


def _to_png(explanation: Explanation) -> bytes:
    return encode_png(explanation.figure(), dpi=150)


def _animate(explanation: Explanation) -> UInt8[np.ndarray, "t rows columns 3"]:
    return pictures.side_by_side(explanation.frames, explanation.overlay(), explanation.over_time)


def _to_gif(explanation: Explanation) -> bytes:
    return encode_gif(_animate(explanation), frame_milliseconds=round(1000 / explanation.frame_rate))


def _to_mp4(explanation: Explanation) -> bytes:
    return encode_video(_animate(explanation), fps=max(round(explanation.frame_rate), 1), options={"crf": "16"})


def _to_npz(explanation: Explanation) -> bytes:
    file = io.BytesIO()
    arrays: Mapping[str, Any] = {
        "frames": explanation.frames,
        "relevance": explanation.relevance,
        "over_time": explanation.over_time,
    }
    words = {name: getattr(explanation, name) for name in ("title", "method", "label", "class_name")}
    probability = np.nan if explanation.probability is None else explanation.probability
    np.savez_compressed(file, probability=probability, **words, **arrays)
    return file.getvalue()


WRITERS: dict[str, Callable[[Explanation], bytes]] = {
    ".png": _to_png,
    ".gif": _to_gif,
    ".mp4": _to_mp4,
    ".npz": _to_npz,
}
