"""Attention as explanation: recorded as it is computed, for every layout, and followed back to the video."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from tests.explain.conftest import TARGET, TRANSFORMERS
from vitx.errors import UserError
from vitx.explain.attention import attention_maps, attention_rollout, gradient_attention, last_attention
from vitx.explain.methods import methods_for
from vitx.explain.recording import attention_calls, record_attention, record_gradients
from vitx.explain.score import Target, class_score
from vitx.layers.attention import SelfAttention


def outputs_before_projection(model, variables, video):
    """Returns {path: (values, output)} of every attention, without the layers that explanations use."""

    @jax.jit
    def run(variables, video):
        seen = {}

        def observe(call, args, kwargs, context):
            result = call(*args, **kwargs)
            if isinstance(context.module.parent, SelfAttention) and context.method_name == "__call__":
                seen[context.module.path] = args[0] if context.module.name == "out" else result
            return result

        with nn.intercept_methods(observe):
            model.apply(variables, video[None])
        return seen

    return run(variables, video)


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_recorded_rows_sum_to_one_and_give_the_output_of_attention(name, transformer, video):
    model, variables = transformer(name)
    calls = attention_calls(model, video)
    seen = outputs_before_projection(model, variables, video)
    shapes = [(call.sequences, call.num_tokens) for call in calls]
    queries = [jnp.asarray(np.random.default_rng(0).random(shape, np.float32)) for shape in shapes]

    @jax.jit
    def record(variables, video, queries):
        weights = record_attention(model, variables, video, calls)
        matrices = [call.matrix(recorded) for call, recorded in zip(calls, weights, strict=True)]
        return matrices, [call.attended(*inputs) for call, *inputs in zip(calls, weights, queries, strict=True)]

    matrices, attended = record(variables, video, queries)
    for call, matrix, query, read in zip(calls, map(np.asarray, matrices), queries, attended, strict=True):
        np.testing.assert_allclose(matrix.sum(-1), 1, atol=1e-5)
        values = seen[(*call.path, "value")].reshape(call.sequences, call.num_tokens, call.num_heads, -1)
        out = np.einsum("shqk,skhd->sqhd", matrix, values)
        np.testing.assert_allclose(out.ravel(), np.ravel(seen[(*call.path, "out")]), atol=1e-5)
        np.testing.assert_allclose(read, np.einsum("sq,shqk->shk", query, matrix), atol=1e-4)


def test_number_of_recorded_attentions_is_that_of_the_blocks(transformer, video):
    counts = {name: len(attention_calls(transformer(name)[0], video)) for name in TRANSFORMERS}
    assert counts["vivit_ti_16x2"] == 2 and counts["vivit_ti_16x2_fe"] == 2 and counts["timesformer_b_16_axial"] == 3


@pytest.mark.parametrize("name", ["vivit_ti_16x2_fdp", "timesformer_b_16_divided"])
def test_gradient_of_a_probability_is_that_of_the_logit(name, transformer, video):
    """The recorded gradient predicts the change of the logit when one attention changes a little."""
    model, variables = transformer(name)
    calls = attention_calls(model, video)
    call = calls[-1]

    @jax.jit
    def record(variables, video):
        weights, gradients = record_gradients(model, variables, video, calls, TARGET)[-1]
        # `matrix` divides the row of a prefix token by the number of its groups; ones in place of gradients show where
        ones = tuple(map(jnp.ones_like, weights))
        return call.matrix(weights), call.matrix(gradients), call.matrix(ones)

    matrix, gradients, divided = map(np.asarray, record(variables, video))
    direction = np.random.default_rng(1).standard_normal(matrix.shape).astype(np.float32) * (matrix > 0)
    sequence_values = outputs_before_projection(model, variables, video)[(*call.path, "value")]
    values = sequence_values.reshape(call.sequences, call.num_tokens, call.num_heads, -1)
    change = np.einsum("shqk,skhd->sqhd", direction, values)

    def score(step):
        def observe(inner, args, kwargs, context):
            if context.module.path == (*call.path, "out") and context.method_name == "__call__":
                args = (args[0] + step * change.reshape(args[0].shape), *args[1:])
            return inner(*args, **kwargs)

        with nn.intercept_methods(observe):
            return class_score(model, variables, jnp.asarray(video)[None], TARGET)[0]

    expected = jax.jit(jax.grad(score))(0.0)
    scattered = gradients / np.where(divided > 0, divided, 1)
    assert np.sum(scattered * direction) == pytest.approx(float(expected), rel=1e-3, abs=1e-4)


ONE_OF_EACH_KIND = [
    "videomae_s_16x2",
    "vivit_ti_16x2_fe",
    "vivit_ti_16x2_fdp",
    "timesformer_b_16_space",
    "timesformer_b_16_axial",
]


@pytest.mark.parametrize("name", ONE_OF_EACH_KIND)
def test_relevance_lies_on_the_grid_of_tokens(name, transformer, video):
    model, variables = transformer(name)
    for method in (last_attention, attention_rollout, gradient_attention):
        found = np.asarray(method(model, variables, video, TARGET))
        assert found.shape == model.grid and np.isfinite(found).all() and found.min() >= 0 and found.max() > 0
    # rows of attention sum to 1, and prefix tokens keep a part
    total = float(attention_rollout(model, variables, video).sum())
    assert total == pytest.approx(1, abs=1e-4) if model.num_prefix == 0 else 0 < total < 1


def test_rollout_is_the_product_of_the_matrices(transformer, video):
    model, variables = transformer("vivit_ti_16x2")
    calls = attention_calls(model, video)
    product = np.eye(calls[0].num_tokens)
    recorded = jax.jit(lambda variables, video: record_attention(model, variables, video, calls))(variables, video)
    for call, weights in zip(calls, recorded, strict=True):
        product = (np.asarray(call.matrix(weights))[0].mean(0) + np.eye(len(product))) / 2 @ product
    np.testing.assert_allclose(attention_rollout(model, variables, video).ravel(), product[0, 1:], atol=1e-6)


def test_gradient_attention_is_the_sum_over_heads_of_positive_products(transformer, video):
    model, variables = transformer("vivit_ti_16x2")
    calls = attention_calls(model, video)
    relevance = np.eye(calls[0].num_tokens)
    recorded = jax.jit(lambda *clip: record_gradients(model, *clip, calls, TARGET))(variables, video)
    for call, (weights, gradients) in zip(calls, recorded, strict=True):
        product = np.maximum(np.asarray(call.matrix(weights)) * np.asarray(call.matrix(gradients)), 0)[0].mean(0)
        relevance = relevance + product @ relevance
    found = gradient_attention(model, variables, video, TARGET)
    np.testing.assert_allclose(found.ravel(), relevance[0, 1:], rtol=1e-4, atol=1e-6)


def test_gradient_attention_depends_on_the_class_and_rollout_does_not(transformer, video):
    model, variables = transformer("vivit_ti_16x2_fe")
    maps = [np.asarray(gradient_attention(model, variables, video, Target(i))) for i in (0, 1)]
    assert not np.allclose(*maps)
    np.testing.assert_array_equal(*(attention_rollout(model, variables, video, Target(i)) for i in (0, 1)))


def test_maps_of_heads_have_the_grid_of_their_attention(transformer, video):
    model, variables = transformer("vivit_ti_16x2_fe")
    assert attention_maps(model, variables, video, layer=0).shape == (2, 2, 3, 4)
    temporal = attention_maps(model, variables, video)
    assert temporal.shape == (2, 2, 1, 1) and (np.asarray(temporal).sum((1, 2, 3)) < 1).all()  # the rest: class token
    with pytest.raises(UserError, match=r"2.*0 to 1"):
        attention_maps(model, variables, video, layer=2)


def test_scanned_and_rematerialised_models_are_recorded_too(transformer, video):
    model, variables = transformer("vivit_ti_16x2")
    scanned = model.copy(scan_layers=True, remat_policy="nothing_saveable")
    for method in (attention_rollout, gradient_attention):
        found = method(scanned, variables, video, TARGET)
        np.testing.assert_allclose(found, method(model, variables, video, TARGET), rtol=1e-5)


def test_a_model_without_attention_names_methods_that_work(cnn, video):
    with pytest.raises(UserError, match=r"(?s)FrameCNN.*grad_cam.*occlusion"):
        attention_rollout(*cnn, video)


def test_a_probe_that_pools_by_attention_is_refused(transformer, video):
    model, variables = transformer("videomae_s_16x2")
    probe = model.copy(pooling="attention")
    with pytest.raises(UserError, match=r"(?s)pooling attention.*class or mean.*grad_cam"):
        attention_rollout(probe, variables, video)
    assert "attention_rollout" not in methods_for(probe, video) and "grad_cam" in methods_for(probe, video)
