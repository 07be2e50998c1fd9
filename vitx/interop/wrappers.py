"""Removal of prefixes and dictionaries that training scripts and wrappers put around the weights of a model.

A name is a path through nested dictionaries, joined by "/", and then the tensor's own name: "model/module.fc.weight".
"""

import dataclasses
import re
from collections.abc import Callable, Mapping

import numpy as np

from vitx.interop.names import Tensors

MAX_DEPTH = 8
WORDS = (
    *("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module", "model"),
    *("state_dict", "model_state", "model_state_dict", "net", "network", "backbone", "student", "teacher", "ema"),
)
"""Names that wrap a model: torch's DataParallel, compile and FSDP, Lightning, DeepSpeed, and training scripts."""

INNER = re.compile(r"(?<=\.)(?:module|_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
"""Wrappers of a part of a model, within a name."""

FIRST_PART = re.compile(r"[^/]*/|[^.]*\.")
"""A key of a dictionary, which may have dots in it; in a name without a slash, what precedes the first dot."""

AVERAGED = re.compile(r"(^|_)(ema|swa|averaged|teacher)(_|$)")
TRAINING = re.compile(r"optim|scheduler|scaler|exp_avg|momentum|criterion|loss")
"""Dictionaries that have the names of parameters and hold something else."""


@dataclasses.dataclass(frozen=True)
class Unwrapped:
    """Weights without prefixes and dictionaries around them.

    Attributes:
        tensors: tensors by their own names.
        left_over: names of the other tensors.
        note: message about what was removed; "" where nothing was.
    """

    tensors: Tensors
    left_over: tuple[str, ...] = ()
    note: str = ""


def unwrap(tensors: Mapping[str, np.ndarray], fits: Callable[[Tensors], bool]) -> Unwrapped:
    """Returns the weights among tensors: without the prefix, and from the dictionary, with which they fit a format.

    Plain weights are preferred to averaged ones where both fit. Tensors that fit in no way are returned as they are.

    Args:
        tensors: tensors by name.
        fits: returns whether tensors have the names of a known format.
    """
    found = _find(dict(tensors), "", fits)
    if found is None:
        return Unwrapped(dict(tensors))
    prefix, inner, others = found
    cleaned = {INNER.sub("", name): x for name, x in inner.items()}
    notes = []
    if prefix:
        notes.append(f"took the tensors under {prefix!r}, and removed that prefix")
    if others:
        notes.append(f"left out {', '.join(map(repr, others))}, which fit too")
    if len(cleaned) == len(inner) and cleaned.keys() != inner.keys():
        notes.append("removed names of wrappers within names, such as " + _find_first_removed(inner))
        inner = cleaned
    return Unwrapped(inner, tuple(name for name in tensors if not name.startswith(prefix)), "; ".join(notes))


def _find(tensors: Tensors, prefix: str, fits: Callable[[Tensors], bool]) -> tuple[str, Tensors, list[str]] | None:
    """Returns (prefix, tensors behind it, prefixes of others that fit), or None where nothing fits."""
    parts = _split_by_first_part(tensors) if prefix.count(".") + prefix.count("/") < MAX_DEPTH else {}
    wrappers = {part: inner for part, inner in parts.items() if part.endswith("/") or part[:-1] in WORDS}
    # A dictionary or wrapper first; behind other prefixes, such as an attribute of somebody's module, last.
    if found := _find_behind(wrappers, prefix, fits):
        return found
    if fits({INNER.sub("", name): x for name, x in tensors.items()}):
        return prefix, tensors, []
    return _find_behind({part: inner for part, inner in parts.items() if part not in wrappers}, prefix, fits)


def _find_behind(
    parts: Mapping[str, Tensors], prefix: str, fits: Callable[[Tensors], bool]
) -> tuple[str, Tensors, list[str]] | None:
    """Returns what `_find` returns of the first part that fits, plain weights before averaged ones."""
    ordered = sorted(parts, key=lambda part: AVERAGED.search(part[:-1]) is not None)
    found = [result for part in ordered if (result := _find(parts[part], prefix + part, fits))]
    if not found:
        return None
    first, inner, others = found[0]
    return first, inner, others + [other for other, _, _ in found[1:]]


def _split_by_first_part(tensors: Tensors) -> dict[str, Tensors]:
    """Returns {first part of the names, with its separator: tensors}, without the state of the training."""
    parts: dict[str, Tensors] = {}
    for name, x in tensors.items():
        if first := FIRST_PART.match(name):
            parts.setdefault(first[0], {})[name[first.end() :]] = x
    return {part: inner for part, inner in parts.items() if not TRAINING.search(part)}


def _find_first_removed(names: Mapping[str, np.ndarray]) -> str:
    return next(repr(match[0]) for name in names if (match := INNER.search(name)))
