"""Segments of a long video: runs of windows in which a class is probable, merged by hysteresis.

Letters in shapes: n windows, k classes.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from vitx.errors import UserError
from vitx.evaluation.predictor import Predictor, VideoPrediction

SEGMENT_COLUMNS = ("path", "start", "end", "label", "class", "score")

Windows = Sequence[tuple[float, float]]


@dataclasses.dataclass(frozen=True)
class Thresholds:
    """Two thresholds of a probability: a segment reaches the high one and lasts while the low one is reached.

    Attributes:
        low: probability at which a segment that has begun still lasts.
        high: probability that every segment reaches.
    """

    low: float = 0.4
    high: float = 0.6

    def __post_init__(self):
        if not 0 <= self.low <= self.high <= 1:
            raise UserError(
                f"thresholds are {self.low:g} and {self.high:g}; expected the low one first, both from 0 to 1"
            )


@dataclasses.dataclass(frozen=True)
class Segment:
    """A part of a video that shows a class.

    Attributes:
        start: seconds from the first frame.
        end: seconds from the first frame.
        label: name of the label.
        class_name: name of the class.
        score: mean probability of the class over the segment's time.
    """

    start: float
    end: float
    label: str
    class_name: str
    score: float

    def to_row(self, path: str) -> dict[str, Any]:
        """Returns the segment as a row of a table, see SEGMENT_COLUMNS."""
        values = (path, round(self.start, 3), round(self.end, 3), self.label, self.class_name, self.score)
        return dict(zip(SEGMENT_COLUMNS, values, strict=True))


def cell_bounds(windows: Windows) -> Float[np.ndarray, " _"]:
    """Returns the times at which the answer of one window gives way to that of the next, the video's ends included.

    Windows overlap, so a moment gets the answer of the window whose centre is nearest.
    """
    bounds = np.asarray(windows, np.float64)
    centres = bounds.mean(axis=1)
    return np.concatenate([bounds[:1, 0], (centres[1:] + centres[:-1]) / 2, bounds[-1:, 1]])


def hysteresis(values: Float[np.ndarray, " n"], thresholds: Thresholds) -> list[tuple[int, int]]:
    """Returns (first, stop) of each run of values of at least the low threshold that reaches the high one."""
    above = np.concatenate([[False], values >= thresholds.low, [False]]).astype(np.int8)
    firsts, stops = np.flatnonzero(np.diff(above) == 1), np.flatnonzero(np.diff(above) == -1)
    runs = zip(firsts.tolist(), stops.tolist(), strict=True)
    return [(first, stop) for first, stop in runs if values[first:stop].max() >= thresholds.high]


def find_segments(
    probabilities: Float[np.ndarray, "n k"],
    windows: Windows,
    label: str,
    names: Sequence[str],
    thresholds: Thresholds,
) -> list[Segment]:
    """Returns the segments of all classes of a label, by their start; those of different classes may overlap.

    Args:
        probabilities: probability of each class in each window.
        windows: (start, end) of each window in seconds.
        label: name of the label.
        names: names of its classes.
        thresholds: what begins and ends a segment.
    """
    bounds, segments = cell_bounds(windows), []
    for name, values in zip(names, probabilities.T.astype(np.float64), strict=True):
        for first, stop in hysteresis(values, thresholds):
            score = float(np.average(values[first:stop], weights=np.diff(bounds[first : stop + 1])))
            segments.append(Segment(float(bounds[first]), float(bounds[stop]), label, name, score))
    return sorted(segments, key=lambda segment: (segment.start, -segment.score))


def segments_of(prediction: VideoPrediction, predictor: Predictor, thresholds: Thresholds) -> list[Segment]:
    """Returns the segments of a video in sliding windows, label by label; none of one that cannot be read.

    Raises:
        UserError: the task predicts no probabilities.
    """
    segments = []
    for label, logits in prediction.outputs.items():
        probabilities = predictor.presenter.probabilities(logits)
        if probabilities is None:
            task = type(predictor.presenter.task).__name__
            raise UserError(
                f"found segments of {task}, which predicts no probabilities; expected a run that classifies"
            )
        segments += find_segments(probabilities, prediction.windows, label, predictor.names[label], thresholds)
    return segments
