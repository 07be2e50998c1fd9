"""Custom videos: a folder for each class, or a table of paths and labels."""

import dataclasses
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from pathlib import Path
from typing import Any

import numpy as np

from vitx.configuration import register, setting
from vitx.data.class_names import clean_name, find_case_variants, is_text
from vitx.data.file_kinds import ENDINGS, check_classes_have_videos, find_videos, read_video
from vitx.data.folders import Listing, child_folders, list_folder
from vitx.data.lists import read_list
from vitx.data.same_files import Example, Repeats, find_repeats, identify_files
from vitx.data.sources import SPLITS, Source, check_split
from vitx.data.splits import VideoRow, assign_splits, find_split
from vitx.errors import UserError, did_you_mean

WHOLE = (0.0, float("inf"))  # segment that is a whole video
LARGEST = float(np.finfo(np.float32).max)  # largest target, since labels are float32
MAX_LINES = 10  # lines about one kind of problem in a message


@dataclasses.dataclass(frozen=True)
class Videos:
    """Files of one split.

    Attributes:
        label_names: {label: names of its classes}.
        paths: path of each example's file.
        labels: {label: class of each example, or float32 [examples, k] of k classes or values}.
        segments: (begin, end) of each example in seconds from the first frame, or () where examples are whole files.
        notes: what a user should know about the dataset, a line each.
    """

    label_names: Mapping[str, tuple[str, ...]]
    paths: tuple[str, ...]
    labels: Mapping[str, tuple[int, ...] | np.ndarray]
    segments: tuple[tuple[float, float], ...] = ()
    notes: tuple[str, ...] = ()

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
class Contents:
    """Content of a folder or a list of videos.

    Attributes:
        splits: {split: its videos}, of those that have some.
        repeats: files that occur more than once.
        errors: problems that forbid training, a line each, beside contradictions among `repeats`.
        notes: spellings that were taken for one, and files that were skipped or left out, a line each.
        ignored: files that are in no split.
    """

    splits: Mapping[str, Videos]
    repeats: Repeats
    errors: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()

    def check_splits(self, where: str) -> dict[str, Videos]:
        """Checks the content, and returns the splits with notes for their users.

        Raises:
            UserError: something forbids training.
        """
        if wrong := [*self.errors, *self.repeats.contradictions]:
            more = [f"and {len(wrong) - MAX_LINES} more"] if len(wrong) > MAX_LINES else []
            hint = "; a video has one class of each label: leave one row, or use multi_label" if not self.errors else ""
            raise UserError(f"{where} cannot be used{hint}:", [*wrong[:MAX_LINES], *more])
        leaks = self.repeats.describe_leaks()
        more = [f"{len(leaks) - MAX_LINES} more files are in several splits"] if len(leaks) > MAX_LINES else []
        notes = (*self.notes, *leaks[:MAX_LINES], *more, *self.repeats.describe_repeated())
        return {split: dataclasses.replace(videos, notes=notes) for split, videos in self.splits.items()}


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

    path: str = setting(is_path=True)
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
        return self.read().check_splits(self.path)

    def read(self) -> Contents:
        """Returns the videos of the folder, with its problems."""
        root = Path(self.path)
        if not root.is_dir():
            raise UserError(f"there is no folder {root} (data.dataset.path); expected {root}/CLASS/*.mp4")
        if (root / "manifest.json").exists():
            raise UserError(
                f"{root} was written by `vitx data prepare`; in the experiment file, Prepared({self.path!r}) reads it"
            )
        try:
            folders = _split_folders(root)
            classes = [(split, path) for split, folder in folders.items() for path in child_folders(folder)]
        except OSError as error:
            raise UserError(f"{error.filename} cannot be read: {error.strerror} (data.dataset.path)") from error
        listings = [list_folder(path) for _, path in classes]
        found = [
            list(self._list_rows(split, path, listing))
            for (split, path), listing in zip(classes, listings, strict=True)
        ]
        rows = [row for members in found for row in members]
        errors = [problem for listing in listings for problem in listing.unreadable]
        errors += [
            f"{path}: {'the name of a class is empty' if is_text(path.name) else 'its name is not UTF-8'}; rename it"
            for _, path in classes
            if not is_text(path.name) or not clean_name(path.name)
        ]
        if not errors:
            check_classes_have_videos(
                (path, listing)
                for (_, path), listing, members in zip(classes, listings, found, strict=True)
                if not members
            )
        if not rows and not errors:
            raise UserError(f"{root} has no videos; expected {root}/CLASS/*.mp4 (or {', '.join(ENDINGS)})")
        notes = [f"not used: {problem}" for listing in listings for problem in listing.skipped]
        notes += _describe_spellings(path.name for _, path in classes)
        if None not in folders:
            notes += [
                f"not used: {path}, which is no split" for path in child_folders(root) if not find_split(path.name)
            ]
        ignored = _list_unused_files(root, {row.path for row in rows})
        return _collect_contents(rows, (self.label,), self, errors=errors, notes=notes, ignored=ignored)

    def _list_rows(self, split: str | None, path: Path, listing: Listing) -> Iterator[VideoRow]:
        name = clean_name(path.name)
        for file in find_videos(listing) if name and is_text(name) else ():
            listed = file.relative_to(path.parent).as_posix()
            yield VideoRow(str(file), (name,), split, "", listed=listed)


def _split_folders(root: Path) -> dict[str | None, Path]:
    """Returns {split: its folder of classes}, or {None: root} where the classes are in no split's folder.

    A class may be called as a split (`bus`, `train`): its folder holds videos, a split's holds folders.

    Raises:
        UserError: a split has two folders, or the one of training is missing.
    """
    found: dict[str | None, Path] = {}
    holding_videos, children = [], child_folders(root)
    for path in children:
        if (split := find_split(path.name)) is None:
            continue
        if any(file.suffix.lower() in ENDINGS for file in path.iterdir() if not file.is_dir()):
            holding_videos.append(path.name)
        elif split in found:
            raise UserError(
                f"{root} has both {found[split].name} and {path.name}; put all videos of the {split} split into one"
            )
        else:
            found[split] = path
    if holding_videos and len(holding_videos) + len(found) == len(children):
        name = holding_videos[0]
        raise UserError(f"{root / name} has videos and no folders of classes; expected {root / name}/CLASS/*.mp4")
    if holding_videos or not found:
        return {None: root}
    if "train" not in found:
        names = ", ".join(path.name for path in found.values())
        raise UserError(f"{root} has {names} and no train; a folder of each class goes into each")
    return {split: found[split] for split in SPLITS if split in found}


def _describe_spellings(names: Iterable[str]) -> list[str]:
    """Returns a line for each class in several spellings, and for each group of classes that differ in case alone."""
    spellings: dict[str, set[str]] = defaultdict(set)
    for name in names:
        spellings[clean_name(name)].add(name)
    same = [
        f"taken for one class: {_format_spellings(variants)}" for variants in spellings.values() if len(variants) > 1
    ]
    return same + [
        f"different classes, in upper and lower case alone: {_format_spellings(names)}"
        for names in find_case_variants(spellings)
    ]


def _format_spellings(names: Set[str] | Sequence[str]) -> str:
    return ", ".join(ascii(name) for name in sorted(names))


def _list_unused_files(root: Path, used: Set[str]) -> tuple[str, ...]:
    files = list_folder(root).files
    return tuple(str(path) for path in files if not {str(path), str(path.parent)} & used)  # a folder may be a video


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
        num_classes: labels whose classes are the numbers from 0, and how many, (("verb", 97), ("noun", 300)), whether
            rows name all of them or not; the classes of other labels are those that rows name.
        column: column of the videos' paths, relative to the file's folder.
        validation: fraction of the videos held out for validation where no row names that split.
        test: fraction of the videos held out for the test where no row names that split.
        seed: seed of the draw.
    """

    path: str = setting(is_path=True)
    labels: tuple[str, ...] = ("class",)
    multi_label: tuple[str, ...] = ()
    targets: tuple[str, ...] = ()
    num_classes: tuple[tuple[str, int], ...] = ()
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
        if missing := [label for label, _ in self.num_classes if label not in self.labels]:
            raise ValueError(f"num_classes names {missing[0]!r}; expected one of labels, {', '.join(self.labels)}")

    def open(self, split: str) -> Source:
        """Returns the videos of a split.

        Raises:
            UserError: the file cannot be read, or lacks a column, a value, or videos of the split.
        """
        return _open_split(self, split)

    def splits(self) -> dict[str, "Videos"]:
        """Returns the videos of every split that has some, by its name."""
        return self.read().check_splits(self.path)

    def read(self) -> Contents:
        """Returns the videos of the list, with its problems."""
        file, spellings, groups = Path(self.path), defaultdict(set), defaultdict(set)
        columns = (self.column, *self.labels, *self.targets, *self.multi_label)
        rows = []
        for where, fields in read_list(file, columns, self.column):
            rows.append(self._parse_row(file, where, fields))
            for name in self.labels:
                spellings[name].add(str(fields[name]))
            groups[rows[-1].group].add(fields.get("group"))
        if not rows:
            raise UserError(f"{file} lists no videos")
        # A hundred show whether the paths are right; a million files on a network disk would take minutes. Single
        # missing videos are found by `vitx data check`, and replaced in training.
        if not any(Path(row.path).exists() for row in rows[:100]):
            raise UserError(f"{file} lists {rows[0].path}, which does not exist; paths are relative to its folder")
        notes = [note for names in spellings.values() for note in _describe_spellings(names)]
        notes += [
            f"taken for one group: {_format_spellings({repr(cell) for cell in cells})}"
            for name, cells in groups.items()
            if name and len(cells) > 1
        ]
        return _collect_contents(rows, self.labels, self, self.multi_label, self.targets, self.num_classes, notes=notes)

    def _parse_row(self, file: Path, where: str, fields: Mapping[str, Any]) -> VideoRow:
        for name in (self.column, *self.labels, *self.targets, *self.multi_label):
            if name not in fields:
                raise UserError(
                    f"{where} has no {name!r}{did_you_mean(name, fields)} It has {', '.join(map(str, fields))}"
                )
            if not _to_text(fields[name]) and name not in self.multi_label:
                raise UserError(f"{where}: {name} is empty")
            value = fields[name]
            is_name = isinstance(value, str | int) or (isinstance(value, float) and math.isfinite(value))
            if not is_name and name in (self.column, *self.labels):
                raise UserError(f"{where}: {name} is {str(value)[:60]}; expected a text or a number")
        split = None
        if written := _to_text(fields.get("split")):
            split = find_split(written)
            if split is None:
                raise UserError(f"{where}: split is {written!r}; expected one of {', '.join(SPLITS)}")
        path, segment = str(fields[self.column]), None
        if any(_to_text(fields.get(name)) for name in ("begin", "end")):
            try:
                segment = tuple(float(fields[name]) for name in ("begin", "end"))
            except (KeyError, TypeError, ValueError):
                found = " and ".join(repr(fields.get(name)) for name in ("begin", "end"))
                raise UserError(f"{where}: begin and end are {found}; expected seconds, both or neither") from None
            if not 0 <= segment[0] < segment[1]:
                raise UserError(f"{where}: the segment from {segment[0]} to {segment[1]} s is empty or negative")
        if not is_text(path) and not (file.parent / path).exists():
            raise UserError(f"{where}: {path!r} is not UTF-8, and no file has that name; save the list as UTF-8")
        return VideoRow(
            str(file.parent / path),
            tuple(_to_text(fields[name]) for name in self.labels),
            split,
            _to_text(fields.get("group")),
            segment,
            tuple(_split_classes(fields[name]) for name in self.multi_label),
            tuple(_parse_number(fields[name], f"{where}: {name}") for name in self.targets),
            path,
        )


def _to_text(cell: Any) -> str:
    """Returns a cell as a name, "" for an empty one; 0 and False are names."""
    return "" if cell is None else clean_name(str(cell))


def _split_classes(cell: Any) -> frozenset[str]:
    """Returns the classes of a cell: a list, or text with semicolons."""
    words = cell if isinstance(cell, list) else _to_text(cell).split(";")
    return frozenset(name for word in words if (name := _to_text(word)))


def _parse_number(cell: Any, where: str) -> float:
    try:
        value = float(cell)
    except (TypeError, ValueError):
        value = math.nan
    except OverflowError:
        value = math.inf
    if not abs(value) <= LARGEST:  # also refuses NaN
        shown = repr(cell) if len(repr(cell)) < 60 else f"{repr(cell)[:50]}..."
        raise UserError(f"{where} is {shown}; expected a number from {-LARGEST:.2g} to {LARGEST:.2g} (float32)")
    return value


def _open_split(dataset: Folder | Table, split: str) -> Videos:
    check_split(split)
    splits = dataset.splits()
    if split not in splits:
        raise UserError(
            f"{dataset.path} leaves none of its {sum(map(len, splits.values()))} videos for the {split} split; give "
            f"it videos of its own, or hold out a larger fraction (data.dataset.{split})"
        )
    return splits[split]


def _collect_contents(
    rows: Sequence[VideoRow],
    labels: Sequence[str],
    settings: Folder | Table,
    multi_label: Sequence[str] = (),
    targets: Sequence[str] = (),
    num_classes: Sequence[tuple[str, int]] = (),
    **found: Sequence[str],
) -> Contents:
    """Returns the videos of every split that has some, with their labels as numbers, and their problems."""
    files = identify_files([row.path for row in rows])
    rows = _fill_groups(rows, files)
    splits = assign_splits(rows, settings)

    def examples() -> Iterator[Example]:
        for row, file, split in zip(rows, files, splits, strict=True):
            shown = ", ".join([*row.labels, *(";".join(sorted(names)) for names in row.sets), *map(str, row.values)])
            yield Example(row.path, file, split, row.segment or WHOLE, (row.labels, row.sets, row.values), shown)

    videos = _build_splits(rows, splits, labels, settings, multi_label, targets, num_classes) if rows else {}
    return Contents(videos, find_repeats(examples()), **{name: tuple(lines) for name, lines in found.items()})


def _fill_groups(rows: Sequence[VideoRow], files: Sequence[int]) -> list[VideoRow]:
    """Returns the rows with a group each: that of the row, else of another row of its file, else the file's name."""
    group_of: dict[int, str] = {}
    for row, file in zip(rows, files, strict=True):
        if row.group:
            group_of.setdefault(file, row.group)
    for row, file in zip(rows, files, strict=True):
        group_of.setdefault(file, row.listed)
    return [
        row if row.group else dataclasses.replace(row, group=group_of[file])
        for row, file in zip(rows, files, strict=True)
    ]


def _build_splits(
    rows: Sequence[VideoRow],
    splits: Sequence[str],
    labels: Sequence[str],
    settings: Folder | Table,
    multi_label: Sequence[str],
    targets: Sequence[str],
    num_classes: Sequence[tuple[str, int]],
) -> dict[str, Videos]:
    """Returns the videos of every split that has some, with their labels as numbers."""
    # The names of all splits together, so that a class has one number in all of them.
    names = {label: _sort_names({row.labels[i] for row in rows}) for i, label in enumerate(labels)}
    for label, count in num_classes:
        numbered = tuple(map(str, range(count)))
        if unknown := sorted(set(names[label]) - set(numbered)):
            raise UserError(
                f"{settings.path}: found the {label} {unknown[0]!r}; expected a number from 0 to {count - 1} "
                "(data.dataset.num_classes)"
            )
        names[label] = numbered
    names |= {label: _sort_names({name for row in rows for name in row.sets[i]}) for i, label in enumerate(multi_label)}
    for label in multi_label:
        if not names[label]:
            raise UserError(f"{settings.path}: no row names a class in {label}")
    numbers = {label: {name: i for i, name in enumerate(names[label])} for label in names}
    members: dict[str, list[VideoRow]] = defaultdict(list)
    for row, split in zip(rows, splits, strict=True):
        members[split].append(row)

    def columns(chosen: Sequence[VideoRow]) -> dict[str, tuple[int, ...] | np.ndarray]:
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
    return tuple(sorted(names, key=_number_key))


def _number_key(name: str) -> tuple[bool, int, str]:
    """Returns a key that sorts 2 before 10, and numbers before words."""
    return (not name.isdecimal(), int(name) if name.isdecimal() else 0, name)


def _check_fractions(settings: Folder | Table) -> None:
    fractions = (settings.validation, settings.test)
    if min(fractions) < 0 or sum(fractions) >= 1:
        raise ValueError(
            f"validation is {fractions[0]} and test {fractions[1]}; expected fractions from 0, below 1 in all"
        )
