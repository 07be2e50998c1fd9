"""Splits of custom videos: their usual names, and how missing splits are drawn."""

import dataclasses
import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Protocol, runtime_checkable

from vitx.data.class_names import clean_name
from vitx.data.sources import SPLITS

USUAL_NAMES: Mapping[str, str] = MappingProxyType(
    {name: name for name in SPLITS}
    | dict.fromkeys(("training", "trn"), "train")
    | dict.fromkeys(("val", "valid", "dev", "development"), "validation")
    | dict.fromkeys(("testing", "tst"), "test")
)
"""{name of a split in lower case, as people write it: its name here}."""


def find_split(name: str) -> str | None:
    """Returns the split that a folder or a cell names, in upper or lower case, or None."""
    return USUAL_NAMES.get(clean_name(name).casefold())


@runtime_checkable
class Fractions(Protocol):
    """Settings of a draw: fractions of the videos held out where no split is given, and its seed."""

    validation: float
    test: float
    seed: int


@dataclasses.dataclass(frozen=True)
class VideoRow:
    """One video of a folder or a table.

    Attributes:
        path: path of the file.
        labels: class of each label.
        split: split that the folder or the table gives it, or None.
        group: name of the videos that stay in one split; "" for none.
        segment: (begin, end) in seconds, or None for the whole video.
        sets: classes of each label that has any number of them.
        values: numbers to predict.
        listed: path as the list has it.
    """

    path: str
    labels: tuple[str, ...]
    split: str | None
    group: str
    segment: tuple[float, float] | None = None
    sets: tuple[frozenset[str], ...] = ()
    values: tuple[float, ...] = ()
    listed: str = ""


def assign_splits(rows: Sequence[VideoRow], settings: Fractions) -> list[str]:
    """Returns the split of every row: its own, or one drawn for its group.

    The groups of each class stand on a line from 0 to 1 at even distances, in the order of a hash of their names. Those
    below `test` are held out for the test, the next below `test` + `validation` for validation. A video that is added
    later shifts the others of its class a little, so that few change their split.
    """
    present = {row.split for row in rows}
    fractions = {name: getattr(settings, name) for name in ("test", "validation") if name not in present}
    groups: dict[str, list[VideoRow]] = defaultdict(list)
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


def _stratify(groups: Mapping[str, list[VideoRow]], order: Iterable[str]) -> dict[str, list[str]]:
    """Returns {class of the first label: its groups in order}; "" has the groups of all classes of one or two groups.

    A group of several classes belongs to its most frequent one.
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
    # Groups are held out from the front of a line. The second groups of classes come first: the first stay in training.
    lines[""].sort(key=lambda group: -occurrence[group])
    return {name: line for name, line in lines.items() if line}


def _keep_classes_in_training(groups: Mapping[str, list[VideoRow]], split_of: dict[str, str]) -> None:
    """Moves the last group of each class that training lacks into training.

    Classes of further labels that one group alone has, such as rare actions of a verb and a noun, may be missing.
    """
    members: dict[tuple[int, str], list[str]] = defaultdict(list)
    for group in split_of:
        for kind in dict.fromkeys(kind for row in groups[group] for kind in _classes_of(row)):
            members[kind].append(group)
    for (label, _), class_groups in sorted(members.items()):
        if (label == 0 or len(class_groups) > 1) and all(split_of[group] != "train" for group in class_groups):
            split_of[class_groups[-1]] = "train"


def _classes_of(row: VideoRow) -> list[tuple[int, str]]:
    """Returns the classes of a row, each with the number of its label."""
    labels = [(name,) for name in row.labels] + [sorted(names) for names in row.sets]
    return [(label, name) for label, names in enumerate(labels) for name in names]


def _unit_hash(*parts: int | str) -> float:
    """Returns a number in [0, 1) that is a function of the parts alone."""
    digest = hashlib.sha256(" ".join(map(str, parts)).encode("utf-8", "surrogateescape")).digest()
    return int.from_bytes(digest[:6]) / 2**48
