"""The contract of reducers: one that is defined here plugs into models, settings, cost and explanations."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vitx
from vitx.analysis.cost import count_cost
from vitx.configuration import Words, from_dict, override, register, to_dict
from vitx.explain.attention import attention_rollout, has_attention
from vitx.layers.reducers import Reducer

SMALL = {"num_frames": 4, "image_size": 16, "tubelet_size": (2, 4, 4), "num_classes": 0}
SMALL |= {"hidden_size": 24, "num_layers": 2, "num_heads": 2, "mlp_dim": 24}


@register
@dataclasses.dataclass(frozen=True)
class Halving(Reducer):
    """Leaves out every other token of the grid."""

    after_layer: int = 0

    def count_tokens(self, grid, num_prefix, num_layers):
        all_tokens = math.prod(grid)
        return tuple(
            num_prefix + (all_tokens if i < self.after_layer else all_tokens // 2) for i in range(num_layers + 1)
        )

    def before_block(self, x, carry, context):
        if context.layer != self.after_layer:
            return x, carry
        return jnp.concatenate([x[..., : context.num_prefix, :], x[..., context.num_prefix :: 2, :]], axis=-2), carry


@pytest.fixture(scope="module")
def model():
    plain = vitx.create_model("vivit_b_16x2", **SMALL)
    return override(plain, {"reducer": Words(["Halving"]), "reducer.after_layer": Words(["1"])})


def test_a_custom_reducer_is_a_setting_like_any_other(model):
    assert model.reducer == Halving(1)
    assert override(model, {"reducer": Words(["None"])}).reducer is None
    assert from_dict(to_dict(model)) == model
    with pytest.raises(vitx.UserError, match="TokenMerging"):
        override(model, {"reducer": "TokenMergin"})


def test_a_custom_reducer_shortens_the_sequence(model):
    video = jax.random.normal(jax.random.key(0), (1, 4, 16, 16, 3))
    variables = jax.jit(model.init)(jax.random.key(1), video)
    tokens = jax.jit(lambda variables: model.apply(variables, video, method="tokens"))(variables)
    plain, first = model.copy(reducer=None), override(model, {"reducer.after_layer": 0})

    def encode(model, tokens):
        return jax.jit(lambda tokens: model.apply(variables, tokens, method="encode"))(tokens)

    assert encode(model, tokens).shape == (1, 17, 24)
    expected = encode(plain, jnp.concatenate([tokens[:, :1], tokens[:, 1::2]], axis=1))
    np.testing.assert_array_equal(encode(first, tokens), expected)
    costs = [count_cost(m, m.input_shape).macs for m in (first, model, plain)]
    assert costs == sorted(costs) and costs[1] - costs[0] == costs[2] - costs[1] > 0


def test_a_custom_reducer_in_front_of_a_layout_that_needs_the_grid_is_refused():
    fields = {"pooling": "mean", "layouts": ("time", "space")}
    with pytest.raises(vitx.UserError, match="layout time"):
        vitx.create_model("vivit_b_16x2", **SMALL, **fields, reducer=Halving(1))
    assert vitx.create_model("vivit_b_16x2", **SMALL, **fields, reducer=Halving(2)).reducer == Halving(2)


def test_attention_of_fewer_tokens_is_no_explanation_of_the_grid(model):
    video = np.zeros((4, 16, 16, 3), np.float32)
    assert not has_attention(model, video) and has_attention(model.copy(reducer=None), video)
    with pytest.raises(vitx.UserError, match="reducer"):
        attention_rollout(model, {}, video)
