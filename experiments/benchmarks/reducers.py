"""Throughput of ViViT-B model 1 with each reducer: python experiments/benchmarks/reducers.py [--rounds 5]

Random weights, clips of 16x224x224, the compiled forward pass alone, every setting once in each round. What a reducer
observes of the pixels is part of the pass; motion of the codec, which `CodecTokens` reads, comes with decoding and is
not. Prints medians, and the quartiles of the rounds' ratios to the model that keeps all tokens.
"""

import argparse
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

import vitx
from vitx.evaluation.report import table
from vitx.layers.codec_tokens import CodecTokens
from vitx.layers.dynamic_tokens import DynamicTokens
from vitx.layers.run_length import RunLengthTokens
from vitx.layers.token_learner import TokenLearner
from vitx.layers.token_merging import TokenMerging
from vitx.models import resolve_implementation

REDUCERS = (
    None,
    TokenMerging(r=65),
    TokenMerging(r=65, proportional_attention=False),
    TokenLearner(num_tokens=8, after_layer=6),
    RunLengthTokens(budget=784),
    RunLengthTokens(budget=392),
    DynamicTokens(784),
    DynamicTokens(392),
    DynamicTokens(157),
    CodecTokens(392),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--dtype", default="float32")
    options = parser.parse_args()
    rng, programs = np.random.default_rng(0), []
    for reducer in tqdm(REDUCERS, desc="compile"):
        model = vitx.create_model("vivit_b_16x2", num_frames=16, dtype=options.dtype, reducer=reducer)
        clips = jax.random.uniform(jax.random.key(1), (options.batch, *model.input_shape), jnp.float32)
        shapes = jax.eval_shape(model.init, jax.random.key(0), clips)  # to compile `init` takes longer than to measure
        variables = jax.tree.map(lambda x: jnp.asarray(0.02 * rng.standard_normal(x.shape), x.dtype), shapes)
        apply = jax.jit(resolve_implementation(model, jax.devices()[0]).apply)
        jax.block_until_ready(apply(variables, clips))
        programs.append((apply, variables, clips))
    seconds = [[] for _ in programs]
    for number in tqdm(range(options.rounds), desc="measure"):
        for i in range(len(programs))[:: -1 if number % 2 else 1]:
            apply, variables, clips = programs[i]
            began = time.perf_counter()
            jax.block_until_ready(apply(variables, clips))
            seconds[i].append(time.perf_counter() - began)
    rows = []
    for reducer, spent in zip(REDUCERS, seconds, strict=True):
        low, ratio, high = statistics.quantiles([a / b for a, b in zip(seconds[0], spent, strict=True)], n=4)
        median = statistics.median(spent)
        name = "all tokens" if reducer is None else f"`{reducer}`"
        rows.append(
            (name, f"{1e3 * median:.0f}", f"{options.batch / median:.2f}", f"{ratio:.2f} ({low:.2f} to {high:.2f})")
        )
    print("\n".join(table(("reducer", "forward, ms", "clips per second", "times all tokens (quartiles)"), rows)))


if __name__ == "__main__":
    main()
