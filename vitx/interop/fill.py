"""Filling a model with tensors: every parameter accounted for, every tensor reported."""

import dataclasses
import fnmatch
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Float

from vitx.errors import UserError, as_user_error
from vitx.interop.names import Tensors
from vitx.interop.preprocessing import Preprocessing
from vitx.layers.embeddings import resize_positions
from vitx.models.cnn import VideoCNN
from vitx.models.convlstm import ConvLSTM
from vitx.models.transformer import VideoTransformer

Inflation = Literal["central", "average"]
VideoModel = VideoTransformer | VideoCNN | ConvLSTM


@dataclasses.dataclass(frozen=True)
class Report:
    """What became of every tensor.

    Attributes:
        loaded: {our path: their name}.
        resized: {our path: (shape there, shape here)}, loaded after interpolation.
        inflated: our paths of an image network's kernels that were extended over several frames.
        fresh: our paths that the file does not give; they are as in a new model.
        left_over: their names that the model has no place for.
    """

    loaded: dict[str, str]
    resized: dict[str, tuple[tuple[int, ...], tuple[int, ...]]]
    inflated: tuple[str, ...]
    fresh: tuple[str, ...]
    left_over: tuple[str, ...]

    def __str__(self) -> str:
        lines = [f"loaded {len(self.loaded)} tensors"]
        lines += [f"resized {path}: {list(there)} to {list(here)}" for path, (there, here) in self.resized.items()]
        lines += [f"inflated along time: {_listed(self.inflated)}"] if self.inflated else []
        lines += [f"fresh: {_listed(self.fresh)}"] if self.fresh else []
        lines += [f"left over: {_listed(self.left_over)}"] if self.left_over else []
        return "\n".join(lines)


@dataclasses.dataclass(frozen=True)
class Source:
    """Tensors in our names, and the model that they were.

    Attributes:
        tensors: by our paths.
        theirs: {our path: their name}.
        unknown: their names that have no path here.
        model: that they are of, before a user changed any field.
        may_miss: patterns of our paths that need not be there.
        set_aside: their names that are known and have no use here.
        preprocessing: of the pixels, where the source says.
        labels: {head: names of its classes}, where the source says.
        inflation: of kernels of one frame, an image network's, where the model's extend over several.
        kin: names of the variants that the tensors fit, looked for when they do not fit the one asked for.
    """

    tensors: Tensors
    theirs: dict[str, str]
    unknown: tuple[str, ...]
    model: VideoModel
    may_miss: tuple[str, ...] = ()
    set_aside: tuple[str, ...] = ()
    preprocessing: Preprocessing | None = None
    labels: dict[str, tuple[str, ...]] | None = None
    inflation: Inflation | None = None
    kin: Callable[[], Sequence[str]] = tuple


def flattened(variables: Mapping[str, Any]) -> dict[str, Any]:
    """Returns {path: array} of parameters and batch statistics together: none has the path of another."""
    return {path: x for collection in variables.values() for path, x in flatten_dict(collection, sep="/").items()}


def fill(
    source: Source,
    target: VideoModel,
    where: str,
    *,
    swap_head: bool,
    allow_missing: Sequence[str] = (),
    allow_unexpected: Sequence[str] = (),
) -> tuple[dict[str, Any], Report]:
    """Returns (variables of the target, report): every array from the source, or fresh where it may be.

    Args:
        where: of the source, for messages.
        swap_head: whether a head of another shape is left over and the target's stays fresh.
        allow_missing: patterns of our paths that may stay fresh.
        allow_unexpected: patterns of their names that may be left over.

    Raises:
        UserError: tensors are missing, unexpected, of other shapes or not finite; or the target does not take its clip.
    """
    clip = jax.ShapeDtypeStruct((1, *target.input_shape), jnp.float32)
    with as_user_error():
        shapes = jax.eval_shape(target.init, jax.random.key(0), clip)
    wanted = flattened(shapes)
    tables, here = source.model.position_tables(), target.position_tables()
    filled, loaded, resized, extended = {}, {}, {}, []
    wrong, unexpected, left_over = {}, list(source.unknown), [*source.set_aside]
    for path, tensor in source.tensors.items():
        theirs, shape = source.theirs.get(path, path), wanted[path].shape if path in wanted else None
        if swap_head and path.startswith("head/") and tensor.shape != shape:
            left_over.append(theirs)
            continue
        if shape is None:
            unexpected.append(theirs)
            continue
        tensor = _finite(tensor, f"{where}: {theirs}")
        if path in tables and path in here and tables[path] != here[path]:
            (prefix, old), (_, new) = tables[path], here[path]
            if tensor.shape == (1, prefix + math.prod(old), shape[-1]):
                resized[path] = tensor.shape, shape
                tensor = resize_positions(tensor, prefix, old, new)
        if source.inflation and len(shape) == 5 and tensor.shape == (1, *shape[1:]) != shape:
            extended.append(path)
            tensor = inflated_kernel(tensor, shape[0], source.inflation)
        if tensor.shape == shape:
            filled[path], loaded[path] = jnp.asarray(tensor), theirs
        else:
            called = "" if path == theirs else f" of {path}"
            wrong[path] = f"{theirs} has shape {list(tensor.shape)}, expected {list(shape)}{called}"
    fresh = [path for path in wanted if path not in filled]
    may_miss = (*source.may_miss, *allow_missing, *(["head/*"] if swap_head else []))
    absent = [path for path in fresh if not _matches(path, may_miss)]
    strange = [name for name in unexpected if not _matches(name, allow_unexpected)]
    if wrong or absent or strange:
        lines = [f"{where} does not fit {type(target).__name__}:", *list(wrong.values())[:5]]
        lines += [f"missing {_listed(absent)} ({_advice(absent, shapes)})"] if absent else []
        lines += [f"unexpected {_listed(strange)} (allow_unexpected names what may be left)"] if strange else []
        heads = ((source.tensors[path].shape[-1:], wanted[path].shape[-1:]) for path in wrong if "head/logits/" in path)
        others = {there for there, here in heads if there not in ((), here)}
        lines += [f"num_classes {n} keeps its head, any other number set takes a fresh one" for (n,) in others]
        if strange or not all(path.startswith("head/") for path in (*wrong, *absent)):
            lines += [f"these are the weights of {name}" for name in source.kin()]
        raise UserError("\n  ".join(lines))
    if fresh:
        filled |= _initialised(target, clip, fresh)
    report = Report(loaded, resized, tuple(extended), tuple(fresh), (*left_over, *unexpected))
    paths = {name: flatten_dict(each, sep="/") for name, each in shapes.items()}
    variables = {name: unflatten_dict({path: filled[path] for path in each}, sep="/") for name, each in paths.items()}
    return variables, report


def inflated_kernel(
    kernel: Float[np.ndarray, "1 height width channels width_out"], frames: int, inflation: Inflation
) -> Float[np.ndarray, "frames height width channels width_out"]:
    """Returns an image's kernel over several frames: in the middle one alone, or spread evenly over all."""
    if inflation == "average":
        return np.repeat(kernel / np.float32(frames), frames, axis=0)
    return np.pad(kernel, [(frames // 2, (frames - 1) // 2), (0, 0), (0, 0), (0, 0), (0, 0)])


def _initialised(model: VideoModel, clip: jax.ShapeDtypeStruct, paths: Sequence[str]) -> dict[str, Any]:
    def some(key: Any) -> dict[str, Any]:
        variables = flattened(model.init(key, jnp.zeros(clip.shape)))
        return {path: variables[path] for path in paths}

    return jax.jit(some)(jax.random.key(0))


def _finite(tensor: np.ndarray, where: str) -> np.ndarray:
    if tensor.dtype.kind != "f" and tensor.dtype.name != "bfloat16":
        raise UserError(f"{where} is of type {tensor.dtype}; expected floating-point numbers")
    tensor = np.asarray(tensor, np.float32)
    if not np.isfinite(tensor).all():
        raise UserError(f"{where} holds values that are not finite")
    return tensor


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def _advice(absent: Sequence[str], shapes: Mapping[str, Any]) -> str:
    if all(path in flatten_dict(shapes.get("batch_stats", {}), sep="/") for path in absent):
        return (
            "statistics of batch normalisation, without which the network cannot be evaluated: save all of the "
            "variables, not params alone"
        )
    return "allow_missing names what may stay fresh"


def _listed(paths: Sequence[str]) -> str:
    return ", ".join(paths[:6]) + (f" and {len(paths) - 6} more" if len(paths) > 6 else "")
