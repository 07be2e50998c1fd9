"""Examples of a dataset with classes numbered as a model has learnt them."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vitx.data.class_names import match_classes
from vitx.data.labels import check_labels
from vitx.data.sources import Dataset, Source, example_name, label_columns


@dataclasses.dataclass(frozen=True)
class AlignedSource:
    """A source whose classes stand in another order.

    Attributes:
        source: the examples.
        label_names: {label: names of its classes}, in the new order.
        numbers: {label: new number of each class}, of labels that change.
    """

    source: Source
    label_names: Mapping[str, tuple[str, ...]]
    numbers: Mapping[str, np.ndarray]

    @property
    def labels(self) -> Mapping[str, np.ndarray]:
        """{label: column of all examples}."""
        return {label: self._renumber(label, column) for label, column in label_columns(self.source).items()}

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user should know about the dataset, a line each."""
        labels = ", ".join(self.numbers)
        same = (f"the classes of {labels} are in another order than the model's: matched by name",) if labels else ()
        return (*getattr(self.source, "notes", ()), *same)

    def __len__(self) -> int:
        return len(self.source)

    def name(self, index: int) -> str:
        """Returns the name of an example in messages."""
        return example_name(self.source, index)

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        example = self.source[index]
        return {**example, "labels": {label: self._renumber(label, x) for label, x in example["labels"].items()}}

    def _renumber(self, label: str, value: Any) -> Any:
        if label not in self.numbers:
            return value
        value, numbers = np.asarray(value), self.numbers[label]
        if value.dtype.kind == "f":  # a column for each class
            moved = np.empty_like(value)
            moved[..., numbers] = value
            return moved
        return np.asarray(np.where(value < 0, np.int32(-1), numbers[value]))


def align_classes(source: Source, expected: Mapping[str, Sequence[str]], where: str, model: str) -> Source:
    """Returns the source with its classes in the order of a model's; the source itself where they already are.

    Args:
        source: examples of a split.
        expected: {label: names of its classes} that the model has learnt.
        where: what the data is, for messages.
        model: what the model is, for messages.

    Raises:
        UserError: the data has other classes than the model; the message has both lists.
    """
    numbers = match_classes(source.label_names, expected, where, model)
    names = {label: tuple(expected.get(label, own)) for label, own in source.label_names.items()}
    if not numbers and names == dict(source.label_names):
        return source
    return AlignedSource(source, names, numbers)


def open_split(
    dataset: Dataset, split: str, expected: Mapping[str, Sequence[str]] | None = None, model: str = ""
) -> Source:
    """Opens a split of a dataset with its labels checked, and its classes in the order of a model's.

    Args:
        dataset: the dataset.
        split: name of the split.
        expected: {label: names of its classes} that a model has learnt; None where nothing is learnt yet.
        model: what the model is, for messages.

    Raises:
        UserError: the split cannot be opened, a label is none of its classes, or the data has other classes.
    """
    source = dataset.open(split)
    check_labels(source, f"the {split} split")
    return source if expected is None else align_classes(source, expected, f"the {split} split", model)
