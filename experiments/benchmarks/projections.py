"""Queries, keys and values by three products or by one: python experiments/benchmarks/projections.py [--rounds 9]

One product of joined kernels reads the tokens once; the parameters stay apart, so every step joins kernels and takes
their gradient apart again. Prints medians, and the quartiles of the rounds' ratios; above 1 one product is faster.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp

SHAPES = ((1, 1569, 768), (4, 1569, 768), (8, 197, 768), (128, 9, 768), (16, 37, 192))
NAMES = ("query", "key", "value")


def three(params: dict[str, tuple[jax.Array, jax.Array]], x: jax.Array) -> list[jax.Array]:
    """Returns queries, keys and values."""
    return [x @ params[name][0] + params[name][1] for name in NAMES]


def one(params: dict[str, tuple[jax.Array, jax.Array]], x: jax.Array) -> list[jax.Array]:
    """Returns what `three` does."""
    kernel, bias = (jnp.concatenate([params[name][i] for name in NAMES], axis=-1) for i in (0, 1))
    return jnp.split(x @ kernel + bias, 3, axis=-1)


def with_gradients(project: Callable) -> Callable:
    """Returns a function that computes the gradients of a sum of squares, of parameters and of tokens."""
    return jax.grad(lambda params, x: sum(jnp.sum(y**2) for y in project(params, x)), argnums=(0, 1))


def measure(functions: tuple[Callable, Callable], arguments: tuple, rounds: int) -> list[tuple[float, float]]:
    """Returns the milliseconds of two functions in each round, in turns."""
    compiled = [jax.jit(function) for function in functions]
    for function in compiled:
        jax.block_until_ready(function(*arguments))
    pairs = []
    for number in range(rounds):
        pair = [0.0, 0.0]
        for i in (0, 1)[:: 1 if number % 2 else -1]:  # each first in turn
            began = time.perf_counter()
            for _ in range(5):
                result = compiled[i](*arguments)
            jax.block_until_ready(result)
            pair[i] = 1e3 * (time.perf_counter() - began) / 5
        pairs.append(tuple(pair))
    return pairs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--dtype", default="float32")
    options = parser.parse_args()
    print(f"{jax.devices()[0].device_kind}, JAX {jax.__version__}, {options.dtype}\n")
    print("| clips x tokens x width | | three products, ms | one, ms | three / one (quartiles) |")
    print("| --- | --- | ---: | ---: | ---: |")
    for batch, tokens, width in SHAPES:
        keys = iter(jax.random.split(jax.random.key(0), 4))
        params = {
            name: (
                jax.random.normal(next(keys), (width, width), options.dtype) * width**-0.5,
                jnp.zeros(width, options.dtype),
            )
            for name in NAMES
        }
        x = jax.random.normal(next(keys), (batch, tokens, width), options.dtype)
        for what, wrap in {"forward": lambda project: project, "gradients": with_gradients}.items():
            pairs = measure((wrap(three), wrap(one)), (params, x), options.rounds)
            before, now = (statistics.median(column) for column in zip(*pairs, strict=True))
            low, ratio, high = statistics.quantiles([a / b for a, b in pairs], n=4)
            cells = f"{before:.1f} | {now:.1f} | {ratio:.2f} ({low:.2f} to {high:.2f})"
            print(f"| {batch} x {tokens} x {width} | {what} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
