"""From video to tokens: tubelets, prefix tokens, positions."""

import math

import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn
from jaxtyping import Array, Float

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


class Positions(nn.Module):
    """Prepends learned prefix (class) tokens and adds learned positions to all (ViViT, eq. 1).

    Attributes:
        prefix: number of class tokens, 0 or 1.
    """

    prefix: int = 1

    @nn.compact
    def __call__(self, x: Float[Array, "batch tokens width"]) -> Float[Array, "batch prefix_and_tokens width"]:
        batch, tokens, width = x.shape
        if self.prefix:
            token = self.param("class_token", nn.initializers.zeros, (1, self.prefix, width))
            x = jnp.concatenate([jnp.broadcast_to(token, (batch, self.prefix, width)).astype(x.dtype), x], axis=1)
        positions = self.param("positions", nn.initializers.normal(0.02), (1, self.prefix + tokens, width))
        return x + positions.astype(x.dtype)
