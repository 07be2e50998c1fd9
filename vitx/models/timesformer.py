"""TimeSformer (Bertasius et al. 2021, arXiv:2102.05095): five ways to attend in space and time.

In shapes: b batch, t h w c the video, n tokens, times the time indices of the tokens, d width.
"""

import functools
from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from vitx.configuration import register
from vitx.layers.embeddings import Positions, SpaceTimePositions, gather_tokens, merge_frames, split_frames
from vitx.layers.layouts import Grid
from vitx.layers.transformer import Activation
from vitx.models.transformer import VideoTransformer


@register
class TimeSformer(VideoTransformer):
    """TimeSformer with attention in time: joint, divided, local-global or axial (section 3, figure 2).

    Divided is layouts=("time", "space"), local-global ("local", "sparse"), axial ("time", "width", "height"). Every
    attention but the last is followed by a dense layer of its own, zero at first, and skips the class token; in the
    last one the class token attends in every group and its outputs are averaged. The authors' code has joint and
    divided; local-global and axial follow section 3 of the paper by the same rules.

    Attributes:
        num_frames: frames of a clip.
        tubelet_size: (frames, height, width) of one token; a patch of one frame in the paper.
        activation: activation of the MLP; the original's is the exact "gelu".
        zero_init: whether the dense layers between attentions start at zero.
        See `VideoTransformer` for inherited fields.
    """

    num_frames: int = 8
    tubelet_size: tuple[int, int, int] = (1, 16, 16)
    layouts: tuple[str, ...] = ("time", "space")
    activation: Activation = "gelu"
    zero_init: bool = True

    def setup(self):
        super().setup()
        self.positions = SpaceTimePositions(self.grid, self.num_prefix)
        self.encoder = self.new_encoder(self.num_layers, self.layouts, projected=True)

    def position_tables(self) -> dict[str, tuple[int, Grid]]:
        """See `VideoModel`."""
        t, h, w = self.grid
        return {"positions/positions": (self.num_prefix, (1, h, w)), "positions/time_positions": (0, (t, 1, 1))}


@register
class TimeSformerSpace(VideoTransformer):
    """TimeSformer with attention in space alone: each frame has a class token; frames are averaged after the blocks.

    Attributes:
        num_frames: frames of a clip.
        tubelet_size: (frames, height, width) of one token; a patch of one frame in the paper.
        activation: activation of the MLP; the original's is the exact "gelu".
        See `VideoTransformer` for inherited fields.
    """

    num_frames: int = 8
    tubelet_size: tuple[int, int, int] = (1, 16, 16)
    activation: Activation = "gelu"

    def setup(self):
        super().setup()
        self.positions = Positions(self.num_prefix)
        self.encoder = self.new_encoder(self.num_layers, self.layouts)

    @property
    def sequence_grid(self) -> Grid:
        """The grid of one time index."""
        return 1, *self.grid[1:]

    def _time_obstacle(self) -> None:
        return None  # every time index is encoded alone and has a class token of its own

    def position_tables(self) -> dict[str, tuple[int, Grid]]:
        """See `VideoModel`."""
        return {"positions/positions": (self.num_prefix, (1, *self.grid[1:]))}

    def tokens(
        self, video: Float[Array, "b t h w c"], *, train: bool = False, keep: Int[Array, "b visible"] | None = None
    ) -> Float[Array, "b n d"]:
        """See `TokenModel`; there is a class token for each time index."""
        tokens = merge_frames(self.frame_tokens(video, train=train), self.num_prefix)
        return gather_tokens(tokens, keep, self.grid[0] * self.num_prefix)

    def encode(self, tokens: Float[Array, "b n d"], *, train: bool = False) -> Float[Array, "b n d"]:
        """Returns all tokens after the encoder, in the order of `tokens`.

        Raises:
            ValueError: tokens are missing.
        """
        t, h, w = self.grid
        if tokens.shape[1] != t * (self.num_prefix + h * w):
            raise ValueError(f"found {tokens.shape[1]} tokens; expected all {t * (self.num_prefix + h * w)}")
        x = self.encode_frames(split_frames(tokens, t, self.num_prefix), train=train)
        return merge_frames(x, self.num_prefix)

    def frame_tokens(self, video: Float[Array, "b t h w c"], *, train: bool) -> Float[Array, "b times n d"]:
        """Returns `tokens` with time as an axis of its own."""
        x = self.positions(split_frames(self.embed(video), self.grid[0], 0))
        return self.dropout(x, deterministic=not train)

    def encode_frames(
        self, x: Float[Array, "b times n d"], *, train: bool, before_norm: Callable[[Array], Array] = lambda x: x
    ) -> Float[Array, "b *times n d"]:
        """Returns the outputs of the encoder for `frame_tokens`; see `Encoder` for `before_norm`."""
        options = {"grid": self.sequence_grid, "num_prefix": self.num_prefix, "train": train}
        return self.encoder(x, before_norm=before_norm, **options)

    def features(self, video: Float[Array, "b t h w c"], *, train: bool = False) -> Float[Array, "b d"]:
        """Returns one vector for each clip, which the head classifies."""
        x = self.frame_tokens(video, train=train)
        # the authors average over frames before the final norm
        average = functools.partial(jnp.mean, axis=1)
        return self.pool(self.encode_frames(x, train=train, before_norm=average))


ATTENTIONS = {
    "joint": ("joint",),
    "divided": ("time", "space"),
    "local_global": ("local", "sparse"),
    "axial": ("time", "width", "height"),
}
VARIANTS: dict[str, VideoTransformer] = {
    "timesformer_b_16_space": TimeSformerSpace(),
    **{f"timesformer_b_16_{name}": TimeSformer(layouts=layouts) for name, layouts in ATTENTIONS.items()},
    "timesformer_hr": TimeSformer(num_frames=16, image_size=448),
    "timesformer_l": TimeSformer(num_frames=96),
}
