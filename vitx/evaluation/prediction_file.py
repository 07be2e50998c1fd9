"""A file of predictions that a killed command leaves resumable: done videos lie in a journal until all are done.

predictions.csv.partial/journal.jsonl      first the settings, then one line for each video that is done
predictions.csv                            written in one piece at the end, when the journal is removed
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePath
from typing import Any

from vitx import storage
from vitx.errors import UserError
from vitx.evaluation.prediction_table import COLUMNS, Row, check_format, write_rows
from vitx.locks import lock_folder
from vitx.rows import RowsWriter, read_rows
from vitx.stores import is_bucket


class PredictionFile:
    """A file of predictions that is being written; `open_predictions` opens and finishes it.

    Attributes:
        done: {path of a video: its line in the journal}, of videos that need not be predicted again.
        is_new: whether no earlier command has begun it.
    """

    def __init__(self, done: dict[str, Mapping[str, Any]], journal: RowsWriter | None, *, is_new: bool = True):
        self.done, self.is_new, self._journal = done, is_new, journal

    def add(self, video: str, rows: Sequence[Row], **more: Any) -> None:
        """Adds a video that is done.

        Args:
            video: path of the video.
            rows: its rows.
            more: what else is to be known of it when all are done.
        """
        line = {"path": video, "rows": list(rows), **more}
        if self._journal is not None:
            self._journal.write(line)
        self.done[video] = line


@contextlib.contextmanager
def open_predictions(
    path: PurePath | None, videos: Sequence[str], settings: Mapping[str, Any], *, overwrite: bool = False
) -> Iterator[PredictionFile]:
    """Opens a file of predictions, or resumes one that a killed command has left; writes it when the block ends.

    Args:
        path: path of the file; None keeps the predictions in memory alone.
        videos: paths of the videos that it will have, in order.
        settings: what the predictions depend on; a command that resumes must have the same.
        overwrite: replace a file that exists; one that was begun with other settings is begun anew.

    Raises:
        UserError: the file exists, its ending is unknown, it cannot be written, or was begun with other settings.
    """
    if path is None:
        yield PredictionFile({}, None)
        return
    check_target(path, overwrite=overwrite)
    folder = path.with_name(f"{path.name}.partial")
    wanted, done, keep_journal = set(videos), {}, True
    try:
        with lock_folder(folder, busy=f"{path} is being written by another vitx process; wait until it ends"):
            begun = read_rows(folder / "journal.jsonl")
            changed = _list_changes(begun[0].get("settings"), settings) if begun else []
            if changed and not overwrite:
                raise UserError(
                    f"{path} was begun with other settings; repeat them to resume it, or begin anew with --overwrite",
                    changed,
                )
            with contextlib.closing(RowsWriter(folder / "journal.jsonl", lambda row: not changed)) as journal:
                is_new = not journal.rows
                if is_new:
                    journal.write({"settings": dict(settings)})
                done |= {line["path"]: line for line in journal.rows[1:] if line["path"] in wanted}
                try:
                    yield PredictionFile(done, journal, is_new=is_new)
                except UserError:  # refused before anything was done
                    keep_journal = bool(done) or not is_new
                    raise
            write_rows(path, COLUMNS, (row for video in dict.fromkeys(videos) for row in done[video]["rows"]))
            keep_journal = False
    finally:  # when the folder is no longer held
        if not keep_journal:
            storage.remove_folder(folder)


def check_target(path: PurePath, *, overwrite: bool) -> None:
    """Checks that a file of predictions may be written, before the work whose result it is to hold.

    Args:
        path: path of the file.
        overwrite: whether a file that exists may be replaced.

    Raises:
        UserError: the file exists, its ending is unknown, or its folder is missing.
    """
    check_format(path)
    if storage.exists(path) and not overwrite:
        raise UserError(
            f"{path} exists and is complete; expected a new file: choose another name, or replace it with --overwrite"
        )
    if not is_bucket(path) and not storage.is_folder(path.parent):
        raise UserError(f"{path} cannot be written: there is no folder {path.parent}; create it first")


def _list_changes(begun: Any, settings: Mapping[str, Any]) -> list[str]:
    """Returns a line for each setting that differs from those that a file was begun with."""
    begun = begun if isinstance(begun, Mapping) else {}
    names = dict.fromkeys(name for name in (*settings, *begun) if begun.get(name) != settings.get(name))
    return [f"{name}: {begun.get(name)!r} before, {settings.get(name)!r} now" for name in names]
