"""Where activations live on the mesh that `jax.set_mesh` has set; without one, all here does nothing.

Layers know the names of a mesh's axes and no mesh:

    data, fsdp   share out the clips of the batch
    tensor       shares out attention heads and the hidden layer of the MLP
    frames       shares out the time indices of a clip

Activations are [batch, tokens, width], or [batch, times, tokens, width] where times are apart: those of a model that
encodes each on its own, or *chunks* of a clip, each a device's share with a copy of the prefix tokens.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Float

from vitx.layers.layouts import HALVES, LAYOUTS, SPLIT_IN_TIME, Grid, Layout

BATCH, HEADS, TIME = ("data", "fsdp"), "tensor", "frames"


def batch_sharding(mesh: jax.sharding.Mesh) -> NamedSharding:
    """Returns the sharding of every array with a leading batch axis."""
    return NamedSharding(mesh, PartitionSpec(BATCH))


def placed(name: str, ndim: int, rows: NamedSharding) -> NamedSharding:
    """Returns the sharding of one part of a batch: of "video", [batch, ..., frames, height, width, 3], time too.

    Args:
        rows: `batch_sharding`.
    """
    if name != "video":
        return rows
    return NamedSharding(rows.mesh, PartitionSpec(BATCH, *(None,) * (ndim - 5), TIME))


def to_devices(batch: Mapping[str, Any], rows: NamedSharding) -> dict[str, Any]:
    """Returns the global batch as arrays on devices; each process gives the rows of its `process_share`."""
    parts = process_share(rows)["processes"]

    def put(path: Any, part: Any) -> jax.Array:
        part = np.asarray(part)
        shape = (part.shape[0] * parts, *part.shape[1:])
        sharding = placed(path[0].key, part.ndim, rows)
        return jax.make_array_from_process_local_data(sharding, part, shape)

    return jax.tree_util.tree_map_with_path(put, dict(batch))


def process_share(rows: NamedSharding) -> dict[str, int]:
    """Returns which rows of every batch this process reads: {"process": part, "processes": of how many}.

    Processes whose devices share clips by other axes read the same rows.

    Raises:
        ValueError: its devices hold rows that are not neighbours, or not as many as those of others.
    """
    devices = rows.mesh.devices.reshape(rows.mesh.shape["data"] * rows.mesh.shape["fsdp"], -1)
    mine = [i for i, row in enumerate(devices) if any(d.process_index == jax.process_index() for d in row)]
    number, first = len(mine), mine[0]
    if mine != [*range(first, first + number)] or first % number or len(devices) % number:
        raise ValueError(f"the devices of this process hold parts {mine} of {len(devices)} of the batch: no even share")
    return {"process": first // number, "processes": len(devices) // number}


def axis_size(name: str) -> int:
    """Returns the size of an axis of the mesh; 1 without one."""
    return jax.sharding.get_abstract_mesh().shape.get(name, 1)


def pinned(x: Float[Array, "..."], last: str | None = None) -> Float[Array, "..."]:
    """Returns activations pinned to the batch's devices, their times to those of `frames`.

    Args:
        last: the mesh's axis that shares out the last axis; None for none.
    """
    if jax.sharding.get_abstract_mesh().empty:
        return x
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*_leading(x.ndim - 2), None, last))


def chunks_of_time(layouts: tuple[str, ...], tokens: Float[Array, "*batch tokens width"]) -> int:
    """Returns into how many chunks of time an encoder cuts its tokens: one for each of the devices of `frames`.

    Tokens whose times are apart are not cut, nor those of which a layout attends along time and space at once.
    """
    return axis_size(TIME) if tokens.ndim == 3 and {*layouts} <= {*SPLIT_IN_TIME} else 1


def chunked(
    x: Float[Array, "batch tokens width"], chunks: int, prefix: int
) -> Float[Array, "batch chunks tokens_of_chunk width"]:
    """Returns the tokens of each chunk of time, behind its copy of the prefix tokens."""
    batch, _, width = x.shape
    copies = jnp.broadcast_to(x[:, None, :prefix], (batch, chunks, prefix, width))
    return jnp.concatenate([copies, x[:, prefix:].reshape(batch, chunks, -1, width)], axis=2)


def unchunked(x: Float[Array, "batch chunks tokens_of_chunk width"], prefix: int) -> Float[Array, "batch tokens width"]:
    """Inverse of `chunked`; copies of a prefix token, which are equal but for dropout, are averaged."""
    tokens = x[:, :, prefix:].reshape(x.shape[0], -1, x.shape[-1])
    return jnp.concatenate([x[:, :, :prefix].mean(axis=1), tokens], axis=1) if prefix else tokens


def folded(
    layout: Layout,
    core: Callable[..., Array],
    *qkv: Float[Array, "*batch tokens heads head_dim"],
    grid: Grid,
    prefix: int,
) -> Float[Array, "*batch tokens heads head_dim"]:
    """Attends along a layout with all leading axes as one batch."""
    batches = (x.reshape(-1, *x.shape[-3:]) for x in qkv)
    return layout(core, *batches, grid=grid, prefix=prefix).reshape(qkv[0].shape)


def attend(
    name: str,
    core: Callable[..., Array],
    q: Float[Array, "*batch tokens heads head_dim"],
    k: Float[Array, "*batch tokens heads head_dim"],
    v: Float[Array, "*batch tokens heads head_dim"],
    *,
    grid: Grid,
    prefix: int,
    chunks: int = 1,
) -> Float[Array, "*batch tokens heads head_dim"]:
    """Attends along a layout; on a mesh, every device for its own clips, times and heads.

    Args:
        name: of the layout.
        grid: (t, h, w) of the tokens; of one chunk where there are several.
        chunks: of time; more than one are an axis after the batch's. Attention along time then exchanges time shards
            for shards of space, by an all-to-all, and back.

    Raises:
        ValueError: prefix tokens would attend along time that is in chunks.
    """
    if jax.sharding.get_abstract_mesh().empty:
        return folded(LAYOUTS[name], core, q, k, v, grid=grid, prefix=prefix)
    if name in HALVES:  # halved before each device takes its heads of both halves
        half = q.shape[-2] // 2
        heads = (slice(None, half), slice(half, None))
        return jnp.concatenate(
            [
                attend(each, core, *(x[..., of, :] for x in (q, k, v)), grid=grid, prefix=prefix, chunks=chunks)
                for each, of in zip(HALVES[name], heads, strict=True)
            ],
            axis=-2,
        )
    on_shard = functools.partial(folded, LAYOUTS[name], core, grid=grid, prefix=prefix)
    if chunks > 1 and name == "time":
        if prefix:
            raise ValueError("a class token that attends along time needs all of it: set pooling to 'mean'")
        on_shard = functools.partial(_along_time, core, grid=grid, chunks=chunks)
    elif chunks > 1 and prefix:
        on_shard = functools.partial(_averaged, on_shard, prefix)
    spec = PartitionSpec(*_leading(q.ndim - 3), None, HEADS, None)
    return jax.shard_map(on_shard, in_specs=(spec,) * 3, out_specs=spec)(q, k, v)


def _leading(axes: int) -> tuple[tuple[str, ...] | str, ...]:
    return (BATCH, TIME)[:axes]


def _averaged(on_shard: Callable[..., Array], prefix: int, *qkv: Array) -> Array:
    """Attention within frames; a prefix token's outputs are averaged over all of them."""
    out = on_shard(*qkv)
    ahead = jax.lax.pmean(out[..., :prefix, :, :], TIME)
    return jnp.concatenate([ahead, out[..., prefix:, :, :]], axis=-3)


def _along_time(core: Callable[..., Array], *qkv: Array, grid: Grid, chunks: int) -> Array:
    """Attention along time on a device that holds some times of all places: as one that holds all times of some."""
    (t, h, w), (batch, _, _, heads, head_dim) = grid, qkv[0].shape
    places = -(-h * w // chunks)  # of a device; padded where space does not divide
    x = jnp.concatenate(qkv, axis=-1).reshape(batch, t, h * w, heads, 3 * head_dim)
    x = jnp.pad(x, ((0, 0), (0, 0), (0, places * chunks - h * w), (0, 0), (0, 0)))
    x = jax.lax.all_to_all(x, TIME, split_axis=2, concat_axis=1, tiled=True)
    q, k, v = jnp.split(x.reshape(batch, t * chunks * places, heads, 3 * head_dim), 3, axis=-1)
    out = LAYOUTS["time"](core, q, k, v, grid=(t * chunks, places, 1), prefix=0)
    out = out.reshape(batch, t * chunks, places, heads, head_dim)
    out = jax.lax.all_to_all(out, TIME, split_axis=1, concat_axis=2, tiled=True)
    return out[:, :, : h * w].reshape(qkv[0].shape)
