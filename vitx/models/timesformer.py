"""TimeSformer (Bertasius et al. 2021, arXiv:2102.05095): five ways to attend in space and time."""

import functools

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from vitx.configuration import register
from vitx.layers.embeddings import Positions, SpaceTimePositions, frames_apart, frames_together, kept
from vitx.layers.layouts import Grid
from vitx.layers.transformer import Activation
from vitx.models.transformer import VideoTransformer


@register
class TimeSformer(VideoTransformer):
    """TimeSformer with attention in time: joint, divided, local-global or axial (section 3, figure 2).

    Divided is layouts=("time", "space"), local-global ("local", "sparse"), axial ("time", "width", "height"). Every
    attention but the last is followed by a dense layer of its own, zero at first, and leaves the class token alone; in
    the last the class token attends in every group and its outputs are averaged. The authors' code has joint and
    divided; local-global and axial are built after the paper's section 3 by the same rules.

    Attributes:
        num_frames: frames of a clip.
        tubelet_size: (frames, height, width) of one token; the paper's is a patch of one frame.
        activation: of the MLP; the original's is the exact "gelu".
        zero_init: whether the dense layers between attentions start at zero.
        Others: as `VideoTransformer`.
    """

    num_frames: int = 8
    tubelet_size: tuple[int, int, int] = (1, 16, 16)
    layouts: tuple[str, ...] = ("time", "space")
    activation: Activation = "gelu"
    zero_init: bool = True

    def setup(self):
        super().setup()
        self.positions = SpaceTimePositions(self.grid, self.prefix)
        self.encoder = self.make_encoder(self.num_layers, self.layouts, projected=True)

    def position_tables(self) -> dict[str, tuple[int, Grid]]:
        """Returns {path of each table of learned positions: (class tokens ahead, grid)}, for resizing them."""
        t, h, w = self.grid
        return {"positions/positions": (self.prefix, (1, h, w)), "positions/time_positions": (0, (t, 1, 1))}


@register
class TimeSformerSpace(VideoTransformer):
    """TimeSformer with attention in space alone: each frame has a class token; frames are averaged after the blocks.

    Attributes:
        num_frames: frames of a clip.
        tubelet_size: (frames, height, width) of one token; the paper's is a patch of one frame.
        activation: of the MLP; the original's is the exact "gelu".
        Others: as `VideoTransformer`.
    """

    num_frames: int = 8
    tubelet_size: tuple[int, int, int] = (1, 16, 16)
    activation: Activation = "gelu"

    def setup(self):
        super().setup()
        self.positions = Positions(self.prefix)
        self.encoder = self.make_encoder(self.num_layers, self.layouts)

    def _whole_clip(self) -> None:
        return None  # every time index has an encoder's pass, and a class token, of its own

    def position_tables(self) -> dict[str, tuple[int, Grid]]:
        """Returns {path of each table of learned positions: (class tokens ahead, grid)}, for resizing them."""
        return {"positions/positions": (self.prefix, (1, *self.grid[1:]))}

    def tokens(
        self,
        video: Float[Array, "batch frames height width channels"],
        *,
        train: bool = False,
        keep: Int[Array, "batch visible"] | None = None,
    ) -> Float[Array, "batch tokens hidden"]:
        """Returns the first block's input: a class token for each frame, then the grid, time-major.

        Args:
            keep: numbers of the grid's tokens that stay, for masked models.
        """
        return kept(frames_together(self._frames(video, train), self.prefix), keep, self.grid[0] * self.prefix)

    def features(
        self, video: Float[Array, "batch frames height width channels"], *, train: bool = False
    ) -> Float[Array, "batch hidden"]:
        """Returns one vector for each clip: what the head classifies."""
        grid, over_frames = (1, *self.grid[1:]), functools.partial(jnp.mean, axis=1)
        x = self._frames(video, train)
        return self.pooled(self.encoder(x, grid=grid, prefix=self.prefix, train=train, before_norm=over_frames))

    def _frames(self, video: Array, train: bool) -> Float[Array, "batch times tokens_of_time hidden"]:
        """The encoder's input, with time as an axis of its own."""
        x = self.positions(frames_apart(self.embed(video), self.grid[0], 0))
        return self.dropout(x, deterministic=not train)


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
