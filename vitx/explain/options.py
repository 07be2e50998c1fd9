"""Checks of the options of methods: their names and their numbers."""

import inspect
import math
import numbers
from collections.abc import Callable, Mapping
from typing import Any

from vitx.errors import UserError, did_you_mean


def option_defaults(explain: Callable[..., Any]) -> dict[str, Any]:
    """Returns {name: default} of the options of a method: its keyword-only arguments."""
    parameters = inspect.signature(explain).parameters.values()
    return {parameter.name: parameter.default for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY}


def is_whole_number(value: Any) -> bool:
    """Returns whether a value is an integer, and neither True nor False."""
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def _is_finite(value: Any) -> bool:
    try:
        return (is_whole_number(value) or isinstance(value, float)) and math.isfinite(float(value))
    except OverflowError:  # a whole number that no float can hold
        return False


def check_options(method: str, explain: Callable[..., Any], given: Mapping[str, Any]) -> None:
    """Raises UserError for an option that a method lacks, or for a value that is no number where one belongs."""
    defaults = option_defaults(explain)
    for name, value in given.items():
        if name not in defaults:
            expected = f"one of {', '.join(defaults)}{did_you_mean(name, defaults)}" if defaults else "none"
            raise UserError(f"{name} is no option of {method}; expected {expected}")
        if isinstance(defaults[name], int | float) and not _is_finite(value):
            raise UserError(f"{name} is {value!r}; expected a finite number, such as {defaults[name]}")


def check_counts(minimum: int = 1, /, **counts: Any) -> None:
    """Raises UserError unless all are whole numbers of at least a minimum."""
    for name, count in counts.items():
        if not is_whole_number(count) or count < minimum:
            raise UserError(f"{name} is {count!r}; expected a whole number of at least {minimum}")


def check_positive(**numbers: Any) -> None:
    """Raises UserError unless all are above 0."""
    for name, number in numbers.items():
        if not number > 0:
            raise UserError(f"{name} is {number!r}; expected a number above 0")
