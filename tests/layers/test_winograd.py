"""Winograd's convolution against XLA's own, with all gradients."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vitx.layers import winograd
from vitx.layers.convolution import convolve
from vitx.layers.convolution_cpu import convolve_on_cpu, suits_winograd
from vitx.layers.winograd import convolve_3x3


def compare(shape, kernel_shape, padding):
    """Checks values and gradients in float64, where rounding hides no error."""
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        x, kernel = jnp.asarray(rng.standard_normal(shape)), jnp.asarray(rng.standard_normal(kernel_shape))
        found, pull_found = jax.vjp(lambda x, kernel: convolve_3x3(x, kernel, padding), x, kernel)
        expected, pull = jax.vjp(lambda x, kernel: convolve(x, kernel, (1, 1, 1), padding, 1), x, kernel)
        assert found.shape == expected.shape
        gradient = jnp.asarray(rng.standard_normal(found.shape))
        for a, b in zip((found, *pull_found(gradient)), (expected, *pull(gradient)), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-11)


@pytest.fixture(params=["frame by frame", "at once"])
def form(request, monkeypatch):
    for name in ("MAX_BYTES", "MAX_GRADIENT_BYTES"):
        monkeypatch.setattr(winograd, name, 0 if request.param == "frame by frame" else 1e9)


@pytest.mark.usefixtures("form")
@pytest.mark.parametrize(("time", "padding"), [(1, (0, 1, 1)), (2, (1, 2, 0)), (3, (1, 1, 1)), (3, (0, 0, 2))])
def test_all_at_once_and_frame_by_frame_compute_what_xla_does(time, padding):
    compare((2, 4, 6, 7, 3), (time, 3, 3, 3, 5), padding)


def test_the_batch_stays_divided_on_a_mesh():
    command = [sys.executable, str(Path(__file__).with_name("winograd_on_mesh.py"))]
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=2"
    subprocess.run(command, check=True, env=os.environ | {"XLA_FLAGS": flags})


@settings(max_examples=8, deadline=None)
@given(
    st.tuples(st.integers(1, 2), st.integers(3, 4), st.integers(3, 9), st.integers(3, 9), st.integers(1, 3)),
    st.tuples(st.integers(1, 3), st.integers(1, 4)),
    st.tuples(st.integers(0, 2), st.integers(0, 2), st.integers(0, 2)),
)
def test_any_shape_and_padding(shape, sizes, padding):
    time, outputs = sizes
    compare(shape, (time, 3, 3, shape[-1], outputs), (min(padding[0], time - 1), *padding[1:]))


def test_rounding_in_float32_is_that_of_a_direct_convolution():
    rng = np.random.default_rng(0)
    x, kernel = (rng.standard_normal(shape) for shape in ((1, 4, 16, 16, 64), (3, 3, 3, 64, 64)))
    with jax.enable_x64(True):
        exact = np.asarray(convolve(jnp.asarray(x), jnp.asarray(kernel), (1, 1, 1), (1, 1, 1), 1))
    x, kernel = (jnp.asarray(array, jnp.float32) for array in (x, kernel))
    assert suits_winograd(x, kernel, (1, 1, 1), (1, 1, 1))
    errors = [
        np.abs(np.asarray(form(x, kernel, (1, 1, 1), (1, 1, 1), 1)) - exact).max() / np.abs(exact).max()
        for form in (convolve, convolve_on_cpu)
    ]
    assert errors[1] < 4 * errors[0] < 1e-5


@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "suits"),
    [
        ((3, 3, 3, 32, 32), (1, 1, 1), (1, 1, 1), True),
        ((1, 3, 3, 32, 64), (1, 1, 1), (0, 1, 1), True),
        ((3, 3, 3, 32, 32), (1, 2, 2), (1, 1, 1), False),
        ((3, 3, 3, 32, 32), (2, 1, 1), (1, 1, 1), False),
        ((3, 5, 5, 32, 32), (1, 1, 1), (1, 2, 2), False),
        ((3, 3, 3, 32, 8), (1, 1, 1), (1, 1, 1), False),
    ],
)
def test_convolutions_that_it_suits_are_made_of_products(kernel, stride, padding, suits):
    x, kernel = jnp.zeros((1, 4, 16, 16, 32)), jnp.zeros(kernel)
    text = jax.jit(lambda x, k: convolve_on_cpu(x, k, stride, padding, 1)).lower(x, kernel).as_text()
    assert ("stablehlo.convolution" in text) is not suits


def test_few_pixels_do_not_pay():
    assert not suits_winograd(jnp.zeros((1, 2, 7, 7, 512)), jnp.zeros((3, 3, 3, 512, 512)), (1, 1, 1), (1, 1, 1))
