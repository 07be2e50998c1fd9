"""The mesh of devices, and where arrays live on it."""

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from vitx.configuration import register
from vitx.errors import UserError

Rule = tuple[str, str]
AnyMesh = jax.sharding.Mesh | jax.sharding.AbstractMesh


@register
@dataclasses.dataclass(frozen=True)
class Mesh:
    """How many devices share each kind of work.

    Attributes:
        data: devices that each take a part of the batch and hold all parameters; -1 takes all that are left.
        fsdp: devices that each take a part of the batch and hold a part of every large parameter.
    """

    data: int = -1
    fsdp: int = 1

    def make(self, batch_size: int) -> jax.sharding.Mesh:
        """Returns the mesh over all devices.

        Raises:
            UserError: the axes do not divide the devices, or the batch does not divide over them.
        """
        devices = jax.device_count()
        sizes = [self.data, self.fsdp]
        fixed = math.prod(size for size in sizes if size > 0)
        if (
            sizes.count(-1) > 1
            or min(sizes) < -1
            or 0 in sizes
            or devices % fixed
            or (-1 not in sizes and fixed != devices)
        ):
            raise UserError(
                f"a mesh of data={self.data}, fsdp={self.fsdp} does not cover {devices} devices; "
                "the product of the axes must be that number, and one axis may be -1"
            )
        sizes = [devices // fixed if size == -1 else size for size in sizes]
        if batch_size % devices:
            raise UserError(f"a batch of {batch_size} does not divide over {devices} devices; choose a multiple")
        return jax.make_mesh(sizes, ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)


REPLICATED, SHARDED = "replicated", "fsdp"
PARAMETER_RULES: tuple[Rule, ...] = (
    (r".*/(bias|scale|mean|var|positions|time_positions|class_token|peepholes|ns_coeffs)$", REPLICATED),
    (r".*/kernel$", SHARDED),
)


def batch_sharding(mesh: jax.sharding.Mesh) -> NamedSharding:
    """Returns the sharding of every array with a leading batch axis."""
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


def state_shardings(state: Any, mesh: AnyMesh, rules: tuple[Rule, ...] = PARAMETER_RULES) -> Any:
    """Returns a sharding for every array of a training state, by rules on the paths of parameters.

    Optimiser state and averages mirror the parameters' paths and follow the same rules; scalars are replicated.
    A kernel is split over `fsdp` along its largest axis that divides.

    Raises:
        ValueError: an array has a path for which there is no rule.
    """

    def sharding(path: Any, leaf: jax.ShapeDtypeStruct) -> NamedSharding:
        name = "/" + jax.tree_util.keystr(path, simple=True, separator="/")
        if leaf.ndim == 0:
            return NamedSharding(mesh, PartitionSpec())
        rule = next((rule for pattern, rule in rules if re.match(pattern, name)), None)
        if rule is None:
            raise ValueError(f"no sharding rule accounts for the parameter {name}; known: {[p for p, _ in rules]}")
        spec: list[str | None] = [None] * leaf.ndim
        divisible = [axis for axis in range(leaf.ndim) if leaf.shape[axis] % mesh.shape["fsdp"] == 0]
        if rule == SHARDED and divisible:
            spec[max(divisible, key=lambda axis: leaf.shape[axis])] = "fsdp"
        return NamedSharding(mesh, PartitionSpec(*spec))

    return jax.tree_util.tree_map_with_path(sharding, state)


def to_devices(batch: Mapping[str, Any], sharding: NamedSharding) -> dict[str, Any]:
    """Returns the global batch as arrays on devices; each process gives its own rows."""
    return jax.tree.map(lambda rows: jax.make_array_from_process_local_data(sharding, np.asarray(rows)), dict(batch))
