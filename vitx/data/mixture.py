"""Several datasets as one, each with a weight in training and with labels of its own."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from vitx.configuration import register
from vitx.data.aligned import open_split
from vitx.data.class_names import clean_name, places_of
from vitx.data.sources import Dataset, Source, example_name, label_arrays, label_columns
from vitx.errors import UserError

MAX_EXAMPLES = 2**27  # examples of an epoch, whose order is drawn in memory


@dataclasses.dataclass(frozen=True)
class MixedVideos:
    """Examples of several sources, one source after the other.

    Attributes:
        sources: source of each dataset.
        counts: examples of each source in an epoch; a source with fewer examples starts again.
        label_names: {label: names} of all labels; a label of several datasets has the classes of all of them.
        missing: {label: value of an example that lacks the label}.
    """

    sources: tuple[Source, ...]
    counts: tuple[int, ...]
    label_names: Mapping[str, tuple[str, ...]]
    missing: Mapping[str, np.ndarray]

    @property
    def labels(self) -> Mapping[str, np.ndarray]:
        """{label: column of all examples}; nothing is decoded."""
        columns: dict[str, list[np.ndarray]] = {label: [] for label in self.label_names}
        for source, count in zip(self.sources, self.counts, strict=True):
            known = label_columns(source)
            for label in self.label_names:
                column = self._renumber(label, source, known[label]) if label in known else self.missing[label][None]
                columns[label].append(column[np.arange(count) % len(column)])
        return {label: np.concatenate(parts) for label, parts in columns.items()}

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user should know about the datasets, a line each."""
        return tuple(note for source in self.sources for note in getattr(source, "notes", ()))

    def __len__(self) -> int:
        return sum(self.counts)

    def name(self, index: int) -> str:
        """Returns the name of an example in messages."""
        source, place = self._locate(index)
        return example_name(source, place)

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        source, place = self._locate(index)
        example = source[place]
        labels = {
            label: self._renumber(label, source, example["labels"][label])
            if label in example["labels"]
            else self.missing[label]
            for label in self.label_names
        }
        return {**example, "labels": labels}

    def _locate(self, index: int) -> tuple[Source, int]:
        """Returns the source of an example, and its index there."""
        # The examples of a source are numbered in order; after its last one it starts again.
        ends = np.cumsum(self.counts)
        which = int(np.searchsorted(ends, index, side="right"))
        source = self.sources[which]
        return source, (index - int(ends[which]) + self.counts[which]) % len(source)

    def _renumber(self, label: str, source: Source, value: Any) -> np.ndarray:
        """Returns the classes of one source's label, numbered as among the classes of all sources."""
        value, names = np.asarray(value), self.label_names[label]
        if value.dtype.kind == "f" or source.label_names[label] == names:
            return value
        numbers = places_of(names, source.label_names[label])
        return np.asarray(np.where(value < 0, np.int32(-1), numbers[value]))


@register
@dataclasses.dataclass(frozen=True)
class Mixture:
    """Several datasets; a model has a head for each of their labels.

    A training epoch has each dataset in proportion to its weight: every example at least once, and those of small
    datasets several times, each time with its own augmentation. Evaluation reads every example of all datasets once. An
    example of one dataset lacks the labels of the others (-1, NaN): only the heads of its own labels learn from it
    and are evaluated on it.

    Attributes:
        datasets: the datasets to mix.
        weights: proportion of each dataset in training, in any unit; () weights datasets by their size.
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
            UserError: a dataset cannot be opened, labels contradict each other, or weights are too uneven.
        """
        sources = tuple(open_split(dataset, split) for dataset in self.datasets)
        sizes = tuple(map(len, sources))
        if split == "train" and self.weights:
            # The dataset that is sampled most sparsely sets the length of the epoch: each of its examples comes once.
            epoch = max(size / weight for size, weight in zip(sizes, self.weights, strict=True))
            counts = tuple(max(round(weight * epoch), size) for weight, size in zip(self.weights, sizes, strict=True))
            if sum(counts) > MAX_EXAMPLES:
                raise UserError(
                    f"with weights {self.weights} and {sizes} videos an epoch in which every video comes has "
                    f"{sum(counts):,} examples; expected at most {MAX_EXAMPLES:,} (data.dataset.weights)"
                )
        else:
            counts = sizes
        return MixedVideos(sources, counts, *_merge_labels(sources))


def _merge_labels(sources: tuple[Source, ...]) -> tuple[dict[str, tuple[str, ...]], dict[str, np.ndarray]]:
    """Returns the names of all labels, and the values of examples that lack them."""
    names: dict[str, tuple[str, ...]] = {}
    missing: dict[str, np.ndarray] = {}
    for source in sources:
        for label, value in label_arrays(source[0]).items():
            empty = np.full_like(value, np.nan if value.dtype.kind == "f" else -1)
            own, known = source.label_names[label], names.get(label, ())
            if label in names and (missing[label].ndim != value.ndim or (value.ndim and own != known)):
                raise UserError(
                    f"two datasets have different labels {label}: {', '.join(known)[:80]} and {', '.join(own)[:80]}; "
                    "give one of them another name"
                )
            # Spellings of one class in two datasets are one class, under the name that the first gives it.
            spelled = {clean_name(name): name for name in reversed((*known, *own))}
            names[label] = tuple(dict.fromkeys(spelled[clean_name(name)] for name in (*known, *own)))
            missing[label] = empty
    return names, missing
