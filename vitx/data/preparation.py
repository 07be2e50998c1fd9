"""Preparation of videos for training: scaled once, into a few large files (ArrayRecord) that are read at random.

A folder that `prepare` has filled holds

    train-00000.array_record, ...    shards; a record is one video file, nothing else
    train-00000.json, ...            while it is filled: what is in each finished shard
    plan.json                        while it is filled: settings and a digest of the videos
    manifest.json                    in the end: everything but the videos, see `vitx.data.prepared`

Each shard is a function of a fixed range of its split's videos, and gets its name when it is complete: a preparation
that is killed resumes behind its last complete shard, and its result is the same bit for bit.
"""

import contextlib
import dataclasses
import hashlib
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePath
from typing import Any, NamedTuple

import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter

from vitx import storage
from vitx.console import progress_bar
from vitx.data.container import DEFAULT_OPTIONS, ReadOptions, VideoError
from vitx.data.encoding import encode_video, transcode
from vitx.data.file_kinds import open_bytes
from vitx.data.prepared import FORMAT, MANIFEST, PLAN, file_digest
from vitx.data.sources import Source, example_name, label_columns
from vitx.errors import UserError, did_you_mean
from vitx.locks import lock_folder
from vitx.stores import report_io_errors

OWN_FILES = (MANIFEST, PLAN, ".lock")


@dataclasses.dataclass(frozen=True)
class Preparation:
    """Settings of `prepare`.

    Attributes:
        short_side: pixels that the shorter side of a frame is scaled to; smaller videos keep their size.
        codec: FFmpeg's name of the encoder, or "copy" for the files as they are.
        crf: constant quality of the encoder; less is better and larger.
        keyint: greatest number of frames from one keyframe to the next; few make seeking fast and files large.
        shard_size: videos of a shard.
        reading: what is read of each file.
    """

    short_side: int = 256
    codec: str = "libx264"
    crf: int = 20
    keyint: int = 32
    shard_size: int = 256
    reading: ReadOptions = DEFAULT_OPTIONS

    def __post_init__(self):
        for name, least in (("short_side", 2), ("crf", 0), ("keyint", 1), ("shard_size", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}; expected at least {least}")

    def encode(self, example: Mapping[str, Any]) -> bytes:
        """Returns the record of an example: a video file.

        Raises:
            VideoError: the video cannot be read.
        """
        if self.codec == "copy":
            with open_bytes(example["video"]) as content:
                return content.read()
        options = {name: getattr(self, name) for name in ("short_side", "codec", "crf", "keyint")}
        segment = example.get("segment", (0.0, math.inf))
        return transcode(example["video"], **options, segment=segment, read=self.reading)

    def to_dict(self) -> dict[str, Any]:
        """Returns the settings as JSON data, without `reading` where it is the default, as in older folders."""
        settings = dataclasses.asdict(self)
        if self.reading == DEFAULT_OPTIONS:
            del settings["reading"]
        return settings


class Shard(NamedTuple):
    """A shard to write: a range of a split's videos."""

    name: str
    split: str
    indices: range


def prepare(
    splits: Mapping[str, Source], destination: PurePath, settings: Preparation, *, workers: int = 2
) -> dict[str, Any]:
    """Prepares videos in a folder, or resumes there; returns the manifest.

    Args:
        splits: videos of each split.
        destination: the folder.
        settings: how the videos are encoded.
        workers: shards that are written at once.

    Raises:
        UserError: the folder holds something else, the encoder is missing, the disk is full, or no video is readable.
    """
    plan = {"format": FORMAT, "settings": settings.to_dict(), "videos": _digest_videos(splits)}
    _try_encoder(settings)
    shards = [
        Shard(f"{split}-{number:05}", split, range(start, min(start + settings.shard_size, len(source))))
        for split, source in splits.items()
        for number, start in enumerate(range(0, len(source), settings.shard_size))
    ]
    busy = f"{destination} is being filled by another process; wait until it ends"
    with report_io_errors(destination), lock_folder(destination, busy=busy):
        _check_destination(destination, plan)
        if not storage.exists(destination / MANIFEST):
            if not storage.exists(destination / PLAN):
                storage.write_json(destination / PLAN, plan)
            written = _write_shards(shards, splits, destination, settings, workers)
            storage.write_json(destination / MANIFEST, _build_manifest(plan, splits, shards, written))
        # Removes the files for resuming, also those of a process that was killed after it had written the manifest.
        for name in storage.names_in(destination):
            if name.endswith(".json") and name != MANIFEST:
                storage.remove(destination / name)
        return storage.read_json(destination / MANIFEST)


def _digest_videos(splits: Mapping[str, Source]) -> str:
    """Returns a digest of names, labels, segments and file sizes, which differs for other videos."""
    names = {split: [example_name(source, i) for i in range(len(source))] for split, source in splits.items()}
    # Sizes in place of contents: hashing terabytes would take longer than resuming saves.
    sizes = [os.path.getsize(name) if os.path.exists(name) else -1 for column in names.values() for name in column]
    listed = [
        [split, names[split], _label_lists(source), getattr(source, "segments", ())] for split, source in splits.items()
    ]
    return hashlib.sha256(json.dumps([listed, sizes]).encode()).hexdigest()


def _check_destination(destination: PurePath, plan: Mapping[str, Any]) -> None:
    """Raises UserError unless the folder is empty, or holds the same preparation, finished or not."""
    found = [storage.read_json(destination / name) for name in (MANIFEST, PLAN) if storage.exists(destination / name)]
    if not found:
        others = [name for name in storage.names_in(destination) if name not in OWN_FILES]
        if others:
            raise UserError(f"{destination} is not empty: it has {', '.join(others[:5])}; choose another destination")
        return
    different = [name for name in plan if found[0].get(name) != plan[name]]
    if different:
        what = "other videos, labels or splits" if "videos" in different else "other settings"
        theirs = found[0].get("settings", {})
        lines = [
            f"{name}: {theirs.get(name)!r} before, {value!r} now"
            for name, value in plan["settings"].items()
            if theirs.get(name) != value
        ]
        raise UserError(f"{destination} was prepared from {what}; choose another destination, or remove it", lines)


def _write_shards(
    shards: Sequence[Shard], splits: Mapping[str, Source], destination: PurePath, settings: Preparation, workers: int
) -> list[dict[str, Any]]:
    """Writes all shards; returns the content of each, as `_write_shard` does."""
    total = sum(map(len, splits.values()))
    with progress_bar(desc="preparing", total=total, unit=" videos") as bar, ThreadPoolExecutor(workers) as pool:
        futures = [
            pool.submit(_write_shard, shard, splits[shard.split], destination, settings, bar) for shard in shards
        ]
        try:
            return [future.result() for future in futures]
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _write_shard(
    shard: Shard, source: Source, destination: PurePath, settings: Preparation, bar: Any
) -> dict[str, Any]:
    """Writes one shard unless it is complete; returns {"file", "records", "bytes", "sha256", "written", "broken"}."""
    facts, path = destination / f"{shard.name}.json", destination / f"{shard.name}.array_record"
    if storage.exists(facts):
        bar.update(len(shard.indices))
        return storage.read_json(facts)
    written, broken = [], []
    with storage.atomic_path(path) as draft:
        with _open_writer(draft) as writer:
            for index in shard.indices:
                name = example_name(source, index)
                try:
                    example = source[index]
                    record, digest = settings.encode(example), _digest_source(example["video"])
                except VideoError as error:
                    broken.append({"path": name, "problem": str(error)})
                else:
                    written.append({"index": index, "source": digest})
                    writer.write(record)
                bar.update()
        size = {"records": len(written), "bytes": draft.stat().st_size, "sha256": file_digest(draft)}
    # Written after the shard: a shard without its facts is written again.
    result = {"file": path.name, **size, "written": written, "broken": broken}
    storage.write_json(facts, result)
    return result


def _build_manifest(
    plan: Mapping[str, Any],
    splits: Mapping[str, Source],
    shards: Sequence[Shard],
    written: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    """Returns the manifest of all shards."""
    manifest = {**plan, "label_names": dict(next(iter(splits.values())).label_names), "splits": {}}
    for split, source in splits.items():
        parts = [part for shard, part in zip(shards, written, strict=True) if shard.split == split]
        records = [record for part in parts for record in part["written"]]
        if not records:
            problem = parts[0]["broken"][0]["problem"]
            raise UserError(f"none of the {len(source)} videos of {split} can be read: {problem}")
        indices = [record["index"] for record in records]
        # Encoded records are segments already; copies are whole files, whose segments are cut when they are read.
        segments = getattr(source, "segments", ()) if plan["settings"]["codec"] == "copy" else ()
        manifest["splits"][split] = {
            "shards": [{name: part[name] for name in ("file", "records", "bytes", "sha256")} for part in parts],
            "names": [example_name(source, i) + ("" if segments else _segment_suffix(source[i])) for i in indices],
            "sources": [record["source"] for record in records],
            "labels": {label: [column[i] for i in indices] for label, column in _label_lists(source).items()},
            "segments": [segments[i] for i in indices] if segments else [],
        }
    return manifest | {"broken": [video for part in written for video in part["broken"]]}


def _segment_suffix(example: Mapping[str, Any]) -> str:
    """Returns the end of a record's name that distinguishes segments of one video."""
    begin, end = example.get("segment", (0.0, math.inf))
    return "" if (begin, end) == (0.0, math.inf) else f" ({begin:g} to {end:g} s)"


def _label_lists(source: Source) -> dict[str, list]:
    return {label: column.tolist() for label, column in label_columns(source).items()}


def _digest_source(video: bytes | str | os.PathLike) -> str:
    with open_bytes(video) as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def _try_encoder(settings: Preparation) -> None:
    """Raises UserError where the encoder does not work, before anything is written."""
    if settings.codec == "copy":
        return
    try:
        settings.encode({"video": encode_video(np.zeros((2, 64, 64, 3), np.uint8))})
    except (VideoError, ValueError, LookupError) as error:
        from av.codec import codecs_available

        hint = did_you_mean(settings.codec, codecs_available)
        raise UserError(f"the codec {settings.codec} does not work: {error}{hint}") from error


@contextlib.contextmanager
def _open_writer(file: Path) -> Iterator[ArrayRecordWriter]:
    try:
        # One record a group, for reading at random; videos are compressed already.
        with contextlib.closing(ArrayRecordWriter(str(file), "group_size:1,uncompressed")) as writer:
            yield writer
    except RuntimeError as error:  # array_record 0.8 (2026-11) raises it for a full disk, too
        raise OSError(str(error).split(";")[0]) from error
