"""Batch normalisation with gradients by hand and by JAX, in turns: python experiments/benchmarks/normalization.py

The forward pass with the gradients of values, scale and bias; "derived" is the same formula, left to JAX.
Values and gradients are compared before anything is timed. Results: normalization.md.
"""

import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from vitx.layers.normalization import normalize_batch

ROUNDS, WARM_UP, EPS = 15, 3, 1e-5
MAPS = [(1, 16, 56, 56, 64), (1, 16, 56, 56, 144), (1, 8, 28, 28, 256), (1, 8, 14, 14, 512)]


def derive(x: jax.Array, scale: jax.Array, bias: jax.Array) -> jax.Array:
    axes = tuple(range(x.ndim - 1))
    return (x - x.mean(axes)) * (scale * jax.lax.rsqrt(x.var(axes) + EPS)) + bias


def with_gradients(normalize: Callable) -> Callable:
    """Returns a compiled function of an output gradient and the arguments: (outputs, gradients of all arguments)."""

    def call(out_gradient: jax.Array, *arguments: jax.Array) -> tuple[jax.Array, ...]:
        out, pull_back = jax.vjp(normalize, *arguments)
        return out, *pull_back(out_gradient)

    return jax.jit(call)


def main() -> None:
    print(f"{jax.devices()[0].device_kind}, JAX {jax.__version__}, float32\n")
    print("| maps | derived, ms (quartiles) | by hand, ms (quartiles) | derived / by hand |")
    print("| --- | ---: | ---: | ---: |")
    for shape in MAPS:
        x, out_gradient = jax.random.normal(jax.random.key(0), (2, *shape))
        scale, bias = jax.random.normal(jax.random.key(1), (2, shape[-1]))
        functions = [with_gradients(derive), with_gradients(lambda *x: normalize_batch(*x, EPS)[0])]
        for a, b in zip(*(function(out_gradient, x, scale, bias) for function in functions), strict=True):
            assert jnp.abs(a - b).max() < 1e-4 * jnp.abs(a).max()
        times = []
        for _ in range(WARM_UP + ROUNDS):
            for function in functions:
                began = time.perf_counter()
                jax.block_until_ready(function(out_gradient, x, scale, bias))
                times.append(1e3 * (time.perf_counter() - began))
        columns = np.reshape(times, (-1, 2))[WARM_UP:].T
        cells = ["{1:.1f} ({0:.1f} to {2:.1f})".format(*np.quantile(column, [0.25, 0.5, 0.75])) for column in columns]
        ratio = np.median(columns[0] / columns[1])
        print(f"| {' x '.join(map(str, shape))} | {' | '.join(cells)} | {ratio:.2f} |", flush=True)


if __name__ == "__main__":
    main()
