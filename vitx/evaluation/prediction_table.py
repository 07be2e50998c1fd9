"""Predictions as rows, for tables and files: one row for each label of a video, or of each window of it.

| column | meaning |
| --- | --- |
| path | path of the video |
| start, end | seconds from the first frame, of a window; empty for a whole video |
| label | name of the label |
| class | name of the most probable class |
| probability | its probability, 0 to 1 |
| scores | {class: probability}, the most probable first; {value: number} of a task without probabilities |
| error | why the video cannot be read; the columns from start to scores are then empty |
"""

import csv
import html
import importlib.util
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from vitx import strict_json
from vitx.data.find_files import name_outputs
from vitx.errors import UserError
from vitx.evaluation.overlay import write_overlay
from vitx.evaluation.predictor import Predictor, VideoPrediction
from vitx.evaluation.segments import Thresholds, segments_of
from vitx.evaluation.timeline import timeline
from vitx.storage import as_path, atomic_path, check_ending

Row = Mapping[str, Any]
COLUMNS = ("path", "start", "end", "label", "class", "probability", "scores", "error")
MAX_SHOWN = 40  # rows that a notebook shows
PARQUET_ROWS = 10_000  # in a row group


def to_rows(prediction: VideoPrediction, predictor: Predictor, top: int | None = None) -> list[dict[str, Any]]:
    """Returns the rows of a video.

    Args:
        prediction: prediction of the video.
        predictor: what predicted it.
        top: classes in "scores"; None is all of them.
    """
    if prediction.error is not None:
        return [dict.fromkeys(COLUMNS) | {"path": prediction.path, "error": prediction.error}]
    presenter, names, rows = predictor.presenter, predictor.names, []
    count = max(map(len, names.values())) if top is None else top
    for number, (start, end) in enumerate(prediction.windows):
        outputs = {label: values[number] for label, values in prediction.outputs.items()}
        for label, scores in presenter.answer(outputs, names, count).items():
            row = dict.fromkeys(COLUMNS) | {"path": prediction.path, "label": label, "scores": scores}
            if prediction.is_windowed:
                row |= {"start": round(start, 3), "end": round(end, 3)}
            if label in outputs and presenter.probabilities(outputs[label]) is not None:
                row["class"], row["probability"] = next(iter(scores.items()))
            rows.append(row)
    return rows


class PredictionTable(list[dict[str, Any]]):
    """Rows of predictions, see `vitx.evaluation.prediction_table`; a notebook shows them as a table.

    Attributes:
        videos: the predictions that the rows come from.
        predictor: what predicted them.
    """

    def __init__(self, videos: Sequence[VideoPrediction], predictor: Predictor, top: int | None = None):
        super().__init__(row for video in videos for row in to_rows(video, predictor, top))
        self.videos, self.predictor = tuple(videos), predictor

    @property
    def errors(self) -> dict[str, str]:
        """Returns {path: why it cannot be read}."""
        return {video.path: video.error for video in self.videos if video.error is not None}

    def save(self, path: str | PurePath) -> None:
        """Writes the rows, in one piece: .csv, .json, .jsonl or .parquet, which needs pyarrow.

        Raises:
            UserError: another ending, or the file cannot be written.
        """
        write_rows(as_path(path), COLUMNS, self)

    def segments(self, low: float = 0.4, high: float = 0.6) -> list[dict[str, Any]]:
        """Returns the segments of videos in windows as rows: {path, start, end, label, class, score}.

        Args:
            low: probability at which a segment that has begun still lasts.
            high: probability that every segment reaches.

        Raises:
            UserError: thresholds out of order, videos that were predicted whole, or a task without probabilities.
        """
        thresholds = Thresholds(low, high)
        for video in self.videos:
            _check_windows(video)
        found = ((video.path, segments_of(video, self.predictor, thresholds)) for video in self.videos)
        return [segment.to_row(path) for path, segments in found for segment in segments]

    def timeline(self, number: int = 0, low: float = 0.4, high: float = 0.6) -> Figure:
        """Returns a picture of probabilities over time and segments, of the video of that number.

        Raises:
            UserError: see `segments`, or the video could not be read.
        """
        video, thresholds = self.videos[number], Thresholds(low, high)
        if video.error is not None:
            raise UserError(f"found no predictions to draw: {video.error}")
        _check_windows(video)
        return timeline(video, self.predictor, segments_of(video, self.predictor, thresholds), thresholds)

    def save_overlays(self, folder: str | Path) -> list[Path]:
        """Writes each video with its labels on its frames (MP4), and returns their paths.

        Raises:
            UserError: a video would be replaced, or is no file any more, as an array never was.
            VideoError: a video cannot be read to its end.
        """
        videos = {video.path: video for video in self.videos if video.error is None}
        if missing := [path for path in videos if not Path(path).exists()]:
            raise UserError(f"there is no {missing[0]}; expected predictions of files, whose frames get labels")
        named = name_outputs(list(videos), Path(folder), "_labels.mp4")
        for file, path in named.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            write_overlay(videos[file], self.predictor, path)
        return list(named.values())

    def _repr_html_(self) -> str:
        columns = [name for name in COLUMNS[:-2] if any(row[name] is not None for row in self)]
        columns += ["error"] if self.errors else []
        head = "".join(f"<th>{name}</th>" for name in columns)
        body = "".join(
            "<tr>" + "".join(f"<td>{html.escape(_format_cell(row[name]))}</td>" for name in columns) + "</tr>"
            for row in self[:MAX_SHOWN]
        )
        note = f"<p>the first {MAX_SHOWN} of {len(self)} rows</p>" if len(self) > MAX_SHOWN else ""
        return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{note}"


def _check_windows(video: VideoPrediction) -> None:
    """Raises UserError for a video that was predicted whole."""
    if video.error is None and not video.is_windowed:
        raise UserError(
            f'found {video.path} predicted as a whole; expected windows, such as predict_table(windows="4s")'
        )


def check_format(path: PurePath) -> None:
    """Checks that rows can be written to a path of this ending.

    Raises:
        UserError: another ending, or a package that it needs is missing.
    """
    if check_ending(path, WRITERS) == ".parquet" and importlib.util.find_spec("pyarrow") is None:
        raise UserError(f"{path} needs pyarrow, which is not installed: pip install pyarrow, or choose .csv or .jsonl")


def write_rows(path: PurePath, columns: Sequence[str], rows: Iterable[Row]) -> None:
    """Writes rows as a table in the format of the path's ending, in one piece.

    Args:
        path: path of the file.
        columns: names of the columns.
        rows: {column: text, number, {name: number} or None} of each row.

    Raises:
        UserError: another ending, or the file cannot be written.
    """
    check_format(path)
    with atomic_path(path) as draft:
        WRITERS[path.suffix.lower()](draft, columns, rows)


def _write_csv(draft: Path, columns: Sequence[str], rows: Iterable[Row]) -> None:
    # Names of files need not be UTF-8; `vitx.data.lists` reads their bytes back.
    with open(draft, "w", newline="", encoding="utf-8", errors="surrogateescape") as target:
        writer = csv.writer(target, lineterminator="\n")
        writer.writerow(columns)
        for row in rows:
            cells = (row[name] for name in columns)
            writer.writerow([strict_json.dumps(cell) if isinstance(cell, Mapping) else cell for cell in cells])


def _write_jsonl(draft: Path, columns: Sequence[str], rows: Iterable[Row]) -> None:
    with open(draft, "w", encoding="utf-8") as target:
        for row in rows:
            target.write(strict_json.dumps({name: row[name] for name in columns}) + "\n")


def _write_json(draft: Path, columns: Sequence[str], rows: Iterable[Row]) -> None:
    listed = [{name: row[name] for name in columns} for row in rows]
    draft.write_text(strict_json.dumps(listed, indent=1) + "\n", encoding="utf-8")


def _write_parquet(draft: Path, columns: Sequence[str], rows: Iterable[Row]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    numbers = ("start", "end", "probability", "score")
    kinds = {"scores": pa.map_(pa.string(), pa.float64())} | dict.fromkeys(numbers, pa.float64())
    schema = pa.schema([(name, kinds.get(name, pa.string())) for name in columns])
    rows = iter(rows)
    with pq.ParquetWriter(str(draft), schema) as target:
        while True:
            group = [_to_arrow(row, columns) for row in itertools.islice(rows, PARQUET_ROWS)]
            if group:
                target.write_table(pa.Table.from_pylist(group, schema))
            if len(group) < PARQUET_ROWS:
                return


def _to_arrow(row: Row, columns: Sequence[str]) -> dict[str, Any]:
    """Returns a row whose texts are UTF-8, which names of files need not be."""

    def convert(value: Any) -> Any:
        if isinstance(value, Mapping):
            return [(convert(name), number) for name, number in value.items()]
        return value.encode("utf-8", "backslashreplace").decode() if isinstance(value, str) else value

    return {name: convert(row[name]) for name in columns}


WRITERS: dict[str, Callable[[Path, Sequence[str], Iterable[Row]], None]] = {
    ".csv": _write_csv,
    ".json": _write_json,
    ".jsonl": _write_jsonl,
    ".parquet": _write_parquet,
}


def _format_cell(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float | np.floating) else str(value)
