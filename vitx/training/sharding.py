"""The mesh of devices, and where parameters live on it; `vitx.layers.partition` places activations."""

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
from vitx.parameters import path_name

AnyMesh = jax.sharding.Mesh | jax.sharding.AbstractMesh
AXES = (*BATCH, HEADS, TIME)
MAX_SUGGESTIONS = 8  # valid meshes named in the error about an invalid one


@register
@dataclasses.dataclass(frozen=True)
class Mesh:
    """How many devices share each kind of work.

    Attributes:
        data: devices that each take a part of the batch and hold all parameters; -1 takes all that are left.
        fsdp: devices that each take a part of the batch and hold a part of every large parameter.
        tensor: devices that share the heads of each attention and the hidden layer of each MLP; for convolutional
            networks each does the same work.
        frames: devices that share the time indices of each clip, where attention is factorised in time.
    """

    data: int = -1
    fsdp: int = 1
    tensor: int = 1
    frames: int = 1

    def build(
        self, batch_size: int, model: nn.Module | None = None, devices: Sequence[Any] | None = None
    ) -> jax.sharding.Mesh:
        """Returns the mesh over all devices; slices of a pod share only the batch.

        Args:
            batch_size: clips of a batch.
            model: model to train on the mesh; None for parameters alone.
            devices: devices of the mesh; None takes all.

        Raises:
            UserError: the axes do not multiply to the number of devices, or batch, heads or frames do not divide.
        """
        devices = jax.devices() if devices is None else devices
        # Without a model, only parameters are placed. A model without `divisible` is taken to need whole clips.
        divisible = None if model is None else getattr(model, "divisible", Divisible({}))
        sizes = self._sizes(len(devices))
        if problem := _problem(sizes, len(devices), batch_size, divisible):
            raise UserError(f"{problem}; {_suggest_meshes(sizes, len(devices), batch_size, divisible)} (training.mesh)")
        return jax.sharding.Mesh(device_array(sizes, devices), AXES, axis_types=(AxisType.Auto,) * len(AXES))

    def _sizes(self, devices: int) -> tuple[int, ...]:
        sizes = [getattr(self, axis) for axis in AXES]
        rest, remainder = divmod(devices, max(math.prod(size for size in sizes if size > 0), 1))
        fits = rest and not remainder and sizes.count(-1) == 1
        return tuple(rest if size == -1 and fits else size for size in sizes)


def _problem(sizes: Sequence[int], devices: int, batch_size: int, divisible: Divisible | None) -> str | None:
    """Returns why a mesh of these sizes is invalid, or None if it is not."""
    shape = dict(zip(AXES, sizes, strict=True))
    if min(sizes) < 1 or math.prod(sizes) != devices:
        asked = ", ".join(f"{axis}={size}" for axis, size in shape.items())
        return (
            f"a mesh of {asked} does not cover {devices} devices; the product of the axes must be that number, "
            "and one axis may be -1"
        )
    num_parts = math.prod(shape[axis] for axis in BATCH)
    if batch_size % num_parts:
        return f"a batch of {batch_size} does not divide over {num_parts} devices; choose a multiple"
    for axis in (HEADS, TIME) if divisible else ():
        if divisible.largest(axis) % shape[axis]:
            return f"{axis}={shape[axis]} is not supported by this model: {_limit(axis, divisible)}"
    return None


def _limit(axis: str, divisible: Divisible) -> str:
    """Returns what a model permits of an axis of the mesh, for a message."""
    if axis == HEADS:
        return f"{HEADS} must divide " + " and ".join(f"{name} ({n})" for name, n in divisible.widths.items())
    if divisible.time_obstacle:
        setting, value = divisible.time_obstacle
        return f"its {setting} {value!r} attends along time and needs whole clips"
    if divisible.times > 1:
        return f"{TIME} must divide the {divisible.times} time indices of a clip"
    return "its layers see neighbouring frames and need whole clips"


def _suggest_meshes(sizes: tuple[int, ...], devices: int, batch_size: int, divisible: Divisible | None) -> str:
    """Returns a phrase that lists valid meshes, the most similar first."""
    shapes = [
        shape
        for shape in itertools.product(_divisors(devices), repeat=len(AXES))
        if not _problem(shape, devices, batch_size, divisible)
    ]
    shapes.sort(key=lambda shape: math.dist(np.log2(shape), np.log2(np.maximum(sizes, 1))))
    names = [" ".join(f"{axis}={n}" for axis, n in zip(AXES, shape, strict=True) if n > 1) for shape in shapes]
    if not names:
        return "no mesh over these devices is valid"
    more = f" and {len(names) - MAX_SUGGESTIONS} more" if len(names) > MAX_SUGGESTIONS else ""
    return f"valid meshes: {'; '.join(name or 'data=1' for name in names[:MAX_SUGGESTIONS])}{more}"


def _divisors(number: int) -> list[int]:
    return [size for size in range(1, number + 1) if number % size == 0]


def device_array(sizes: tuple[int, ...], devices: Sequence[Any]) -> np.ndarray:
    """Returns devices in the shape of the mesh; several slices lie along `data` first, then along `fsdp`.

    Raises:
        UserError: slices would have to share more than the batch.
    """
    num_slices = len({getattr(device, "slice_index", 0) for device in devices})
    if num_slices == 1:
        return mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True)
    slices_along_data = math.gcd(num_slices, sizes[0])
    num_parts = (slices_along_data, num_slices // slices_along_data, 1, 1)
    if sizes[1] % num_parts[1]:
        raise UserError(
            f"{num_slices} slices do not divide data x fsdp = {sizes[0]} x {sizes[1]}; between slices the network is "
            f"slow, and they share the batch alone: make data a multiple of {num_slices} (training.mesh)"
        )
    within = tuple(size // count for size, count in zip(sizes, num_parts, strict=True))
    return mesh_utils.create_hybrid_device_mesh(within, num_parts, devices, allow_split_physical_axes=True)


@dataclasses.dataclass(frozen=True)
class ShardingRule:
    """Which axis of a parameter `tensor` splits.

    Attributes:
        pattern: regular expression for the parameter's whole path.
        axis: the axis, counted from the last, -1.
    """

    pattern: str
    axis: int


TENSOR_RULES = (
    ShardingRule(r".*(attention/(query|key|value)|mlp/hidden)/(kernel|bias)", axis=-1),  # heads, hidden units
    ShardingRule(r".*(attention|mlp)/out/kernel", axis=-2),
)


def state_shardings(state: Any, mesh: AnyMesh, rules: tuple[ShardingRule, ...] = TENSOR_RULES) -> Any:
    """Returns a sharding for every array of a training state.

    `tensor` splits the axis that a rule names. `fsdp` splits the largest other axis that it divides, of arrays that are
    matrices or more; vectors and scalars are replicated, whatever their names. Optimiser state and averages mirror the
    parameters' paths, so the same rules place them.

    Args:
        state: the state's shapes.
        mesh: the mesh.
        rules: the first rule whose pattern matches a path counts.
    """

    def sharding(path: Any, leaf: jax.ShapeDtypeStruct) -> NamedSharding:
        name = "/" + path_name(path)
        spec: list[str | None] = [None] * leaf.ndim
        axis = next((rule.axis for rule in rules if re.fullmatch(rule.pattern, name)), None)
        # An optimiser may keep fewer axes than the parameter has (Adafactor's rows and columns).
        if axis is not None and leaf.ndim >= -axis and leaf.shape[axis] % mesh.shape[HEADS] == 0:
            spec[axis] = HEADS
        is_vector = sum(size > 1 for size in leaf.shape) <= 1  # class tokens are [1, 1, width]
        divisible = [i for i in range(leaf.ndim) if spec[i] is None and leaf.shape[i] % mesh.shape["fsdp"] == 0]
        if divisible and not is_vector:
            spec[max(divisible, key=lambda axis: leaf.shape[axis])] = "fsdp"
        return NamedSharding(mesh, PartitionSpec(*spec))

    return jax.tree_util.tree_map_with_path(sharding, state)


def bytes_per_device(state: Any) -> int:
    """Returns the bytes of a state's arrays on the device that holds the most."""
    num_bytes: dict[Any, int] = {}
    for leaf in jax.tree.leaves(state):
        for shard in leaf.addressable_shards:
            num_bytes[shard.device] = num_bytes.get(shard.device, 0) + shard.data.nbytes
    return max(num_bytes.values())
