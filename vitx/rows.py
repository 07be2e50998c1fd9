"""Append-only rows of JSON (`metrics.jsonl`), on a local disk or in a bucket.

Objects of a bucket cannot be appended to. There, rows that follow those of `metrics.jsonl` lie in parts beside it:

    metrics.jsonl                    the first n rows
    metrics/part-00000017.jsonl      rows 17, 18, ...; those before row n are in metrics.jsonl already

Closing the writer joins all into `metrics.jsonl`. Since a part's name says where its rows belong, a kill between the
writing of the file and the removal of the parts neither loses nor doubles a row.
"""

import json
import os
import time
from collections.abc import Callable, Mapping
from pathlib import PurePath
from typing import Any

from vitx import storage, strict_json
from vitx.errors import UserError
from vitx.stores import is_bucket, report_io_errors

Row = Mapping[str, Any]

FLUSH_SECONDS = 30.0  # a part is written at least so often while rows arrive
MAX_PARTS = 64  # are then joined, so that readers ask for few


class RowsWriter:
    """Appends rows to a file; opening it again keeps the rows that are still valid.

    Attributes:
        path: path of the file, `metrics.jsonl`.
        rows: the rows that were kept when the file was opened.
    """

    def __init__(self, path: PurePath, keep: Callable[[dict[str, Any]], bool] = lambda row: True):
        self.path = path
        rows = read_rows(path)
        self.rows = [row for row in rows if keep(row)]
        if is_bucket(path) and _part_names(path):
            # All rows first: were the parts removed before that, a kill would lose what they hold.
            _write_rows(path, rows)
            storage.remove_folder(_parts_folder(path))
        _write_rows(path, self.rows)
        self._file = None if is_bucket(path) else _open_to_append(path)
        self._joined, self._num_parts = list(self.rows), 0  # in a bucket: the rows in its objects
        self._pending: list[Row] = []
        self._flushed_at = time.monotonic()

    def write(self, row: Row) -> None:
        """Appends a row; readers of a local disk see it at once."""
        if self._file is None:
            self._pending.append(dict(row))
            if time.monotonic() - self._flushed_at > FLUSH_SECONDS:
                self._flush()
            return
        with report_io_errors(self.path):
            self._file.write(strict_json.dumps(row) + "\n")
            self._file.flush()

    def sync(self) -> None:
        """Returns when all rows are stored: a checkpoint must never be newer than its rows."""
        if self._file is None:
            self._flush()
            return
        with report_io_errors(self.path):
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Stores all rows; in a bucket joins them into one file."""
        if self._file is None:
            self._flush()
            self._join()
            return
        with report_io_errors(self.path):
            self._file.close()

    def _flush(self) -> None:
        self._flushed_at = time.monotonic()
        if not self._pending:
            return
        _write_rows(_parts_folder(self.path) / f"part-{len(self._joined):08}.jsonl", self._pending)
        self._joined += self._pending
        self._pending = []
        self._num_parts += 1
        if self._num_parts >= MAX_PARTS:
            self._join()

    def _join(self) -> None:
        if self._num_parts:
            _write_rows(self.path, self._joined)
            storage.remove_folder(_parts_folder(self.path))
            self._num_parts = 0


def read_rows(path: PurePath) -> list[dict[str, Any]]:
    """Returns the rows of a file and of its parts; a last line cut short by a kill is left out.

    Raises:
        UserError: another line is not a JSON object.
    """
    rows = _parse_rows(path) if storage.exists(path) else []
    for name in _part_names(path) if is_bucket(path) else ():
        first = int(name.removeprefix("part-").removesuffix(".jsonl"))
        part = _parse_rows(_parts_folder(path) / name)
        if first > len(rows):
            raise UserError(f"{path}: rows {len(rows)} to {first - 1} are missing before {name}")
        rows[first:] = part if first + len(part) > len(rows) else rows[first:]
    return rows


def _parse_rows(path: PurePath) -> list[dict[str, Any]]:
    lines = storage.read_text(path).split("\n")
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            if line:
                rows.append(json.loads(line))
        except (ValueError, RecursionError) as error:
            if number < len(lines):
                raise UserError(f"{path}, line {number} is not JSON: {error}") from error
            continue
        if line and not isinstance(rows[-1], dict):
            raise UserError(f'{path}, line {number}: found {line[:80]}; expected an object such as {{"step": 1, ...}}')
    return rows


def _write_rows(path: PurePath, rows: list[Row]) -> None:
    storage.write_text(path, "".join(strict_json.dumps(row) + "\n" for row in rows))


def _open_to_append(path: PurePath) -> Any:
    with report_io_errors(path):
        return os.fdopen(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC), "a")


def _parts_folder(path: PurePath) -> PurePath:
    return path.with_suffix("")


def _part_names(path: PurePath) -> list[str]:
    names = storage.names_in(_parts_folder(path))
    return [name for name in names if name.startswith("part-") and name.endswith(".jsonl")]
