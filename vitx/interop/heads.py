"""Heads of classifiers: which column of a source's head belongs to which class of a model."""

import re
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
from jaxtyping import Int

from vitx.data.class_names import clean_name, find_repeated_names, places_of

Names = Mapping[str, tuple[str, ...]]
Columns = Int[np.ndarray, "k"]

# Names that transformers writes into config.json for classes without names.
PLACEHOLDER = re.compile(r"LABEL_\d+")


def class_columns(
    source: Any, source_names: Names | None, target: Any, target_names: Names | None
) -> dict[str, Columns]:
    """Returns {path of a head: column of the source's head for each class of the target's, -1 for none}.

    Heads are left out unless their classes have names on both sides: without names, only the numbers of classes can be
    compared.

    Args:
        source: model of the source, with `num_classes`.
        source_names: {head: names of its classes}, where the source has them.
        target: model to fill.
        target_names: {head: names of its classes}, where they are known.
    """
    old, new = _names_by_path(source, source_names), _names_by_path(target, target_names)
    return {head: places_of(old[head], new[head]) for head in old.keys() & new.keys()}


def class_notes(
    source: Any, source_names: Names | None, target: Any, target_names: Names | None, loaded: Collection[str]
) -> list[str]:
    """Returns notes about classes that are not matched by name, a line each.

    Args:
        source: model of the source, with `num_classes`.
        source_names: {head: names of its classes}, where the source has them.
        target: model that was filled.
        target_names: {head: names of its classes}, where they are known.
        loaded: our paths that the source has given.
    """
    old, new, notes = _names_by_path(source, source_names), _names_by_path(target, target_names), []
    for head, names in new.items():
        if head not in old and f"{head}/kernel" in loaded:
            notes.append(
                f"{head}: the source does not name its classes; they are taken in its order, the first for {names[0]}"
            )
        if repeated := sorted({*find_repeated_names(old.get(head, ()))} & {*map(clean_name, names)}):
            notes.append(
                f"{head}: several classes of the source have one name, and none is taken: {', '.join(repeated)}"
            )
        found = {*map(clean_name, old.get(head, ()))}
        if absent := [name for name in names if found and clean_name(name) not in found]:
            notes.append(f"{head}: the source has no {', '.join(absent[:6])}{' and others' * (len(absent) > 6)}")
    return notes


def _names_by_path(model: Any, names: Names | None) -> dict[str, tuple[str, ...]]:
    """Returns {path of a head: names of its classes}, of heads whose classes were ever named."""
    several = isinstance(getattr(model, "num_classes", None), tuple)
    found = {}
    for head, classes in (names or {}).items():
        if not all(PLACEHOLDER.fullmatch(name) for name in classes):
            found[f"head/{head}" if several else "head/logits"] = tuple(classes)
    return found
