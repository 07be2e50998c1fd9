"""What is written about each predicted video: its rows, its segments, its timeline, and itself with its labels."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

from vitx.data.container import VideoError
from vitx.data.find_files import name_outputs
from vitx.data.windows import SlidingWindows
from vitx.errors import UserError
from vitx.evaluation.overlay import caption_windows, write_overlay
from vitx.evaluation.prediction_file import check_target
from vitx.evaluation.prediction_table import to_rows, write_rows
from vitx.evaluation.predictor import Predictor, VideoPrediction
from vitx.evaluation.report import encode_png
from vitx.evaluation.segments import SEGMENT_COLUMNS, Segment, Thresholds, segments_of
from vitx.evaluation.timeline import timeline
from vitx.storage import create_folder, write_bytes


@dataclasses.dataclass(frozen=True)
class Outputs:
    """Where everything about each video is written.

    Attributes:
        windows: sliding windows that are predicted; None predicts whole videos.
        thresholds: thresholds of segments.
        timelines: {video: path of the picture of its probabilities over time}.
        overlays: {video: path of the video with its labels}.
    """

    windows: SlidingWindows | None
    thresholds: Thresholds
    timelines: Mapping[str, Path]
    overlays: Mapping[str, Path]

    @classmethod
    def plan(
        cls,
        files: Sequence[str],
        windows: SlidingWindows | None,
        thresholds: Thresholds,
        timelines: Path | None,
        overlays: Path | None,
    ) -> "Outputs":
        """Returns where everything about these videos is written, given the folders of pictures and of videos.

        Raises:
            UserError: a video would be replaced.
        """
        return cls(
            windows,
            thresholds,
            {} if timelines is None else name_outputs(files, timelines, "_timeline.png"),
            {} if overlays is None else name_outputs(files, overlays, "_labels.mp4"),
        )

    def check_task(self, predictor: Predictor, segments: PurePath | None) -> None:
        """Raises UserError where timelines or segments are asked for, and the task predicts no probabilities."""
        if (self.timelines or segments is not None) and not predictor.presenter.predicts_probabilities:
            task = type(predictor.presenter.task).__name__
            raise UserError(
                f"{task} predicts no probabilities, which segments and timelines need; expected a classifier"
            )

    def check_free(self, segments: PurePath | None) -> None:
        """Raises UserError where a file that would be written, that of the segments among them, exists already."""
        if segments is not None:
            check_target(segments, overwrite=False)
        paths = (*self.timelines.values(), *self.overlays.values())
        if taken := [path for path in paths if path.exists()]:
            raise UserError(f"{taken[0]} exists; expected a new file: choose another folder, or --overwrite")

    def write(self, prediction: VideoPrediction, predictor: Predictor, top: int | None) -> dict[str, Any]:
        """Writes the pictures and videos of a prediction, and returns what else is known of the video.

        Args:
            prediction: prediction of a video.
            predictor: what predicted it.
            top: classes in the rows' "scores"; None is all of them.

        Returns:
            {"rows", "segments": rows of its segments, "shown": lines for the terminal, "frames": their number,
            "unwritten": why its pictures could not be written, or None}.
        """
        segments: list[Segment] = []
        if prediction.is_windowed and predictor.presenter.predicts_probabilities:
            segments = segments_of(prediction, predictor, self.thresholds)
        unwritten = None
        if prediction.error is None:
            try:
                self._write_files(prediction, predictor, segments)
            except VideoError as error:  # behind the last frame that the model needs: the prediction holds
                unwritten = f"{prediction.path}: {error}"
        return {
            "rows": to_rows(prediction, predictor, top),
            "segments": [segment.to_row(prediction.path) for segment in segments],
            "shown": _describe(prediction, predictor, segments),
            "frames": prediction.frames,
            "unwritten": unwritten,
        }

    def _write_files(self, prediction: VideoPrediction, predictor: Predictor, segments: Sequence[Segment]) -> None:
        if (path := self.timelines.get(prediction.path)) is not None:
            create_folder(path.parent)
            write_bytes(path, encode_png(timeline(prediction, predictor, segments, self.thresholds)))
        if (path := self.overlays.get(prediction.path)) is not None:
            create_folder(path.parent)
            write_overlay(prediction, predictor, path)

    def write_segments(self, path: PurePath | None, done: Sequence[Mapping[str, Any]]) -> None:
        """Writes the segments of all videos as one table, where a path is given."""
        if path is not None:
            write_rows(path, SEGMENT_COLUMNS, (row for line in done for row in line["segments"]))


def _describe(prediction: VideoPrediction, predictor: Predictor, segments: Sequence[Segment]) -> list[str]:
    """Returns lines for the terminal: the segments of a video in windows, or the answer for each label."""
    if prediction.error is not None:
        return []
    if prediction.is_windowed and predictor.presenter.predicts_probabilities:
        return [
            f"{x.start:7.2f} to {x.end:7.2f} s  {x.label}: {x.class_name} {100 * x.score:.1f} %" for x in segments
        ] or ["no class reaches the high threshold"]
    captions = zip(prediction.windows, caption_windows(prediction, predictor), strict=True)
    if not prediction.is_windowed:
        return [line for _, lines in captions for line in lines]
    return [f"{start:7.2f} to {end:7.2f} s  {line}" for (start, end), lines in captions for line in lines]
