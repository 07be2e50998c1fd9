"""Checks of labels: every class is one that the dataset names, before anything is learnt from it."""

import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from vitx.data.class_names import find_repeated_names
from vitx.data.sources import Source, example_name, label_columns
from vitx.errors import UserError


def check_labels(source: Source, where: str) -> None:
    """Checks the names and labels of a source, as far as no video has to be read for it.

    A source with a `labels` mapping, or whose examples are paths, is checked as a whole; of another source only the
    first example is checked here, and the others when they are read (`check_example`).

    Args:
        source: examples of a split.
        where: name of the split, for messages.

    Raises:
        UserError: a label is not one of the classes that the source names, or no example has the label.
    """
    if not len(source):
        raise UserError(f"{where} has no examples; expected at least one")
    for label, names in source.label_names.items():
        if repeated := find_repeated_names(names):
            raise UserError(f"{where}: two classes of {label} have the name {repeated[0]!r}; give each its own")
    if isinstance(getattr(source, "labels", None), Mapping):
        _check_columns(source, where)
        return
    first = source[0]
    check_example(source, 0, first["labels"])
    if isinstance(first["video"], str | os.PathLike):
        missing = {label: True for label in source.label_names}
        for index in range(len(source)):
            labels = source[index]["labels"]
            check_example(source, index, labels)
            missing = {label: none and _is_missing(labels[label]) for label, none in missing.items()}
        _check_present(where, missing)


def check_example(source: Source, index: int, labels: Mapping[str, Any]) -> None:
    """Checks the labels of one example.

    Raises:
        UserError: a label is missing, or not one of the classes or values that the source names.
    """
    for label, names in source.label_names.items():
        if label not in labels:
            raise _label_error(source, index, f"it has no label {label}", f"labels {', '.join(source.label_names)}")
        value = labels[label]
        if isinstance(value, str | bool | np.bool_) or np.asarray(value).dtype.kind not in "iuf":
            number = f", which is number {names.index(value)}" if value in names else ""
            raise _label_error(source, index, f"{label} is {value!r}{number}", "the number of a class, or floats")
        _check_value(source, index, label, np.asarray(value))


def _check_columns(source: Source, where: str) -> None:
    missing = {}
    for label, column in label_columns(source).items():
        names = source.label_names[label]
        if len(column) != len(source):
            raise UserError(f"{where} has {len(source)} examples and {len(column)} labels {label}")
        if column.ndim == 1 and column.dtype.kind == "i":
            wrong, missing[label] = column >= len(names), bool((column < 0).all())
        elif column.ndim == 2 and column.shape[1] == len(names):
            wrong, missing[label] = np.isinf(column).any(axis=1), bool(np.isnan(column).all())
        else:
            wrong = np.ones(len(column), bool)
        if wrong.any():
            index = int(wrong.argmax())
            _check_value(source, index, label, column[index])
    _check_present(where, missing)


def _check_value(source: Source, index: int, label: str, value: np.ndarray) -> None:
    names = source.label_names[label]
    if value.dtype.kind == "f":
        if value.shape != (len(names),):
            raise _label_error(source, index, f"{label} is {value.tolist()}", f"a whole number, or {len(names)} floats")
        if np.isinf(value).any():
            raise _label_error(source, index, f"{label} is {value.tolist()}", "finite values, or NaN for none")
    elif value.ndim or value >= len(names):
        raise _label_error(source, index, f"{label} is {value.tolist()}", f"0 to {len(names) - 1}, or below 0 for none")


def _check_present(where: str, missing: Mapping[str, bool]) -> None:
    for label in (label for label, none in missing.items() if none):
        raise UserError(
            f"{where}: no example has the label {label}; expected some with a class of 0 or above, or a value"
        )


def _is_missing(value: Any) -> bool:
    value = np.asarray(value)
    return bool(np.isnan(value).all() if value.dtype.kind == "f" else value < 0)


def _label_error(source: Source, index: int, found: str, expected: str) -> UserError:
    return UserError(f"{example_name(source, index)}: {found}; expected {expected}")
