"""Heads of classifiers: which column of a source's head belongs to which class of a model."""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Int

Names = Mapping[str, tuple[str, ...]]
Columns = Int[np.ndarray, "k"]

# what transformers writes into config.json for classes that were never named
PLACEHOLDER = re.compile(r"LABEL_\d+")


def class_columns(
    source: Any, source_names: Names | None, target: Any, target_names: Names | None
) -> dict[str, Columns]:
    """Returns {path of a head: column of the source's head for each class of the target's, -1 for none}.

    Only of heads whose classes have names on both sides; without names, equal numbers of classes are all there is to
    compare.

    Args:
        source: model of the source, with `num_classes`.
        source_names: {head: names of its classes}, where the source has them.
        target: model to fill.
        target_names: {head: names of its classes}, where they are known.
    """
    old, new = _by_path(source, source_names), _by_path(target, target_names)
    columns = {}
    for head in old.keys() & new.keys():
        places = {name: column for column, name in enumerate(old[head])}
        columns[head] = np.array([places.get(name, -1) for name in new[head]])
    return columns


def _by_path(model: Any, names: Names | None) -> dict[str, tuple[str, ...]]:
    """Returns {path of a head: names of its classes}, of heads whose names tell its classes apart."""
    several = isinstance(getattr(model, "num_classes", None), tuple)
    found = {}
    for head, classes in (names or {}).items():
        if len(set(classes)) == len(classes) and not all(PLACEHOLDER.fullmatch(name) for name in classes):
            found[f"head/{head}" if several else "head/logits"] = tuple(classes)
    return found
