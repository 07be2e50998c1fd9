"""The mesh of devices, and where parameters live on it; activations are `vitx.layers.partition`'s."""

import dataclasses
import itertools
import math
import re
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from flax import linen as nn
from jax.experimental import mesh_utils
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from vitx.configuration import register
from vitx.errors import UserError
from vitx.layers.partition import BATCH, HEADS, TIME, Divisible

AnyMesh = jax.sharding.Mesh | jax.sharding.AbstractMesh
AXES = (*BATCH, HEADS, TIME)
SHOWN = 8  # meshes that would do, told to who asked for one that does not


@register
@dataclasses.dataclass(frozen=True)
class Mesh:
    """How many devices share each kind of work.

    Attributes:
        data: devices that each take a part of the batch and hold all parameters; -1 takes all that are left.
        fsdp: devices that each take a part of the batch and hold a part of every large parameter.
        tensor: devices that share the heads of each attention and the hidden layer of each MLP; convolutional networks
            do the same work on each.
        frames: devices that share the time indices of each clip, where attention is factorised in time.
    """

    data: int = -1
    fsdp: int = 1
    tensor: int = 1
    frames: int = 1

    def make(
        self, batch_size: int, model: nn.Module | None = None, devices: Sequence[Any] | None = None
    ) -> jax.sharding.Mesh:
        """Returns the mesh over all devices; between slices of a pod, the batch alone is shared.

        Args:
            batch_size: clips of a batch.
            model: that shall train on it; None for parameters alone.
            devices: those of the mesh; None takes all.

        Raises:
            UserError: the axes do not divide the devices, or batch, heads or frames do not divide over them.
        """
        devices = jax.devices() if devices is None else devices
        # parameters alone, without a model, can be anywhere; layers of other models see neighbouring frames
        divisible = None if model is None else getattr(model, "divisible", Divisible({}))
        sizes = self._sizes(len(devices))
        if problem := _problem(sizes, len(devices), batch_size, divisible):
            shapes = [
                shape
                for shape in itertools.product(_divisors(len(devices)), repeat=len(AXES))
                if not _problem(shape, len(devices), batch_size, divisible)
            ]
            shapes.sort(key=lambda shape: math.dist(np.log2(shape), np.log2(np.maximum(sizes, 1))))
            meant = [" ".join(f"{axis}={n}" for axis, n in zip(AXES, shape, strict=True) if n > 1) for shape in shapes]
            would = "; ".join(each or "data=1" for each in meant[:SHOWN])
            more = f" and {len(meant) - SHOWN} more" if len(meant) > SHOWN else ""
            hint = f"meshes that do: {would}{more}" if meant else "no mesh over these devices does"
            raise UserError(f"{problem}; {hint} (training.mesh)")
        return jax.sharding.Mesh(device_array(sizes, devices), AXES, axis_types=(AxisType.Auto,) * len(AXES))

    def _sizes(self, devices: int) -> tuple[int, ...]:
        sizes = [getattr(self, axis) for axis in AXES]
        rest, left = divmod(devices, max(math.prod(size for size in sizes if size > 0), 1))
        fits = rest and not left and sizes.count(-1) == 1
        return tuple(rest if size == -1 and fits else size for size in sizes)


def _problem(sizes: Sequence[int], devices: int, batch_size: int, divisible: Divisible | None) -> str | None:
    """Why a mesh of these sizes will not do."""
    shape = dict(zip(AXES, sizes, strict=True))
    if min(sizes) < 1 or math.prod(sizes) != devices:
        asked = ", ".join(f"{axis}={size}" for axis, size in shape.items())
        return (
            f"a mesh of {asked} does not cover {devices} devices; the product of the axes must be that number, "
            "and one axis may be -1"
        )
    parts = math.prod(shape[axis] for axis in BATCH)
    if batch_size % parts:
        return f"a batch of {batch_size} does not divide over {parts} devices; choose a multiple"
    for axis in (HEADS, TIME) if divisible else ():
        if divisible.largest(axis) % shape[axis]:
            return f"{axis}={shape[axis]} is not supported by this model: {_limit(axis, divisible)}"
    return None


def _limit(axis: str, divisible: Divisible) -> str:
    """What a model permits of an axis of the mesh, for a message."""
    if axis == HEADS:
        return f"{HEADS} must divide " + " and ".join(f"{name} ({n})" for name, n in divisible.widths.items())
    if divisible.whole_clip:
        setting, value = divisible.whole_clip
        return f"its {setting} {value!r} attends along time and needs whole clips"
    if divisible.times > 1:
        return f"{TIME} must divide the {divisible.times} time indices of a clip"
    return "its layers see neighbouring frames and need whole clips"


def _divisors(number: int) -> list[int]:
    return [size for size in range(1, number + 1) if number % size == 0]


def device_array(sizes: tuple[int, ...], devices: Sequence[Any]) -> np.ndarray:
    """Returns devices in the shape of the mesh; several slices lie along `data` first, then along `fsdp`.

    Raises:
        UserError: slices would have to share more than the batch.
    """
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    if slices == 1:
        return mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True)
    over_data = math.gcd(slices, sizes[0])
    over = (over_data, slices // over_data, 1, 1)
    if sizes[1] % over[1]:
        raise UserError(
            f"{slices} slices do not divide data x fsdp = {sizes[0]} x {sizes[1]}; between slices the network is slow, "
            f"and they share the batch alone: make data a multiple of {slices} (training.mesh)"
        )
    within = tuple(size // parts for size, parts in zip(sizes, over, strict=True))
    return mesh_utils.create_hybrid_device_mesh(within, over, devices, allow_split_physical_axes=True)


@dataclasses.dataclass(frozen=True)
class Rule:
    """Where parameters of certain names live.

    Attributes:
        pattern: of their path.
        tensor: the axis that `tensor` splits, counted from the last, -1; None for none.
        fsdp: whether `fsdp` splits the largest of the other axes that it divides.
    """

    pattern: str
    tensor: int | None = None
    fsdp: bool = True


PARAMETER_RULES = (
    Rule(r".*(attention/(query|key|value)|mlp/hidden)/kernel", tensor=-1),  # heads
    Rule(r".*(attention/(query|key|value)|mlp/hidden)/bias", tensor=-1, fsdp=False),
    Rule(r".*(attention|mlp)/out/kernel", tensor=-2),
    Rule(r".*/(kernel|positions|time_positions)"),
    Rule(r".*/(bias|scale|mean|var|class_token|peepholes|ns_coeffs)", fsdp=False),
)


def state_shardings(state: Any, mesh: AnyMesh, rules: tuple[Rule, ...] = PARAMETER_RULES) -> Any:
    """Returns a sharding for every array of a training state, by rules on the paths of parameters.

    Optimiser state and averages mirror the parameters' paths and follow the same rules; scalars are replicated.

    Raises:
        ValueError: an array has a path for which there is no rule.
    """

    def sharding(path: Any, leaf: jax.ShapeDtypeStruct) -> NamedSharding:
        name = "/" + jax.tree_util.keystr(path, simple=True, separator="/")
        if leaf.ndim == 0:
            return NamedSharding(mesh, PartitionSpec())
        rule = next((rule for rule in rules if re.fullmatch(rule.pattern, name)), None)
        if rule is None:
            known = [rule.pattern for rule in rules]
            raise ValueError(f"no sharding rule accounts for the parameter {name}; known: {known}")
        spec: list[str | None] = [None] * leaf.ndim
        # an optimiser may keep less than a parameter's axes (Adafactor's rows and columns)
        if rule.tensor is not None and leaf.ndim >= -rule.tensor and leaf.shape[rule.tensor] % mesh.shape[HEADS] == 0:
            spec[rule.tensor] = HEADS
        free = [i for i in range(leaf.ndim) if spec[i] is None and leaf.shape[i] % mesh.shape["fsdp"] == 0]
        if rule.fsdp and free:
            spec[max(free, key=lambda axis: leaf.shape[axis])] = "fsdp"
        return NamedSharding(mesh, PartitionSpec(*spec))

    return jax.tree_util.tree_map_with_path(sharding, state)


def bytes_per_device(state: Any) -> int:
    """Returns how many bytes of a state's arrays lie on one device: the most of any."""
    held: dict[Any, int] = {}
    for leaf in jax.tree.leaves(state):
        for shard in leaf.addressable_shards:
            held[shard.device] = held.get(shard.device, 0) + shard.data.nbytes
    return max(held.values())
