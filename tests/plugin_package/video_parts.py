"""A package of a user's own: a layout with parameters, a model, a dataset, a task and a format of weights.

`tests/test_plugin_package.py` installs it and uses it with no file of vitx changed.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from vitx.configuration import override, register, setting
from vitx.data.sources import MovingDigits
from vitx.interop.fill import WeightsSource
from vitx.interop.formats import FORMATS
from vitx.interop.tensors import READERS, read_npz
from vitx.layers.embeddings import TubeletEmbedding, token_grid
from vitx.layers.head import Head, NumClasses
from vitx.layers.layouts import LAYOUTS, Layout, Parameter
from vitx.layers.transformer import EncoderBlock
from vitx.models import VARIANTS
from vitx.tasks.classification import Classification


def declare_bias(*, grid, num_prefix, num_heads, head_dim):
    """Declares a bias for each head and each offset (t, h, w) between a query and a key."""
    offsets = math.prod(2 * size - 1 for size in grid)
    return {"relative_bias": Parameter((num_heads, offsets), nn.initializers.normal(0.02), head_axis=0)}


def attend_with_bias(core, q, k, v, *, grid, num_prefix, relative_bias):
    """Joint attention of the grid's tokens with a bias of relative positions."""
    places = np.stack(np.meshgrid(*map(np.arange, grid), indexing="ij"), -1).reshape(-1, 3)
    offsets = places[:, None] - places[None] + np.array(grid) - 1
    index = np.ravel_multi_index(tuple(offsets.transpose(2, 0, 1)), tuple(2 * size - 1 for size in grid))
    return core(q, k, v, bias=relative_bias[:, index][None])


LAYOUTS.add("relative", Layout(attend_with_bias, is_global=True, parameters=declare_bias))


@register
class MaskedViT(nn.Module):
    """A block of joint attention with relative positions, then class attention; tokens are masked in training."""

    num_classes: NumClasses = setting(400, chosen_by_user=True)
    num_frames: int = setting(4, chosen_by_user=True)
    image_size: tuple[int, int] = setting((24, 24), chosen_by_user=True)
    hidden_size: int = 24
    num_heads: int = setting(2, changes_function=True)
    mask_ratio: float = setting(0.25, chosen_by_user=True)

    needs_input_shape = True

    @property
    def input_shape(self):
        return self.num_frames, *self.image_size, 3

    def with_input_shape(self, frames=None, size=None, **fields):
        shape = {"num_frames": frames or self.num_frames, "image_size": size or self.image_size}
        return override(self, shape | fields)

    def position_tables(self):
        return {}

    @nn.compact
    def __call__(self, video, *, train=False):
        tubelet = (2, 12, 12)
        tokens = TubeletEmbedding(self.hidden_size, tubelet, name="embedding")(video)
        mask_token = self.param("mask_token", nn.initializers.normal(0.02), (1, 1, self.hidden_size))
        if train:
            masked = jax.random.bernoulli(self.make_rng("dropout"), self.mask_ratio, tokens.shape[:2])
            tokens = jnp.where(masked[..., None], mask_token, tokens)
        grid = token_grid(self.num_frames, self.image_size, tubelet)
        block = EncoderBlock(self.num_heads, 2 * self.hidden_size, layouts=("relative",), name="block_0")
        tokens = block(tokens, grid=grid, train=train)
        class_token = self.param("class_token", nn.initializers.normal(0.02), (1, 1, self.hidden_size))
        query = jnp.broadcast_to(class_token, (len(tokens), 1, self.hidden_size))
        pooled = nn.MultiHeadDotProductAttention(self.num_heads, name="class_attention")(query, tokens)
        return Head(self.num_classes, name="head")(pooled[:, 0])


VARIANTS.add("masked_vit_tiny", MaskedViT())


@register
@dataclasses.dataclass(frozen=True)
class EveryOther:
    """Every other clip of moving digits."""

    digits: MovingDigits = MovingDigits()

    def open(self, split):
        return Half(self.digits.open(split))


@dataclasses.dataclass(frozen=True)
class Half:
    """Every other example of a source."""

    source: object

    @property
    def label_names(self):
        return self.source.label_names

    def __len__(self):
        return len(self.source) // 2

    def __getitem__(self, index):
        return self.source[2 * index]


@register
@dataclasses.dataclass(frozen=True)
class Brier(Classification):
    """Classification with the squared error of probabilities (Brier 1950)."""

    def head_loss(self, name, outputs, target, labels):
        loss, metrics = super().head_loss(name, outputs, target, labels)
        return jnp.sum((jax.nn.softmax(outputs) - target) ** 2, axis=-1) + 0 * loss, metrics


class FlatNames:
    """Names of a `MaskedViT`'s tensors with dots, behind the word "masked"."""

    description = "a file of masked ViTs"
    carries_model = False

    def matches(self, source):
        return any(name.startswith("masked.") for name in source.tensors)

    def fills(self, model):
        return isinstance(model, MaskedViT)

    def read(self, source, request):
        names = {name.removeprefix("masked.").replace(".", "/"): name for name in source.tensors}
        return WeightsSource({path: source.tensors[name] for path, name in names.items()}, names, (), request.model)


READERS.add(".masked", read_npz)
FORMATS.add("masked", FlatNames())
