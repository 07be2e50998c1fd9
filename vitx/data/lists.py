"""Reading of lists: CSV with any usual delimiter, or JSONL; errors name the file and the line."""

import codecs
import contextlib
import csv
import io
import json
import os
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

from vitx.data.class_names import is_text
from vitx.errors import UserError
from vitx.limits import open_regular

DELIMITERS = (",", ";", "\t", "|")
TABLES, OBJECTS = (".csv", ".tsv"), (".jsonl", ".ndjson")
ENDINGS = (*TABLES, *OBJECTS)
# Spreadsheets write UTF-16 as "Unicode text", and a byte order mark before UTF-8.
MARKS = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}


def is_list(path: Any) -> bool:
    """Returns whether a path is named as a list."""
    return path.suffix.lower() in ENDINGS


def read_list(file: Path, columns: Collection[str], paths: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yields (file and line for messages, fields by column) of each row.

    Args:
        file: path of the list.
        columns: columns that are wanted; the delimiter is the one with which the header has most of them.
        paths: column of paths, the only one whose bytes need not be UTF-8: file names need not be either.

    Raises:
        UserError: the file cannot be read, or a line is malformed.
    """
    if not is_list(file):
        raise UserError(f"{file} ends in {file.suffix!r}; expected {', '.join(ENDINGS)}")
    try:
        with open_text(file) as lines:
            rows = _read_objects if file.suffix.lower() in OBJECTS else _read_cells
            for where, fields in rows(lines, file, columns):
                for name, value in fields.items():
                    _check_texts(where, name, value, name == paths)
                yield where, fields
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror} (data.dataset.path)") from error
    except (ValueError, csv.Error, RecursionError) as error:
        raise UserError(f"{file} cannot be read: {error}") from error


def _check_texts(where: str, name: str, value: Any, is_path: bool) -> None:
    """Raises UserError where a field has characters that no text has: NUL, or half a surrogate pair."""
    pending = [name, value]
    while pending:
        text = pending.pop()
        if isinstance(text, list | dict):
            pending += [*text, *text.values()] if isinstance(text, dict) else text
        if not isinstance(text, str):
            continue
        if "\0" in text:
            raise UserError(f"{where}: {name!r} is {text[:80]!r}, which has a NUL byte; save the list as UTF-8 text")
        if not is_text(text) and not (is_path and _is_file_name(text)):
            raise UserError(f"{where}: {name!r} is {text[:80]!r}, which is not UTF-8; save the list as UTF-8")


def _is_file_name(text: str) -> bool:
    try:
        os.fsencode(text)
    except UnicodeEncodeError:  # half a surrogate pair, other than those that `surrogateescape` gives
        return False
    return True


@contextlib.contextmanager
def open_text(file: Path) -> Iterator[TextIO]:
    """Opens a text file in the encoding of its byte order mark, UTF-8 without one; see `vitx.limits.open_regular`."""
    with open_regular(file) as content:
        begin = content.read(3)
        content.seek(0)
        encoding = next((name for mark, name in MARKS.items() if begin.startswith(mark)), "utf-8")
        # Of two kinds of line ends, csv needs both as they are.
        with io.TextIOWrapper(content, encoding, errors="surrogateescape", newline="") as lines:
            yield lines


def _read_cells(lines: Any, file: Path, columns: Collection[str]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    header = lines.readline()
    lines.seek(0)
    headers = {delimiter: next(csv.reader([header], delimiter=delimiter), []) for delimiter in DELIMITERS}
    # `max` takes the first of equals: a comma, unless another delimiter gives more of the columns.
    delimiter = max(headers, key=lambda choice: len({name.strip() for name in headers[choice]} & set(columns)))
    # "path, class" has a space behind the comma, which belongs to no name.
    spaced = all(name.startswith(" ") for name in headers[delimiter][1:])
    reader = csv.DictReader(lines, delimiter=delimiter, skipinitialspace=spaced, strict=True)
    reader.fieldnames = [name.strip() for name in reader.fieldnames or ()]
    if repeated := [name for name in reader.fieldnames if reader.fieldnames.count(name) > 1 and name in columns]:
        raise UserError(f"{file}, line 1: the column {repeated[0]!r} is there twice; give each column its own name")
    while True:
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise UserError(
                f"{file}, line {reader.reader.line_num} cannot be read: {error}; is a quote not closed?"
            ) from error
        where = f"{file}, line {reader.line_num}"
        if None in fields:
            name = {",": "a comma", "\t": "a tab"}.get(delimiter, repr(delimiter))
            raise UserError(f"{where} has more cells than the header; put quotes around a cell that has {name} in it")
        yield where, fields


def _refuse_repeated_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Returns a JSON object; raises ValueError where it has a key twice, since Python would take the last value."""
    fields = dict(pairs)
    if len(fields) < len(pairs):
        raise ValueError(f"one of the keys {', '.join(fields)} is there twice")
    return fields


def _read_objects(lines: Any, file: Path, columns: Collection[str]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f"{file}, line {number}"
        try:
            fields = json.loads(line, object_pairs_hook=_refuse_repeated_keys)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{where} cannot be read: {error}; expected one object a line") from error
        if not isinstance(fields, dict):
            raise UserError(f"{where}: found {line.strip()[:60]}, expected an object")
        yield where, fields
