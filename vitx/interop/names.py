"""Names of our parameters in other libraries: tables of rules that work in both directions.

A rule pairs a module's name in the other library with its path here, and converts its tensors. {i} is the number of a
block.
"""

import dataclasses
import functools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from vitx.errors import UserError

Tensors = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Kind:
    """How one kind of module names and lays out its tensors, in the other library and here.

    Attributes:
        leaves: (suffix of the library's name, suffix of our path, conversion to ours, conversion to theirs) of each
            tensor; "" is no suffix.
    """

    leaves: tuple[tuple[str, str, Callable[..., np.ndarray], Callable[..., np.ndarray]], ...]


def _identity(x: np.ndarray) -> np.ndarray:
    return x


def _transpose(x: np.ndarray) -> np.ndarray:
    return x.T


BIAS = ("bias", "bias", _identity, _identity)
PLAIN = Kind((("", "", _identity, _identity),))
DENSE = Kind((("weight", "kernel", _transpose, _transpose), BIAS))
NORM = Kind((("weight", "scale", _identity, _identity), BIAS))
BATCH_NORM = Kind(
    (*NORM.leaves, ("running_mean", "mean", _identity, _identity), ("running_var", "var", _identity, _identity))
)
# PyTorch [width, channels, t, h, w], ours [t, h, w, channels, width]
CONVOLUTION = Kind(
    (("weight", "kernel", lambda x: x.transpose(2, 3, 4, 1, 0), lambda x: x.transpose(4, 3, 0, 1, 2)), BIAS)
)
POINTWISE = Kind((("weight", "kernel", lambda x: x[:, :, 0, 0, 0].T, lambda x: x.T[:, :, None, None, None]), BIAS))
# PyTorch [width, channels, h, w], ours of one frame, [1, h, w, channels, width]
CONVOLUTION_2D = Kind(
    (("weight", "kernel", lambda x: x.transpose(2, 3, 1, 0)[None], lambda x: x[0].transpose(3, 2, 0, 1)), BIAS)
)


@dataclasses.dataclass(frozen=True)
class NameRule:
    """One module under both names.

    Attributes:
        theirs: template of its name in the other library, such as "encoder.layer.{i}.output.dense".
        ours: template of our path, such as "encoder/block_{i}/mlp/out".
        kind: kind of module.
    """

    theirs: str
    ours: str
    kind: Kind = DENSE

    def tensors(self) -> Iterator[tuple[str, str, Callable, Callable]]:
        """Yields (template of the name, template of our path, to ours, to theirs) of each tensor of the module."""
        for their_leaf, our_leaf, to_ours, to_theirs in self.kind.leaves:
            theirs = f"{self.theirs}.{their_leaf}" if their_leaf else self.theirs
            yield theirs, f"{self.ours}/{our_leaf}" if our_leaf else self.ours, to_ours, to_theirs


def to_ours(
    tensors: Mapping[str, np.ndarray], rules: Sequence[NameRule]
) -> tuple[Tensors, dict[str, str], tuple[str, ...]]:
    """Returns (tensors by our paths, {our path: name in the other library}, names that no rule knows)."""
    patterns = [
        (_compile_template(theirs), ours, convert) for rule in rules for theirs, ours, convert, _ in rule.tensors()
    ]
    found, sources, unknown = {}, {}, []
    for name, tensor in tensors.items():
        for pattern, ours, convert in patterns:
            if match := pattern.fullmatch(name):
                path = ours.format(**match.groupdict())
                if path in sources:
                    raise UserError(
                        f"{sources[path]} and {name} are both {path}; expected one of them: remove the other"
                    )
                try:
                    found[path], sources[path] = convert(tensor), name
                except (ValueError, IndexError) as error:
                    raise UserError(
                        f"{name} has shape {list(tensor.shape)}, which cannot be {path}: {error}"
                    ) from error
                break
        else:
            unknown.append(name)
    return found, sources, tuple(unknown)


def to_theirs(params: Mapping[str, np.ndarray], rules: Sequence[NameRule]) -> Tensors:
    """Inverse of `to_ours`; every parameter must have a rule."""
    patterns = [
        (_compile_template(ours), theirs, convert) for rule in rules for theirs, ours, _, convert in rule.tensors()
    ]
    tensors = {}
    for path, tensor in params.items():
        match, theirs, convert = next(
            (match, theirs, convert) for pattern, theirs, convert in patterns if (match := pattern.fullmatch(path))
        )
        tensors[theirs.format(**match.groupdict())] = np.ascontiguousarray(convert(tensor))
    return tensors


@functools.cache
def _compile_template(template: str) -> re.Pattern[str]:
    return re.compile(re.escape(template).replace(r"\{i\}", r"(?P<i>\d+)"))
