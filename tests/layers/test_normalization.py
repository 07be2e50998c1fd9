"""Batch normalisation: statistics, and hand-written gradients equal to derived ones."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vitx.layers.normalization import BatchNorm, normalize_batch


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
