"""Prepared videos: a few large files (ArrayRecord) that are read at random; `vitx data prepare` writes them.

Their folder holds shards, whose records are video files and nothing else, and manifest.json:

    {"format", "settings", "videos": digest of the list of videos, "label_names", "broken": [{"path", "problem"}],
     "splits": {split: {"shards": [{"file", "records", "bytes", "sha256"}], "names", "sources", "labels", "segments"}}}

where names, sources (SHA-256 of the files that were encoded), labels and segments have an item for each
record.
"""

import dataclasses
import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from array_record.python.array_record_data_source import ArrayRecordDataSource

from vitx import storage
from vitx.configuration import register, setting
from vitx.data.container import VideoError
from vitx.data.sources import Source, check_split
from vitx.errors import UserError
from vitx.limits import open_regular
from vitx.local_copies import local_copy
from vitx.storage import as_path, file_size

FORMAT = 1
MANIFEST, PLAN = "manifest.json", "plan.json"


@dataclasses.dataclass(frozen=True)
class PreparedVideos:
    """Records of one split.

    Files are opened at the first read, in each process: a fresh or unpickled source costs nothing.

    Attributes:
        shards: (path, number of records) of each shard.
        label_names: {label: names of its classes or values}.
        labels: {label: column of all records}.
        names: name of the file that each record was encoded from.
        segments: (begin, end) of each record in seconds, or () where examples are whole records.
    """

    shards: tuple[tuple[str, int], ...]
    label_names: Mapping[str, tuple[str, ...]]
    labels: Mapping[str, np.ndarray]
    names: tuple[str, ...]
    segments: tuple[tuple[float, float], ...] = ()

    @cached_property
    def _records(self) -> ArrayRecordDataSource:
        paths = [as_path(path) for path, records in self.shards if records]
        # array_record 0.8 (2026-11) reads local files only: shards in a bucket are copied once.
        return ArrayRecordDataSource([str(local_copy(path)) for path in paths])

    def __len__(self) -> int:
        return len(self.names)

    def name(self, index: int) -> str:
        """Returns the name of an example in messages."""
        return self.names[index]

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        try:
            video = self._records[index]
        except (IndexError, RuntimeError, ValueError) as error:
            raise VideoError(f"{self.names[index]}: its record is damaged: {error}") from error
        labels = {name: column[index] for name, column in self.labels.items()}
        segment = {"segment": tuple(self.segments[index])} if self.segments else {}
        return {"video": video, "labels": labels, **segment}

    # Open files do not pickle; worker processes open their own.
    def __getstate__(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}


@register
@dataclasses.dataclass(frozen=True)
class Prepared:
    """Videos that `vitx data prepare` has written.

    Attributes:
        path: path of the folder, local or in a bucket. Shards in a bucket are copied to the local disk when their split
            is first read, see `vitx.local_copies`.
        test: split that is opened as "test": "validation" where the labels of the real one are not public, or where
            accuracies are published on the validation split.
    """

    path: str = setting(is_path=True)
    test: str = "test"

    def __post_init__(self):
        check_split(self.test)

    def open(self, split: str) -> Source:
        """Returns the videos of a split.

        Raises:
            UserError: the folder or the split is missing, the folder is not finished, or a shard has another size.
        """
        check_split(split)
        split = self.test if split == "test" else split
        splits = self.splits()
        if split not in splits:
            raise UserError(f"{self.path} has no {split} split; it has {', '.join(splits)}")
        return splits[split]

    def splits(self) -> dict[str, PreparedVideos]:
        """Returns the videos of every split, by its name."""
        root, manifest = as_path(self.path), self._manifest()
        # A copy that was cut short is found at once; changed bytes are found by `vitx data check`.
        for shard in _list_shards(manifest):
            file = root / shard["file"]
            size = file_size(file) if storage.is_file(file) else None
            if size != shard["bytes"]:
                found = "is missing" if size is None else f"has {size:,} bytes, not {shard['bytes']:,}"
                raise UserError(f"{file} {found}; copy it again, or prepare the videos again")
        return {
            split: PreparedVideos(
                shards=tuple((str(root / shard["file"]), shard["records"]) for shard in part["shards"]),
                label_names={label: tuple(names) for label, names in manifest["label_names"].items()},
                labels={label: _to_column(values) for label, values in part["labels"].items()},
                names=tuple(part["names"]),
                segments=tuple((begin, math.inf if end is None else end) for begin, end in part["segments"]),
            )
            for split, part in manifest["splits"].items()
        }

    def damaged_shards(self) -> list[dict[str, str]]:
        """Returns {"path", "problem"} of each shard whose content has changed since it was written."""
        root = as_path(self.path)
        return [
            {"path": str(root / shard["file"]), "problem": f"{root / shard['file']}: its SHA-256 is not the manifest's"}
            for shard in _list_shards(self._manifest())
            if file_digest(local_copy(root / shard["file"])) != shard["sha256"]
        ]

    def _manifest(self) -> dict[str, Any]:
        """Returns the manifest, checked."""
        file = as_path(self.path) / MANIFEST
        if not storage.is_file(file):
            is_unfinished = storage.exists(file.parent / PLAN)
            hint = "did not finish; run it again" if is_unfinished else "writes one"
            raise UserError(f"{self.path} has no {MANIFEST} (data.dataset.path): `vitx data prepare` {hint}")
        manifest = storage.read_json(file)
        try:
            is_known = manifest["format"] == FORMAT
            for split, part in manifest["splits"].items():
                records = sum(shard["records"] for shard in part["shards"])
                columns = {"names": part["names"], "sources": part["sources"], **part["labels"]}
                if wrong := [name for name, column in columns.items() if len(column) != records]:
                    raise UserError(f"{file}: {split} has {records} records and another number of {wrong[0]}")
        except (KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{file} is no manifest of `vitx data prepare`: {type(error).__name__} {error}") from error
        if not is_known:
            raise UserError(f"{file} has format {manifest['format']!r}; this vitx reads {FORMAT}")
        return manifest


def file_digest(path: Path) -> str:
    """Returns the SHA-256 of a file's content."""
    with open_regular(path) as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def _list_shards(manifest: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    return (shard for part in manifest["splits"].values() for shard in part["shards"])


def _to_column(values: Sequence[Any]) -> np.ndarray:
    column = np.asarray(values)
    # JSON has no NaN, which marks a value that an example lacks.
    return column.astype(float) if column.dtype == object else column
