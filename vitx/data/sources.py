"""Where clips come from: random access to encoded videos and their labels, behind one interface."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np

from vitx.configuration import mutable_on_resume, register
from vitx.data.moving_digits import ClipConfig


@runtime_checkable
class Source(Protocol):
    """Random access to the examples of one split; must pickle, for worker processes."""

    @property
    def label_names(self) -> Mapping[str, tuple[str, ...]]:
        """{label: names of its classes, or of its values}."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        """Returns {"video": bytes of a file, or its path; "labels": {name: label}}; and "segment": (begin, end) in
        seconds from the first frame, where an example is a part of its video.

        A label is the int of a class, or as many floats as it has names: 1 or 0 for each class, or values. One below
        0, or floats that are no numbers (NaN), say that this example has no such label.
        """


@runtime_checkable
class Dataset(Protocol):
    """Settings that name a dataset; opening a split may build it first."""

    def open(self, split: str) -> Source:
        """Returns the source of "train", "validation" or "test"."""


def label_arrays(example: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Returns an example's labels as a batch has them: int32 of a class, float32 [k] of k classes or values."""
    return {name: _typed(label) for name, label in example["labels"].items()}


def _typed(labels: Any) -> np.ndarray:
    labels = np.asarray(labels)
    return labels.astype(np.int32 if labels.dtype.kind in "iu" else np.float32)


def label_columns(source: Source) -> dict[str, np.ndarray]:
    """Returns the labels of all examples, [examples] or [examples, k] each; nothing is decoded.

    A source that keeps its labels apart from its videos says so by a mapping `labels` of such columns.
    """
    if isinstance(there := getattr(source, "labels", None), Mapping):
        return {name: _typed(column) for name, column in there.items()}
    rows = [label_arrays(source[index]) for index in range(len(source))]
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


@register
@dataclasses.dataclass(frozen=True)
class MovingDigits:
    """The embedded dataset: real handwritten digits that move (`vitx.data.moving_digits`).

    Attributes:
        clips: how hard the clips are.
        data_dir: where they are built on first use; None is TFDS's own folder (TFDS_DATA_DIR, ~/tensorflow_datasets).
    """

    clips: ClipConfig = ClipConfig()
    data_dir: str | None = mutable_on_resume(None)

    def open(self, split: str) -> Source:
        from vitx.data import moving_digits_builder  # TFDS takes a second to import

        return moving_digits_builder.load(split, self.clips, data_dir=self.data_dir)
