"""Filling a model with tensors: every parameter accounted for, every tensor reported.

Shapes: 1 x h x w x c x d is a kernel of one frame, t x h x w x c x d of t frames; c channels in, d out.
"""

import dataclasses
import fnmatch
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Float

from vitx.configuration import paths as paths_of
from vitx.console import escape
from vitx.errors import UserError, as_user_error
from vitx.interop.heads import Columns, Names, class_columns, class_notes
from vitx.interop.names import Tensors
from vitx.interop.preprocessing import Preprocessing
from vitx.layers.embeddings import resize_positions
from vitx.models.base import VideoModel, init_variables

Inflation = Literal["central", "average"]
Shape = tuple[int, ...]
Variables = dict[str, Any]

# Settings that count layers, by name.
LAYER_COUNTS = ("num_layers", "num_temporal_layers", "decoder_num_layers", "depths")
MAX_LAYERS = 200  # layers that are traced whatever a file holds; the deepest published model has 48
PROTOCOL = ("input_shape", "needs_input_shape", "with_input_shape", "position_tables")


@dataclasses.dataclass(frozen=True)
class Report:
    """What was done with every tensor.

    Attributes:
        loaded: {our path: name in the source}.
        resized: {our path: (shape in the source, shape in the model)}, loaded after interpolation.
        inflated: our paths of an image network's kernels that were extended over several frames.
        classes: {our path of a head: (classes that were found by name in the source, all of its classes)}, where they
            were reordered or only partly found.
        fresh: our paths that the source does not give; they are as in a new model.
        left_over: names in the source that the model has no place for.
        notes: what else a user should know, a line each.
    """

    loaded: dict[str, str]
    resized: dict[str, tuple[Shape, Shape]]
    inflated: tuple[str, ...]
    classes: dict[str, tuple[int, int]]
    fresh: tuple[str, ...]
    left_over: tuple[str, ...]
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        lines = [f"loaded {len(self.loaded)} tensors"]
        lines += [f"resized {path}: {list(old)} to {list(new)}" for path, (old, new) in self.resized.items()]
        lines += [f"inflated along time: {_format_paths(self.inflated)}"] if self.inflated else []
        for head, (found, classes) in self.classes.items():
            rest = "reordered" if found == classes else "the others are fresh"
            lines.append(f"matched {found} of {classes} classes of {head} by name, {rest}")
        lines += [f"fresh: {_format_paths(self.fresh)}"] if self.fresh else []
        lines += [f"left over: {_format_paths(self.left_over)}"] if self.left_over else []
        return "\n".join(map(escape, [*lines, *self.notes]))


@dataclasses.dataclass(frozen=True)
class WeightsSource:
    """Tensors under our paths, and the model that they belong to.

    Attributes:
        tensors: arrays by our paths.
        names: {our path: name in the source}.
        unknown: names in the source that have no path here.
        model: model of the tensors, before a user changed any field.
        may_miss: patterns of our paths that the source need not have.
        set_aside: names in the source that are known and have no use here.
        preprocessing: preprocessing of the pixels, where the source has it.
        labels: {head: names of its classes}, where the source has them.
        notes: what a user should know about the source, a line each.
        inflation: how kernels of one frame are extended over several; None where the source is no image network.
        matching_variants: returns the names of the variants that the tensors fit, for an error message.
    """

    tensors: Tensors
    names: dict[str, str]
    unknown: tuple[str, ...]
    model: nn.Module
    may_miss: tuple[str, ...] = ()
    set_aside: tuple[str, ...] = ()
    preprocessing: Preprocessing | None = None
    labels: Names | None = None
    notes: tuple[str, ...] = ()
    inflation: Inflation | None = None
    matching_variants: Callable[[], Sequence[str]] = tuple


def flatten_variables(variables: Mapping[str, Any]) -> dict[str, Any]:
    """Returns {path: array} of parameters and batch statistics together; no two of them share a path."""
    return {path: x for collection in variables.values() for path, x in flatten_dict(collection, sep="/").items()}


def check_layers(model: nn.Module, num_arrays: int, where: str) -> None:
    """Raises UserError where a model has more layers than there are arrays for them: tracing it would never end."""
    counts = {path: value for path, value in paths_of(model) if path.rpartition(".")[2] in LAYER_COUNTS}
    for path, value in counts.items():
        layers = sum(value if isinstance(value, tuple) else (value,))
        if layers > max(num_arrays, MAX_LAYERS):
            raise UserError(
                f"{where} promises {layers:,} layers ({path}) and holds {num_arrays:,} arrays; correct {path}"
            )


def variances_of(variables: Mapping[str, Any]) -> frozenset[str]:
    """Returns the paths of running variances, which cannot be negative."""
    return frozenset(path for path in flatten_dict(variables.get("batch_stats", {}), sep="/") if path.endswith("/var"))


def check_values(variables: Mapping[str, Any], where: str) -> None:
    """Raises UserError where variables cannot be those of a trained model: not finite, or a negative variance."""
    variances = variances_of(variables)
    for path, x in flatten_variables(variables).items():
        if not bool(jnp.isfinite(x).all()):
            raise UserError(f"{where}: {path} holds values that are not finite; take another checkpoint")
        if path in variances and bool((x < 0).any()):
            raise UserError(f"{where}: {path} holds negative variances; take another checkpoint")


def initial_variables(model: nn.Module) -> Variables:
    """Returns fresh variables of a model, initialised on a clip of its `input_shape`.

    Raises:
        UserError: the model is no `vitx.models.VideoModel`, or cannot take that clip.
    """
    if not isinstance(model, VideoModel):
        raise UserError(
            f"{type(model).__name__} is no vitx.models.VideoModel: it lacks "
            f"{', '.join(name for name in PROTOCOL if not hasattr(model, name))}; see vitx/models/base.py"
        )
    with as_user_error():
        return init_variables(model, jax.random.key(0), jnp.zeros((1, *model.input_shape)))


def fill(
    source: WeightsSource,
    target: nn.Module,
    where: str,
    *,
    swap_head: bool,
    class_names: Names | None = None,
    init: Callable[[], Variables] | None = None,
    allow_missing: Sequence[str] = (),
    allow_unexpected: Sequence[str] = (),
) -> tuple[Variables, Report]:
    """Returns (variables of the target, report): every array from the source, or fresh where it may be.

    Args:
        source: tensors to fill in.
        target: model to fill.
        where: path of the source, for messages.
        swap_head: whether a head of another shape is left over and the target's stays fresh.
        class_names: {head: names of its classes} of the target; heads of the source that have names too are matched.
        init: returns fresh variables of the target; by default those of `initial_variables`.
        allow_missing: patterns of our paths that may stay fresh.
        allow_unexpected: patterns of names in the source that may be left over.

    Raises:
        UserError: tensors are missing, unexpected, of other shapes or not finite; or the target is no video model.
    """
    for model in (source.model, target):
        check_layers(model, len(source.tensors), where)
    init = init or functools.partial(initial_variables, target)
    shapes = jax.eval_shape(init)
    filling = _Filling(source, target, shapes, where)
    columns = class_columns(source.model, source.labels, target, class_names)
    for path, tensor in source.tensors.items():
        filling.place(path, tensor, swap_head, columns.get(path.rpartition("/")[0]))
    fresh = [path for path in filling.wanted if path not in filling.filled]
    own = [f"*encoder/{pattern}" for pattern in getattr(getattr(target, "reducer", None), "parameters", ())]
    may_miss = (*source.may_miss, *allow_missing, *own, *(["head/*"] if swap_head else []))
    absent = [path for path in fresh if not _matches(path, may_miss)]
    strange = [name for name in filling.unexpected if not _matches(name, allow_unexpected)]
    if filling.wrong or absent or strange:
        raise filling.build_error(absent, strange, shapes)
    if fresh or filling.partial:
        initial = _initialise_some(init, [*fresh, *filling.partial])
        filled = filling.filled | {path: initial[path] for path in fresh}
        for path, found in filling.partial.items():
            filled[path] = jnp.where(found >= 0, filled[path], initial[path])
    else:
        filled = filling.filled
    report = Report(
        loaded=filling.loaded,
        resized=filling.resized,
        inflated=tuple(filling.inflated),
        classes=filling.classes,
        fresh=tuple(fresh),
        left_over=(*filling.left_over, *filling.unexpected),
        notes=(
            *source.notes,
            *class_notes(source.model, source.labels, target, class_names, filling.loaded),
            *_position_notes(source.model, target),
        ),
    )
    paths = {name: flatten_dict(part, sep="/") for name, part in shapes.items()}
    variables = {name: unflatten_dict({path: filled[path] for path in part}, sep="/") for name, part in paths.items()}
    return variables, report


def _position_notes(source: nn.Module, target: nn.Module) -> list[str]:
    """Returns a note if positions are fixed and the grids differ: a token's number then stands for another place."""
    old, new = getattr(source, "grid", None), getattr(target, "grid", None)
    if old in (None, new) or new is None or _position_tables(target):
        return []
    return [
        f"found fixed positions of a grid of {old}; the model has {new}, where a token's number is another place: "
        "fine-tune it, or keep num_frames and image_size"
    ]


class _Filling:
    """What has become of a source's tensors so far; attributes are as in `Report`.

    Attributes:
        wanted: {our path: shape and type} of the target's variables.
        variances: our paths of running variances.
        filled: {our path: array}.
        partial: {our path: columns} of heads in which classes without a column (-1) are fresh.
        wrong: {our path: message} of tensors of other shapes.
        unexpected: names of tensors that the target has no path for.
    """

    def __init__(self, source: WeightsSource, target: nn.Module, shapes: Mapping[str, Any], where: str):
        self.source, self.target, self.where = source, target, where
        self.wanted, self.variances = flatten_variables(shapes), variances_of(shapes)
        self.old_tables, self.new_tables = _position_tables(source.model), _position_tables(target)
        self.filled: dict[str, Any] = {}
        self.partial: dict[str, Columns] = {}
        self.loaded: dict[str, str] = {}
        self.resized: dict[str, tuple[Shape, Shape]] = {}
        self.inflated: list[str] = []
        self.classes: dict[str, tuple[int, int]] = {}
        self.wrong: dict[str, str] = {}
        self.unexpected, self.left_over = [*source.unknown], [*source.set_aside]

    def place(self, path: str, tensor: np.ndarray, swap_head: bool, columns: Columns | None) -> None:
        """Puts one tensor in its place, or records why it has none."""
        name = self.source.names.get(path, path)
        shape = self.wanted[path].shape if path in self.wanted else None
        if columns is not None and shape is not None and tensor.shape[-1:] > (max(columns),):
            head, found = path.rpartition("/")[0], int(np.sum(columns >= 0))
            if not np.array_equal(columns, np.arange(tensor.shape[-1])):
                self.classes[head] = found, len(columns)
            if not found:
                self.left_over.append(name)
                return
            if found < len(columns):
                self.partial[path] = columns
            tensor = tensor[..., columns]  # -1 takes the last class; `fill` puts a fresh one over it
        if swap_head and path.startswith("head/") and tensor.shape != shape:
            self.left_over.append(name)
            return
        if shape is None:
            self.unexpected.append(name)
            return
        tensor = self._fit(path, _to_finite(tensor, f"{self.where}: {name}"), shape)
        if path in self.variances and tensor.size and tensor.min() < 0:
            raise UserError(f"{self.where}: {name} holds negative variances, down to {tensor.min():.3g}")
        if tensor.shape == shape:
            self.filled[path], self.loaded[path] = jnp.asarray(tensor), name
        else:
            ours = "" if path == name else f" of {path}"
            self.wrong[path] = f"{name} has shape {list(tensor.shape)}, expected {list(shape)}{ours}"

    def _fit(self, path: str, tensor: np.ndarray, shape: Shape) -> np.ndarray:
        """Returns the tensor, resized if it is a table of positions, or inflated if it is an image's kernel."""
        old, new = self.old_tables.get(path), self.new_tables.get(path)
        # Grids are compared, not shapes: 2x4 and 4x2 patches have tables of one shape.
        if old is not None and new is not None and old != new and tensor.shape == _table_shape(*old, shape[-1]):
            self.resized[path] = tensor.shape, shape
            tensor = np.asarray(resize_positions(tensor, old[0], old[1], new[1]))
        if self.source.inflation and len(shape) == 5 and tensor.shape == (1, *shape[1:]) != shape:
            self.inflated.append(path)
            tensor = inflate_kernel(tensor, shape[0], self.source.inflation)
        return tensor

    def build_error(self, absent: Sequence[str], strange: Sequence[str], shapes: Mapping[str, Any]) -> UserError:
        """Returns the error that names what does not fit, and what to do."""
        lines = [*self.wrong.values()][:5]
        lines += [f"missing {_format_paths(absent)} ({_advise(absent, shapes)})"] if absent else []
        lines += (
            [f"unexpected {_format_paths(strange)} (allow_unexpected names what may be left over)"] if strange else []
        )
        heads = [path for path in self.wrong if path.startswith("head/logits/")]
        pairs = {(self.source.tensors[path].shape[-1:], self.wanted[path].shape[-1:]) for path in heads}
        for classes in {old[0] for old, new in pairs if old and old != new}:
            lines.append(f"num_classes {classes} keeps its head, another explicit num_classes takes a fresh one")
        if strange or not all(path.startswith("head/") for path in (*self.wrong, *absent)):
            lines += [f"these are the weights of {name}" for name in self.source.matching_variants()]
        return UserError(f"{self.where} does not fit {type(self.target).__name__}:", lines)


def inflate_kernel(
    kernel: Float[np.ndarray, "1 h w c d"], frames: int, inflation: Inflation
) -> Float[np.ndarray, "t h w c d"]:
    """Returns an image's kernel over several frames: in the middle one alone, or spread evenly over all."""
    if inflation == "average":
        return np.repeat(kernel / np.float32(frames), frames, axis=0)
    return np.pad(kernel, [(frames // 2, (frames - 1) // 2), (0, 0), (0, 0), (0, 0), (0, 0)])


def _position_tables(model: nn.Module) -> Mapping[str, tuple[int, Any]]:
    return model.position_tables() if hasattr(model, "position_tables") else {}


def _table_shape(num_prefix: int, grid: Shape, width: int) -> Shape:
    return 1, num_prefix + math.prod(grid), width


def _initialise_some(init: Callable[[], Variables], paths: Sequence[str]) -> dict[str, Any]:
    def select() -> dict[str, Any]:
        variables = flatten_variables(init())
        return {path: variables[path] for path in paths}

    return jax.jit(select)()  # XLA removes the initialisation of all other variables


def _to_finite(tensor: np.ndarray, where: str) -> np.ndarray:
    if tensor.dtype.kind != "f" and tensor.dtype.name != "bfloat16":
        raise UserError(f"{where} is of type {tensor.dtype}; expected floating-point numbers")
    if not np.isfinite(tensor).all():
        raise UserError(f"{where} holds values that are not finite")
    with np.errstate(over="ignore"):
        narrow = np.asarray(tensor, np.float32)
    if not np.isfinite(narrow).all():
        raise UserError(f"{where} holds values beyond the range of float32, 3.4e38")
    return narrow


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def _advise(absent: Sequence[str], shapes: Mapping[str, Any]) -> str:
    if all(path in flatten_dict(shapes.get("batch_stats", {}), sep="/") for path in absent):
        return (
            "statistics of batch normalisation, without which the network cannot be evaluated: save all of the "
            "variables, not params alone"
        )
    return "allow_missing names what may stay fresh"


def _format_paths(paths: Sequence[str]) -> str:
    return ", ".join(paths[:6]) + (f" and {len(paths) - 6} more" if len(paths) > 6 else "")
