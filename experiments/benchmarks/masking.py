"""What masking saves VideoMAE's encoder: python experiments/benchmarks/masking.py [--rounds 4 --ratios 0.75 0.9]

The encoder alone, from pixels to tokens, with gradients of all parameters: all tokens against the visible ones of
masked clips, each once in every round. Prints medians, the quartiles of the rounds' ratios, and the memory of the
compiled program without its arguments. The whole step of pre-training, decoder included, is
`vitx bench videomae_b_16x2 videomae_b_16x2_pretrain`.
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
from vitx.models import resolve_implementation


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--ratios", type=float, nargs="+", default=(0.75, 0.9))
    options = parser.parse_args()
    model = resolve_implementation(vitx.create_model("videomae_b_16x2_pretrain"), jax.devices()[0])
    rng = np.random.default_rng(0)
    clips = jnp.asarray(rng.uniform(size=(options.batch, *model.input_shape)), jnp.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), clips)
    variables = jax.tree.map(lambda x: jnp.asarray(0.02 * rng.standard_normal(x.shape), x.dtype), shapes)

    def compile_encoder(keep: jax.Array | None) -> jax.stages.Compiled:
        def loss(variables: dict, clips: jax.Array, keep: jax.Array | None) -> jax.Array:
            tokens = model.apply(variables, clips, keep=keep, method="tokens")
            return (model.apply(variables, tokens, method="encode") ** 2).mean()

        return jax.jit(jax.grad(loss)).lower(variables, clips, keep).compile()

    cases = {"all": None}
    for ratio in options.ratios:
        keep = model.copy(mask_ratio=ratio).draw_mask(jax.random.key(0))
        cases[str(ratio)] = jnp.broadcast_to(keep, (options.batch, len(keep)))
    programs = {name: compile_encoder(keep) for name, keep in tqdm(cases.items(), desc="compile")}
    seconds = {name: [] for name in cases}
    for number in tqdm(range(options.rounds + 1), desc="measure"):
        for name, keep in cases.items():
            began = time.perf_counter()
            jax.block_until_ready(programs[name](variables, clips, keep))
            if number:  # the first round warms up
                seconds[name].append(time.perf_counter() - began)
    rows = []
    for name, keep in cases.items():
        ratios = [b / a for a, b in zip(seconds["all"], seconds[name], strict=True)]
        low, ratio, high = statistics.quantiles(ratios, n=4)
        memory = programs[name].memory_analysis().temp_size_in_bytes
        tokens = int(np.prod(model.grid)) if keep is None else keep.shape[1]
        spread = f"{ratio:.3f} ({low:.3f} to {high:.3f})"
        rows.append((name, tokens, f"{1e3 * statistics.median(seconds[name]):.0f}", spread, f"{memory / 1e6:.0f}"))
    header = ("mask ratio", "tokens", "forward and backward, ms", "of all tokens (quartiles)", "memory, MB")
    print("\n".join(table(header, rows)))


if __name__ == "__main__":
    main()
