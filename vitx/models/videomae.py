"""VideoMAE (Tong et al. 2022, arXiv:2203.12602): masked autoencoders for video, and classifiers on their encoder.

VideoMAE V2 (arXiv:2303.16727) and Unmasked Teacher (arXiv:2303.16058) have classifiers of the same form.

In shapes: b batch, t h w c the video, n tokens, d width, p values of a token's pixels.
"""

import dataclasses
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int, Key

from vitx.configuration import register, setting
from vitx.layers.embeddings import Positions, sinusoids
from vitx.layers.layouts import LAYOUTS, Grid
from vitx.layers.masking import complement, count_visible_places, draw_tube_mask
from vitx.layers.partition import Divisible
from vitx.layers.pooling import AttentionPooling
from vitx.layers.transformer import Activation
from vitx.models.transformer import SIZES, VideoEncoder, VideoTransformer


@register
class VideoMAE(VideoTransformer):
    """The classifier: fixed positions, no class token, keys without bias, a norm after pooling and none before it.

    Attributes:
        num_frames: frames of a clip.
        activation: activation of the MLP; the original's is the exact "gelu".
        layer_norm_eps: added to the variance in the norms of blocks.
        pooling: "mean" averages all tokens; "attention" reads them by a learned query, for probes of a frozen encoder.
        final_norm_eps: added to the variance in the norm after pooling.
        See `VideoTransformer` for inherited fields.
    """

    num_frames: int = 16
    activation: Activation = "gelu"
    # 1e-6 in the authors' code, 1e-12 in the released directories of transformers
    layer_norm_eps: float = setting(1e-6, changes_function=True, chosen_by_user=True)
    pooling: Literal["mean", "attention"] = setting("mean", changes_function=True)
    final_norm_eps: float = setting(1e-6, changes_function=True)

    def setup(self):
        super().setup()
        self.positions = Positions(0, "sinusoidal")
        self.encoder = self.new_encoder(self.num_layers, self.layouts, final_norm=False, key_bias=False)
        if self.pooling == "attention":
            self.pooler = AttentionPooling(
                self.num_heads, self.mlp_dim, self.layer_norm_eps, self.activation, self.dtype
            )
        else:
            self.norm = nn.LayerNorm(epsilon=self.final_norm_eps, dtype=self.dtype)

    def position_tables(self) -> dict[str, tuple[int, Grid]]:
        """Returns {}: positions are not learned."""
        return {}

    def pool(self, x: Float[Array, "b n d"]) -> Float[Array, "b d"]:
        """Returns the normalised mean of all tokens, or what a learned query reads of them."""
        return self.pooler(x) if self.pooling == "attention" else self.norm(jnp.mean(x, axis=1))


@register
class VideoMAEPretraining(VideoEncoder):
    """The masked autoencoder: the encoder sees a few tokens, a light decoder predicts the pixels of all others.

    The task defines the target of a pixel: see `vitx.tasks.masked_prediction`.

    Attributes:
        num_frames: frames of a clip.
        activation: activation of the MLPs; the original's is the exact "gelu".
        layer_norm_eps: added to the variance in the norms of blocks.
        mask_ratio: fraction of the places of a frame that are masked, the same at all times (tube masking).
        encoder_norm: whether the encoder ends in a norm. The authors' code and their released weights have it, models
            of transformers by default do not.
        decoder_hidden_size: width of a token in the decoder.
        decoder_num_layers: blocks of the decoder.
        decoder_num_heads: attention heads of the decoder.
        decoder_mlp_dim: width of the hidden layer of the decoder's MLPs.
        decoder_norm_eps: added to the variance in the norm after the decoder.
        See `VideoEncoder` for inherited fields.
    """

    num_frames: int = 16
    activation: Activation = "gelu"
    layer_norm_eps: float = setting(1e-6, changes_function=True, chosen_by_user=True)
    mask_ratio: float = setting(0.9, chosen_by_user=True)
    encoder_norm: bool = setting(False, chosen_by_user=True)
    decoder_hidden_size: int = 384
    decoder_num_layers: int = 4
    decoder_num_heads: int = setting(6, changes_function=True)
    decoder_mlp_dim: int = 1536
    decoder_norm_eps: float = setting(1e-6, changes_function=True)

    finetuned: ClassVar[type[VideoTransformer]] = VideoMAE
    """The classifier that takes over the encoder."""
    pretraining_only: ClassVar[str] = r"encoder/norm/.*|to_decoder/.*|mask_token|decoder.*|to_pixels/.*"
    """Paths of the parameters that the classifier does not take over."""

    def __post_init__(self):
        super().__post_init__()
        for name in ("decoder_hidden_size", "decoder_num_layers", "decoder_num_heads", "decoder_mlp_dim"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected at least 1")
        if self.decoder_hidden_size % self.decoder_num_heads:
            raise ValueError(
                f"decoder_hidden_size {self.decoder_hidden_size} is not divisible by decoder_num_heads "
                f"{self.decoder_num_heads}; expected a multiple"
            )
        if self.reducer is not None:
            raise ValueError(f"reducer is {self.reducer}; expected None, since masking leaves out tokens already")
        if self.sampled_frames:
            raise ValueError(f"sampled_frames is {self.sampled_frames}; expected 0, since all frames are predicted")
        if partial := [name for name in self.layouts if not LAYOUTS[name].is_global]:
            raise ValueError(
                f"layouts is {self.layouts} and masking leaves out tokens; {partial[0]} needs the whole grid: expected "
                "a layout in which every token attends to every token, such as joint"
            )
        places = self.grid[1] * self.grid[2]
        if not 0 <= self.mask_ratio <= 1 or not 0 < count_visible_places(self.mask_ratio, self.grid) < places:
            raise ValueError(
                f"mask_ratio is {self.mask_ratio}; of the {places} places of a frame it must mask at least 1 and at "
                f"most {places - 1}, so that some are visible and some predicted"
            )

    def setup(self):
        super().setup()
        self.positions = Positions(0, "sinusoidal")
        self.encoder = self.new_encoder(self.num_layers, self.layouts, final_norm=self.encoder_norm, key_bias=False)
        self.to_decoder = nn.Dense(self.decoder_hidden_size, use_bias=False, dtype=self.dtype)
        shape = (1, 1, self.decoder_hidden_size)
        self.mask_token = self.param("mask_token", nn.initializers.normal(0.02), shape, jnp.float32)
        self.decoder = self.new_encoder(
            self.decoder_num_layers,
            ("joint",),
            final_norm=False,
            key_bias=False,
            num_heads=self.decoder_num_heads,
            mlp_dim=self.decoder_mlp_dim,
        )
        self.decoder_norm = nn.LayerNorm(epsilon=self.decoder_norm_eps, dtype=self.dtype)
        i, j, k = self.tubelet_size
        self.to_pixels = nn.Dense(i * j * k * 3, dtype=self.dtype, kernel_init=nn.initializers.xavier_uniform())

    @property
    def divisible(self) -> Divisible:
        """See `VideoEncoder`; the decoder is divided too."""
        encoder = super().divisible
        decoder = {"decoder_num_heads": self.decoder_num_heads, "decoder_mlp_dim": self.decoder_mlp_dim}
        return dataclasses.replace(encoder, widths={**encoder.widths, **decoder})

    def position_tables(self) -> dict[str, tuple[int, Grid]]:
        """Returns {}: positions are not learned."""
        return {}

    @nn.nowrap
    def draw_mask(self, key: Key[Array, ""]) -> Int[Array, "visible"]:
        """Draws the visible tokens of one clip; returns their indices in ascending order."""
        return draw_tube_mask(key, self.grid, count_visible_places(self.mask_ratio, self.grid))

    def __call__(
        self, video: Float[Array, "b t h w c"], *, train: bool = False, keep: Int[Array, "b visible"] | None = None
    ) -> Float[Array, "b masked p"]:
        """Predicts the pixels of the masked tokens, in the order of the tokens.

        Args:
            video: the clips.
            train: whether dropout and stochastic depth apply.
            keep: indices of the visible tokens, as many for each clip; None masks all clips alike, which suffices to
                initialise parameters and to count the cost.
        """
        if keep is None:
            visible = self.draw_mask(jax.random.key(0))
            keep = jnp.broadcast_to(visible, (len(video), len(visible)))
        x = self.to_decoder(self.encode(self.tokens(video, train=train, keep=keep), train=train))
        t, h, w = self.grid
        masked = complement(keep, t * h * w)
        positions = jnp.asarray(sinusoids(t * h * w, self.decoder_hidden_size), x.dtype)
        # Tokens keep their positions, so their order is free: visible ones first, as in the authors' code.
        x = jnp.concatenate([x + positions[keep], self.mask_token.astype(x.dtype) + positions[masked]], axis=1)
        x = self.decoder(x, grid=self.grid, train=train)[:, keep.shape[1] :]
        return self.to_pixels(self.decoder_norm(x))


# (width, blocks, heads) of the decoder, from the authors' scripts
DECODERS = {"s": (192, 4, 3), "b": (384, 4, 6), "l": (512, 12, 8), "h": (640, 12, 8)}


def _pretraining(size: str) -> VideoMAEPretraining:
    width, layers, heads = DECODERS[size]
    decoder: dict[str, Any] = {"hidden_size": width, "num_layers": layers, "num_heads": heads, "mlp_dim": 4 * width}
    return VideoMAEPretraining(**SIZES[size], **{f"decoder_{name}": value for name, value in decoder.items()})


VARIANTS: dict[str, VideoEncoder] = {
    **{f"videomae_{size}_16x2": VideoMAE(**SIZES[size]) for size in DECODERS},
    "videomae_g_14x2": VideoMAE(tubelet_size=(2, 14, 14), **SIZES["g"]),
    **{f"videomae_{size}_16x2_pretrain": _pretraining(size) for size in DECODERS},
}
