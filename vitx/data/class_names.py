"""Names of classes: when two names are the same, and how lists of names are compared."""

import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from jaxtyping import Int

from vitx.errors import UserError

ZERO_WIDTH = "\u200b\u200e\u200f\u2060\ufeff"  # characters that come with copied text and joined files
MAX_NAMES = 12  # names in a message


def clean_name(name: str) -> str:
    """Returns a name without surrounding spaces and in Unicode's composed form (NFC).

    File systems and editors write "é" as one character or as two; nobody can see the difference, nor trailing spaces
    and byte order marks.
    """
    return unicodedata.normalize("NFC", name).strip().strip(ZERO_WIDTH).strip()


def is_text(name: str) -> bool:
    """Returns whether a name is text: a file name that is not UTF-8 has lone surrogates in Python."""
    return not any("\ud800" <= character <= "\udfff" for character in name)


def places_of(names: Sequence[str], wanted: Sequence[str]) -> Int[np.ndarray, "k"]:
    """Returns the index in `names` of each wanted name, -1 for a name that is missing or occurs twice."""
    places: dict[str, list[int]] = defaultdict(list)
    for place, name in enumerate(names):
        places[clean_name(name)].append(place)
    found = [places[clean_name(name)] for name in wanted]
    return np.array([indices[0] if len(indices) == 1 else -1 for indices in found], np.int32)


def find_repeated_names(names: Iterable[str]) -> list[str]:
    """Returns the names that occur more than once, each once."""
    counts: dict[str, int] = defaultdict(int)
    for name in names:
        counts[clean_name(name)] += 1
    return [name for name, count in counts.items() if count > 1]


def number_duplicates(names: Sequence[str]) -> tuple[str, ...]:
    """Returns the names with the number of the class behind those that occur more than once."""
    repeated = set(find_repeated_names(names))
    return tuple(f"{name} ({i})" if clean_name(name) in repeated else name for i, name in enumerate(names))


def find_case_variants(names: Iterable[str]) -> list[tuple[str, ...]]:
    """Returns the groups of names that differ in upper and lower case alone: perhaps one class, written twice."""
    groups: dict[str, list[str]] = defaultdict(list)
    for name in names:
        groups[name.casefold()].append(name)
    return [tuple(group) for group in groups.values() if len(group) > 1]


def match_classes(
    found: Mapping[str, Sequence[str]], expected: Mapping[str, Sequence[str]], where: str, model: str
) -> dict[str, Int[np.ndarray, "k"]]:
    """Returns {label: number in `expected` of each class in `found`}, of labels whose classes have another order.

    Args:
        found: {label: names of its classes} in the data.
        expected: {label: names of its classes} that the model has learnt.
        where: what the data is, for messages.
        model: what the model is, for messages.

    Raises:
        UserError: a label is missing in the data, or has other classes there; the message has both lists.
    """
    numbers = {}
    for label, names in expected.items():
        if label not in found:
            raise UserError(
                f"{where} has no label {label}; {model} has learnt {label}, the data has {', '.join(found)}"
            )
        if [*map(clean_name, found[label])] == [*map(clean_name, names)]:
            continue
        places = places_of(names, found[label])
        if len(names) != len(found[label]) or (places < 0).any() or len(set(places.tolist())) < len(names):
            ours, theirs = set(map(clean_name, found[label])), set(map(clean_name, names))
            raise UserError(
                f"{label} has other classes than {model}; give the data the classes that the model has learnt, or "
                "train a new run",
                [f"{where}: {_format_names(found[label], theirs)}", f"{model}: {_format_names(names, ours)}"],
            )
        numbers[label] = places
    return numbers


def _format_names(names: Sequence[str], others: set[str]) -> str:
    """Returns names as text; where there are too many, those that the other side lacks come first."""
    if len(names) > MAX_NAMES:
        names = sorted(names, key=lambda name: clean_name(name) in others)
    more = f" and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else ""
    return f"{len(names)} classes: {', '.join(names[:MAX_NAMES])}{more}"
