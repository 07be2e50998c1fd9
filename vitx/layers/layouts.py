"""Layouts: which tokens attend to which.

A layout acts after projection, around one attention call, and owns its rule for prefix (class) tokens:

    layout(core, q, k, v, *, grid, num_prefix, **parameters) -> out     q, k, v, out: [batch, tokens, heads, head_dim]
    core(q, k, v, *, bias=None, mask=None) -> out

The tokens are the prefix tokens, then the grid (t, h, w), time-major. To add a factorisation, write one function and
add it to the registry; a model's `layouts` then names it, and no other file needs to know the name:

    LAYOUTS.add("joint_biased", Layout(attend, is_global=True, parameters=declare))

In shapes: b batch, n tokens, d size of a head.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jaxtyping import Array, Bool, Float

from vitx.plugins import Registry

Grid = tuple[int, int, int]
Heads = Float[Array, "b n heads d"]
Core = Callable[..., Array]


@dataclasses.dataclass(frozen=True)
class Parameter:
    """A parameter of a layout, such as a table of relative positions.

    Attributes:
        shape: shape of the array.
        init: Flax initializer, called as init(key, shape).
        head_axis: axis along which the array has an entry for each head; None if the heads share it.
    """

    shape: tuple[int, ...]
    init: Callable[..., Array]
    head_axis: int | None = None


def no_parameters(*, grid: Grid, num_prefix: int, num_heads: int, head_dim: int) -> dict[str, Parameter]:
    """Declares no parameters."""
    return {}


@dataclasses.dataclass(frozen=True)
class Layout:
    """A rule for which tokens attend to which, and what models and meshes must know about it.

    Models and meshes use the attributes of this class alone.

    Attributes:
        attend: function called as attend(core, q, k, v, grid=grid, num_prefix=num_prefix, **parameters).
        independent: what is computed independently of the rest, which decides how a mesh may shard a clip's time.
            "times": each time index, so a shard of time is enough, and the outputs of prefix tokens are averaged over
            all shards. "locations": each location in the frame, so shards of time are exchanged for shards of space.
            None: the whole clip is needed.
        is_global: every token attends to every token, so prefix tokens have one neighbourhood and tokens may be left
            out.
        parts: layouts that each get an equal part of the heads, in this order; see `split_heads`.
        parameters: called as parameters(grid=..., num_prefix=..., num_heads=..., head_dim=...), with the grid of a
            whole clip; returns the layout's own parameters by name, which `SelfAttention` creates in its scope.
    """

    attend: Callable[..., Array]
    independent: Literal["times", "locations"] | None = None
    is_global: bool = False
    parts: tuple["Layout", ...] = ()
    parameters: Callable[..., Mapping[str, Parameter]] = no_parameters

    def __call__(
        self, core: Core, q: Heads, k: Heads, v: Heads, *, grid: Grid, num_prefix: int, **parameters: Any
    ) -> Heads:
        return self.attend(core, q, k, v, grid=grid, num_prefix=num_prefix, **parameters)

    @property
    def num_parts(self) -> int:
        """Number of equal parts into which the heads are divided."""
        return max(len(self.parts), 1)

    @property
    def can_shard_time(self) -> bool:
        """Whether the layout can be computed where each device holds some time indices of a clip."""
        return all(part.can_shard_time for part in self.parts) if self.parts else self.independent is not None

    @property
    def attends_along_time(self) -> bool:
        """Whether a token attends to other time indices."""
        return any(part.attends_along_time for part in self.parts) if self.parts else self.independent != "times"

    def map_parts(self, attend: Callable[..., Array], *qkv: Array, parameters: Mapping[str, Array]) -> Array:
        """Calls attend(part, q, k, v, parameters) for each part with its heads, and joins the outputs.

        Args:
            qkv: queries, keys and values, [..., heads, head_dim].
            parameters: the layout's parameters by name.
        """
        heads = zip(*(jnp.split(x, len(self.parts), axis=-2) for x in qkv), strict=True)
        outputs = []
        for i, (part, qkv_of_part) in enumerate(zip(self.parts, heads, strict=True)):
            named = {name.removeprefix(f"{i}_"): x for name, x in parameters.items() if name.startswith(f"{i}_")}
            outputs.append(attend(part, *qkv_of_part, parameters=named))
        return jnp.concatenate(outputs, axis=-2)


def attend_jointly(core: Core, q: Heads, k: Heads, v: Heads, *, grid: Grid, num_prefix: int) -> Heads:
    """Every token attends to every token (ViViT model 1; each encoder of model 2 on its own grid)."""
    return core(q, k, v)


# Groups of the layouts below on a grid of 2 x 4 x 4 tokens; tokens with the same number attend to one another.
#
#           time            space        local        sparse
#   t = 0   0  1  2  3      0 0 0 0      0 0 1 1      0 1 0 1
#           4  5  6  7      0 0 0 0      0 0 1 1      2 3 2 3
#           8  9 10 11      0 0 0 0      2 2 3 3      0 1 0 1
#          12 13 14 15      0 0 0 0      2 2 3 3      2 3 2 3
#
#   t = 1   as at t = 0     all 1        as at t = 0  4 5 4 5 ...


def attend_in_groups(
    core: Core,
    q: Heads,
    k: Heads,
    v: Heads,
    *,
    grid: Grid,
    num_prefix: int,
    groups: str,
    members: str,
    axes: str = "t h w",
    sizes: Mapping[str, int] | None = None,
    valid: Bool[np.ndarray, "t h w"] | None = None,
) -> Heads:
    """Every token attends within its group.

    Prefix tokens attend once in every group, and their outputs are averaged: TimeSformer's rule for its class token.

    Args:
        groups: axes whose places are groups, in einops' notation.
        members: axes along which tokens attend.
        axes: all axes, in the order of the tokens.
        sizes: size of each axis; by default those of the grid.
        valid: False for padding tokens, to which no token attends; None without padding.
    """
    batch = len(q)
    sizes = dict(zip("thw", grid, strict=True)) if sizes is None else sizes
    num_groups = math.prod(sizes[axis] for axis in groups.split())
    grouped = f"(b {groups}) ({members}) n d"

    def to_groups(x: Array) -> Array:
        tokens = rearrange(x[:, num_prefix:], f"b ({axes}) n d -> {grouped}", **sizes)
        return jnp.concatenate([jnp.repeat(x[:, :num_prefix], num_groups, axis=0), tokens], axis=1)

    mask = None
    if valid is not None:
        valid = rearrange(valid.ravel(), f"({axes}) -> ({groups}) ({members})", **sizes)
        valid = np.pad(valid, ((0, 0), (num_prefix, 0)), constant_values=True)
        mask = jnp.tile(valid, (batch, 1))[:, None, None]  # [batch * groups, heads, queries, keys]
    out = core(to_groups(q), to_groups(k), to_groups(v), mask=mask)
    prefix_out = rearrange(out[:, :num_prefix], "(b g) p n d -> b g p n d", b=batch).mean(axis=1)
    tokens_out = rearrange(out[:, num_prefix:], f"{grouped} -> b ({axes}) n d", b=batch, **sizes)
    return jnp.concatenate([prefix_out, tokens_out], axis=1)


def attend_in_halves(
    core: Core, q: Heads, k: Heads, v: Heads, *, grid: Grid, num_prefix: int, groups: str, members: str, axes: str
) -> Heads:
    """Attends in groups of a grid that is cut into halves along some axes; see `attend_in_groups` for the arguments.

    Names of the halves are i along t, j along h and k along w. Axes of odd size are padded, and the padding is masked.
    """
    num_parts = [min(2, size) if part in axes else 1 for part, size in zip("ijk", grid, strict=True)]
    lengths = [math.ceil(size / count) for size, count in zip(grid, num_parts, strict=True)]
    sizes = dict(zip("thwijk", (*lengths, *num_parts), strict=True))
    sizes = {axis: size for axis, size in sizes.items() if axis in axes}
    attend = functools.partial(
        attend_in_groups, core, num_prefix=num_prefix, groups=groups, members=members, axes=axes, sizes=sizes
    )
    padded = tuple(length * count for length, count in zip(lengths, num_parts, strict=True))
    if padded == grid:
        return attend(q, k, v, grid=grid)

    padding = [(0, after - before) for before, after in zip(grid, padded, strict=True)]
    shape = (len(q), *grid, *q.shape[2:])

    def pad(x: Array) -> Array:
        tokens = jnp.pad(x[:, num_prefix:].reshape(shape), [(0, 0), *padding, (0, 0), (0, 0)])
        return jnp.concatenate([x[:, :num_prefix], tokens.reshape(len(x), -1, *x.shape[2:])], axis=1)

    valid = np.pad(np.ones(grid, bool), padding)
    out = attend(pad(q), pad(k), pad(v), grid=padded, valid=valid)
    tokens = out[:, num_prefix:].reshape(len(q), *padded, *q.shape[2:])[:, : grid[0], : grid[1], : grid[2]]
    return jnp.concatenate([out[:, :num_prefix], tokens.reshape(len(q), -1, *q.shape[2:])], axis=1)


def split_heads(*parts: Layout) -> Layout:
    """Returns a layout in which an equal part of the heads attends along each of these layouts."""

    def attend(core: Core, q: Heads, k: Heads, v: Heads, *, grid: Grid, num_prefix: int, **parameters: Array) -> Heads:
        def attend_part(part: Layout, *qkv: Array, parameters: Mapping[str, Array]) -> Array:
            return part(core, *qkv, grid=grid, num_prefix=num_prefix, **parameters)

        return layout.map_parts(attend_part, q, k, v, parameters=parameters)

    def declare(*, num_heads: int, **shape: Any) -> dict[str, Parameter]:
        by_part = [part.parameters(num_heads=num_heads // len(parts), **shape) for part in parts]
        return {f"{i}_{name}": parameter for i, declared in enumerate(by_part) for name, parameter in declared.items()}

    layout = Layout(attend, parts=parts, parameters=declare)
    return layout


def in_groups(groups: str, members: str, independent: Literal["times", "locations"]) -> Layout:
    """Returns a layout whose groups are lines or planes of the grid."""
    return Layout(functools.partial(attend_in_groups, groups=groups, members=members), independent)


def in_halves(axes: str, groups: str) -> Layout:
    """Returns a layout whose groups are parts of the grid."""
    return Layout(functools.partial(attend_in_halves, axes=axes, groups=groups, members="t h w"))


TIME, SPACE = in_groups("h w", "t", "locations"), in_groups("t", "h w", "times")

LAYOUTS: Registry[Layout] = Registry(
    "layout",
    {
        "joint": Layout(attend_jointly, is_global=True),
        "time": TIME,  # lines of time
        "space": SPACE,  # frames
        "height": in_groups("t w", "h", "times"),  # columns of a frame
        "width": in_groups("t h", "w", "times"),  # rows of a frame
        "local": in_halves("t j h k w", "j k"),  # quarters of the frame, at all times (TimeSformer, section 3)
        "sparse": in_halves("t i h j w k", "i j k"),  # every second token along every axis (TimeSformer, section 3)
        "time_and_space": split_heads(TIME, SPACE),  # ViViT model 4, section 3.3
    },
)
