"""Attention by the reference and by what suits the device, in turns: python experiments/benchmarks/attention.py

The same command runs on a CPU (blocks of queries, or all heads at once with gradients by hand, float32), on an NVIDIA
GPU (cuDNN, bfloat16) and on a TPU (splash attention, bfloat16). Very short sequences are timed too, which models
compute by the reference. Heads have 64 channels, as in ViT-B. "gradients" is the forward pass with the gradients of
queries, keys and values. Both are compared before anything is timed. With --memory: bytes of the compiled training
step of ViViT-B instead, and nothing is run. Results: attention.md.
"""

import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax

import vitx
from vitx.layers.attention import IMPLEMENTATIONS, choose_implementation, core
from vitx.layers.attention_cpu import attend_at_once, attend_in_blocks

ROUNDS, WARM_UP = 9, 2
SHAPES = [(1, 1569), (1, 784), (2, 400), (8, 197), (16, 96), (8, 64), (196, 8)]  # (batch, tokens); ViT-B has 12 heads
# what is timed for each implementation: (attention by title, type, largest difference from the reference)
TIMED = {
    "cpu": ({"blocks": attend_in_blocks, "at once": attend_at_once}, "float32", 1e-5),
    "gpu": ({"cuDNN": IMPLEMENTATIONS["cudnn"].core}, "bfloat16", 2e-2),
    "tpu": ({"splash": IMPLEMENTATIONS["splash"].core}, "bfloat16", 2e-2),
}


def gradients(attend):
    """Returns compiled attention with the gradients of queries, keys and values along an output gradient."""

    def call(q, k, v, out_gradient):
        out, pull_back = jax.vjp(attend, q, k, v)
        return out, *pull_back(out_gradient)

    return jax.jit(call)


def step_bytes(implementation: str, dtype: str) -> int:
    """Returns arguments and temporaries of a training step of ViViT-B/16x2 model 1, one clip of 32x224x224, SGD."""
    model = vitx.create_model("vivit_b_16x2", implementation=implementation, dtype=dtype)
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
    device = jax.devices()[0]
    implementation = choose_implementation("auto", device)
    if implementation not in TIMED:
        sys.exit(f"found the device {device.device_kind}; expected one with attention of its own, not the reference")
    forms, dtype, tolerance = TIMED[implementation]
    if sys.argv[1:] == ["--memory"]:
        for name in ("reference", implementation):
            print(f"{name}: {step_bytes(name, dtype) / 1e9:.1f} GB")
        return
    print(f"{device.device_kind}, JAX {jax.__version__}, {dtype}\n")
    print(
        "| clips x tokens | | reference, ms |"
        + "".join(f" {title}, ms (quartiles) | reference / {title} |" for title in forms)
    )
    print("| --- | --- | ---: |" + " ---: | ---: |" * len(forms))
    for batch, tokens in SHAPES:
        keys = jax.random.split(jax.random.key(0), 4)
        arrays = [jax.random.normal(key, (batch, tokens, 12, 64), dtype) for key in keys]
        for name, build, inputs in (("forward", jax.jit, arrays[:3]), ("gradients", gradients, arrays)):
            functions = [build(attend) for attend in (core, *forms.values())]
            expected, *others = (jax.tree.leaves(function(*inputs)) for function in functions)
            for found in others:
                for a, b in zip(expected, found, strict=True):
                    assert jnp.abs(a - b).max() < tolerance * jnp.abs(a).max()
            times = []
            for _ in range(WARM_UP + ROUNDS):
                for function in functions:
                    start = time.perf_counter()
                    jax.block_until_ready(function(*inputs))
                    times.append(1000 * (time.perf_counter() - start))
            reference, *columns = np.reshape(times, (-1, len(functions)))[WARM_UP:].T
            row = f"| {batch} x {tokens} | {name} | {np.median(reference):.1f} |"
            for column in columns:
                low, middle, high = np.quantile(column, [0.25, 0.5, 0.75])
                row += f" {middle:.1f} ({low:.1f} to {high:.1f}) | {np.median(reference / column):.2f} |"
            print(row, flush=True)


if __name__ == "__main__":
    main()
