"""From video to tokens: tubelets, prefix tokens, positions."""

import math
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import linen as nn
from jaxtyping import Array, Float, Int

from vitx.layers.attention import DType
from vitx.layers.layouts import Grid

Size = int | tuple[int, int]


def height_and_width(size: Size) -> tuple[int, int]:
    """Returns (height, width) in pixels; one number means a square."""
    return size if isinstance(size, tuple) else (size, size)


def token_grid(num_frames: int, image_size: Size, tubelet_size: tuple[int, int, int]) -> Grid:
    """Returns the grid (t, h, w) of tubelets in a clip.

    Raises:
        ValueError: the tubelet does not divide the clip.
    """
    clip = (num_frames, *height_and_width(image_size))
    if min(*clip, *tubelet_size) < 1 or any(size % step for size, step in zip(clip, tubelet_size, strict=True)):
        raise ValueError(
            f"a tubelet of {tubelet_size} (frames, height, width) does not divide a clip of {clip}; "
            "change num_frames, image_size or tubelet_size so that each is a multiple"
        )
    t, h, w = (size // step for size, step in zip(clip, tubelet_size, strict=True))
    return t, h, w


def check_video(video: Array, num_frames: int, image_size: Size) -> None:
    """Raises ValueError unless video is [batch, num_frames, height, width, 3]."""
    expected = (num_frames, *height_and_width(image_size), 3)
    if video.ndim != 5 or video.shape[1:] != expected:
        raise ValueError(
            f"video has shape {list(video.shape)}; this model was made for [batch, frames, height, width, channels] "
            f"= [batch, {', '.join(map(str, expected))}]. Other frames and sizes are chosen when it is made: "
            "num_frames=..., image_size=..."
        )


class TubeletEmbedding(nn.Module):
    """Projects non-overlapping tubelets to tokens (ViViT, section 3.2); a tubelet of one frame is a patch.

    The kernel has the shape of the 3D convolution that this is, [t, h, w, channels, width]; computed as one
    matrix product, which every platform does fast.

    Attributes:
        width: size of a token.
        tubelet_size: (t, h, w) in frames and pixels.
        dtype: computations' type; parameters are float32.
    """

    width: int
    tubelet_size: tuple[int, int, int]
    dtype: DType = "float32"

    @nn.compact
    def __call__(
        self, video: Float[Array, "batch frames height width_px channels"]
    ) -> Float[Array, "batch tokens width"]:
        t, h, w = self.tubelet_size
        channels = video.shape[-1]
        kernel = self.param(
            "kernel", nn.initializers.xavier_uniform(in_axis=(0, 1, 2, 3), out_axis=4), (t, h, w, channels, self.width)
        )
        bias = self.param("bias", nn.initializers.zeros, (self.width,))
        video, kernel, bias = nn.dtypes.promote_dtype(video, kernel, bias, dtype=self.dtype)
        tubelets = rearrange(video, "b (t i) (h j) (w k) c -> b (t h w) (i j k c)", i=t, j=h, k=w)
        return tubelets @ kernel.reshape(math.prod(kernel.shape[:-1]), self.width) + bias


PositionKind = Literal["learned", "sinusoidal"]


class Positions(nn.Module):
    """Prepends learned prefix (class) tokens and adds positions to all (ViViT, eq. 1).

    Attributes:
        prefix: number of class tokens, 0 or 1.
        kind: "learned", one vector for each token; or "sinusoidal", fixed, nothing for the class token.
    """

    prefix: int = 1
    kind: PositionKind = "learned"

    @nn.compact
    def __call__(self, x: Float[Array, "*batch tokens width"]) -> Float[Array, "*batch prefix_and_tokens width"]:
        tokens, width = x.shape[-2:]
        if self.kind == "sinusoidal":
            x = x + jnp.asarray(sinusoids(tokens, width), x.dtype)
        x = prepend(
            x, self.param("class_token", nn.initializers.zeros, (1, self.prefix, width)) if self.prefix else None
        )
        if self.kind == "learned":
            positions = self.param("positions", nn.initializers.normal(0.02), (1, self.prefix + tokens, width))
            x = x + positions.astype(x.dtype)
        return x


class SpaceTimePositions(nn.Module):
    """Prepends a class token, adds learned positions in space to all and in time to the grid (TimeSformer, eq. 1).

    Attributes:
        grid: (t, h, w) of the tokens.
        prefix: number of class tokens, 0 or 1.
    """

    grid: Grid
    prefix: int = 1

    @nn.compact
    def __call__(self, x: Float[Array, "batch tokens width"]) -> Float[Array, "batch prefix_and_tokens width"]:
        (t, h, w), width = self.grid, x.shape[-1]
        space = self.param("positions", nn.initializers.normal(0.02), (1, self.prefix + h * w, width)).astype(x.dtype)
        time = self.param("time_positions", nn.initializers.normal(0.02), (1, t, width)).astype(x.dtype)
        x = x + jnp.tile(space[:, self.prefix :], (1, t, 1)) + jnp.repeat(time, h * w, axis=1)
        token = self.param("class_token", nn.initializers.zeros, (1, self.prefix, width)) if self.prefix else None
        return prepend(x, None if token is None else token.astype(x.dtype) + space[:, : self.prefix])


def prepend(
    x: Float[Array, "*batch tokens width"], prefix: Float[Array, "1 prefix width"] | None
) -> Float[Array, "*batch prefix_and_tokens width"]:
    """Returns the tokens of every clip after the same prefix tokens."""
    if prefix is None:
        return x
    prefix = jnp.broadcast_to(prefix.astype(x.dtype), (*x.shape[:-2], *prefix.shape[1:]))
    return jnp.concatenate([prefix, x], axis=-2)


def sinusoids(tokens: int, width: int) -> Float[np.ndarray, "tokens width"]:
    """Returns sin and cos of i / 10000^(2j / width), alternating over the width (Vaswani et al. 2017, section 3.5)."""
    angles = np.arange(tokens)[:, None] / 10000 ** (2 * (np.arange(width) // 2) / width)
    return np.where(np.arange(width) % 2, np.cos(angles), np.sin(angles)).astype(np.float32)


def sample_uniformly(
    video: Float[Array, "batch frames height width channels"], num_frames: int
) -> Float[Array, "batch num_frames height width channels"]:
    """Returns frames from the middle of as many equal spans of the clip (ViViT, section 3.2)."""
    if num_frames == video.shape[1]:
        return video
    indices = (np.arange(num_frames) + 0.5) * video.shape[1] / num_frames
    return video[:, indices.astype(int)]


def frames_apart(
    x: Float[Array, "batch tokens width"], frames: int, prefix: int
) -> Float[Array, "batch times tokens_of_time width"]:
    """Gives time an axis of its own; of the prefix tokens, `prefix` belong to each time index."""
    ahead, tokens = x[:, : frames * prefix], x[:, frames * prefix :]
    return jnp.concatenate([rearrange(part, "b (t n) d -> b t n d", t=frames) for part in (ahead, tokens)], axis=2)


def frames_together(
    x: Float[Array, "batch times tokens_of_time width"], prefix: int
) -> Float[Array, "batch tokens width"]:
    """Inverse of `frames_apart`: all prefix tokens first, then the grid, time-major."""
    return jnp.concatenate(
        [rearrange(part, "b t n d -> b (t n) d") for part in (x[:, :, :prefix], x[:, :, prefix:])], axis=1
    )


def kept(
    x: Float[Array, "batch tokens width"], keep: Int[Array, "batch visible"] | None, prefix: int
) -> Float[Array, "batch prefix_and_visible width"]:
    """Returns the prefix tokens and those of the grid that `keep` numbers; all where it is None."""
    if keep is None:
        return x
    return jnp.concatenate([x[:, :prefix], jnp.take_along_axis(x[:, prefix:], keep[..., None], axis=1)], axis=1)


def resized_positions(
    table: Float[np.ndarray, "1 tokens width"], prefix: int, old: Grid, new: Grid
) -> Float[np.ndarray, "1 new_tokens width"]:
    """Interpolates a table of positions from one grid to another, in time (linear) and in space (cubic) apart.

    Args:
        prefix: class tokens ahead, which stay as they are.
        old: (t, h, w) of the table.
        new: (t, h, w) wanted.
    """
    width = table.shape[-1]
    grid = jnp.asarray(table[:, prefix:]).reshape(*old, width)
    if new[0] != old[0]:
        grid = jax.image.resize(grid, (new[0], *old[1:], width), "linear")
    if new[1:] != old[1:]:
        grid = jax.image.resize(grid, (*new, width), "cubic")
    return np.concatenate([table[:, :prefix], np.asarray(grid).reshape(1, -1, width)], axis=1)
