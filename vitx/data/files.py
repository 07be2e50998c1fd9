"""Custom videos: a folder for each class, or a table of paths and labels."""

import csv
import dataclasses
import hashlib
import json
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from pathlib import Path
from typing import Any

import numpy as np

from vitx.configuration import register
from vitx.data.file_kinds import ENDINGS, find_videos, read_video, refuse_classes_without_videos
from vitx.data.sources import SPLITS, Source, check_split
from vitx.errors import UserError, closest

WHOLE = (0.0, float("inf"))  # segment of a whole video


@dataclasses.dataclass(frozen=True)
class Videos:
    """Files of one split.

    Attributes:
        label_names: {label: names of its classes}.
        paths: path of each example's file.
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
        """Returns the name of an example in messages."""
        return self.paths[index]

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        segment = {"segment": self.segments[index]} if self.segments else {}
        return {
            "video": read_video(self.paths[index]),
            "labels": {name: column[index] for name, column in self.labels.items()},
            **segment,
        }


@dataclasses.dataclass(frozen=True)
class _Row:
    """One video of a folder or a table.

    Attributes:
        path: path of the file.
        labels: class of each label.
        split: split that the folder or the table gives it, or None.
        group: name of the videos that stay in one split.
        segment: (begin, end) in seconds, or None for the whole video.
        sets: classes of each label that has any number of them.
        values: numbers to predict.
    """

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
    """Videos in one folder for each class, with the class's name: `PATH/CLASS/*.mp4`.

    Or `PATH/train/CLASS/*.mp4`, with `PATH/validation` and `PATH/test` beside it. A split without a folder is drawn
    from the training videos, the same fraction of every class, by a hash of their names: files that are added later
    move few others. A folder of numbered pictures, `PATH/CLASS/NAME/*.png` or `*.jpg`, is a video, too.

    Attributes:
        path: path of the folder.
        label: name of the label.
        validation: fraction of the videos held out for validation where it has no folder.
        test: fraction of the videos held out for the test where it has no folder.
        seed: seed of the draw.
    """

    path: str
    label: str = "class"
    validation: float = 0.15
    test: float = 0.15
    seed: int = 0

    def __post_init__(self):
        _check_fractions(self)

    def open(self, split: str) -> Source:
        """Returns the videos of a split.

        Raises:
            UserError: the folder is missing or has no videos, or too few to hold some out.
        """
        return _open_split(self, split)

    def splits(self) -> dict[str, "Videos"]:
        """Returns the videos of every split that has some, by its name."""
        root = Path(self.path)
        if not root.is_dir():
            raise UserError(f"there is no folder {root} (data.dataset.path); expected {root}/CLASS/*.mp4")
        if (root / "manifest.json").exists():
            raise UserError(
                f"{root} was written by `vitx data prepare`; in the experiment file, Prepared({self.path!r}) reads it"
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
        for folder in found.values() or [root]:
            names = {row.labels[0] for row in rows}
            refuse_classes_without_videos(folder, names)
        if not rows:
            raise UserError(f"{root} has no videos; expected {root}/CLASS/*.mp4 (or {', '.join(ENDINGS)})")
        return _videos(rows, (self.label,), self)

    def ignored(self) -> list[str]:
        """Returns the files in the folder that are in no split, without hidden ones."""
        root, used = Path(self.path), {path for videos in self.splits().values() for path in videos.paths}
        files = (path for path in sorted(root.rglob("[!.]*")) if path.is_file())
        files = (path for path in files if not {str(path), str(path.parent)} & used)  # a folder of pictures is a video
        return [str(path) for path in files if not any(part.startswith(".") for part in path.relative_to(root).parts)]

    def _rows(self, folder: Path, split: str | None) -> Iterator[_Row]:
        for path in find_videos(folder):
            name = path.relative_to(folder)
            yield _Row(str(path), (name.parts[0],), split, name.as_posix())


@register
@dataclasses.dataclass(frozen=True)
class Table:
    """Videos listed in a file: a CSV with a header, or JSONL with one object a line.

    The columns `split` (train, validation, test), `group`, `begin` and `end` are optional. Videos of one group (a
    patient, a camera, a source video) stay together when splits are drawn; an example with `begin` and `end` is that
    segment of its video, in seconds from the first frame.

    Attributes:
        path: path of the file.
        labels: columns that name a class; a model has a head for each, or the task names the one to learn.
        multi_label: columns that name any number of classes, separated by semicolons (in JSONL, a list), or none.
        targets: columns that are numbers to predict; each is a label of one value.
        column: column of the videos' paths, relative to the file's folder.
        validation: fraction of the videos held out for validation where no row names that split.
        test: fraction of the videos held out for the test where no row names that split.
        seed: seed of the draw.
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
        _check_fractions(self)
        columns = (*self.labels, *self.multi_label, *self.targets)
        if not columns or len(set(columns)) < len(columns):
            raise ValueError(
                f"labels, multi_label and targets are {', '.join(columns) or 'empty'}; expected columns, each once"
            )

    def open(self, split: str) -> Source:
        """Returns the videos of a split.

        Raises:
            UserError: the file cannot be read, or lacks a column, a value, or videos of the split.
        """
        return _open_split(self, split)

    def splits(self) -> dict[str, "Videos"]:
        """Returns the videos of every split that has some, by its name."""
        file = Path(self.path)
        rows = [self._row(file, line, fields) for line, fields in _lines(file)]
        if not rows:
            raise UserError(f"{file} lists no videos")
        # A hundred show whether the paths are right; a million files on a network disk would take minutes. Single
        # missing videos are found by `vitx data check`, and replaced in training.
        if not any(Path(row.path).exists() for row in rows[:100]):
            raise UserError(f"{file} lists {rows[0].path}, which does not exist; paths are relative to its folder")
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
            tuple(_split_classes(fields[name]) for name in self.multi_label),
            tuple(_parse_number(fields[name], f"{where}: {name}") for name in self.targets),
        )


def _split_classes(cell: Any) -> frozenset[str]:
    """Returns the classes of a cell: a list, or text with semicolons."""
    words = cell if isinstance(cell, list) else str(cell or "").split(";")
    return frozenset(name for word in words if (name := str(word).strip()))


def _parse_number(cell: Any, where: str) -> float:
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
        # Spreadsheets write a byte order mark, which would become a part of the first column's name.
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


def _open_split(dataset: Folder | Table, split: str) -> Videos:
    check_split(split)
    splits = dataset.splits()
    if split not in splits:
        raise UserError(
            f"{dataset.path} leaves none of its {sum(map(len, splits.values()))} videos for the {split} split; give "
            f"it videos of its own, or hold out a larger fraction (data.dataset.{split})"
        )
    return splits[split]


def _videos(
    rows: Sequence[_Row],
    labels: Sequence[str],
    settings: Folder | Table,
    multi_label: Sequence[str] = (),
    targets: Sequence[str] = (),
) -> dict[str, Videos]:
    """Returns the videos of every split that has some, with their labels as numbers."""
    # Names are of all splits, so that the number of a class is the same in each.
    names = {label: _sort_names({row.labels[i] for row in rows}) for i, label in enumerate(labels)}
    names |= {label: _sort_names({name for row in rows for name in row.sets[i]}) for i, label in enumerate(multi_label)}
    for label in multi_label:
        if not names[label]:
            raise UserError(f"{settings.path}: no row names a class in {label}")
    numbers = {label: {name: i for i, name in enumerate(names[label])} for label in names}
    members: dict[str, list[_Row]] = defaultdict(list)
    for row, split in zip(rows, _assign_splits(rows, settings), strict=True):
        members[split].append(row)

    def columns(chosen: Sequence[_Row]) -> dict[str, tuple[int, ...] | np.ndarray]:
        single = {label: tuple(numbers[label][row.labels[i]] for row in chosen) for i, label in enumerate(labels)}
        several = {label: np.zeros((len(chosen), len(names[label])), np.float32) for label in multi_label}
        for i, (label, column) in enumerate(several.items()):
            for indicators, row in zip(column, chosen, strict=True):
                indicators[[numbers[label][name] for name in row.sets[i]]] = 1
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


def _sort_names(names: Set[str]) -> tuple[str, ...]:
    return tuple(sorted(names, key=_natural_key))


def _natural_key(name: str) -> tuple[bool, int, str]:
    """Returns a key that sorts 2 before 10, and numbers before words."""
    return (not name.isdecimal(), int(name) if name.isdecimal() else 0, name)


def _assign_splits(rows: Sequence[_Row], settings: Folder | Table) -> list[str]:
    """Returns the split of every row: its own, or one drawn for its group.

    The groups of each class stand on a line from 0 to 1 at even distances, in the order of a hash of their names. Those
    below `test` are held out for the test, the next below `test` + `validation` for validation. A video that is added
    later shifts the others of its class a little, so that few change their split.
    """
    present = {row.split for row in rows}
    fractions = {name: getattr(settings, name) for name in ("test", "validation") if name not in present}
    groups: dict[str, list[_Row]] = defaultdict(list)
    for row in rows:
        if row.split in (None, "train"):
            groups[row.group].append(row)
    split_of = dict.fromkeys(sorted(groups, key=lambda group: _unit_hash(settings.seed, group)), "train")
    for name, line in _stratify(groups, split_of).items():
        # Classes start at different places, so that rounding does not always favour the same split.
        start = _unit_hash(settings.seed, name, "start")
        # Of three groups one at least is held out for each split.
        least = 1 / len(line) if len(line) > 2 else 0.0
        for i, group in enumerate(line):
            bound = 0.0
            for split, fraction in fractions.items():
                bound += max(fraction, least) if fraction else 0.0
                if split_of[group] == "train" and (i + start) / len(line) < bound:
                    split_of[group] = split
    _keep_classes_in_training(groups, split_of)
    return [split_of[row.group] if row.split in (None, "train") else row.split for row in rows]


def _stratify(groups: Mapping[str, list[_Row]], order: Iterable[str]) -> dict[str, list[str]]:
    """Returns the groups of each class of the first label, in an order; "" has those of all classes of one or two.

    A group of several classes counts as of the most frequent one.
    """
    class_of = {}
    for group, rows in groups.items():
        counts = Counter(name for row in rows for label, name in _classes_of(row) if label == 0)
        class_of[group] = min(counts, key=lambda name: (-counts[name], name), default="")
    sizes, seen = Counter(class_of.values()), Counter()
    lines: dict[str, list[str]] = defaultdict(list)
    occurrence = {}
    for group in order:
        name = class_of[group]
        occurrence[group], seen[name] = seen[name], seen[name] + 1
        lines[name if sizes[name] > 2 else ""].append(group)
    # Those that are held out come first: the second groups of their classes, because the first are left for training.
    lines[""].sort(key=lambda group: -occurrence[group])
    return {name: line for name, line in lines.items() if line}


def _keep_classes_in_training(groups: Mapping[str, list[_Row]], split_of: dict[str, str]) -> None:
    """Moves the last group of each class that training lacks there.

    Classes of further labels that one group alone has, such as rare actions of a verb and a noun, may be missing.
    """
    members: dict[tuple[int, str], list[str]] = defaultdict(list)
    for group in split_of:
        for kind in dict.fromkeys(kind for row in groups[group] for kind in _classes_of(row)):
            members[kind].append(group)
    for (label, _), those in sorted(members.items()):
        if (label == 0 or len(those) > 1) and all(split_of[group] != "train" for group in those):
            split_of[those[-1]] = "train"


def _classes_of(row: _Row) -> list[tuple[int, str]]:
    """Returns the classes of a row, each with the number of its label."""
    labels = [(name,) for name in row.labels] + [sorted(names) for names in row.sets]
    return [(label, name) for label, names in enumerate(labels) for name in names]


def _unit_hash(*parts: int | str) -> float:
    """Returns a number in [0, 1) that is a function of the parts alone."""
    digest = hashlib.sha256(" ".join(map(str, parts)).encode("utf-8", "surrogateescape")).digest()
    return int.from_bytes(digest[:6]) / 2**48


def _check_fractions(settings: Folder | Table) -> None:
    fractions = (settings.validation, settings.test)
    if min(fractions) < 0 or sum(fractions) >= 1:
        raise ValueError(
            f"validation is {fractions[0]} and test {fractions[1]}; expected fractions from 0, below 1 in all"
        )
