"""Files that are the same: one path written in two ways, links, and copies; and what follows for labels and splits."""

import contextlib
import dataclasses
import hashlib
import os
import stat
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any

from vitx.errors import UserError
from vitx.limits import open_regular

Interval = tuple[float, float]  # (begin, end) in seconds

MAX_SIZES = 1_000  # files whose sizes enter a fingerprint
MAX_COMPARED = 10_000  # files whose contents are compared; for more, a network disk would take minutes
HEAD = 2**16  # bytes at the beginning and the end of files of one size that are compared first


def identify_files(paths: Sequence[str]) -> list[int]:
    """Returns for each path the index of the first path of the same file: by path, by link, or with the same content.

    Files that cannot be read are the same as none; empty files have no content to compare. Of more than MAX_COMPARED
    different paths only the paths are compared.
    """
    first: dict[Hashable, int] = {}
    texts = [os.path.abspath(path) for path in paths]
    same = [first.setdefault(text, i) for i, text in enumerate(texts)]
    distinct = sorted(set(same))
    if len(distinct) > MAX_COMPARED:
        return same
    sizes: dict[int, list[int]] = defaultdict(list)
    merged = {}
    for i in distinct:
        try:
            status = os.stat(texts[i])
        except OSError:
            continue
        merged[i] = first.setdefault((status.st_dev, status.st_ino), i)
        if merged[i] == i and stat.S_ISREG(status.st_mode) and status.st_size:
            sizes[status.st_size].append(i)
    for members in sizes.values():
        # The whole of a file is read only where its size, beginning and end are those of another.
        for ends in _group_by(members, lambda i: _digest(texts[i], ends_only=True)):
            for copies in _group_by(ends, lambda i: _digest(texts[i], ends_only=False)):
                merged |= dict.fromkeys(copies, copies[0])
    # A link may lead to a file that turned out to be a copy.
    return [merged.get(merged.get(i, i), i) for i in same]


def _group_by(members: Sequence[int], key: Callable[[int], bytes | None]) -> list[list[int]]:
    """Returns the groups of more than one member with the same key; members whose key is None are in none."""
    groups = defaultdict(list)
    for member in members if len(members) > 1 else ():
        if (value := key(member)) is not None:
            groups[value].append(member)
    return [group for group in groups.values() if len(group) > 1]


def _digest(path: str, *, ends_only: bool) -> bytes | None:
    try:
        with open_regular(path) as file:
            if not ends_only:
                return hashlib.file_digest(file, "sha256").digest()
            head = file.read(HEAD)
            file.seek(max(os.fstat(file.fileno()).st_size - HEAD, 0))
            return hashlib.sha256(head + file.read(HEAD)).digest()
    except (OSError, UserError):
        return None


def fingerprint(source: Any) -> str:
    """Returns a digest of the videos' names below their common folder, which is the same wherever the videos lie.

    The sizes of some files enter it too, since other videos may have the same numbers as names.

    Args:
        source: examples, in any order of their classes; where they have no names, only their number is known.
    """
    source = getattr(source, "source", source)  # of one whose classes have another order
    names = sorted({source.name(index) for index in range(len(source))}) if hasattr(source, "name") else []
    folder = ""
    with contextlib.suppress(ValueError):  # relative and absolute paths have no common folder
        folder = os.path.commonpath([os.path.dirname(name) for name in names])
    sized = names[:: max(len(names) // MAX_SIZES, 1)] if hasattr(source, "paths") else []
    sizes = {}
    for name in sized:
        with contextlib.suppress(OSError):
            sizes[name] = os.stat(name).st_size
    lines = [f"{name.removeprefix(folder)}\0{sizes.get(name, '')}\n" for name in names]
    return hashlib.sha256("".join([f"{len(source)}\n", *lines]).encode("utf-8", "surrogatepass")).hexdigest()


@dataclasses.dataclass(frozen=True)
class Example:
    """One example of a split, as far as it matters whether two are the same.

    Attributes:
        name: name in messages, the path of its file.
        file: key that is equal for the same file.
        split: split that it is in.
        segment: (begin, end) in seconds.
        labels: labels of the example, in a form that can be compared.
        shown: labels of the example as text, for messages.
    """

    name: str
    file: Hashable
    split: str
    segment: Interval
    labels: Hashable
    shown: str = ""


@dataclasses.dataclass(frozen=True)
class Repeats:
    """Files that are in several examples.

    Attributes:
        contradictions: the same file, or segment of it, with different labels, a line each.
        leaks: (names of the same file, splits), where those splits have the same part of it.
        num_repeated: examples of the same file, or segment of it, as one before them.
    """

    contradictions: tuple[str, ...]
    leaks: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...]
    num_repeated: int

    def describe_leaks(self) -> list[str]:
        """Returns a line for each leak."""
        return [f"{' = '.join(names)} is in {' and in '.join(splits)}" for names, splits in self.leaks]

    def describe_repeated(self) -> list[str]:
        """Returns a line if examples are repeated: each counts as often as it occurs, in training and metrics."""
        line = f"{self.num_repeated} videos repeat others: they are listed twice, copied or linked"
        return [line] if self.num_repeated else []


def find_repeats(examples: Iterable[Example]) -> Repeats:
    """Returns the files that are in several examples, with contradictions and leaks."""
    by_file: dict[Hashable, list[Example]] = defaultdict(list)
    for example in examples:
        by_file[example.file].append(example)
    contradictions, leaks, num_repeated = [], [], 0
    for members in by_file.values():
        if len(members) == 1:
            continue
        names = tuple(sorted({example.name for example in members}))
        first: dict[Interval, Example] = {}
        for example in members:
            other = first.setdefault(example.segment, example)
            if other.labels != example.labels:
                same = "is listed as" if other.name == example.name else f"is {other.shown}, its copy {example.name} is"
                both = f"{other.shown} and as {example.shown}" if other.name == example.name else example.shown
                contradictions.append(f"{other.name} {same} {both}")
        if splits := _find_overlapping_splits(members):
            leaks.append((names, splits))
        num_repeated += len(members) - len(first)
    return Repeats(tuple(contradictions), tuple(leaks), num_repeated)


def _find_overlapping_splits(members: Sequence[Example]) -> tuple[str, ...]:
    """Returns the splits of one file's examples whose segments overlap those of another split."""
    ends: dict[str, float] = {}
    found: dict[str, None] = {}
    for example in sorted(members, key=lambda example: example.segment):
        for split, end in ends.items():
            if split != example.split and example.segment[0] < end:
                found |= {split: None, example.split: None}
        ends[example.split] = max(example.segment[1], ends.get(example.split, 0.0))
    return tuple(found)
