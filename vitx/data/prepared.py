"""Videos made ready for training: scaled once, in a few large files (ArrayRecord) that are read at random.

A folder that `prepare` has filled holds

    train-00000.array_record, ...    shards; a record is one video file, nothing else
    manifest.json                    what they are of, see below

    {"format", "settings", "videos": digest of what was listed, "label_names", "broken": [{"path", "problem"}],
     "splits": {split: {"shards": [{"file", "records", "bytes", "sha256"}], "names", "sources", "labels", "segments"}}}

where names, sources (SHA-256 of the files that the videos were made of), labels and segments have an item a record.

Each shard is a function of a fixed range of its split's videos, and is made under another name until it is whole:
whoever is killed goes on where whole shards end, and what comes out is the same bit for bit.
"""

import contextlib
import dataclasses
import hashlib
import io
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

import filelock
import numpy as np
from array_record.python.array_record_data_source import ArrayRecordDataSource
from array_record.python.array_record_module import ArrayRecordWriter
from tqdm import tqdm

from vitx.configuration import register
from vitx.data.container import VideoError
from vitx.data.encoding import encode_video, transcode
from vitx.data.sources import Source, label_columns
from vitx.errors import UserError, closest

FORMAT = 1
MANIFEST, PLAN = "manifest.json", "plan.json"
OWN = (MANIFEST, PLAN, ".lock")


@dataclasses.dataclass(frozen=True)
class Preparation:
    """How videos are made ready.

    Attributes:
        short_side: pixels that the shorter side of a frame is scaled to; smaller videos keep their size.
        codec: FFmpeg's name of the encoder, or "copy" for the files as they are.
        crf: the encoder's constant quality; less is better and larger.
        keyint: frames from one keyframe to the next at most; short ones make for quick jumps and larger files.
        shard_size: videos of a shard.
    """

    short_side: int = 256
    codec: str = "libx264"
    crf: int = 20
    keyint: int = 32
    shard_size: int = 256

    def __post_init__(self):
        for name, least in (("short_side", 2), ("crf", 0), ("keyint", 1), ("shard_size", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}; expected at least {least}")

    def record(self, example: Mapping[str, Any]) -> bytes:
        """Returns the video file that an example of a source becomes.

        Raises:
            VideoError: the video cannot be read.
        """
        if self.codec == "copy":
            with _opened(example["video"]) as content:
                return content.read()
        how = {name: getattr(self, name) for name in ("short_side", "codec", "crf", "keyint")}
        return transcode(example["video"], **how, **{k: example[k] for k in ("segment",) if k in example})


def prepare(
    splits: Mapping[str, Source], destination: Path, settings: Preparation, *, workers: int = 2
) -> dict[str, Any]:
    """Fills a folder, or goes on with it; returns its manifest.

    Args:
        splits: the videos of each split; their sources have `name(index)`.
        workers: videos made at once.

    Raises:
        UserError: a folder with something else in it, an encoder that is not there, a full disk, no readable video.
    """
    sizes = [_size_of(source, index) for source in splits.values() for index in range(len(source))]
    listed = [
        [split, [source.name(i) for i in range(len(source))], _lists(source), getattr(source, "segments", ())]
        for split, source in splits.items()
    ]
    digest = hashlib.sha256(json.dumps([listed, sizes]).encode()).hexdigest()
    plan = {"format": FORMAT, "settings": dataclasses.asdict(settings), "videos": digest}
    _try_encoder(settings)
    with _held(destination), _told(destination):
        if _begin(destination, plan):
            return _read(destination / MANIFEST)
        ranges = [
            (split, number, range(start, min(start + settings.shard_size, len(source))))
            for split, source in splits.items()
            for number, start in enumerate(range(0, len(source), settings.shard_size))
        ]
        with (
            tqdm(desc="preparing", total=len(sizes), unit=" videos") as bar,
            ThreadPoolExecutor(workers) as pool,
        ):
            made = [
                pool.submit(_make_shard, destination / f"{split}-{number:05}", splits[split], places, settings, bar)
                for split, number, places in ranges
            ]
            try:
                shards = [each.result() for each in made]
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
        manifest = _manifest(plan, splits, [(split, shard) for (split, *_), shard in zip(ranges, shards, strict=True)])
        _write(destination / MANIFEST, manifest)
        _begin(destination, plan)
    return manifest


def _begin(destination: Path, plan: Mapping[str, Any]) -> bool:
    """Makes the folder this plan's, or finds that it is; returns whether it is finished."""
    finished = (destination / MANIFEST).exists()
    found = next((_read(destination / name) for name in (MANIFEST, PLAN) if (destination / name).exists()), None)
    if found is None:
        strangers = sorted(path.name for path in destination.iterdir() if path.name not in OWN)
        if strangers:
            raise UserError(
                f"{destination} is not empty: it has {', '.join(strangers[:5])}; choose another destination"
            )
        _write(destination / PLAN, plan)
    elif different := [name for name in plan if found.get(name) != plan[name]]:
        what = (
            "made of other videos, or of other labels or splits of them" if "videos" in different else "other settings"
        )
        lines = "".join(
            f"\n  {name}: {found['settings'].get(name)!r} there, {value!r} here"
            for name, value in plan["settings"].items()
            if found.get("settings", {}).get(name) != value
        )
        raise UserError(f"{destination} holds {what}; choose another destination, or remove it first{lines}")
    if finished:
        for leftover in [*destination.glob("*.json"), *destination.glob("*.draft")]:
            if leftover.name != MANIFEST:
                leftover.unlink()
    return finished


def _make_shard(path: Path, source: Source, places: range, settings: Preparation, bar: tqdm) -> dict[str, Any]:
    """Writes one shard and, when it is whole, what it is; returns that."""
    facts, shard, draft = path.with_suffix(".json"), path.with_suffix(".array_record"), path.with_suffix(".draft")
    if facts.exists():
        bar.update(len(places))
        return _read(facts)
    made, broken = [], []
    with _writer(draft) as writer:
        for index in places:
            name = source.name(index)
            try:
                example = source[index]
                record, digest = settings.record(example), _sha256(example["video"])
            except VideoError as error:
                broken.append({"path": name, "problem": str(error)})
            else:
                made.append({"index": index, "source": digest})
                writer.write(record)
            bar.update()
    draft.replace(shard)
    result = {"file": shard.name, "records": len(made), "bytes": shard.stat().st_size, "sha256": _sha256(shard)}
    _write(facts, result | {"made": made, "broken": broken})
    return _read(facts)


def _manifest(
    plan: Mapping[str, Any], splits: Mapping[str, Source], shards: Sequence[tuple[str, Mapping[str, Any]]]
) -> dict[str, Any]:
    manifest = {**plan, "label_names": dict(next(iter(splits.values())).label_names), "splits": {}}
    for split, source in splits.items():
        own = [shard for each, shard in shards if each == split]
        made = [each for shard in own for each in shard["made"]]
        places = [each["index"] for each in made]
        segments = getattr(source, "segments", ()) if plan["settings"]["codec"] == "copy" else ()
        if not made:
            raise UserError(
                f"none of the {len(source)} videos of {split} can be read: {own[0]['broken'][0]['problem']}"
            )
        manifest["splits"][split] = {
            "shards": [{name: shard[name] for name in ("file", "records", "bytes", "sha256")} for shard in own],
            "names": [source.name(place) + _part(source[place], bool(segments)) for place in places],
            "sources": [each["source"] for each in made],
            "labels": {label: [column[place] for place in places] for label, column in _lists(source).items()},
            "segments": [segments[place] for place in places] if segments else [],
        }
    return manifest | {"broken": [each for _, shard in shards for each in shard["broken"]]}


@dataclasses.dataclass(frozen=True)
class PreparedVideos:
    """The records of one split.

    Opens its files at the first read, in each process anew: a fresh or unpickled source costs nothing.

    Attributes:
        shards: (path, records) of each.
        label_names: {label: names of its classes or values}.
        labels: {label: of each record}.
        names: of the files that the videos were made of.
        segments: (begin, end) of each in seconds, or () where examples are whole records.
    """

    shards: tuple[tuple[str, int], ...]
    label_names: Mapping[str, tuple[str, ...]]
    labels: Mapping[str, np.ndarray]
    names: tuple[str, ...]
    segments: tuple[tuple[float, float], ...] = ()

    @cached_property
    def _records(self) -> ArrayRecordDataSource:
        return ArrayRecordDataSource([path for path, records in self.shards if records])

    def __len__(self) -> int:
        return len(self.names)

    def name(self, index: int) -> str:
        """Returns what an example is called where people are told of it."""
        return self.names[index]

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        try:
            video = self._records[index]
        except (IndexError, RuntimeError, ValueError) as error:
            raise VideoError(f"{self.names[index]}: its record is damaged: {error}") from error
        labels = {name: column[index] for name, column in self.labels.items()}
        segment = {"segment": tuple(self.segments[index])} if self.segments else {}
        return {"video": video, "labels": labels, **segment}

    def __getstate__(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}


@register
@dataclasses.dataclass(frozen=True)
class Prepared:
    """Videos that `vitx data prepare` made ready.

    Attributes:
        path: of the folder.
    """

    path: str

    def open(self, split: str) -> Source:
        """Returns the videos of a split.

        Raises:
            UserError: no such folder or split, a folder that is not finished, or a shard of another size.
        """
        splits = self.splits()
        if split not in splits:
            raise UserError(f"{self.path} has no {split} split; it has {', '.join(splits)}")
        return splits[split]

    def splits(self) -> dict[str, PreparedVideos]:
        """Returns the videos of every split, by its name."""
        root, manifest = Path(self.path), self._manifest()
        for shard in _shards(manifest):
            size = (root / shard["file"]).stat().st_size if (root / shard["file"]).is_file() else None
            if size != shard["bytes"]:
                found = "is not there" if size is None else f"has {size:,} bytes, not {shard['bytes']:,}"
                raise UserError(f"{root / shard['file']} {found}; copy it again, or prepare the videos anew")
        return {
            split: PreparedVideos(
                shards=tuple((str(root / shard["file"]), shard["records"]) for shard in part["shards"]),
                label_names={label: tuple(names) for label, names in manifest["label_names"].items()},
                labels={label: np.asarray(column) for label, column in part["labels"].items()},
                names=tuple(part["names"]),
                segments=tuple(map(tuple, part["segments"])),
            )
            for split, part in manifest["splits"].items()
        }

    def damaged(self) -> list[dict[str, str]]:
        """Returns {"path", "problem"} of each shard whose content is not what was written."""
        root = Path(self.path)
        return [
            {"path": str(root / shard["file"]), "problem": f"{root / shard['file']}: its SHA-256 is not the manifest's"}
            for shard in _shards(self._manifest())
            if _sha256(root / shard["file"]) != shard["sha256"]
        ]

    def _manifest(self) -> dict[str, Any]:
        file = Path(self.path) / MANIFEST
        if not file.is_file():
            began = (Path(self.path) / PLAN).exists()
            hint = "`vitx data prepare` did not finish; run it again" if began else "`vitx data prepare` makes one"
            raise UserError(f"{self.path} has no {MANIFEST} (data.dataset.path): {hint}")
        manifest = _read(file)
        try:
            known = manifest["format"] == FORMAT
            for split, part in manifest["splits"].items():
                records = sum(shard["records"] for shard in part["shards"])
                columns = {"names": part["names"], "sources": part["sources"], **part["labels"]}
                if wrong := [name for name, column in columns.items() if len(column) != records]:
                    raise UserError(f"{file}: {split} has {records} records and {wrong[0]} of another number")
        except (KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{file} is no manifest of `vitx data prepare`: {type(error).__name__} {error}") from error
        if not known:
            raise UserError(f"{file} has format {manifest['format']!r}; this vitx reads {FORMAT}")
        return manifest


def _part(example: Mapping[str, Any], kept: bool) -> str:
    """What tells the record of a part of a video from that of another."""
    begin, end = example.get("segment", (0.0, math.inf))
    return "" if kept or (begin, end) == (0.0, math.inf) else f" ({begin:g} to {end:g} s)"


def _shards(manifest: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    return (shard for part in manifest["splits"].values() for shard in part["shards"])


def _lists(source: Source) -> dict[str, list]:
    return {label: column.tolist() for label, column in label_columns(source).items()}


def _size_of(source: Source, index: int) -> int:
    path = source.name(index)
    return os.path.getsize(path) if os.path.exists(path) else -1


def _opened(video: bytes | str | os.PathLike) -> BinaryIO:
    try:
        return io.BytesIO(video) if isinstance(video, bytes) else open(video, "rb")
    except OSError as error:
        raise VideoError(f"{video}: {error.strerror}") from error


def _sha256(video: bytes | str | os.PathLike) -> str:
    with _opened(video) as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def _try_encoder(settings: Preparation) -> None:
    if settings.codec == "copy":
        return
    try:
        settings.record({"video": encode_video(np.zeros((2, 64, 64, 3), np.uint8))})
    except (VideoError, ValueError, LookupError) as error:
        from av.codec import codecs_available

        raise UserError(
            f"the codec {settings.codec} does not work: {error}{closest(settings.codec, codecs_available)}"
        ) from error


def _read(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{file} cannot be read: {error}") from error


def _write(file: Path, data: Any) -> None:
    """Writes JSON in one piece: a reader sees all of it or nothing."""
    draft = file.with_name(file.name + ".draft")
    with open(draft, "w", encoding="utf-8") as out:
        json.dump(data, out)
        out.flush()
        os.fsync(out.fileno())
    draft.replace(file)


@contextlib.contextmanager
def _held(destination: Path) -> Iterator[None]:
    """Makes the folder if need be and holds it: two processes must not fill one."""
    lock = filelock.FileLock(destination / ".lock")
    with _told(destination):
        destination.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout:
            raise UserError(f"{destination} is being filled by another process; wait until it ends") from None
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def _writer(file: Path) -> Iterator[ArrayRecordWriter]:
    try:
        with contextlib.closing(ArrayRecordWriter(str(file), "group_size:1,uncompressed")) as writer:
            yield writer
    except RuntimeError as error:  # ArrayRecord's, of a full disk too
        raise OSError(str(error).split(";")[0]) from error


@contextlib.contextmanager
def _told(destination: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{destination} cannot be written: {error.strerror or error}; the same command goes on where it stopped"
        ) from error
