"""ViViT (Arnab et al. 2021, arXiv:2103.15691): the factorised encoder and the average-pool baseline."""

from typing import Literal

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from vitx.configuration import register
from vitx.layers.attention import DType
from vitx.layers.embeddings import Positions, Size, TubeletEmbedding, check_video, token_grid
from vitx.layers.head import Head, NumClasses
from vitx.layers.layouts import Grid
from vitx.layers.transformer import Activation, Encoder, EncoderBlock


@register
class FactorisedEncoder(nn.Module):
    """ViViT model 2 (section 3.3): a spatial encoder for each time index, then a temporal encoder over its results.

    With `num_temporal_layers=0` the frames' features are averaged instead, the paper's average-pool baseline
    (Table 2), which is blind to the order of time indices.

    Attributes:
        num_classes: an int; 0 for pooled features; (("verb", 97), ("noun", 300)) for a dictionary of logits.
        num_frames: frames of a clip.
        image_size: pixels; an int, or (height, width).
        tubelet_size: (frames, height, width) of one token.
        hidden_size: width of a token.
        num_layers: blocks of the spatial encoder.
        num_temporal_layers: blocks of the temporal encoder; 0 averages over time.
        num_heads: attention heads, in both encoders.
        mlp_dim: width of the MLP's hidden layer.
        drop_path_rate: stochastic depth of the last block of each encoder, growing linearly from 0.
        dropout_rate: after positions, after attention and in the MLP.
        layer_norm_eps: added to the variance.
        activation: of the MLP; "gelu_tanh" is the tanh approximation.
        qkv_bias: whether query, key and value projections have a bias.
        pooling: "class" reads each encoder's class token; "mean" averages its tokens (no class token).
        dtype: computations' type; parameters are float32.
    """

    num_classes: NumClasses = 400
    num_frames: int = 32
    image_size: Size = 224
    tubelet_size: tuple[int, int, int] = (2, 16, 16)
    hidden_size: int = 768
    num_layers: int = 12
    num_temporal_layers: int = 4
    num_heads: int = 12
    mlp_dim: int = 3072
    drop_path_rate: float = 0.0
    dropout_rate: float = 0.0
    layer_norm_eps: float = 1e-6
    activation: Activation = "gelu_tanh"
    qkv_bias: bool = True
    pooling: Literal["class", "mean"] = "class"
    dtype: DType = "float32"

    def __post_init__(self):
        if self.num_heads < 1 or self.hidden_size % self.num_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} is not divisible by num_heads {self.num_heads}; "
                "each head takes an equal share of the width"
            )
        if self.num_layers < 1 or self.num_temporal_layers < 0:
            raise ValueError(
                f"num_layers is {self.num_layers} and num_temporal_layers {self.num_temporal_layers}; "
                "expected at least 1 and at least 0"
            )
        token_grid(self.num_frames, self.image_size, self.tubelet_size)
        super().__post_init__()

    @property
    def grid(self) -> Grid:
        """The grid (t, h, w) of tokens of one clip."""
        return token_grid(self.num_frames, self.image_size, self.tubelet_size)

    def setup(self):
        prefix = 1 if self.pooling == "class" else 0
        block = EncoderBlock(
            num_heads=self.num_heads,
            mlp_dim=self.mlp_dim,
            drop_path_rate=self.drop_path_rate,
            dropout_rate=self.dropout_rate,
            layer_norm_eps=self.layer_norm_eps,
            activation=self.activation,
            qkv_bias=self.qkv_bias,
            dtype=self.dtype,
        )
        self.embedding = TubeletEmbedding(self.hidden_size, self.tubelet_size, self.dtype)
        self.spatial_positions = Positions(prefix)
        self.spatial_encoder = Encoder(self.num_layers, block)
        if self.num_temporal_layers:
            self.temporal_positions = Positions(prefix)
            self.temporal_encoder = Encoder(self.num_temporal_layers, block)
        self.dropout = nn.Dropout(self.dropout_rate)
        self.head = Head(self.num_classes)

    def tokens(
        self, video: Float[Array, "batch frames height width channels"], *, train: bool = False
    ) -> Float[Array, "batch_time prefix_and_space hidden"]:
        """Returns the spatial encoder's input: time folded into the batch, class token first, positions added."""
        check_video(video, self.num_frames, self.image_size)
        t, h, w = self.grid
        tokens = self.embedding(video).reshape(video.shape[0] * t, h * w, self.hidden_size)
        return self.dropout(self.spatial_positions(tokens), deterministic=not train)

    def features(
        self, video: Float[Array, "batch frames height width channels"], *, train: bool = False
    ) -> Float[Array, "batch hidden"]:
        """Returns one vector for each clip: what the head classifies."""
        t, h, w = self.grid
        prefix = 1 if self.pooling == "class" else 0
        x = self.spatial_encoder(self.tokens(video, train=train), grid=(1, h, w), prefix=prefix, train=train)
        x = self._pooled(x).reshape(video.shape[0], t, self.hidden_size)
        if not self.num_temporal_layers:
            return x.mean(axis=1)
        x = self.dropout(self.temporal_positions(x), deterministic=not train)
        return self._pooled(self.temporal_encoder(x, grid=(t, 1, 1), prefix=prefix, train=train))

    def __call__(
        self, video: Float[Array, "batch frames height width channels"], *, train: bool = False
    ) -> Float[Array, "batch outputs"] | dict[str, Float[Array, "batch _"]]:
        return self.head(self.features(video, train=train))

    def _pooled(self, x: Float[Array, "batch tokens width"]) -> Float[Array, "batch width"]:
        return x[:, 0] if self.pooling == "class" else jnp.mean(x, axis=1)


SIZES = {
    "ti": {"hidden_size": 192, "num_layers": 12, "num_heads": 3, "mlp_dim": 768},
    "s": {"hidden_size": 384, "num_layers": 12, "num_heads": 6, "mlp_dim": 1536},
    "b": {"hidden_size": 768, "num_layers": 12, "num_heads": 12, "mlp_dim": 3072},
    "l": {"hidden_size": 1024, "num_layers": 24, "num_heads": 16, "mlp_dim": 4096},
}
FACTORISATIONS = {"fe": {"num_temporal_layers": 4}, "avg": {"num_temporal_layers": 0}}
VARIANTS = {
    f"vivit_{size}_16x{frames}_{suffix}": FactorisedEncoder(tubelet_size=(frames, 16, 16), **shape, **factorisation)
    for size, shape in SIZES.items()
    for frames in (2, 4, 8)
    for suffix, factorisation in FACTORISATIONS.items()
}
