"""Several datasets as one: each gives its share of the training examples, and its own labels."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from vitx.configuration import register
from vitx.data.sources import Dataset, Source, label_arrays, label_columns
from vitx.errors import UserError

MAX_EXAMPLES = 2**27  # of an epoch, whose order is drawn in memory


@dataclasses.dataclass(frozen=True)
class MixedVideos:
    """One source after the other, each as often as its share of an epoch asks.

    Attributes:
        sources: of each dataset.
        counts: examples of each; a source that has fewer is gone through again.
        label_names: {label: names} of all labels; classes of one label in several datasets are brought together.
        missing: {label: what says that an example has no such label}.
    """

    sources: tuple[Source, ...]
    counts: tuple[int, ...]
    label_names: Mapping[str, tuple[str, ...]]
    missing: Mapping[str, np.ndarray]

    @property
    def labels(self) -> Mapping[str, np.ndarray]:
        """{label: of each example}; nothing is decoded."""
        columns: dict[str, list[np.ndarray]] = {label: [] for label in self.label_names}
        for source, count in zip(self.sources, self.counts, strict=True):
            there = label_columns(source)
            for label in self.label_names:
                column = self._renamed(label, source, there[label]) if label in there else self.missing[label][None]
                columns[label].append(column[np.arange(count) % len(column)])
        return {label: np.concatenate(parts) for label, parts in columns.items()}

    def __len__(self) -> int:
        return sum(self.counts)

    def name(self, index: int) -> str:
        """Returns what an example is called where people are told of it."""
        source, place = self._place(index)
        return source.name(place)

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        source, place = self._place(index)
        example = source[place]
        labels = {
            label: self._renamed(label, source, example["labels"][label])
            if label in example["labels"]
            else self.missing[label]
            for label in self.label_names
        }
        return {**example, "labels": labels}

    def _place(self, index: int) -> tuple[Source, int]:
        ends = np.cumsum(self.counts)
        which = int(np.searchsorted(ends, index, side="right"))
        source = self.sources[which]
        return source, (index - int(ends[which]) + self.counts[which]) % len(source)

    def _renamed(self, label: str, source: Source, value: Any) -> np.ndarray:
        """The classes of one source's label by their numbers among all."""
        value, names = np.asarray(value), self.label_names[label]
        if value.dtype.kind == "f" or source.label_names[label] == names:
            return value
        numbers = np.array([names.index(name) for name in source.label_names[label]], np.int32)
        return np.asarray(np.where(value < 0, np.int32(-1), numbers[value]))


@register
@dataclasses.dataclass(frozen=True)
class Mixture:
    """Several datasets; a model has a head for each of their labels.

    In training a dataset gives its share of every epoch, in which every example comes at least once and those of small
    datasets several times, varied anew each time. Evaluation goes over every example of all, once. An example of one
    dataset has no labels of the others (-1, NaN): it teaches, and is measured by, the heads of its own.

    Attributes:
        datasets: to be mixed.
        weights: how much of the training examples each gives, in any unit; () gives each its size.
    """

    datasets: tuple[Dataset, ...]
    weights: tuple[float, ...] = ()

    def __post_init__(self):
        if not self.datasets:
            raise ValueError("datasets is empty; expected at least one")
        if self.weights and (len(self.weights) != len(self.datasets) or min(self.weights) <= 0):
            raise ValueError(
                f"weights are {self.weights}; expected a number above 0 for each of {len(self.datasets)} datasets"
            )

    def open(self, split: str) -> Source:
        """Returns the examples of a split, of all datasets.

        Raises:
            UserError: a dataset cannot be opened, their labels contradict each other, or weights are too uneven.
        """
        sources = tuple(dataset.open(split) for dataset in self.datasets)
        sizes = tuple(map(len, sources))
        if split == "train" and self.weights:
            epoch = max(size / weight for size, weight in zip(sizes, self.weights, strict=True))
            counts = tuple(max(round(weight * epoch), size) for weight, size in zip(self.weights, sizes, strict=True))
            if sum(counts) > MAX_EXAMPLES:
                raise UserError(
                    f"with weights {self.weights} and {sizes} videos an epoch has {sum(counts):,} examples, until each "
                    f"came once; expected at most {MAX_EXAMPLES:,} (data.dataset.weights)"
                )
        else:
            counts = sizes
        return MixedVideos(sources, counts, *_merged(sources))


def _merged(sources: tuple[Source, ...]) -> tuple[dict[str, tuple[str, ...]], dict[str, np.ndarray]]:
    """Returns the names of all labels, and what says that one is missing."""
    names: dict[str, tuple[str, ...]] = {}
    missing: dict[str, np.ndarray] = {}
    for source in sources:
        for label, value in label_arrays(source[0]).items():
            nothing = np.full_like(value, np.nan if value.dtype.kind == "f" else -1)
            own, known = source.label_names[label], names.get(label, ())
            if label in names and (missing[label].ndim != value.ndim or (value.ndim and own != known)):
                raise UserError(
                    f"two datasets have a label {label} that is not the same: {', '.join(known)[:80]} and "
                    f"{', '.join(own)[:80]}; give one of them another name"
                )
            names[label], missing[label] = tuple(dict.fromkeys((*known, *own))), nothing
    return names, missing
