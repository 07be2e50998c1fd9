"""Attention on CPUs, in blocks and at once, computes what the reference does."""

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vitx
from vitx.layers import attention_cpu
from vitx.layers.attention import IMPLEMENTATIONS, core, core_cpu
from vitx.layers.attention_cpu import attend_at_once, attend_in_blocks
from vitx.layers.attention_kernel import log_once
from vitx.models import resolve_implementation

SHAPES = [(2, 7, 7, 3, 4), (1, 20, 20, 2, 8), (1, 33, 5, 1, 4), (2, 1, 19, 2, 4), (1, 16, 40, 2, 4)]


def random_heads(shape, dtype="float32"):
    batch, queries, keys, heads, size = shape
    draws = [jax.random.normal(jax.random.key(i), (batch, n, heads, size)) for i, n in enumerate((queries, keys, keys))]
    return [2 * x.astype(dtype) for x in draws]


@pytest.fixture
def small_blocks(monkeypatch):
    """Blocks of 8 queries, so that short sequences have several, some of them padded."""
    monkeypatch.setattr(attention_cpu, "BLOCK", 8)
    monkeypatch.setattr(attention_cpu, "MIN_SCORES_AT_ONCE", 0)
    monkeypatch.setattr(attention_cpu, "MIN_SCORES", 0)
    monkeypatch.setattr(attention_cpu, "MIN_SCORES_WITH_GRADIENTS", 0)


@pytest.mark.smoke
@pytest.mark.parametrize("form", [attend_at_once, attend_in_blocks])
@pytest.mark.parametrize("shape", SHAPES)
def test_outputs_and_gradients_equal_those_of_the_reference(small_blocks, form, shape):
    heads = random_heads(shape)
    out_gradient = jax.random.normal(jax.random.key(9), heads[0].shape)
    (expected, pull_back), (found, pull_back_form) = jax.vjp(core, *heads), jax.vjp(form, *heads)
    # against float64 the reference itself is off by up to 1.8e-6, where outputs reach 5
    np.testing.assert_allclose(found, expected, atol=1e-6 * float(jnp.abs(expected).max()) + 1e-6)
    for gradient, reference in zip(pull_back_form(out_gradient), pull_back(out_gradient), strict=True):
        np.testing.assert_allclose(gradient, reference, atol=2e-6 * float(jnp.abs(reference).max()) + 2e-6)


@pytest.mark.parametrize("with_gradients_from", [0, 1000])
def test_half_precision_is_as_exact_as_the_reference(small_blocks, monkeypatch, with_gradients_from):
    monkeypatch.setattr(attention_cpu, "MIN_SCORES_WITH_GRADIENTS", with_gradients_from)
    exact = random_heads((1, 20, 20, 2, 8))
    halves = [x.astype("bfloat16") for x in exact]
    exact = [x.astype("float32") for x in halves]

    def gradients(function, heads):
        return jax.grad(lambda *x: (function(*x).astype("float32") ** 2).sum(), argnums=(0, 1, 2))(*heads)

    for target, reference, found in zip(
        (core(*exact), *gradients(core, exact)),
        (core(*halves), *gradients(core, halves)),
        (core_cpu(*halves), *gradients(core_cpu, halves)),
        strict=True,
    ):
        assert found.dtype == jnp.bfloat16
        error, permitted = (float(jnp.linalg.norm(x.astype("float32") - target)) for x in (found, reference))
        assert error < 1.5 * permitted + 1e-3 * float(jnp.linalg.norm(target))


@pytest.mark.parametrize("form", [attend_at_once, attend_in_blocks])
def test_large_scores_do_not_overflow(small_blocks, form):
    heads = [100 * x for x in random_heads((1, 20, 20, 1, 4))]
    out, pull_back = jax.vjp(form, *heads)
    np.testing.assert_allclose(out, core(*heads), atol=1e-3)
    assert all(np.isfinite(gradient).all() for gradient in pull_back(jnp.ones_like(out)))


@pytest.mark.parametrize("option", ["bias", "mask"])
def test_bias_and_mask_are_computed_as_by_the_reference(small_blocks, option):
    heads = random_heads((2, 12, 12, 2, 4))
    scores = jax.random.normal(jax.random.key(5), (2, 12, 12))
    options = {option: scores if option == "bias" else scores > 0}
    np.testing.assert_array_equal(core_cpu(*heads, **options), core(*heads, **options))
    assert np.abs(core_cpu(*heads, **options) - core_cpu(*heads)).max() > 0.1


@pytest.mark.parametrize("clips_of_bias", [1, 2])
@pytest.mark.parametrize("hidden", [0.0, np.finfo(np.float32).min])
@pytest.mark.parametrize("with_gradients", [False, True])
def test_a_bias_of_keys_is_computed_in_blocks(small_blocks, monkeypatch, clips_of_bias, hidden, with_gradients):
    """Sizes of merged tokens, and hidden slots, where gradients are computed in blocks and where at once."""
    heads = random_heads((2, 12, 20, 2, 4))
    bias = jax.random.normal(jax.random.key(5), (clips_of_bias, 1, 1, 20)).at[..., 3:7].add(hidden)
    out_gradient = jax.random.normal(jax.random.key(9), heads[0].shape)

    def call(function, *heads_and_bias):
        out, pull_back = jax.vjp(lambda q, k, v, bias: function(q, k, v, bias=bias), *heads_and_bias)
        return out, *pull_back(out_gradient)

    expected = call(core, *heads, bias)
    monkeypatch.setattr("vitx.layers.attention.core", None)  # only the forms for CPUs
    if not with_gradients:
        monkeypatch.setattr(attention_cpu, "MIN_SCORES_WITH_GRADIENTS", 1000)
    for found, reference in zip(call(core_cpu, *heads, bias), expected, strict=True):
        atol = 3e-6 * float(jnp.abs(reference).max()) + 3e-6
        np.testing.assert_allclose(found, reference, atol=atol)


def test_a_clip_without_visible_keys_attends_as_without_a_bias(small_blocks):
    heads = random_heads((2, 12, 20, 2, 4))
    bias = jnp.zeros((2, 1, 1, 20)).at[0].set(np.finfo(np.float32).min)

    def gradients(bias):
        return jax.grad(lambda *x: (core_cpu(*x, bias=bias) ** 2).sum(), argnums=(0, 1, 2))(*heads)

    for found, expected in zip(gradients(bias), gradients(None), strict=True):
        np.testing.assert_allclose(found, expected, atol=3e-6 * float(jnp.abs(expected).max()))


@hypothesis.settings(max_examples=8, suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture])
@hypothesis.given(
    shape=st.tuples(*(st.integers(1, high) for high in (2, 21, 21, 3, 6))),
    dtype=st.sampled_from(["float32", "bfloat16"]),
    hidden=st.sampled_from([None, 0, 1, 5]),
    seed=st.integers(0, 99),
)
def test_any_shape_equals_the_reference(small_blocks, shape, dtype, hidden, seed):
    """With any number of hidden keys, other than all; `hidden` is None without a bias."""
    heads, bias = random_heads(shape, dtype), None
    if hidden is not None:
        bias = jax.random.normal(jax.random.key(seed), (shape[0], 1, 1, shape[2]))
        bias = bias.at[..., : min(hidden, shape[2] - 1)].set(np.finfo(np.float32).min)
    found, expected = (np.asarray(f(*heads, bias=bias), np.float32) for f in (core_cpu, core))
    assert found.shape == (*shape[:2], *shape[3:])
    np.testing.assert_allclose(found, expected, atol=(2e-2 if dtype == "bfloat16" else 2e-6) * np.abs(expected).max())


@pytest.mark.parametrize(
    ("options", "found"),
    [({}, None), ({"mask": (1, 1, 1, 320)}, "a mask"), ({"bias": (1, 3, 320, 320)}, "a bias [1, 3, 320, 320]")],
)
def test_a_fallback_of_long_sequences_is_logged(capsys, options, found):
    log_once.cache_clear()
    heads = [jax.ShapeDtypeStruct((1, 320, 3, 8), jnp.float32)] * 3
    types = {"mask": jnp.bool_, "bias": jnp.float32}
    abstract = {name: jax.ShapeDtypeStruct(shape, types[name]) for name, shape in options.items()}
    jax.eval_shape(lambda q, k, v, options: core_cpu(q, k, v, **options), *heads, abstract)
    err = capsys.readouterr().err
    assert err == "" if found is None else f"found {found}" in err


@pytest.mark.parametrize(
    ("tokens", "forward", "with_gradients"), [(64, False, False), (128, True, False), (384, True, True)]
)
def test_sequences_are_computed_in_blocks_where_that_is_faster(tokens, forward, with_gradients):
    heads = [jax.ShapeDtypeStruct((1, tokens, 3, 8), jnp.float32)] * 3

    def has_all_scores(function):
        return f"[1,3,{tokens},{tokens}]" in str(jax.make_jaxpr(function)(*heads))

    gradients = jax.grad(lambda *x: core_cpu(*x).sum(), argnums=(0, 1, 2))
    assert has_all_scores(jax.jit(core)) and has_all_scores(jax.jit(core_cpu)) is not forward
    assert has_all_scores(jax.jit(gradients)) is not with_gradients


@pytest.mark.parametrize(("tokens", "by_hand"), [(40, False), (64, True), (128, True)])
def test_only_very_short_sequences_are_left_to_the_reference(tokens, by_hand):
    heads = random_heads((1, tokens, tokens, 2, 4))
    assert ("custom_vjp" in str(jax.make_jaxpr(core_cpu)(*heads))) is by_hand
    np.testing.assert_allclose(core_cpu(*heads), core(*heads), atol=3e-6)


def test_memory_grows_linearly_in_tokens():
    def temporaries(function, tokens):
        heads = [jax.ShapeDtypeStruct((1, tokens, 12, 64), jnp.float32)] * 3
        step = jax.jit(jax.grad(lambda *x: function(*x).sum(), argnums=(0, 1, 2)))
        return step.lower(*heads).compile().memory_analysis().temp_size_in_bytes

    small, large = (temporaries(core_cpu, tokens) for tokens in (1569, 3137))
    assert large < 2.2 * small
    assert large < temporaries(core, 3137) / 10


@pytest.mark.parametrize("name", ["vivit_b_16x2", "vivit_b_16x2_fe", "timesformer_b_16_divided"])
def test_a_model_computes_the_same_with_every_implementation(small_blocks, name):
    sizes = {"num_layers": 1, "hidden_size": 24, "num_heads": 2, "mlp_dim": 24, "num_classes": 3}
    model = vitx.create_model(name, num_frames=4, image_size=48, **sizes)
    video = jax.random.normal(jax.random.key(0), (2, 4, 48, 48, 3))
    variables = model.init(jax.random.key(1), video)
    assert resolve_implementation(model, jax.devices()[0]).implementation == "cpu"
    everywhere = [name for name, implementation in IMPLEMENTATIONS.items() if implementation.needs == "any"]
    outputs = [jax.jit(model.copy(implementation=x).apply)(variables, video) for x in everywhere]
    for output in outputs[1:]:
        np.testing.assert_allclose(output, outputs[0], atol=2e-6)


def test_each_device_of_a_mesh_attends_in_blocks(small_blocks):
    heads = random_heads((2, 20, 20, 2, 8))
    mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    with jax.set_mesh(mesh):
        spec = jax.sharding.PartitionSpec("data")
        sharded = jax.shard_map(attend_in_blocks, in_specs=(spec,) * 3, out_specs=spec)
        found = jax.jit(jax.grad(lambda *x: (sharded(*x) ** 2).sum(), argnums=(0, 1, 2)))(*heads)
    expected = jax.jit(jax.grad(lambda *x: (attend_in_blocks(*x) ** 2).sum(), argnums=(0, 1, 2)))(*heads)
    for gradient, reference in zip(found, expected, strict=True):
        np.testing.assert_allclose(gradient, reference, rtol=1e-6, atol=1e-6)
