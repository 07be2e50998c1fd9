"""Masks for masked pre-training: which tokens are visible, and which are to be predicted.

In shapes: b batch, n tokens.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, Key

from vitx.layers.layouts import Grid


def count_visible_places(mask_ratio: float, grid: Grid) -> int:
    """Returns the number of places of a frame that a mask leaves visible.

    Args:
        mask_ratio: fraction of the places that is masked, rounded down to whole places.
        grid: (t, h, w) of the tokens.
    """
    places = grid[1] * grid[2]
    # 0.7 * 10 is 7.000000000000001 and 0.29 * 100 is 28.999999999999996: the nearest millionth is meant
    return places - int(round(mask_ratio * places, 6))


def draw_tube_mask(key: Key[Array, ""], grid: Grid, num_places: int) -> Int[Array, "visible"]:
    """Draws the places of a frame that are visible, the same at all time indices (Tong et al. 2022, section 3.3).

    Args:
        key: PRNG key.
        grid: (t, h, w) of the tokens.
        num_places: number of visible places.

    Returns:
        Indices of the visible tokens, in ascending order.
    """
    t, places = grid[0], grid[1] * grid[2]
    visible = jnp.sort(jax.random.permutation(key, places)[:num_places])
    return (places * jnp.arange(t)[:, None] + visible).reshape(-1)


def complement(indices: Int[Array, "b visible"], num_tokens: int) -> Int[Array, "b masked"]:
    """Returns the indices of all other tokens, in ascending order; a clip's `indices` must differ from one another."""
    rows = jnp.arange(len(indices))[:, None]
    taken = jnp.zeros((len(indices), num_tokens), bool).at[rows, indices].set(True)
    # a stable sort puts False first and keeps the order
    return jnp.argsort(taken, axis=1, stable=True)[:, : num_tokens - indices.shape[1]]
