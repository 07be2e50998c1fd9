"""Attention on a CPU, the reference and blocks of queries in turns: python experiments/benchmarks/attention.py

Heads have 64 channels, as in ViT-B. "gradients" is the forward pass with the gradients of queries, keys and values.
Both are compared before anything is timed. With --memory: bytes of the compiled training step of ViViT-B instead, and
nothing is run. Results: attention.md.
"""

import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax

import vitx
from vitx.layers.attention import core
from vitx.layers.attention_cpu import attend_in_blocks

ROUNDS, WARM_UP = 9, 2
SHAPES = [(1, 1569), (1, 784), (8, 197), (8, 128), (16, 96), (8, 64)]  # (batch, tokens); ViT-B has 12 heads


def gradients(attend):
    """Returns the compiled gradients of queries, keys and values along an output gradient."""
    return jax.jit(lambda q, k, v, out_gradient: jax.vjp(attend, q, k, v)[1](out_gradient))


def step_bytes(implementation: str) -> int:
    """Returns arguments and temporaries of a training step of ViViT-B/16x2 model 1, one clip of 32x224x224, SGD."""
    model = vitx.create_model("vivit_b_16x2", implementation=implementation)
    optimizer, video = optax.sgd(0.1, 0.9), jax.ShapeDtypeStruct((1, *model.input_shape), jnp.float32)

    def step(variables, state, video):
        gradient = jax.grad(lambda x: model.apply(x, video, train=True).mean())(variables)
        updates, state = optimizer.update(gradient, state, variables)
        return optax.apply_updates(variables, updates), state

    variables = jax.eval_shape(model.init, jax.random.key(0), video)
    compiled = jax.jit(step, donate_argnums=(0, 1)).lower(variables, jax.eval_shape(optimizer.init, variables), video)
    memory = compiled.compile().memory_analysis()
    return memory.argument_size_in_bytes + memory.temp_size_in_bytes


def main() -> None:
    if sys.argv[1:] == ["--memory"]:
        for implementation in ("reference", "cpu"):
            print(f"{implementation}: {step_bytes(implementation) / 1e9:.1f} GB")
        return
    print("| clips x tokens | | reference, ms | blocks, ms (quartiles) | reference / blocks |")
    print("| --- | --- | ---: | ---: | ---: |")
    for batch, tokens in SHAPES:
        keys = jax.random.split(jax.random.key(0), 4)
        arrays = [jax.random.normal(key, (batch, tokens, 12, 64)) for key in keys]
        for name, build, inputs in (("forward", jax.jit, arrays[:3]), ("gradients", gradients, arrays)):
            functions = [build(core), build(attend_in_blocks)]
            expected, found = (jax.tree.leaves(function(*inputs)) for function in functions)
            for a, b in zip(expected, found, strict=True):
                assert jnp.abs(a - b).max() < 1e-5 * jnp.abs(a).max()
            times = []
            for _ in range(WARM_UP + ROUNDS):
                for function in functions:
                    start = time.perf_counter()
                    jax.block_until_ready(function(*inputs))
                    times.append(1000 * (time.perf_counter() - start))
            reference, blocks = np.reshape(times, (-1, 2))[WARM_UP:].T
            low, middle, high = np.quantile(blocks, [0.25, 0.5, 0.75])
            ratio = np.median(reference) / middle
            print(
                f"| {batch} x {tokens} | {name} | {np.median(reference):.1f} | {middle:.1f} ({low:.1f} to {high:.1f}) "
                f"| {ratio:.2f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
