"""Datasets: random access to encoded videos and their labels, behind one interface."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np

from vitx.configuration import register, setting
from vitx.data.moving_digits import ClipConfig
from vitx.errors import UserError

SPLITS = ("train", "validation", "test")


def check_split(split: str) -> None:
    """Raises UserError for anything but the name of a split."""
    if split not in SPLITS:
        raise UserError(f"found the split {split!r}; expected {', '.join(SPLITS)}")


@runtime_checkable
class Source(Protocol):
    """Random access to the examples of one split; must pickle, for worker processes.

    A source may also have `name(index)`, the name of an example in messages, and `labels`, a mapping of label columns
    that are known without opening a video.
    """

    @property
    def label_names(self) -> Mapping[str, tuple[str, ...]]:
        """{label: names of its classes, or of its values}."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        """Returns an example: {"video": bytes of a file or its path, "labels": {name: label}}.

        An example that is a part of its video also has "segment": (begin, end) in seconds from the first frame.

        A label is the int of a class, or as many floats as it has names: 1 or 0 for each class, or values. An int below
        0 and floats that are NaN mean that the example lacks that label.
        """


@runtime_checkable
class Dataset(Protocol):
    """Settings that name a dataset; opening a split may build it first."""

    def open(self, split: str) -> Source:
        """Returns the source of "train", "validation" or "test"."""


def example_name(source: Source, index: int) -> str:
    """Returns the name of an example in messages: its file where the source names one."""
    return source.name(index) if hasattr(source, "name") else f"example {index}"


def label_arrays(example: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Returns an example's labels as a batch has them: int32 of a class, float32 [k] of k classes or values."""
    return {name: _to_array(label) for name, label in example["labels"].items()}


def label_columns(source: Source) -> dict[str, np.ndarray]:
    """Returns the labels of all examples, [examples] or [examples, k] each; nothing is decoded.

    They are the source's `labels` where it has such a mapping; otherwise every example is read.
    """
    if isinstance(columns := getattr(source, "labels", None), Mapping):
        return {name: _to_array(column) for name, column in columns.items()}
    rows = [label_arrays(source[index]) for index in range(len(source))]
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


def _to_array(labels: Any) -> np.ndarray:
    labels = np.asarray(labels)
    return labels.astype(np.int32 if labels.dtype.kind in "iu" else np.float32)


@register
@dataclasses.dataclass(frozen=True)
class MovingDigits:
    """The embedded dataset: real handwritten digits that move (see `vitx.data.moving_digits`).

    Attributes:
        clips: difficulty and number of the clips.
        data_dir: folder in which they are built at first use; None is TFDS's own (TFDS_DATA_DIR,
            ~/tensorflow_datasets).
    """

    clips: ClipConfig = ClipConfig()
    data_dir: str | None = setting(None, mutable_on_resume=True, is_path=True)

    def open(self, split: str) -> Source:
        from vitx.data import moving_digits_builder  # importing TFDS takes a second

        return moving_digits_builder.load(split, self.clips, data_dir=self.data_dir)
