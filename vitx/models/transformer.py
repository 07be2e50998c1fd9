"""What every video Transformer here shares: its settings, and the path from video to logits.

In shapes: b batch, t h w c the video, n tokens, d width.
"""

import math
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int

from vitx.configuration import override, setting
from vitx.layers.attention import AttentionImplementation, choose_implementation
from vitx.layers.embeddings import (
    Size,
    TubeletEmbedding,
    check_video,
    gather_tokens,
    height_and_width,
    sample_uniformly,
    to_tubelets,
    token_grid,
)
from vitx.layers.head import Head, NumClasses, check_classes
from vitx.layers.layouts import LAYOUTS, Grid
from vitx.layers.partition import Divisible
from vitx.layers.reducers import Carry, Reducer
from vitx.layers.transformer import Activation, Encoder, EncoderBlock, RematPolicy
from vitx.layers.types import DType
from vitx.models.base import InputShape, Logits
from vitx.models.parameter_table import ShowsParameters


class VideoEncoder(ShowsParameters, nn.Module):
    """Tubelets, positions, encoder blocks that attend along `layouts`. A `TokenModel`.

    Subclasses create `positions` and `encoder` in `setup`.

    Attributes:
        num_frames: frames of a clip.
        image_size: size of a frame in pixels; an int, or (height, width).
        tubelet_size: (frames, height, width) of one token.
        sampled_frames: number of frames, evenly spaced, that are embedded (uniform frame sampling, ViViT section 3.2);
            0 embeds all.
        hidden_size: width of a token.
        num_layers: blocks.
        num_heads: attention heads.
        mlp_dim: width of the MLP's hidden layer.
        layouts: which tokens attend to which, one attention after the other in every block; names in
            `vitx.layers.layouts.LAYOUTS`.
        drop_path_rate: stochastic depth of the last block, growing linearly from 0 over the blocks.
        dropout_rate: probability of dropout after positions, after attention and in the MLP.
        layer_norm_eps: added to the variance.
        activation: activation of the MLP; "gelu_tanh" is the tanh approximation.
        qkv_bias: whether query, key and value projections have a bias.
        zero_init: whether the residual branch of every attention but a block's last starts at zero.
        reducer: leaves out or merges tokens from some block on (docs/fewer_tokens.md, also for weights of a model
            without one); None keeps all.
        scan_layers: whether blocks are compiled once and looped over: compiles faster, computes the same.
        remat_policy: what the backward pass keeps instead of computing it again, to save memory: "nothing_saveable",
            "dots_saveable" (results of matrix products), "dots_with_no_batch_dims_saveable" (those of products with
            parameters); None keeps everything.
        implementation: implementation of attention; all compute the same (docs/scale.md lists them). Training,
            evaluation, prediction and benchmarks replace "auto" by the one that suits their devices.
        dtype: type of the computations; parameters are float32.
    """

    num_frames: int = setting(32, chosen_by_user=True)
    image_size: Size = setting(224, chosen_by_user=True)
    tubelet_size: tuple[int, int, int] = (2, 16, 16)
    sampled_frames: int = 0
    hidden_size: int = 768
    num_layers: int = 12
    num_heads: int = setting(12, changes_function=True)
    mlp_dim: int = 3072
    layouts: tuple[str, ...] = setting(("joint",), changes_function=True)
    drop_path_rate: float = setting(0.0, chosen_by_user=True)
    dropout_rate: float = setting(0.0, chosen_by_user=True)
    layer_norm_eps: float = setting(1e-6, changes_function=True)
    activation: Activation = setting("gelu_tanh", changes_function=True)
    qkv_bias: bool = setting(True, changes_function=True)
    zero_init: bool = setting(False, chosen_by_user=True)
    reducer: Reducer | None = setting(None, chosen_by_user=True, mutable_in_evaluation=True)
    scan_layers: bool = setting(False, mutable_on_resume=True)
    remat_policy: RematPolicy | None = setting(None, mutable_on_resume=True)
    implementation: AttentionImplementation = setting("auto", mutable_on_resume=True)
    dtype: DType = setting("float32", chosen_by_user=True)

    def __post_init__(self):
        for name in ("hidden_size", "num_layers", "mlp_dim"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected at least 1")
        for name in ("drop_path_rate", "dropout_rate"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected a probability in [0, 1)")
        if not 0 < self.layer_norm_eps < 1:
            raise ValueError(f"layer_norm_eps is {self.layer_norm_eps}; expected a small positive number")
        if self.num_heads < 1 or self.hidden_size % self.num_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} is not divisible by num_heads {self.num_heads}; expected a multiple, "
                "since every head has an equal part of the width"
            )
        unknown = [name for name in self.layouts if name not in LAYOUTS]
        if unknown or not self.layouts or len(set(self.layouts)) < len(self.layouts):
            raise ValueError(f"layouts is {self.layouts}; expected different names out of {', '.join(LAYOUTS)}")
        for name in self.layouts:
            if self.num_heads % LAYOUTS[name].num_parts:
                raise ValueError(
                    f"num_heads is {self.num_heads}; the layout {name} gives equal parts of the heads to "
                    f"{LAYOUTS[name].num_parts} neighbourhoods: set num_heads to a multiple"
                )
        if not 0 <= self.sampled_frames <= self.num_frames:
            raise ValueError(f"sampled_frames is {self.sampled_frames}; expected 0 to num_frames, {self.num_frames}")
        token_grid(self.sampled_frames or self.num_frames, self.image_size, self.tubelet_size)
        super().__post_init__()
        if self.reducer is not None:
            self._check_reducer(self.reducer)

    def _check_reducer(self, reducer: Reducer) -> None:
        counts = reducer.count_tokens(self.sequence_grid, self.num_prefix, self.num_layers)
        num_tokens = self.num_prefix + math.prod(self.sequence_grid)
        partial = [name for name in self.layouts if not LAYOUTS[name].is_global]
        if partial and (reducer.needs_global_layout or any(count != num_tokens for count in counts[:-1])):
            raise ValueError(
                f"found reducer {reducer} with the layout {partial[0]}, which needs the whole grid in every block; "
                "expected a layout in which every token attends to every token, such as joint: set reducer to None, or "
                "layouts to ('joint',)"
            )
        if self.scan_layers:
            raise ValueError(
                f"scan_layers is True with reducer {reducer}; a loop needs as many tokens in every block: set "
                "scan_layers to False"
            )

    @property
    def input_shape(self) -> InputShape:
        """The (frames, height, width, channels) of the videos that the model takes: RGB, and motion if it needs it."""
        needs_motion = self.reducer is not None and self.reducer.needs_motion
        return self.num_frames, *height_and_width(self.image_size), 4 if needs_motion else 3

    @property
    def needs_input_shape(self) -> bool:
        """Whether videos must have `input_shape`."""
        return True

    @nn.nowrap  # inside a wrapped method, Linen would make the new model a submodule of this one
    def with_input_shape(
        self, frames: int | None = None, size: tuple[int, int] | None = None, **fields: Any
    ) -> "VideoEncoder":
        """See `VideoModel`."""
        shape = {"num_frames": frames, "image_size": size}
        return override(self, fields | {name: value for name, value in shape.items() if value is not None})

    @nn.nowrap
    def implementation_for(self, device: jax.Device) -> AttentionImplementation:
        """See `vitx.models.resolve_implementation`."""
        return choose_implementation(self.implementation, device)

    @property
    def grid(self) -> Grid:
        """The grid (t, h, w) of tokens of one clip."""
        return token_grid(self.sampled_frames or self.num_frames, self.image_size, self.tubelet_size)

    @property
    def sequence_grid(self) -> Grid:
        """The grid (t, h, w) of tokens that the encoder reads as one sequence."""
        return self.grid

    @property
    def divisible(self) -> Divisible:
        """What a mesh may divide: heads and the MLP's hidden layer, and time if the layouts permit it."""
        num_parts = math.lcm(*(LAYOUTS[name].num_parts for name in self.layouts))
        heads = {"num_heads" if num_parts == 1 else f"num_heads / {num_parts}": self.num_heads // num_parts}
        time_obstacle = self._time_obstacle()
        # The mesh axis `frames` divides the video's frames, too (`entry_sharding`), so it must divide both.
        times = 1 if time_obstacle else math.gcd(self.grid[0], self.num_frames)
        return Divisible(heads | {"mlp_dim": self.mlp_dim}, times, time_obstacle)

    def _time_obstacle(self) -> tuple[str, Any] | None:
        """The (setting, value) for which a mesh cannot divide time; None if it can."""
        return None if all(LAYOUTS[name].can_shard_time for name in self.layouts) else ("layouts", self.layouts)

    @property
    def num_prefix(self) -> int:
        """Number of class tokens of one sequence."""
        return 0

    def position_tables(self) -> dict[str, tuple[int, Grid]]:
        """See `VideoModel`."""
        return {"positions/positions": (self.num_prefix, self.grid)}

    def embed(self, video: Float[Array, "b t h w c"]) -> Float[Array, "b n d"]:
        """Returns the tubelets' tokens, without positions.

        Raises:
            ValueError: the video does not have the model's `input_shape`.
        """
        check_video(video, self.num_frames, self.image_size, self.input_shape[3])
        return self.embedding(sample_uniformly(video[..., :3], self.sampled_frames or self.num_frames))

    def tokens(
        self, video: Float[Array, "b t h w c"], *, train: bool = False, keep: Int[Array, "b visible"] | None = None
    ) -> Float[Array, "b n d"]:
        """See `TokenModel`."""
        tokens = self.dropout(self.positions(self.embed(video)), deterministic=not train)
        return gather_tokens(tokens, keep, self.num_prefix)

    def observe(self, video: Float[Array, "b t h w c"]) -> Carry:
        """Returns the reducer's observation of a clip, the carry of the first block; None without a reducer."""
        if self.reducer is None:
            return None
        frames = sample_uniformly(video, self.sampled_frames or self.num_frames)
        return self.reducer.observe(to_tubelets(frames, self.tubelet_size), self.grid)

    def encode(
        self, tokens: Float[Array, "b n d"], *, train: bool = False, carry: Carry = None
    ) -> Float[Array, "b m d"]:
        """Returns the tokens after the encoder, in the order of `tokens`: all of them, or what a reducer leaves.

        `carry` is what `observe` returns.

        Raises:
            ValueError: tokens are missing, and a layout needs the whole grid.
        """
        expected = self.num_prefix + math.prod(self.grid)
        partial = [x for x in self.layouts if not LAYOUTS[x].is_global]
        if tokens.shape[1] != expected and partial:
            raise ValueError(
                f"found {tokens.shape[1]} tokens with the layout {partial[0]}; expected all {expected}, since only a "
                "layout in which every token attends to every token can do without some"
            )
        return self.encoder(tokens, grid=self.grid, num_prefix=self.num_prefix, train=train, carry=carry)

    def setup(self):
        self.embedding = TubeletEmbedding(self.hidden_size, self.tubelet_size, self.dtype)
        self.dropout = nn.Dropout(self.dropout_rate)

    def new_encoder(
        self,
        num_layers: int,
        layouts: tuple[str, ...],
        *,
        final_norm: bool = True,
        has_reducer: bool = True,
        **block_fields: Any,
    ) -> Encoder:
        """Returns a stack of blocks with the model's settings; `block_fields` replaces some of them."""
        fields = {
            "num_heads": self.num_heads,
            "mlp_dim": self.mlp_dim,
            "layouts": layouts,
            "dropout_rate": self.dropout_rate,
            "layer_norm_eps": self.layer_norm_eps,
            "activation": self.activation,
            "qkv_bias": self.qkv_bias,
            "zero_init": self.zero_init,
            "implementation": self.implementation,
            "dtype": self.dtype,
        }
        block = EncoderBlock(**fields | block_fields)
        options = (self.drop_path_rate, self.scan_layers, self.remat_policy, final_norm)
        return Encoder(num_layers, block, *options, self.reducer if has_reducer else None)


class VideoTransformer(VideoEncoder):
    """A video encoder with pooling and a head that classifies.

    Attributes:
        num_classes: an int; 0 for pooled features; (("verb", 97), ("noun", 300)) for a dictionary of logits.
        pooling: "class" reads the class token; "mean" averages all tokens (no class token).
        See `VideoEncoder` for inherited fields.
    """

    num_classes: NumClasses = setting(400, chosen_by_user=True)
    pooling: Literal["class", "mean"] = setting("class", changes_function=True)

    def __post_init__(self):
        check_classes(self.num_classes)
        super().__post_init__()

    def _time_obstacle(self) -> tuple[str, Any] | None:
        # the class token takes part in the last attention only, and has no time index of its own
        if self.num_prefix and LAYOUTS[self.layouts[-1]].attends_along_time:
            return super()._time_obstacle() or ("pooling", self.pooling)
        return super()._time_obstacle()

    @property
    def num_prefix(self) -> int:
        """Number of class tokens of one sequence."""
        return 1 if self.pooling == "class" else 0

    def features(self, video: Float[Array, "b t h w c"], *, train: bool = False) -> Float[Array, "b d"]:
        """Returns one vector for each clip, which the head classifies."""
        return self.pool(self.encode(self.tokens(video, train=train), train=train, carry=self.observe(video)))

    def __call__(self, video: Float[Array, "b t h w c"], *, train: bool = False) -> Logits:
        return self.head(self.features(video, train=train))

    def pool(self, x: Float[Array, "*b n d"]) -> Float[Array, "*b d"]:
        """Returns the class token, or the mean of all tokens."""
        return x[..., 0, :] if self.pooling == "class" else jnp.mean(x, axis=-2)

    def setup(self):
        super().setup()
        self.head = Head(self.num_classes)


SIZES = {
    "ti": {"hidden_size": 192, "num_layers": 12, "num_heads": 3, "mlp_dim": 768},
    "s": {"hidden_size": 384, "num_layers": 12, "num_heads": 6, "mlp_dim": 1536},
    "b": {"hidden_size": 768, "num_layers": 12, "num_heads": 12, "mlp_dim": 3072},
    "l": {"hidden_size": 1024, "num_layers": 24, "num_heads": 16, "mlp_dim": 4096},
    "h": {"hidden_size": 1280, "num_layers": 32, "num_heads": 16, "mlp_dim": 5120},
    "g": {"hidden_size": 1408, "num_layers": 40, "num_heads": 16, "mlp_dim": 6144},
}
