"""JSON that every parser reads: the only writer of JSON in vitx."""

import json
import math
from collections.abc import Mapping
from typing import Any


def to_strict(data: Any) -> Any:
    """Returns plain data with numbers that are not finite as None, as JavaScript writes them.

    Python writes them as NaN and Infinity, which are no JSON: parsers refuse the whole file.
    """
    import numpy as np  # here, so that the command line starts where NumPy is broken, and can report it

    if isinstance(data, Mapping):
        return {str(name): to_strict(value) for name, value in data.items()}
    if isinstance(data, list | tuple):
        return [to_strict(value) for value in data]
    if isinstance(data, np.generic | np.ndarray):
        return to_strict(data.tolist())
    return None if isinstance(data, float) and not math.isfinite(data) else data


def dumps(data: Any, *, indent: int | None = None) -> str:
    """Returns strictly valid JSON, ASCII alone, of mappings, sequences, NumPy's numbers and what JSON has itself."""
    return json.dumps(to_strict(data), indent=indent, allow_nan=False)
