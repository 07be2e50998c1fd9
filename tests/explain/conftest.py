"""Tiny models that the explanations are tested on, and the class that is explained."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import vitx
from vitx.explain.score import Target

TARGET = Target(1)
SMALL = {
    "num_classes": 3,
    "num_frames": 4,
    "image_size": (24, 32),
    "tubelet_size": (2, 8, 8),
    "hidden_size": 16,
    "num_layers": 1,
    "num_heads": 2,
    "mlp_dim": 16,
}
EXTRA = {"vivit_ti_16x2": {"num_layers": 2}, "vivit_ti_16x2_fe": {"num_temporal_layers": 1}}
TRANSFORMERS = [
    "vivit_ti_16x2",
    "vivit_ti_16x2_fe",
    "vivit_ti_16x2_fsa",
    "vivit_ti_16x2_fdp",
    "timesformer_b_16_space",
    "timesformer_b_16_divided",
    "timesformer_b_16_local_global",
    "timesformer_b_16_axial",
]


class Linear(nn.Module):
    """Logits that are weighted sums of pixels, so that every answer is known."""

    num_classes: int = 3

    @nn.compact
    def __call__(self, video, *, train=False):
        return nn.Dense(self.num_classes)(video.reshape(len(video), -1))


def with_random_variables(model, video, seed=0):
    """Returns the model's variables, all of them random: heads and some projections would start at zero."""

    @jax.jit
    def init(video):
        leaves, tree = jax.tree.flatten(model.init(jax.random.key(seed), video[None]))
        keys = jax.random.split(jax.random.key(seed + 1), len(leaves))
        moved = [x + 0.3 * jax.random.normal(key, x.shape) for key, x in zip(keys, leaves, strict=True)]
        return jax.tree.unflatten(tree, moved)

    return init(video)


def exact_parts(linear, video, baseline):
    """Returns the part of each pixel in the difference of the logit to the baseline."""
    kernel = np.asarray(linear[1]["params"]["Dense_0"]["kernel"])[:, TARGET.index].reshape(video.shape)
    return ((video - baseline) * kernel).sum(-1)


@pytest.fixture(scope="session")
def video():
    return jnp.asarray(np.random.default_rng(0).standard_normal((4, 24, 32, 3)), jnp.float32)


@pytest.fixture(scope="session")
def linear(video):
    model = Linear()
    return model, model.init(jax.random.key(0), video[None])


@pytest.fixture(scope="session")
def transformer(video):
    """A function from the name of a Transformer to (a tiny model, variables)."""
    known = {}

    def build(name):
        if name not in known:
            model = vitx.create_model(name, **SMALL | EXTRA.get(name, {}))
            known[name] = model, with_random_variables(model, video)
        return known[name]

    return build


@pytest.fixture(scope="session")
def cnn(video):
    """(a tiny convolutional network, variables)."""
    model = vitx.create_model("cnn_small", num_classes=3, width=4)
    variables = jax.jit(model.init)(jax.random.key(0), video[None])
    kernel = variables["params"]["head"]["logits"]["kernel"]
    variables["params"]["head"]["logits"]["kernel"] = jax.random.normal(jax.random.key(1), kernel.shape)
    return model, variables
