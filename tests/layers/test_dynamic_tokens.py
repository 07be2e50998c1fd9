"""Dynamic tokens: against a slow loop, through every model that permits them, and budgets that cannot be."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vitx
from vitx.analysis.cost import count_cost
from vitx.configuration import Words, override
from vitx.errors import UserError
from vitx.layers.dynamic_tokens import DynamicTokens, find_dynamic

SMALL = {"num_frames": 8, "image_size": 8, "tubelet_size": (2, 4, 4), "num_classes": 3}
SMALL |= {"hidden_size": 16, "num_layers": 1, "num_heads": 2, "mlp_dim": 16}
GRID = (4, 2, 2)


def find_slowly(tubelets, budget, num_groups):
    """Returns the chosen tokens of one clip of GRID, whose groups have equal parts of the budget."""
    x, chosen = np.asarray(tubelets, np.float64).reshape(4, 4, -1), []
    change = [[np.abs(x[t, p] - x[t - 1 if t else 1, p]).mean() for p in range(4)] for t in range(4)]
    for times in np.split(np.arange(4), num_groups):
        order = sorted((-change[t][p], 4 * t + p) for t in times for p in range(4))
        chosen += [token for _, token in order[: budget // num_groups]]
    return sorted(chosen)


@pytest.mark.parametrize(("budget", "num_groups"), [(1, 1), (7, 1), (16, 1), (6, 2), (4, 4), (12, 4)])
def test_tokens_are_those_that_change_most_in_each_group(budget, num_groups):
    tubelets = np.random.default_rng(0).normal(size=(3, 16, 5, 3)) * np.random.default_rng(1).uniform(
        size=(3, 16, 1, 1)
    )
    found = find_dynamic(jnp.asarray(tubelets), GRID, budget, num_groups=num_groups)
    assert found.tolist() == [find_slowly(clip, budget, num_groups) for clip in tubelets]


def test_an_uneven_budget_is_used_up():
    tubelets = jnp.asarray(np.random.default_rng(0).normal(size=(1, 16, 1, 3)))
    (found,) = find_dynamic(tubelets, GRID, 7, num_groups=2).tolist()
    assert len(set(found)) == 7 and sum(token < 8 for token in found) == 3


def test_a_still_clip_keeps_its_first_tokens():
    assert find_dynamic(jnp.ones((1, 16, 2, 3)), GRID, 5).tolist() == [[0, 1, 2, 3, 4]]


@pytest.fixture(scope="module")
def video():
    return jax.random.normal(jax.random.key(3), (2, 8, 8, 8, 3))


@pytest.mark.parametrize("name", ["vivit_b_16x2", "videomae_b_16x2"])  # with a class token, and without
def test_a_model_computes_what_it_computes_of_the_kept_tokens(name, video):
    model = vitx.create_model(name, **SMALL)
    variables = jax.eval_shape(model.init, jax.random.key(0), video)
    rng = np.random.default_rng(0)
    variables = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape, scale=0.3), jnp.float32), variables)
    chosen = override(model, {"reducer": Words(["DynamicTokens"]), "reducer.budget": 6})

    def encode_kept(model, video, keep):
        return model.head(model.pool(model.encode(model.tokens(video, keep=keep))))

    @jax.jit
    def apply_all(variables, video):
        keep = chosen.apply(variables, video, method="observe")
        kept = model.apply(variables, video, keep, method=encode_kept)
        return kept, *(m.apply(variables, video) for m in (chosen, model))

    kept, found, whole = apply_all(variables, video)
    np.testing.assert_allclose(found, kept, rtol=1e-5, atol=1e-6)
    assert jnp.abs(found - whole).max() > 1e-3


def test_a_smaller_budget_costs_less():
    model = vitx.create_model("vivit_b_16x2", **SMALL)
    costs = [count_cost(model.copy(reducer=DynamicTokens(n)), model.input_shape).macs for n in (1, 6, 16)]
    assert costs == sorted(costs) and costs[-1] == count_cost(model, model.input_shape).macs


@pytest.mark.parametrize(
    ("name", "reducer", "words"),
    [
        ("vivit_b_16x2", DynamicTokens(0), [r"reducer\.budget is 0", "expected 1", "16"]),
        ("vivit_b_16x2", DynamicTokens(17), [r"reducer\.budget is 17", "16"]),
        ("vivit_b_16x2", DynamicTokens(3, num_groups=4), [r"reducer\.budget is 3", "expected 4", "num_groups"]),
        ("vivit_b_16x2", DynamicTokens(6, num_groups=3), [r"reducer\.num_groups is 3", "divisor of the 4"]),
        ("vivit_b_16x2_fe", DynamicTokens(6), ["reducer", "alone", "joint"]),
        ("timesformer_b_16_divided", DynamicTokens(6), ["reducer", "layout time", "joint"]),
    ],
)
def test_settings_that_a_model_cannot_have_are_refused_when_it_is_created(name, reducer, words):
    with pytest.raises(UserError, match=".*".join(words)):
        vitx.create_model(name, **SMALL, reducer=reducer)


def test_an_encoder_without_a_carry_raises(video):
    model = vitx.create_model("vivit_b_16x2", **SMALL, reducer=DynamicTokens(6))
    variables = jax.eval_shape(model.init, jax.random.key(0), video)
    tokens = jax.ShapeDtypeStruct((2, 17, 16), jnp.float32)
    with pytest.raises(ValueError, match="observe"):
        jax.eval_shape(lambda v, x: model.apply(v, x, method="encode"), variables, tokens)
