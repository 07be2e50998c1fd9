"""ViViT (Arnab et al. 2021, arXiv:2103.15691): models 1 to 4 and the average-pool baseline.

In shapes: b batch, t h w c the video, n tokens, times the time indices of the tokens, d width.
"""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from vitx.configuration import register, setting
from vitx.layers.embeddings import PositionKind, Positions, gather_tokens, merge_frames, split_frames
from vitx.layers.layouts import LAYOUTS, Grid
from vitx.layers.partition import constrain_activations
from vitx.models.transformer import SIZES, VideoTransformer


@register
class ViViT(VideoTransformer):
    """ViViT with one encoder: model 1 (joint), 3 (factorised self-attention) or 4 (factorised dot-product).

    Model 1 is layouts=("joint",), model 3 ("time", "space"), model 4 ("time_and_space",) (section 3.3). Models 3 and
    4 have no class token: pooling="mean".

    Attributes:
        position_kind: "learned" positions, or "sinusoidal", which are fixed.
        See `VideoTransformer` for inherited fields.
    """

    position_kind: PositionKind = setting("learned", changes_function=True)

    def __post_init__(self):
        super().__post_init__()
        if self.pooling == "class" and not (len(self.layouts) == 1 and LAYOUTS[self.layouts[0]].is_global):
            raise ValueError(
                f"found pooling 'class' with layouts {self.layouts}; ViViT has a class token only if every token "
                "attends to every token, since a factorised attention gives it no single neighbourhood: set pooling "
                "to 'mean'"
            )

    def position_tables(self) -> dict[str, tuple[int, Grid]]:
        """See `VideoModel`."""
        return super().position_tables() if self.position_kind == "learned" else {}

    def setup(self):
        super().setup()
        self.positions = Positions(self.num_prefix, self.position_kind)
        self.encoder = self.new_encoder(self.num_layers, self.layouts)


@register
class FactorisedEncoder(VideoTransformer):
    """ViViT model 2 (section 3.3): a spatial encoder for each time index, then a temporal encoder over its outputs.

    With `num_temporal_layers=0` the outputs are averaged instead: the paper's average-pool baseline (table 2), which
    ignores the order of time indices.

    Attributes:
        num_temporal_layers: blocks of the temporal encoder; 0 averages over time.
        position_kind: "learned" positions, or "sinusoidal", which are fixed, in both encoders.
        See `VideoTransformer` for inherited fields; num_layers and layouts are those of the spatial encoder.
    """

    num_temporal_layers: int = 4
    position_kind: PositionKind = setting("learned", changes_function=True)

    def __post_init__(self):
        if self.num_temporal_layers < 0:
            raise ValueError(f"num_temporal_layers is {self.num_temporal_layers}; expected at least 0")
        super().__post_init__()

    def setup(self):
        super().setup()
        self.spatial_positions = Positions(self.num_prefix, self.position_kind)
        self.spatial_encoder = self.new_encoder(self.num_layers, self.layouts)
        if self.num_temporal_layers:
            self.temporal_positions = Positions(self.num_prefix, self.position_kind)
            self.temporal_encoder = self.new_encoder(self.num_temporal_layers, ("joint",), has_reducer=False)

    @property
    def sequence_grid(self) -> Grid:
        """The grid of one time index."""
        return 1, *self.grid[1:]

    def _time_obstacle(self) -> None:
        return None  # every time index is encoded alone and has a class token of its own

    def position_tables(self) -> dict[str, tuple[int, Grid]]:
        """See `VideoModel`."""
        if self.position_kind != "learned":
            return {}
        t, h, w = self.grid
        tables = {"spatial_positions/positions": (self.num_prefix, (1, h, w))}
        return tables | (
            {"temporal_positions/positions": (self.num_prefix, (t, 1, 1))} if self.num_temporal_layers else {}
        )

    def tokens(
        self, video: Float[Array, "b t h w c"], *, train: bool = False, keep: Int[Array, "b visible"] | None = None
    ) -> Float[Array, "b n d"]:
        """See `TokenModel`; there is a class token for each time index."""
        tokens = merge_frames(self.frame_tokens(video, train=train), self.num_prefix)
        return gather_tokens(tokens, keep, self.grid[0] * self.num_prefix)

    def encode(self, tokens: Float[Array, "b n d"], *, train: bool = False) -> Float[Array, "b m d"]:
        """Returns the tokens after the spatial encoder, in the order of `tokens`.

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
        x = self.spatial_positions(split_frames(self.embed(video), self.grid[0], 0))
        return self.dropout(x, deterministic=not train)

    def encode_frames(self, x: Float[Array, "b times n d"], *, train: bool) -> Float[Array, "b times m d"]:
        """Returns the outputs of the spatial encoder for `frame_tokens`."""
        return self.spatial_encoder(x, grid=self.sequence_grid, num_prefix=self.num_prefix, train=train)

    def features(self, video: Float[Array, "b t h w c"], *, train: bool = False) -> Float[Array, "b d"]:
        """Returns one vector for each clip, which the head classifies."""
        x = self.encode_frames(self.frame_tokens(video, train=train), train=train)
        # The temporal encoder needs all time indices, so every device of `frames` gathers these few tokens.
        x = constrain_activations(self.pool(x))
        if not self.num_temporal_layers:
            return jnp.mean(x, axis=1)
        x = self.dropout(self.temporal_positions(x), deterministic=not train)
        return self.pool(self.temporal_encoder(x, grid=(self.grid[0], 1, 1), num_prefix=self.num_prefix, train=train))


def _family(name: str, **fields: Any) -> dict[str, VideoTransformer]:
    """Returns all factorisations of one size."""
    # Model 4 gives half of the heads to time and half to space: Ti has 4 heads there instead of 3.
    even = fields["num_heads"] + fields["num_heads"] % 2
    return {
        name: ViViT(**fields),
        f"{name}_fe": FactorisedEncoder(**fields),
        f"{name}_fsa": ViViT(layouts=("time", "space"), pooling="mean", **fields),
        f"{name}_fdp": ViViT(layouts=("time_and_space",), pooling="mean", **(fields | {"num_heads": even})),
        f"{name}_avg": FactorisedEncoder(num_temporal_layers=0, **fields),
    }


VARIANTS: dict[str, VideoTransformer] = _family("vivit_h_14x2", tubelet_size=(2, 14, 14), **SIZES["h"])
for frames in (2, 4, 8):
    for size in ("ti", "s", "b", "l"):
        VARIANTS |= _family(f"vivit_{size}_16x{frames}", tubelet_size=(frames, 16, 16), **SIZES[size])
