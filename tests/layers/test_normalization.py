"""Normalisation: statistics, and hand-written gradients equal to derived ones."""

import os
import subprocess
import sys
from pathlib import Path

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
        leaves, tree = jax.tree.flatten(found)
        draws = [jax.random.normal(jax.random.key(10 + i), x.shape, jnp.float32) for i, x in enumerate(leaves)]
        draw = tree.unflatten(draws)
        expected = (expected, pull_back_expected(jax.tree.map(lambda x: x.astype(jnp.float64), draw)))
    for x, y in zip(jax.tree.leaves((found, pull_back(draw))), jax.tree.leaves(expected), strict=True):
        assert x.dtype == jnp.float32
        np.testing.assert_allclose(x, y, atol=rtol * float(np.abs(y).max()))


@pytest.mark.smoke
@pytest.mark.parametrize("shape", [(2, 5, 7), (1, 1), (3, 2, 4, 16), (9,)])
def test_layer_norm_has_the_values_and_gradients_of_its_formula(shape):
    def formula(x, scale, bias):
        deviation = x - x.mean(-1, keepdims=True)
        return deviation / jnp.sqrt((deviation**2).mean(-1, keepdims=True) + 1e-3) * scale + bias

    arguments = (3 + normal(*shape), *parameters(shape[-1]))
    assert_same_pull_back(lambda *x: normalize_tokens(*x, 1e-3), formula, arguments, 3e-6)


def test_layer_norm_of_no_tokens_has_gradients_of_zero():
    gradients = jax.grad(lambda *x: normalize_tokens(*x, 1e-3).sum(), argnums=(0, 1, 2))(normal(0, 4), *parameters(4))
    assert gradients[0].shape == (0, 4)
    np.testing.assert_array_equal(gradients[1:], np.zeros((2, 4)))


@pytest.mark.parametrize(("dtype", "rtol"), [("float64", 1e-13), ("float32", 3e-6), ("bfloat16", 2e-2)])
def test_layer_norm_is_that_of_flax(dtype, rtol):
    with jax.enable_x64(dtype == "float64"):
        ours, flax = LayerNorm(dtype=dtype), nn.LayerNorm(dtype=dtype)
        x = normal(2, 3, 8).astype(dtype)
        assert jax.tree.map(jnp.shape, ours.init(jax.random.key(0), x)) == {"params": {"scale": (8,), "bias": (8,)}}
        params = dict(zip(("scale", "bias"), parameters(8), strict=True))

        def call(module):
            out, pull_back = jax.vjp(lambda params, x: module.apply({"params": params}, x), params, x)
            return out, *pull_back(out)

        assert ours.apply({"params": params}, x).dtype == dtype
        for found, expected in zip(jax.tree.leaves(call(ours)), jax.tree.leaves(call(flax)), strict=True):
            found, expected = (np.asarray(x, np.float64) for x in (found, expected))
            np.testing.assert_allclose(found, expected, atol=rtol * np.abs(expected).max())


def test_layer_norm_is_exact_where_the_mean_is_large():
    x = normal(4, 64)
    found = LayerNorm().apply({"params": {"scale": jnp.ones(64), "bias": jnp.zeros(64)}}, 1e4 + x)
    np.testing.assert_allclose(found, (x - x.mean(-1, keepdims=True)) / x.std(-1, keepdims=True), atol=5e-3)


@pytest.mark.parametrize("platform", ["cpu", "tpu", "cuda"])
def test_only_cpus_sum_by_products(platform):
    gradient = jax.jit(jax.grad(lambda *x: normalize_tokens(*x, 1e-6).sum(), argnums=(0, 1, 2)))
    text = gradient.trace(normal(4, 8), *parameters(8)).lower(lowering_platforms=(platform,)).as_text()
    assert ("dot_general" in text) is (platform == "cpu")


def batch_formula(x, scale, bias):
    axes = tuple(range(x.ndim - 1))
    mean, var = x.mean(axes), x.var(axes)
    return (x - mean) / jnp.sqrt(var + 1e-2) * scale + bias, mean, var


@pytest.mark.parametrize("shape", [(10, 4), (2, 3, 2, 2, 4)])
def test_batch_norm_has_the_values_and_gradients_of_its_formula(shape):
    """The gradients of the statistics, too."""
    arguments = (2 + normal(*shape), *parameters(4))
    assert_same_pull_back(lambda *x: normalize_batch(*x, 1e-2), batch_formula, arguments, 3e-6)


def test_gradients_of_groups_are_those_of_each_group_alone():
    def normalise(x, scale, bias):
        variables = {"params": {"scale": scale, "bias": bias}, "batch_stats": {"mean": bias, "var": scale}}
        return BatchNorm(eps=1e-2, groups=2).apply(variables, x, train=True, mutable=["batch_stats"])[0]

    def formula(x, scale, bias):
        return jnp.concatenate([batch_formula(part, scale, bias)[0] for part in jnp.split(x, 2)])

    assert_same_pull_back(normalise, formula, (normal(6, 3, 4), *parameters(4)), 3e-6)


def test_axes_that_a_mesh_divides_are_not_gathered():
    command = [sys.executable, str(Path(__file__).with_name("normalization_on_mesh.py"))]
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=4"
    subprocess.run(command, check=True, env=os.environ | {"XLA_FLAGS": flags})


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
