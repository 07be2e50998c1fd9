"""Where activations live on the mesh that `jax.set_mesh` has set; without a mesh, the functions here do nothing.

Layers know the names of a mesh's axes, and what each of them divides:

    data, fsdp   the clips of the batch
    tensor       attention heads and the hidden layer of the MLP
    frames       the time indices of a clip

Activations are [batch, tokens, width]. Where time has an axis of its own they are [batch, times, tokens, width]: in a
model that encodes every time index alone, and in *chunks* of a clip, one for each device of `frames`, each with a copy
of the prefix tokens.

In shapes: b batch, c chunks of time, n tokens, d size of a token or of a head.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Float

from vitx.layers.layouts import Core, Grid, Layout

QKV = Float[Array, "*b n heads d"]
Parameters = Mapping[str, Array]

BATCH, HEADS, TIME = ("data", "fsdp"), "tensor", "frames"


def batch_sharding(mesh: jax.sharding.Mesh) -> NamedSharding:
    """Returns the sharding of every array with a leading batch axis."""
    return NamedSharding(mesh, PartitionSpec(BATCH))


def entry_sharding(name: str, ndim: int, sharding: NamedSharding) -> NamedSharding:
    """Returns the sharding of one entry of a batch; "video" is sharded along time too.

    Args:
        name: key of the entry in the batch.
        ndim: number of its axes; a video is [batch, ..., frames, height, width, 3].
        sharding: sharding of the batch, see `batch_sharding`.
    """
    if name != "video":
        return sharding
    return NamedSharding(sharding.mesh, PartitionSpec(BATCH, *(None,) * (ndim - 5), TIME))


def to_devices(batch: Mapping[str, Any], sharding: NamedSharding) -> dict[str, Any]:
    """Returns the global batch as arrays on devices; each process passes the rows of its `process_shard`."""
    num_shards = process_shard(sharding)["processes"]

    def put(path: Any, entry: Any) -> jax.Array:
        entry = np.asarray(entry)
        shape = (entry.shape[0] * num_shards, *entry.shape[1:])
        return jax.make_array_from_process_local_data(entry_sharding(path[0].key, entry.ndim, sharding), entry, shape)

    return jax.tree_util.tree_map_with_path(put, dict(batch))


def process_shard(sharding: NamedSharding) -> dict[str, int]:
    """Returns which rows of every batch this process reads: {"process": index of its shard, "processes": shards}.

    Processes whose devices divide the same clips by other axes read the same rows.

    Raises:
        ValueError: the devices of this process hold rows that are not neighbours, or fewer rows than others.
    """
    mesh = sharding.mesh
    devices = mesh.devices.reshape(mesh.shape["data"] * mesh.shape["fsdp"], -1)
    mine = [i for i, row in enumerate(devices) if any(d.process_index == jax.process_index() for d in row)]
    num_mine, first = len(mine), mine[0]
    if mine != [*range(first, first + num_mine)] or first % num_mine or len(devices) % num_mine:
        raise ValueError(
            f"the devices of this process hold shards {mine} of {len(devices)} of the batch; expected neighbours, as "
            "many as in every other process"
        )
    return {"process": first // num_mine, "processes": len(devices) // num_mine}


@dataclasses.dataclass(frozen=True)
class Divisible:
    """What a mesh may divide in a model.

    Attributes:
        widths: {name: size} of what `tensor` divides.
        times: number of time indices that `frames` may divide; 1 if a clip must stay whole.
        time_obstacle: (setting, value) for which time cannot be divided; None if it can.
    """

    widths: Mapping[str, int]
    times: int = 1
    time_obstacle: tuple[str, Any] | None = None

    def largest(self, axis: str) -> int:
        """Returns the number that the size of a mesh's axis must divide; 0 if any size is supported."""
        return {HEADS: math.gcd(*self.widths.values()), TIME: self.times}.get(axis, 0)


def axis_size(name: str) -> int:
    """Returns the size of an axis of the mesh; 1 without a mesh."""
    return jax.sharding.get_abstract_mesh().shape.get(name, 1)


def constrain_activations(x: Float[Array, "..."], last: str | None = None) -> Float[Array, "..."]:
    """Constrains activations to the devices of their clips, and time indices to the devices of `frames`.

    Args:
        x: [batch, tokens, width] or [batch, times, tokens, width].
        last: axis of the mesh that divides the last axis; None if it stays whole.
    """
    if jax.sharding.get_abstract_mesh().empty:
        return x
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*_leading_axes(x.ndim - 2), None, last))


def num_time_chunks(layouts: Sequence[Layout], tokens: Float[Array, "*b n d"]) -> int:
    """Returns the number of chunks of time that an encoder divides its tokens into: one per device of `frames`.

    Tokens whose time has an axis of its own are one chunk, and so are tokens of which a layout needs the whole clip.
    """
    return axis_size(TIME) if tokens.ndim == 3 and all(layout.can_shard_time for layout in layouts) else 1


def split_time(x: Float[Array, "b n d"], num_chunks: int, num_prefix: int) -> Float[Array, "b c m d"]:
    """Returns the tokens of each chunk of time, after a copy of the prefix tokens."""
    batch, _, width = x.shape
    copies = jnp.broadcast_to(x[:, None, :num_prefix], (batch, num_chunks, num_prefix, width))
    return jnp.concatenate([copies, x[:, num_prefix:].reshape(batch, num_chunks, -1, width)], axis=2)


def merge_time(x: Float[Array, "b c m d"], num_prefix: int) -> Float[Array, "b n d"]:
    """Inverts `split_time`; the copies of a prefix token, which differ by dropout only, are averaged."""
    tokens = x[:, :, num_prefix:].reshape(x.shape[0], -1, x.shape[-1])
    return jnp.concatenate([x[:, :, :num_prefix].mean(axis=1), tokens], axis=1) if num_prefix else tokens


def attend_locally(
    layout: Layout,
    core: Core,
    *qkv: QKV,
    grid: Grid,
    num_prefix: int,
    parameters: Parameters,
    bias: Float[Array, "*b 1 _ keys"] | None = None,
) -> QKV:
    """Attends along a layout with all leading axes as one batch, as a single device does."""
    batches = (x.reshape(-1, *x.shape[-3:]) for x in qkv)
    core = core if bias is None else _add_bias(core, bias.reshape(-1, *bias.shape[-3:]))
    return layout(core, *batches, grid=grid, num_prefix=num_prefix, **parameters).reshape(qkv[0].shape)


def _add_bias(core: Core, added: Array) -> Core:
    """Returns an attention call that adds a bias to the layout's, for layouts whose tokens all attend to all."""

    def biased(q: Array, k: Array, v: Array, *, bias: Array | None = None, mask: Array | None = None) -> Array:
        return core(q, k, v, bias=added if bias is None else added + bias, mask=mask)

    return biased


def attend(
    layout: Layout,
    core: Core,
    *qkv: QKV,
    grid: Grid,
    num_prefix: int,
    parameters: Parameters,
    bias: Float[Array, "*b 1 _ keys"] | None = None,
    num_chunks: int = 1,
    check_vma: bool = True,
) -> QKV:
    """Attends along a layout; on a mesh, every device computes its own clips, time indices and heads.

    Args:
        layout: the layout.
        core: the attention call.
        qkv: queries, keys and values; several chunks of time are an axis after the batch's.
        grid: (t, h, w) of the tokens, of one chunk if there are several.
        num_prefix: number of prefix tokens.
        parameters: the layout's own parameters by name.
        bias: added to the scores, where every token attends to every token.
        num_chunks: number of chunks of time. Attention along time exchanges shards of time for shards of space by an
            all-to-all, and back.
        check_vma: whether `jax.shard_map` checks along which axes of the mesh results vary.

    Raises:
        ValueError: prefix tokens would attend along time that is divided into chunks, or parts of the heads differ in
            their layouts where there is a bias.
    """
    local = {"grid": grid, "num_prefix": num_prefix}
    if jax.sharding.get_abstract_mesh().empty:
        return attend_locally(layout, core, *qkv, parameters=parameters, bias=bias, **local)
    if layout.parts and bias is not None:
        raise ValueError("a bias needs a layout in which every token attends to every token, such as joint")
    if layout.parts:  # divided first, so that each device then gets its heads of every part
        attend_part = functools.partial(_attend_part, core=core, num_chunks=num_chunks, check_vma=check_vma, **local)
        return layout.map_parts(attend_part, *qkv, parameters=parameters)

    on_shard = functools.partial(_attend_shard, layout, core, **local)
    if num_chunks > 1 and layout.attends_along_time:
        if num_prefix:
            raise ValueError("a class token that attends along time needs all of it: set pooling to 'mean'")
        on_shard = functools.partial(_attend_along_time, layout, core, grid=grid, num_chunks=num_chunks)
    elif num_chunks > 1 and num_prefix:
        on_shard = functools.partial(_average_prefix, on_shard, num_prefix)
    spec = PartitionSpec(*_leading_axes(qkv[0].ndim - 3), None, HEADS, None)
    shape = {"grid": (grid[0] * num_chunks, *grid[1:]), "num_heads": qkv[0].shape[-2], "head_dim": qkv[0].shape[-1]}
    declared = layout.parameters(num_prefix=num_prefix, **shape)
    parameter_specs = {name: PartitionSpec(*_heads_axis(declared[name].head_axis)) for name in parameters}
    if bias is not None:
        on_shard = functools.partial(_attend_with_bias, layout, core, **local)
        bias_spec = PartitionSpec(*_leading_axes(qkv[0].ndim - 3), None, None, None)
        specs = (parameter_specs, bias_spec, spec, spec, spec)
        sharded = jax.shard_map(on_shard, in_specs=specs, out_specs=spec, check_vma=check_vma)
        return sharded(dict(parameters), bias, *qkv)
    specs = (parameter_specs, spec, spec, spec)
    sharded = jax.shard_map(on_shard, in_specs=specs, out_specs=spec, check_vma=check_vma)
    return sharded(dict(parameters), *qkv)


def _attend_part(part: Layout, *qkv: Array, core: Core, parameters: Mapping[str, Array], **settings: Any) -> Array:
    return attend(part, core, *qkv, parameters=parameters, **settings)


def _leading_axes(number: int) -> tuple[tuple[str, ...] | str, ...]:
    return (BATCH, TIME)[:number]


def _heads_axis(axis: int | None) -> tuple[str | None, ...]:
    return () if axis is None else (*(None,) * axis, HEADS)


def _attend_shard(
    layout: Layout, core: Core, parameters: Mapping[str, Array], *qkv: Array, grid: Grid, num_prefix: int
) -> Array:
    return attend_locally(layout, core, *qkv, grid=grid, num_prefix=num_prefix, parameters=parameters)


def _attend_with_bias(
    layout: Layout, core: Core, parameters: Mapping[str, Array], bias: Array, *qkv: Array, grid: Grid, num_prefix: int
) -> Array:
    return attend_locally(layout, core, *qkv, grid=grid, num_prefix=num_prefix, parameters=parameters, bias=bias)


def _average_prefix(
    on_shard: Callable[..., Array], num_prefix: int, parameters: Mapping[str, Array], *qkv: Array
) -> Array:
    """Attends within time indices; the outputs of prefix tokens are averaged over all devices of `frames`."""
    out = on_shard(parameters, *qkv)
    prefix_out = jax.lax.pmean(out[..., :num_prefix, :, :], TIME)
    return jnp.concatenate([prefix_out, out[..., num_prefix:, :, :]], axis=-3)


def _attend_along_time(
    layout: Layout, core: Core, parameters: Mapping[str, Array], *qkv: Array, grid: Grid, num_chunks: int
) -> Array:
    """Attends along time where a device holds some time indices of all places.

    An all-to-all gives each device all time indices of some places, and a second one takes the outputs back.
    """
    (t, h, w), (batch, _, _, heads, head_dim) = grid, qkv[0].shape
    places = -(-h * w // num_chunks)  # places of a device, rounded up: padded where `frames` does not divide space
    # one all-to-all for queries, keys and values together
    x = jnp.concatenate(qkv, axis=-1).reshape(batch, t, h * w, heads, 3 * head_dim)
    x = jnp.pad(x, ((0, 0), (0, 0), (0, places * num_chunks - h * w), (0, 0), (0, 0)))
    x = jax.lax.all_to_all(x, TIME, split_axis=2, concat_axis=1, tiled=True)
    q, k, v = jnp.split(x.reshape(batch, t * num_chunks * places, heads, 3 * head_dim), 3, axis=-1)
    out = layout(core, q, k, v, grid=(t * num_chunks, places, 1), num_prefix=0, **parameters)
    out = out.reshape(batch, t * num_chunks, places, heads, head_dim)
    out = jax.lax.all_to_all(out, TIME, split_axis=1, concat_axis=2, tiled=True)
    return out[:, :, : h * w].reshape(qkv[0].shape)
