"""Layouts: which tokens attend to which.

A layout acts after projection, around one attention call:

    layout(core, q, k, v, *, grid, prefix) -> out        all [batch, tokens, heads, head_dim]

with tokens = prefix + t·h·w: prefix (class) tokens first, then the grid (t, h, w), time-major. To add a
factorisation, write one such function and one line in `LAYOUTS`.
"""

from collections.abc import Callable
from typing import Protocol, runtime_checkable

from jaxtyping import Array, Float

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


LAYOUTS: dict[str, Layout] = {"joint": joint}
