"""Where clips come from: random access to encoded videos and their labels, behind one interface."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

from vitx.configuration import free, register
from vitx.data.moving_digits import ClipConfig


@runtime_checkable
class Source(Protocol):
    """Random access to the examples of one split; must pickle, for worker processes."""

    @property
    def label_names(self) -> Mapping[str, tuple[str, ...]]:
        """{label: names of its classes}."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        """Returns {"video": bytes of a file, or its path; "labels": {name: int}}; and "segment": (begin, end) in
        seconds from the first frame, where an example is a part of its video."""


@runtime_checkable
class Dataset(Protocol):
    """Settings that name a dataset; opening a split may build it first."""

    def open(self, split: str) -> Source:
        """Returns the source of "train", "validation" or "test"."""


@register
@dataclasses.dataclass(frozen=True)
class MovingDigits:
    """The embedded dataset: real handwritten digits that move (`vitx.data.moving_digits`).

    Attributes:
        clips: how hard the clips are.
        data_dir: where they are built on first use; None is TFDS's own folder (TFDS_DATA_DIR, ~/tensorflow_datasets).
    """

    clips: ClipConfig = ClipConfig()
    data_dir: str | None = free(None)

    def open(self, split: str) -> Source:
        from vitx.data import moving_digits_builder  # TFDS takes a second to import

        return moving_digits_builder.load(split, self.clips, data_dir=self.data_dir)
