"""From video to tokens: tubelets, prefix tokens, positions.

In shapes: b batch, t h w c the video, n tokens (m with prefix tokens), p pixels of a tubelet, d width.
"""

import math
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import linen as nn
from jaxtyping import Array, Float, Int, Num

from vitx.layers.layouts import Grid
from vitx.layers.types import DType

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
            "set num_frames and image_size to multiples of tubelet_size"
        )
    t, h, w = (size // step for size, step in zip(clip, tubelet_size, strict=True))
    return t, h, w


def check_video(video: Array, num_frames: int, image_size: Size, channels: int = 3) -> None:
    """Raises ValueError unless video is [batch, num_frames, height, width, channels]."""
    expected = (num_frames, *height_and_width(image_size), channels)
    if channels > 3 and video.shape[1:] == (*expected[:3], 3):
        raise ValueError(
            "found clips of RGB alone with a reducer that needs the codec's motion as a fourth channel; expected clips "
            "that are read with data.motion True: set it, or choose another model.reducer"
        )
    if video.ndim != 5 or video.shape[1:] != expected:
        raise ValueError(
            f"video has shape {list(video.shape)}; this model expects [batch, frames, height, width, channels] = "
            f"[batch, {', '.join(map(str, expected))}]: create it with num_frames and image_size of the video"
        )


class TubeletEmbedding(nn.Module):
    """Projects non-overlapping tubelets to tokens (ViViT, section 3.2); a tubelet of one frame is a patch.

    The kernel has the shape of a 3D convolution's, [t, h, w, channels, width]; it is computed as one matrix product,
    which is fast on every platform.

    Attributes:
        width: size of a token.
        tubelet_size: (t, h, w) in frames and pixels.
        dtype: type of the computations; parameters are float32.
    """

    width: int
    tubelet_size: tuple[int, int, int]
    dtype: DType = "float32"

    @nn.compact
    def __call__(self, video: Float[Array, "b t h w c"]) -> Float[Array, "b n d"]:
        t, h, w = self.tubelet_size
        channels = video.shape[-1]
        kernel = self.param(
            "kernel",
            nn.initializers.xavier_uniform(in_axis=(0, 1, 2, 3), out_axis=4),
            (t, h, w, channels, self.width),
            jnp.float32,
        )
        bias = self.param("bias", nn.initializers.zeros, (self.width,), jnp.float32)
        video, kernel, bias = nn.dtypes.promote_dtype(video, kernel, bias, dtype=self.dtype)
        tubelets = rearrange(to_tubelets(video, self.tubelet_size), "b n p c -> b n (p c)")
        return tubelets @ kernel.reshape(math.prod(kernel.shape[:-1]), self.width) + bias


def to_tubelets(video: Float[Array, "b t h w c"], tubelet_size: tuple[int, int, int]) -> Float[Array, "b n p c"]:
    """Returns the pixels of every tubelet, in the order of the tokens."""
    t, h, w = tubelet_size
    return rearrange(video, "b (t i) (h j) (w k) c -> b (t h w) (i j k) c", i=t, j=h, k=w)


def from_tubelets(
    tubelets: Float[Array, "b n p c"], grid: Grid, tubelet_size: tuple[int, int, int]
) -> Float[Array, "b t h w c"]:
    """Inverts `to_tubelets`; `grid` is (t, h, w) of the tokens."""
    (t, h, w), (i, j, k) = grid, tubelet_size
    return rearrange(tubelets, "b (t h w) (i j k) c -> b (t i) (h j) (w k) c", t=t, h=h, w=w, i=i, j=j, k=k)


PositionKind = Literal["learned", "sinusoidal"]


class Positions(nn.Module):
    """Prepends learned prefix (class) tokens and adds positions to all tokens (ViViT, eq. 1).

    Attributes:
        num_prefix: number of class tokens, 0 or 1.
        kind: "learned", one vector for each token; or "sinusoidal", fixed, zero for the class token.
    """

    num_prefix: int = 1
    kind: PositionKind = "learned"

    @nn.compact
    def __call__(self, x: Float[Array, "*b n d"]) -> Float[Array, "*b m d"]:
        tokens, width = x.shape[-2:]
        if self.kind == "sinusoidal":
            x = x + jnp.asarray(sinusoids(tokens, width), x.dtype)
        if self.num_prefix:
            x = prepend(x, self.param("class_token", nn.initializers.zeros, (1, self.num_prefix, width), jnp.float32))
        if self.kind == "learned":
            positions = self.param(
                "positions", nn.initializers.normal(0.02), (1, self.num_prefix + tokens, width), jnp.float32
            )
            x = x + positions.astype(x.dtype)
        return x


class SpaceTimePositions(nn.Module):
    """Prepends a class token, adds positions in space to all tokens and in time to the grid (TimeSformer, eq. 1).

    Attributes:
        grid: (t, h, w) of the tokens.
        num_prefix: number of class tokens, 0 or 1.
    """

    grid: Grid
    num_prefix: int = 1

    @nn.compact
    def __call__(self, x: Float[Array, "b n d"]) -> Float[Array, "b m d"]:
        (t, h, w), width = self.grid, x.shape[-1]
        space = self.param(
            "positions", nn.initializers.normal(0.02), (1, self.num_prefix + h * w, width), jnp.float32
        ).astype(x.dtype)
        time = self.param("time_positions", nn.initializers.normal(0.02), (1, t, width), jnp.float32).astype(x.dtype)
        x = x + jnp.tile(space[:, self.num_prefix :], (1, t, 1)) + jnp.repeat(time, h * w, axis=1)
        if not self.num_prefix:
            return x
        token = self.param("class_token", nn.initializers.zeros, (1, self.num_prefix, width), jnp.float32)
        return prepend(x, token.astype(x.dtype) + space[:, : self.num_prefix])


def prepend(x: Float[Array, "*b n d"], prefix: Float[Array, "1 prefix d"]) -> Float[Array, "*b m d"]:
    """Returns the same prefix tokens followed by the tokens of every clip."""
    prefix = jnp.broadcast_to(prefix.astype(x.dtype), (*x.shape[:-2], *prefix.shape[1:]))
    return jnp.concatenate([prefix, x], axis=-2)


def sinusoids(tokens: int, width: int) -> Float[np.ndarray, "n d"]:
    """Returns sin and cos of i / 10000^(2j / width), alternating over the width (Vaswani et al. 2017, section 3.5)."""
    angles = np.arange(tokens)[:, None] / 10000 ** (2 * (np.arange(width) // 2) / width)
    return np.where(np.arange(width) % 2, np.cos(angles), np.sin(angles)).astype(np.float32)


def sample_uniformly(video: Num[Array, "b t h w c"], num_frames: int) -> Num[Array, "b frames h w c"]:
    """Returns the middle frames of `num_frames` equal spans of the clip (ViViT, section 3.2)."""
    if num_frames == video.shape[1]:
        return video
    indices = (np.arange(num_frames) + 0.5) * video.shape[1] / num_frames
    return video[:, indices.astype(int)]


def split_frames(x: Float[Array, "b n d"], frames: int, num_prefix: int) -> Float[Array, "b t m d"]:
    """Gives time an axis of its own; each time index has `num_prefix` prefix tokens."""
    parts = x[:, : frames * num_prefix], x[:, frames * num_prefix :]
    return jnp.concatenate([rearrange(part, "b (t n) d -> b t n d", t=frames) for part in parts], axis=2)


def merge_frames(x: Float[Array, "b t m d"], num_prefix: int) -> Float[Array, "b n d"]:
    """Inverts `split_frames`: all prefix tokens come first, then the grid, time-major."""
    parts = x[:, :, :num_prefix], x[:, :, num_prefix:]
    return jnp.concatenate([rearrange(part, "b t n d -> b (t n) d") for part in parts], axis=1)


def gather_tokens(
    x: Float[Array, "b n d"], keep: Int[Array, "b visible"] | None, num_prefix: int
) -> Float[Array, "b m d"]:
    """Returns the prefix tokens and the tokens of the grid with indices `keep`, or all tokens if it is None."""
    if keep is None:
        return x
    return jnp.concatenate([x[:, :num_prefix], jnp.take_along_axis(x[:, num_prefix:], keep[..., None], axis=1)], axis=1)


def resize_positions(
    table: Float[Array | np.ndarray, "1 n d"], num_prefix: int, old: Grid, new: Grid
) -> Float[Array, "1 m d"]:
    """Interpolates a table of positions from one grid to another: linearly in time, then cubically in space.

    Args:
        table: positions of the prefix tokens, then of the grid.
        num_prefix: number of prefix tokens, whose positions stay as they are.
        old: (t, h, w) of the table.
        new: (t, h, w) of the result.
    """
    width = table.shape[-1]
    grid = jnp.asarray(table[:, num_prefix:]).reshape(*old, width)
    if new[0] != old[0]:
        grid = jax.image.resize(grid, (new[0], *old[1:], width), "linear")
    if new[1:] != old[1:]:
        grid = jax.image.resize(grid, (*new, width), "cubic")
    return jnp.concatenate([table[:, :num_prefix], grid.reshape(1, -1, width)], axis=1)
