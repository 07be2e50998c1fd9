"""Layouts: which tokens attend to which.

A layout acts after projection, around one attention call:

    layout(core, q, k, v, *, grid, prefix) -> out        all [batch, tokens, heads, head_dim]

with tokens = prefix + t·h·w: prefix (class) tokens first, then the grid (t, h, w), time-major. To add a
factorisation, write one such function and one line in `LAYOUTS`; a model's `layouts` then names it.
"""

import functools
import math
from collections.abc import Callable
from typing import Protocol, runtime_checkable

import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jaxtyping import Array, Float

from vitx.plugins import Registry

Grid = tuple[int, int, int]


@runtime_checkable
class Layout(Protocol):
    """A rule that calls `core` on the tokens that may see one another."""

    def __call__(
        self,
        core: Callable[..., Array],
        q: Float[Array, "batch tokens heads head_dim"],
        k: Float[Array, "batch tokens heads head_dim"],
        v: Float[Array, "batch tokens heads head_dim"],
        *,
        grid: Grid,
        prefix: int,
    ) -> Float[Array, "batch tokens heads head_dim"]: ...


def joint(
    core: Callable[..., Array],
    q: Float[Array, "batch tokens heads head_dim"],
    k: Float[Array, "batch tokens heads head_dim"],
    v: Float[Array, "batch tokens heads head_dim"],
    *,
    grid: Grid,
    prefix: int,
) -> Float[Array, "batch tokens heads head_dim"]:
    """Every token attends to every token (ViViT model 1; each encoder of model 2 on its own grid)."""
    return core(q, k, v)


def grouped(
    core: Callable[..., Array],
    q: Float[Array, "batch tokens heads head_dim"],
    k: Float[Array, "batch tokens heads head_dim"],
    v: Float[Array, "batch tokens heads head_dim"],
    *,
    grid: Grid,
    prefix: int,
    axes: str,
    groups: str,
    members: str,
    parts: int = 1,
) -> Float[Array, "batch tokens heads head_dim"]:
    """Every token attends within its group; prefix tokens are repeated for each group and their outputs averaged.

    That rule for prefix tokens is TimeSformer's, for its class token in spatial attention.

    Args:
        axes: the grid as einops writes it, such as "(t i) (h j) (w k)", where i, j, k cut an axis into `parts`.
        groups: the axes that tell groups apart.
        members: the axes along which tokens attend.
        parts: an axis that they do not divide is padded, and the padding masked.
    """
    batch, _, heads, head_dim = q.shape
    cuts = [min(parts, size) if part in axes else 1 for part, size in zip("ijk", grid, strict=True)]
    lengths = [-(-size // cut) for size, cut in zip(grid, cuts, strict=True)]
    pad = [(0, length * cut - size) for length, cut, size in zip(lengths, cuts, grid, strict=True)]
    sizes = dict(zip("thwijk", (*lengths, *cuts), strict=True))
    sizes = {name: size for name, size in sizes.items() if name in axes}
    number = math.prod(sizes[name] for name in groups.split())

    def apart(x: Array) -> Array:
        clip = jnp.pad(x[:, prefix:].reshape(batch, *grid, heads, head_dim), [(0, 0), *pad, (0, 0), (0, 0)])
        rows = rearrange(clip, f"b {axes} n d -> (b {groups}) ({members}) n d", **sizes)
        return jnp.concatenate([jnp.repeat(x[:, :prefix], number, axis=0), rows], axis=1)

    mask = None
    if any(after for _, after in pad):
        there = rearrange(np.pad(np.ones(grid, bool), pad), f"{axes} -> ({groups}) ({members})", **sizes)
        mask = jnp.tile(np.pad(there, ((0, 0), (prefix, 0)), constant_values=True), (batch, 1))[:, None, None]
    out = core(apart(q), apart(k), apart(v), mask=mask)
    clip = rearrange(out[:, prefix:], f"(b {groups}) ({members}) n d -> b {axes} n d", b=batch, **sizes)
    tokens = clip[:, : grid[0], : grid[1], : grid[2]].reshape(batch, math.prod(grid), heads, head_dim)
    ahead = out[:, :prefix].reshape(batch, number, prefix, heads, head_dim).mean(axis=1)
    return jnp.concatenate([ahead, tokens], axis=1)


time = functools.partial(grouped, axes="t h w", groups="h w", members="t")
space = functools.partial(grouped, axes="t h w", groups="t", members="h w")
height = functools.partial(grouped, axes="t h w", groups="t w", members="h")
width = functools.partial(grouped, axes="t h w", groups="t h", members="w")
local = functools.partial(grouped, axes="t (j h) (k w)", groups="j k", members="t h w", parts=2)
sparse = functools.partial(grouped, axes="(t i) (h j) (w k)", groups="i j k", members="t h w", parts=2)


def time_and_space(
    core: Callable[..., Array],
    q: Float[Array, "batch tokens heads head_dim"],
    k: Float[Array, "batch tokens heads head_dim"],
    v: Float[Array, "batch tokens heads head_dim"],
    *,
    grid: Grid,
    prefix: int,
) -> Float[Array, "batch tokens heads head_dim"]:
    """The first half of the heads attends along time, the second within frames (ViViT model 4, section 3.3)."""
    half = q.shape[2] // 2
    halves = (time, slice(None, half)), (space, slice(half, None))
    out = [
        layout(core, q[:, :, heads], k[:, :, heads], v[:, :, heads], grid=grid, prefix=prefix)
        for layout, heads in halves
    ]
    return jnp.concatenate(out, axis=2)


LAYOUTS: Registry[Layout] = Registry(
    "layout",
    {
        "joint": joint,
        "time": time,  # lines of time
        "space": space,  # frames
        "height": height,  # columns of a frame
        "width": width,  # rows of a frame
        "local": local,  # quarters of the frame, at all times (TimeSformer, section 3: F x H/2 x W/2)
        "sparse": sparse,  # the whole clip at a stride of two along every axis (TimeSformer, section 3)
        "time_and_space": time_and_space,
    },
)
IN_FRAMES = ("space", "height", "width")  # see nothing of other frames
HALVES = {"time_and_space": ("time", "space")}  # a layout for each half of the heads
SPLIT_IN_TIME = (*IN_FRAMES, *HALVES, "time")  # can be computed where the time indices of a clip are shared out
