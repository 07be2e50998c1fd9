"""Videos of one's own: a folder for each class, or a table of paths and labels."""

import csv
import dataclasses
import hashlib
import json
import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence, Set
from pathlib import Path
from typing import Any

import numpy as np

from vitx.configuration import register
from vitx.data.sources import Source
from vitx.errors import UserError, closest

ENDINGS = tuple(".3gp .avi .flv .m4v .mkv .mov .mp4 .mpeg .mpg .mts .ts .webm .wmv".split())  # noqa: SIM905  reads easier
SPLITS = ("train", "validation", "test")
WHOLE = (0.0, float("inf"))  # the segment of a whole video


@dataclasses.dataclass(frozen=True)
class Videos:
    """The files of one split.

    Attributes:
        label_names: {label: names of its classes}.
        paths: of the files.
        labels: {label: class of each example, or float32 [examples, k] of k classes or values}.
        segments: (begin, end) of each example in seconds from the first frame, or () where examples are whole files.
    """

    label_names: Mapping[str, tuple[str, ...]]
    paths: tuple[str, ...]
    labels: Mapping[str, tuple[int, ...] | np.ndarray]
    segments: tuple[tuple[float, float], ...] = ()

    def __len__(self) -> int:
        return len(self.paths)

    def name(self, index: int) -> str:
        """Returns what an example is called where people are told of it."""
        return self.paths[index]

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        segment = {"segment": self.segments[index]} if self.segments else {}
        return {
            "video": self.paths[index],
            "labels": {name: column[index] for name, column in self.labels.items()},
            **segment,
        }


@dataclasses.dataclass(frozen=True)
class _Row:
    path: str
    labels: tuple[str, ...]
    split: str | None
    group: str
    segment: tuple[float, float] | None = None
    sets: tuple[frozenset[str], ...] = ()
    values: tuple[float, ...] = ()


@register
@dataclasses.dataclass(frozen=True)
class Folder:
    """Videos in one folder for each class, whose names are the classes': `PATH/CLASS/*.mp4`.

    Or `PATH/train/CLASS/*.mp4`, with `PATH/validation` and `PATH/test` beside it. A split without a folder is drawn
    from the others' videos, the same share of every class, by each file's name: files that are added move no other.

    Attributes:
        path: of the folder.
        label: name of the label.
        validation: share of the videos held out for validation where there is no such folder.
        test: share held out for the test, likewise.
        seed: of the draw.
    """

    path: str
    label: str = "class"
    validation: float = 0.15
    test: float = 0.15
    seed: int = 0

    def __post_init__(self):
        _check_shares(self)

    def open(self, split: str) -> Source:
        """Returns the videos of a split.

        Raises:
            UserError: no such folder, no videos in it, or too few to hold some out.
        """
        return _held(self, split)

    def splits(self) -> dict[str, "Videos"]:
        """Returns the videos of every split that has some, by its name."""
        root = Path(self.path)
        if not root.is_dir():
            raise UserError(f"there is no folder {root} (data.dataset.path); expected {root}/CLASS/*.mp4")
        if (root / "manifest.json").exists():
            raise UserError(
                f"{root} was made by `vitx data prepare`; in the experiment file, Prepared({self.path!r}) reads it"
            )
        folders = {name: root / name for name in SPLITS}
        if (root / "val").is_dir():
            if folders["validation"].is_dir():
                raise UserError(f"{root} has both val and validation; put all videos of that split into one of them")
            folders["validation"] = root / "val"
        found = {name: folder for name, folder in folders.items() if folder.is_dir()}
        if found and "train" not in found:
            raise UserError(f"{root} has {', '.join(found)} and no train; a folder of each class goes into each")
        rows = [row for name, folder in (found or {None: root}).items() for row in self._rows(folder, name)]
        if not rows:
            raise UserError(f"{root} has no videos; expected {root}/CLASS/*.mp4 (or {', '.join(ENDINGS)})")
        return _videos(rows, (self.label,), self)

    def ignored(self) -> list[str]:
        """Returns the files in the folder that are in no split; hidden ones apart."""
        root, taken = Path(self.path), {path for videos in self.splits().values() for path in videos.paths}
        files = (path for path in sorted(root.rglob("[!.]*")) if str(path) not in taken and path.is_file())
        return [str(path) for path in files if not any(part.startswith(".") for part in path.relative_to(root).parts)]

    def _rows(self, folder: Path, split: str | None) -> Iterator[_Row]:
        for path in sorted(folder.glob("*/**/*")):
            if path.suffix.lower() in ENDINGS and not path.name.startswith(".") and path.is_file():
                place = path.relative_to(folder)
                yield _Row(str(path), (place.parts[0],), split, place.as_posix())


@register
@dataclasses.dataclass(frozen=True)
class Table:
    """Videos listed in a file: a CSV with a header, or JSONL with one object a line.

    The columns `split` (train, validation, test), `group`, `begin` and `end` are used where they are there. Videos of
    one group (a patient, a camera, a source video) stay together when splits are drawn; an example with `begin` and
    `end` is that segment of its video, in seconds from the first frame.

    Attributes:
        path: of the file.
        labels: the columns that name a class; a model has a head for each, or the task names the one to learn.
        multi_label: the columns that name any number of classes, between semicolons (in JSONL, a list), or none.
        targets: the columns that are numbers to predict; each is a label of one value.
        column: the one with the videos' paths, relative to the file's folder.
        validation: share of the videos held out for validation where no row names that split.
        test: share held out for the test, likewise.
        seed: of the draw.
    """

    path: str
    labels: tuple[str, ...] = ("class",)
    multi_label: tuple[str, ...] = ()
    targets: tuple[str, ...] = ()
    column: str = "path"
    validation: float = 0.15
    test: float = 0.15
    seed: int = 0

    def __post_init__(self):
        _check_shares(self)
        columns = (*self.labels, *self.multi_label, *self.targets)
        if not columns or len(set(columns)) < len(columns):
            raise ValueError(
                f"labels, multi_label and targets are {', '.join(columns) or 'empty'}; expected columns, each once"
            )

    def open(self, split: str) -> Source:
        """Returns the videos of a split.

        Raises:
            UserError: a file that cannot be read, a column or a value that is missing or cannot be, no such videos.
        """
        return _held(self, split)

    def splits(self) -> dict[str, "Videos"]:
        """Returns the videos of every split that has some, by its name."""
        file = Path(self.path)
        rows = [self._row(file, line, fields) for line, fields in _lines(file)]
        if not rows:
            raise UserError(f"{file} lists no videos")
        if not any(Path(row.path).is_file() for row in rows[:100]):
            raise UserError(f"{file} lists {rows[0].path}, which is not there; paths are relative to the file's folder")
        return _videos(rows, self.labels, self, self.multi_label, self.targets)

    def _row(self, file: Path, line: int, fields: Mapping[str, Any]) -> _Row:
        where = f"{file}, line {line}"
        for name in (self.column, *self.labels, *self.targets, *self.multi_label):
            if name not in fields:
                raise UserError(f"{where} has no {name!r}{closest(name, fields)} It has {', '.join(map(str, fields))}")
            if fields[name] in (None, "") and name not in self.multi_label:
                raise UserError(f"{where}: {name} is empty")
        split = fields.get("split") or None
        if split is not None and split not in SPLITS:
            raise UserError(f"{where}: split is {split!r}; expected one of {', '.join(SPLITS)}")
        path, segment = str(fields[self.column]), None
        if any(fields.get(name) not in (None, "") for name in ("begin", "end")):
            try:
                segment = tuple(float(fields[name]) for name in ("begin", "end"))
            except (KeyError, TypeError, ValueError):
                found = " and ".join(repr(fields.get(name)) for name in ("begin", "end"))
                raise UserError(f"{where}: begin and end are {found}; expected seconds, both or neither") from None
            if not 0 <= segment[0] < segment[1]:
                raise UserError(f"{where}: the segment from {segment[0]} to {segment[1]} s is empty or negative")
        group = str(fields.get("group") or path)
        return _Row(
            str(file.parent / path),
            tuple(str(fields[name]) for name in self.labels),
            split,
            group,
            segment,
            tuple(_classes(fields[name]) for name in self.multi_label),
            tuple(_number(fields[name], f"{where}: {name}") for name in self.targets),
        )


def _classes(cell: Any) -> frozenset[str]:
    words = cell if isinstance(cell, list) else str(cell or "").split(";")
    return frozenset(name for word in words if (name := str(word).strip()))


def _number(cell: Any, where: str) -> float:
    try:
        value = float(cell)
    except (TypeError, ValueError):
        value = math.nan
    if not math.isfinite(value):
        raise UserError(f"{where} is {cell!r}; expected a number")
    return value


def _lines(file: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Yields (line number, fields) of a CSV or JSONL file."""
    try:
        with open(file, encoding="utf-8-sig", newline="") as lines:
            if file.suffix == ".csv":
                reader = csv.DictReader(lines, strict=True)
                for fields in reader:
                    if None in fields:
                        raise UserError(
                            f"{file}, line {reader.line_num} has more cells than the header; put quotes around a cell "
                            "that has a comma in it"
                        )
                    yield reader.line_num, fields
            elif file.suffix == ".jsonl":
                for number, line in enumerate(lines, 1):
                    if line.strip():
                        fields = json.loads(line)
                        if not isinstance(fields, dict):
                            raise UserError(f"{file}, line {number}: found {line.strip()[:60]}, expected an object")
                        yield number, fields
            else:
                raise UserError(f"{file} ends in {file.suffix!r}; expected .csv or .jsonl")
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror} (data.dataset.path)") from error
    except (ValueError, csv.Error, RecursionError) as error:
        raise UserError(f"{file} cannot be read: {error}") from error


def _held(dataset: Folder | Table, split: str) -> Videos:
    splits = dataset.splits()
    if split not in splits:
        raise UserError(
            f"{dataset.path} leaves none of its {sum(map(len, splits.values()))} videos for the {split} split; give "
            f"it videos of its own, or hold out a larger share (data.dataset.{split})"
        )
    return splits[split]


def _videos(
    rows: Sequence[_Row],
    labels: Sequence[str],
    settings: Folder | Table,
    multi_label: Sequence[str] = (),
    targets: Sequence[str] = (),
) -> dict[str, Videos]:
    names = {label: _sorted({row.labels[i] for row in rows}) for i, label in enumerate(labels)}
    names |= {label: _sorted({name for row in rows for name in row.sets[i]}) for i, label in enumerate(multi_label)}
    for label in multi_label:
        if not names[label]:
            raise UserError(f"{settings.path}: no row names a class in {label}")
    numbers = {label: {name: i for i, name in enumerate(names[label])} for label in names}
    members: dict[str, list[_Row]] = defaultdict(list)
    for row, split in zip(rows, _splits(rows, settings), strict=True):
        members[split].append(row)

    def columns(chosen: Sequence[_Row]) -> dict[str, tuple[int, ...] | np.ndarray]:
        single = {label: tuple(numbers[label][row.labels[i]] for row in chosen) for i, label in enumerate(labels)}
        several = {label: np.zeros((len(chosen), len(names[label])), np.float32) for label in multi_label}
        for i, (label, column) in enumerate(several.items()):
            for there, row in zip(column, chosen, strict=True):
                there[[numbers[label][name] for name in row.sets[i]]] = 1
        values = {target: np.array([[row.values[i]] for row in chosen], np.float32) for i, target in enumerate(targets)}
        return single | several | values

    return {
        split: Videos(
            label_names=names | {target: (target,) for target in targets},
            paths=tuple(row.path for row in chosen),
            labels=columns(chosen),
            segments=tuple(row.segment or WHOLE for row in chosen) if any(row.segment for row in chosen) else (),
        )
        for split in SPLITS
        if (chosen := members[split])
    }


def _sorted(names: Set[str]) -> tuple[str, ...]:
    return tuple(sorted(names, key=_natural))


def _natural(name: str) -> tuple[bool, int, str]:
    """Sorts 2 before 10, and numbers before words."""
    return (not name.isdecimal(), int(name) if name.isdecimal() else 0, name)


def _splits(rows: Sequence[_Row], settings: Folder | Table) -> list[str]:
    """Returns the split of every row: its own, or one drawn for its group.

    Groups come in an order drawn from the seed and their names. Each is held out where that brings its classes, the
    rarer the weightier, nearer to their shares, or else to at least one video of a class of three or more: for videos
    of one class each, that is a plain stratified draw. Where examples have several classes or groups several examples,
    what then lacks of the share of all is drawn with ever less regard for classes (after the iterative stratification
    of Sechidis et al. 2011). One group is held out at least, of three or more.
    """
    given = {row.split for row in rows}
    shares = {name: getattr(settings, name) for name in ("test", "validation") if name not in given}
    shares = {name: share for name, share in shares.items() if share}
    members: dict[str, list[int]] = defaultdict(list)
    for i, row in enumerate(rows):
        if row.split in (None, "train"):
            members[row.group].append(i)
    taken = {group: Counter(kind for i in there for kind in _kinds(rows[i])) for group, there in members.items()}
    sizes = Counter()
    for counts in taken.values():
        sizes.update(counts)
    plain = all(counts.total() == 1 for counts in taken.values())
    left = {name: {kind: max(share * n, float(n > 2)) for kind, n in sizes.items()} for name, share in shares.items()}
    room = {name: share * sum(map(len, members.values())) for name, share in shares.items()}
    train = sorted(members, key=lambda group: hashlib.sha256(f"{settings.seed} {group}".encode()).digest())
    split_of: dict[str, str] = {}
    empty = set(shares) if len(train) > 2 else set()

    def lack(group: str, name: str) -> float:
        """How many examples nearer to its shares a split comes with a group, on the average over its classes."""
        weights = {kind: n / sizes[kind] for kind, n in taken[group].items()}
        nearer = sum(weight * (2 * left[name][kind] - taken[group][kind]) for kind, weight in weights.items())
        return nearer / sum(weights.values())

    def hold(group: str, name: str) -> None:
        split_of[group] = name
        empty.discard(name)
        room[name] -= len(members[group])
        for kind, n in taken[group].items():
            left[name][kind] -= n

    for slack in (1e-9,) if plain else (1e-9, 1.0, 4.0, 16.0, math.inf):
        for group in (group for group in train if group not in split_of):
            for name in shares:
                kept = 1 + len(empty - {name})  # groups for training and for splits that have none yet
                fits = plain or len(members[group]) <= 2 * room[name]
                if fits and len(train) - len(split_of) > kept and lack(group, name) >= -slack:
                    hold(group, name)
                    break
    for name in sorted(empty):
        hold(max((group for group in train if group not in split_of), key=lambda group: lack(group, name)), name)
    return [split_of.get(row.group, "train") if row.split in (None, "train") else row.split for row in rows]


def _kinds(row: _Row) -> list[tuple]:
    """The classes of a row, each with its label's number; one for all where it has none."""
    classes = list(enumerate(row.labels))
    return classes + [(-i, name) for i, names in enumerate(row.sets, 1) for name in sorted(names)] or [()]


def _check_shares(settings: Folder | Table) -> None:
    shares = (settings.validation, settings.test)
    if min(shares) < 0 or sum(shares) >= 1:
        raise ValueError(f"validation is {shares[0]} and test {shares[1]}; expected shares of 0 to 1, below 1 together")
