"""Normalisation: statistics, and hand-written gradients equal to derived ones."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from vitx.layers.normalization import BatchNorm, LayerNorm, normalize_batch, normalize_tokens


def normal(*shape):
    return jax.random.normal(jax.random.key(0), shape)


def parameters(channels):
    scale, bias = jax.random.normal(jax.random.key(1), (2, channels))
    return scale, bias


def assert_same_pull_back(function, reference, arguments, rtol):
    """Compares values, and gradients by all arguments, with float64 ones of a reference."""
    found, pull_back = jax.vjp(function, *arguments)
    with jax.enable_x64(True):
        exact = [jnp.asarray(np.asarray(x, np.float64)) for x in arguments]
        expected, pull_back_expected = jax.vjp(reference, *exact)
        draw = jax.tree.map(lambda x: jax.random.normal(jax.random.key(x.ndim), x.shape, jnp.float32), found)
        expected = (expected, pull_back_expected(jax.tree.map(lambda x: x.astype(jnp.float64), draw)))
    for x, y in zip(jax.tree.leaves((found, pull_back(draw))), jax.tree.leaves(expected), strict=True):
        assert x.dtype == jnp.float32
        np.testing.assert_allclose(x, y, atol=rtol * float(np.abs(y).max()))


@pytest.mark.smoke
@pytest.mark.parametrize("shape", [(2, 5, 7), (1, 1), (3, 2, 4, 16), (0, 4)])
def test_layer_norm_has_the_values_and_gradients_of_its_formula(shape):
    def formula(x, scale, bias):
        deviation = x - x.mean(-1, keepdims=True)
        return deviation / jnp.sqrt((deviation**2).mean(-1, keepdims=True) + 1e-3) * scale + bias

    arguments = (3 + normal(*shape), *parameters(shape[-1]))
    if 0 in shape:
        assert normalize_tokens(*arguments, 1e-3).shape == shape
    else:
        assert_same_pull_back(lambda *x: normalize_tokens(*x, 1e-3), formula, arguments, 3e-6)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_layer_norm_is_that_of_flax(dtype):
    x = normal(2, 3, 8).astype(dtype)
    ours, flax = LayerNorm(dtype=dtype), nn.LayerNorm(dtype=dtype)
    variables = ours.init(jax.random.key(0), x)
    assert jax.tree.map(jnp.shape, variables) == jax.tree.map(jnp.shape, flax.init(jax.random.key(0), x))

    def call(module):
        return jax.value_and_grad(lambda variables: (module.apply(variables, x) ** 3).sum())(variables)

    assert ours.apply(variables, x).dtype == dtype
    atol = 2e-5 if dtype == "float32" else 0.3
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-2, atol=atol), call(ours), call(flax))


def test_a_large_mean_does_not_take_the_digits_of_layer_norm():
    """Unlike a variance as the difference of two means of squares."""
    x = normal(4, 64)
    found = LayerNorm().apply({"params": {"scale": jnp.ones(64), "bias": jnp.zeros(64)}}, 1e4 + x)
    np.testing.assert_allclose(found, (x - x.mean(-1, keepdims=True)) / x.std(-1, keepdims=True), atol=5e-3)


@pytest.mark.parametrize("platform", ["cpu", "tpu", "cuda"])
def test_only_cpus_sum_by_products(platform):
    gradient = jax.jit(jax.grad(lambda *x: normalize_tokens(*x, 1e-6).sum(), argnums=(0, 1, 2)))
    text = gradient.trace(normal(4, 8), *parameters(8)).lower(lowering_platforms=(platform,)).as_text()
    assert ("dot_general" in text) is (platform == "cpu")


def test_batch_norm_has_the_values_and_gradients_of_its_formula():
    """The gradients of the statistics, too."""

    def formula(x, scale, bias):
        mean, var = x.mean(0), x.var(0)
        return (x - mean) / jnp.sqrt(var + 1e-2) * scale + bias, mean, var

    arguments = (2 + normal(10, 4), *parameters(4))
    assert_same_pull_back(lambda *x: normalize_batch(*x, 1e-2), formula, arguments, 3e-6)


@pytest.mark.smoke
def test_batch_norm_normalises_by_the_batch_and_updates_running_statistics():
    x, module = 3 + 2 * normal(2, 3, 2, 2, 4), BatchNorm(eps=1e-2, momentum=0.3)
    start = {"mean": jnp.arange(4.0), "var": jnp.arange(1.0, 5.0)}
    params = {"scale": jnp.array([1.0, 2.0, 3.0, 4.0]), "bias": jnp.array([0.0, -1.0, 1.0, 2.0])}
    variables = {"params": params, "batch_stats": start}
    values = np.asarray(x, np.float64).reshape(-1, 4)
    mean, var = values.mean(0), values.var(0)

    def normalise(mean, var):
        return (np.asarray(x) - mean) / np.sqrt(var + 1e-2) * params["scale"] + params["bias"]

    np.testing.assert_allclose(
        module.apply(variables, x, train=False), normalise(start["mean"], start["var"]), rtol=1e-4
    )
    found, after = module.apply(variables, x, train=True, mutable=["batch_stats"])
    np.testing.assert_allclose(found, normalise(mean, var), rtol=1e-4, atol=1e-5)
    unbiased = values.var(0, ddof=1)
    np.testing.assert_allclose(after["batch_stats"]["mean"], 0.7 * start["mean"] + 0.3 * mean, rtol=1e-5)
    np.testing.assert_allclose(after["batch_stats"]["var"], 0.7 * start["var"] + 0.3 * unbiased, rtol=1e-5)


def test_batch_norm_takes_statistics_in_float32_in_half_precision():
    x = jnp.asarray(100 + normal(64, 1, 1, 1, 1), jnp.bfloat16)
    variables = BatchNorm().init(jax.random.key(0), x, train=False)
    np.testing.assert_array_equal(variables["batch_stats"]["var"], 1)
    found, after = BatchNorm(momentum=1.0).apply(variables, x, train=True, mutable=["batch_stats"])
    values = np.asarray(x, np.float64)
    assert found.dtype == jnp.bfloat16 and after["batch_stats"]["var"].dtype == jnp.float32
    np.testing.assert_allclose(after["batch_stats"]["var"], values.var(ddof=1), rtol=1e-5)


def test_batch_norm_of_one_value_raises():
    variables = BatchNorm().init(jax.random.key(0), jnp.zeros((1, 1, 1, 1, 4)), train=False)
    with pytest.raises(ValueError, match="one value for each channel"):
        BatchNorm().apply(variables, jnp.zeros((1, 1, 1, 1, 4)), train=True, mutable=["batch_stats"])
