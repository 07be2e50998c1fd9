"""Draws which tokens one token attends to, in each layout: python docs/draw_layouts.py docs/layouts.png"""

import sys

import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import ListedColormap

from vitx.layers.layouts import LAYOUTS

GRID, QUERY = (4, 4, 4), (1, 1, 2)  # frames, rows, columns
PANELS = {
    "joint": "all tokens (ViViT 1)",
    "space": "the same frame (first encoder of ViViT 2)",
    "time": "the same place (ViViT 3: time, then space)",
    "time_and_space": "half of the heads each (ViViT 4)",
    "local": "a quarter of the frame, at all times (TimeSformer)",
    "sparse": "every second token along each axis (TimeSformer)",
}


def attended(name: str) -> np.ndarray:
    """Returns a mask [frames, rows, columns] of the tokens that the query attends to in a layout."""
    n = np.prod(GRID)

    def uniform(q, k, v, *, bias=None, mask=None):
        weights = jnp.ones((*q.shape[:2], k.shape[1])) if mask is None else jnp.where(mask[:, 0], 1.0, 0.0)
        return jnp.einsum("bqk,bkhd->bqhd", jnp.broadcast_to(weights, (*q.shape[:2], k.shape[1])), v)

    # The values are one-hot, so the output of the query has an entry for each token that it attends to.
    q = k = jnp.zeros((1, n, 2, n))
    v = jnp.broadcast_to(jnp.eye(n)[None, :, None], (1, n, 2, n))
    out = np.asarray(LAYOUTS[name](uniform, q, k, v, grid=GRID, num_prefix=0))
    return (out[0, np.ravel_multi_index(QUERY, GRID)].sum(0) > 0).reshape(GRID)


def draw(path: str) -> None:
    """Writes the picture to a file."""
    figure, axes = plt.subplots(2, 3, figsize=(10.5, 3.2))
    figure.subplots_adjust(left=0.01, right=0.99, bottom=0.06, top=0.88, wspace=0.08, hspace=0.55)
    for axis, (name, description) in zip(axes.flat, PANELS.items(), strict=True):
        values = attended(name).astype(int)
        values[QUERY] = 2
        gap = np.full((GRID[1], 1), np.nan)
        image = np.concatenate([part for frame in values for part in (frame, gap)][:-1], axis=1)
        axis.imshow(image, cmap=ListedColormap(["#e8e8e8", "#6ba3d6", "#c44e52"]), vmin=0, vmax=2)
        for row in range(GRID[1] + 1):
            axis.axhline(row - 0.5, color="white", linewidth=1.5)
        for column in range(image.shape[1] + 1):
            axis.axvline(column - 0.5, color="white", linewidth=1.5)
        axis.text(0, 1.26, name, transform=axis.transAxes, fontweight="bold", fontsize=10)
        axis.text(0, 1.05, description, transform=axis.transAxes, fontsize=8)
        labels = [f"frame {i + 1}" for i in range(GRID[0])]
        axis.set_xticks([1.5 + 5 * i for i in range(GRID[0])], labels, fontsize=7)
        axis.set_yticks([])
        axis.tick_params(length=0)
        axis.spines[:].set_visible(False)
    figure.savefig(path, dpi=120)
    plt.close(figure)


if __name__ == "__main__":
    draw(sys.argv[1])
