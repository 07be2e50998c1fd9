"""Convolution and pooling equal their definitions, in every implementation."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from hypothesis import given, settings
from hypothesis import strategies as st

from vitx.layers.convolution import IMPLEMENTATIONS, Convolution, average_windows, max_pool


def normal(*shape, key=0):
    return jnp.asarray(np.random.default_rng(key).standard_normal(shape), jnp.float32)


CASES = [  # kernel, stride, groups, channels, width
    ((3, 3, 3), (1, 1, 1), 1, 6, 5),
    ((3, 3, 3), (2, 2, 2), 1, 6, 5),
    ((3, 5, 3), (2, 1, 2), 1, 3, 4),
    ((1, 3, 3), (1, 2, 2), 1, 3, 3),
    ((5, 1, 1), (4, 1, 1), 1, 6, 3),
    ((3, 1, 1), (1, 2, 2), 1, 3, 3),
    ((1, 1, 1), (2, 2, 2), 1, 6, 7),
    ((3, 3, 3), (1, 2, 2), 2, 6, 8),
    ((3, 3, 3), (2, 1, 2), 6, 6, 6),
    ((5, 1, 1), (1, 1, 1), 6, 6, 6),
    ((3, 3, 3), (1, 1, 1), 3, 3, 6),  # each channel alone, but two outputs of each
]


def test_implementations_compute_the_same_with_the_same_gradients():
    compare_implementations([((2, 7, 6, 9, channels), *case, width) for *case, channels, width in CASES])


def compare_implementations(cases):
    """Compares values and gradients of every form with those of XLA's own convolution, in one program for each."""
    arguments = [
        (normal(*shape), normal(*kernel, shape[-1] // groups, width, key=1))
        for shape, kernel, _, groups, width in cases
    ]

    @functools.partial(jax.jit, static_argnums=0)
    def results(name, arguments):
        outputs = []
        for (x, weights), (_, kernel, stride, groups, _) in zip(arguments, cases, strict=True):
            padding = tuple(size // 2 for size in kernel)
            convolve = functools.partial(IMPLEMENTATIONS[name], stride=stride, padding=padding, groups=groups)
            out, gradients = jax.vjp(convolve, x, weights)
            cotangent = jnp.cos(jnp.arange(out.size, dtype=jnp.float32)).reshape(out.shape)
            outputs.append((out, *gradients(cotangent)))
        return outputs

    expected = results("reference", arguments)
    for name in set(IMPLEMENTATIONS) - {"auto", "reference"}:
        for case, ours, theirs in zip(cases, results(name, arguments), expected, strict=True):
            for our, their in zip(ours, theirs, strict=True):
                bound = 1e-4 * (1 + np.abs(their).max())
                np.testing.assert_allclose(our, their, rtol=1e-4, atol=bound, err_msg=f"{name} {case}")


@pytest.mark.parametrize(("kernel", "groups"), [((3, 1, 1), 1), ((1, 1, 1), 1), ((3, 3, 3), 1), ((3, 3, 3), 4)])
def test_implementations_are_equally_exact_in_half_precision(kernel, groups):
    """Errors of values and gradients of 32 frames in bfloat16 are no larger than those of XLA's own convolution."""
    x, weights = normal(2, 32, 6, 6, 4), normal(*kernel, 4 // groups, 4, key=1)
    padding, cotangent = tuple(size // 2 for size in kernel), normal(2, 32, 6, 6, 4, key=2)

    @functools.partial(jax.jit, static_argnums=0)
    def compiled(name, x, weights, cotangent):
        convolve = functools.partial(IMPLEMENTATIONS[name], stride=(1, 1, 1), padding=padding, groups=groups)
        out, gradients = jax.vjp(convolve, x, weights)
        return out, *gradients(cotangent)

    def results(name, dtype):
        # conversions stay outside: inside one program XLA drops the rounding to bfloat16 and back
        arguments = [value.astype(jnp.bfloat16).astype(dtype) for value in (x, weights, cotangent)]
        return [np.asarray(value, np.float32) for value in compiled(name, *arguments)]

    exact = results("reference", "float32")
    for name in set(IMPLEMENTATIONS) - {"auto", "reference"}:
        outputs = zip(exact, results(name, "bfloat16"), results("reference", "bfloat16"), strict=True)
        for correct, ours, theirs in outputs:
            assert np.abs(ours - correct).max() <= 1.5 * np.abs(theirs - correct).max() + 1e-6


SIZES = st.tuples(*[st.sampled_from((1, 3, 5))] * 3)
STRIDES = st.tuples(*[st.integers(1, 3)] * 3)
SHAPES = st.tuples(st.integers(1, 2), *[st.integers(1, 9)] * 3)


@pytest.mark.slow
@settings(max_examples=60, deadline=None, derandomize=True)
@given(SHAPES, SIZES, STRIDES, st.integers(1, 3), st.integers(1, 3), st.integers(1, 3))
def test_implementations_compute_the_same_for_any_shape(shape, kernel, stride, groups, inner, outer):
    compare_implementations([((*shape, groups * inner), kernel, stride, groups, groups * outer)])


@pytest.mark.smoke
def test_convolution_is_a_weighted_sum_over_its_window():
    x, module = normal(1, 4, 5, 6, 2), Convolution(3, (3, 1, 3), (1, 2, 1))
    variables = module.init(jax.random.key(1), x)
    kernel = variables["params"]["kernel"]
    assert kernel.shape == (3, 1, 3, 2, 3)
    padded = np.pad(x, ((0, 0), (1, 1), (0, 0), (1, 1), (0, 0)))
    found = module.apply(variables, x)
    assert found.shape == (1, 4, 3, 6, 3)
    window = padded[0, 2:5, 4:5, 3:6]
    np.testing.assert_allclose(found[0, 2, 2, 3], np.einsum("thwc,thwco->o", window, kernel), rtol=1e-5)


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize(
    ("window", "stride"),
    [
        ((1, 2, 2), (1, 2, 2)),
        ((2, 1, 1), (2, 1, 1)),
        ((1, 3, 4), (1, 3, 4)),
        ((1, 3, 3), (1, 2, 2)),
        ((3, 3, 3), (1, 1, 1)),
    ],
)
def test_max_pool_equals_xlas_with_its_gradient(window, stride, padded, ties):
    x = normal(2, 4, 7, 9, 3)
    x = jnp.round(x) if ties else x

    def own(x):
        return nn.max_pool(x, window, stride, [(size // 2 if padded else 0,) * 2 for size in window])

    def ours(x):
        return max_pool(x, window, stride, padded=padded)

    np.testing.assert_array_equal(ours(x), own(x))
    weights = normal(*own(x).shape)
    expected, found = (jax.grad(lambda x, pool=pool: jnp.sum(weights * pool(x)))(x) for pool in (own, ours))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_max_pool_hides_no_nan():
    x = normal(1, 3, 5, 5, 2).at[0, 1, 2, 2, 0].set(jnp.nan)
    assert jnp.isnan(max_pool(x, (3, 3, 3), (1, 1, 1))[0, :, 1:4, 1:4, 0]).all()


def test_max_pool_is_the_largest_value_of_each_window():
    x = normal(1, 4, 5, 6, 2)
    inside = max_pool(x, (2, 2, 2), (2, 2, 2), padded=False)
    assert inside.shape == (1, 2, 2, 3, 2)
    np.testing.assert_array_equal(inside[0, 1, 0, 2], x[0, 2:4, 0:2, 4:6].max((0, 1, 2)))
    edges = max_pool(x, (3, 3, 3), (1, 2, 2))
    assert edges.shape == (1, 4, 3, 3, 2)
    np.testing.assert_array_equal(edges[0, 0, 0, 1], x[0, 0:2, 0:2, 1:4].max((0, 1, 2)))
    averages = average_windows(x, (9, 4, 6))  # cut to the four frames of the maps
    assert averages.shape == (1, 1, 2, 1, 2)
    np.testing.assert_allclose(averages[0, 0, 1, 0], x[0, :, 1:5].mean((0, 1, 2)), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(average_windows(x, None)[:, 0, 0, 0], x.mean((1, 2, 3)), rtol=1e-5, atol=1e-6)
