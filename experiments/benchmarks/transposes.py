"""Counts the transposes and copies of compiled training steps: python experiments/benchmarks/transposes.py [MODEL ...]

Two programs of each model differ by one block (of each encoder), so their difference is what a block has. Counted in
XLA's optimised program are the operations that write memory: those inside a fusion do not, unless they are its root.
Nothing is run, so the counts are the same on any machine of one platform.
"""

import argparse
import collections
import math
import re

import jax
from tqdm import tqdm

import vitx
from vitx.analysis.bench_programs import compile_step
from vitx.evaluation.report import table
from vitx.models import resolve_implementation

MODELS = ("vivit_b_16x2", "vivit_b_16x2_fe", "vivit_b_16x2_fsa", "vivit_b_16x2_fdp", "timesformer_b_16_divided")
DEPTHS = ("num_layers", "num_temporal_layers")
KINDS = ("transpose", "copy", "concatenate", "pad", "gather", "scatter")
COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.-]+) .*{$")
INSTRUCTION = re.compile(r"^\s+(ROOT )?%?[\w.-]+ = (\w+)\[([\d,]*)\]\S* ([\w-]+)\(")
CALLED = re.compile(r"calls=%?([\w.-]+)")
SOURCE = re.compile(r'op_name="([^"]*)"')
BYTES = {"f32": 4, "bf16": 2, "s32": 4, "u32": 4, "pred": 1}


def operations(program: str) -> collections.Counter[tuple[str, int, str]]:
    """Counts (kind, bytes written, where it comes from) over the operations of an optimised program that write memory.

    Args:
        program: text of the program.
    """
    lines, roots, computation = [], {}, ""
    fused = set(CALLED.findall("\n".join(line for line in program.splitlines() if " fusion(" in line)))
    for line in program.splitlines():
        if found := COMPUTATION.match(line):
            computation = found[1]
        elif found := INSTRUCTION.match(line):
            root, dtype, shape, kind = found.groups()
            if root:
                roots[computation] = kind
            if computation not in fused:
                lines.append((line, dtype, shape, kind))
    counts: collections.Counter[tuple[str, int, str]] = collections.Counter()
    for line, dtype, shape, kind in lines:
        called = CALLED.search(line)
        kind = roots.get(called[1], kind) if kind == "fusion" and called else kind
        if kind in KINDS and shape:
            size = math.prod(map(int, shape.split(","))) * BYTES.get(dtype, 4)
            source = SOURCE.search(line)
            counts[kind, size, shorten(source[1] if source else "")] += 1
    return counts


def shorten(source: str) -> str:
    """Returns the modules of an operation's name, without the functions around them and the number of the block."""
    parts = [part for part in source.split("/") if not part.startswith("jit(")]
    return "/".join(re.sub(r"_\d+$", "", part) for part in parts[-4:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=MODELS)
    parser.add_argument("--num_frames", type=int, default=16)
    parser.add_argument("--sources", action="store_true", help="list where the operations come from")
    options = parser.parse_args()
    rows, device = [], jax.devices()[0]
    for name in tqdm(options.models):
        counted = []
        for layers in (2, 3):
            plain = vitx.create_model(name)
            depth = {field: layers for field in DEPTHS if hasattr(plain, field)}
            model = resolve_implementation(plain.with_input_shape(options.num_frames, **depth), device)
            counted.append(operations(compile_step(name, model, 1, device).as_text()))
        block = counted[1] - counted[0]
        for part, counts in (("a block", block), ("the rest", counted[0] - block - block)):
            cells = []
            for kind in KINDS:
                found = {key: number for key, number in counts.items() if key[0] == kind}
                total = sum(size * number for (_, size, _), number in found.items())
                cells.append(f"{sum(found.values())} ({total / 2**20:.1f})" if found else "")
            rows.append((name, part, *cells))
            if options.sources:
                for (kind, size, source), number in sorted(counts.items(), key=lambda item: -item[0][1] * item[1]):
                    tqdm.write(f"{name}, {part}: {number} x {kind} of {size / 2**20:.2f} MiB: {source}")
    print("\n".join(table(("model", "part", *(f"{kind} (MiB)" for kind in KINDS)), rows)))


if __name__ == "__main__":
    main()
