"""Counts the transposes and copies of compiled training steps: python experiments/benchmarks/transposes.py [MODEL ...]

Two programs of each model differ by one block (of each encoder), so their difference is what a block has. Counted in
XLA's optimised program are the operations that write memory: those inside a fusion do not, unless it returns them.
Nothing is run, so the counts do not depend on the load of the machine.
"""

import argparse
import collections
import math
import re
from collections.abc import Mapping

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
INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.-]+) = (?:(\w+)\[([\d,]*)\]\S*|\(.*?\)) ([\w-]+)\((.*?)\)(?:,|$)(.*)")
CALLED = re.compile(r"(?:calls|body|to_apply)=%?([\w.-]+)")
ROUNDS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
SOURCE = re.compile(r'op_name="([^"]*)"')
BYTES = {"f32": 4, "bf16": 2, "s32": 4, "u32": 4, "pred": 1}
Key = tuple[str, int, str]  # kind of operation, bytes that it writes, the modules that it comes from


def count_operations(program: str) -> collections.Counter[Key]:
    """Counts the operations of an optimised program that move values and write them to memory.

    Args:
        program: text of the program.
    """
    computations: dict[str, dict[str, re.Match]] = collections.defaultdict(dict)
    computation = ""
    for line in program.splitlines():
        if found := COMPUTATION.match(line):
            computation = found[1]
        elif found := INSTRUCTION.match(line):
            computations[computation][found[2]] = found
    fusions = [x for part in computations.values() for x in part.values() if x[5] == "fusion"]
    fused = {CALLED.search(fusion[7])[1] for fusion in fusions}
    runs, counts = count_runs(computations), collections.Counter[Key]()
    for name, part in computations.items():
        for found in find_outputs(part) if name in fused else part.values():
            _, _, dtype, shape, kind, _, rest = found.groups()
            if kind in KINDS and shape:
                source = SOURCE.search(rest)
                size = math.prod(map(int, shape.split(","))) * BYTES.get(dtype, 4)
                counts[kind, size, shorten(source[1]) if source else "no name"] += runs[name]
    return counts


def count_runs(computations: Mapping[str, Mapping[str, re.Match]]) -> collections.Counter[str]:
    """Counts how often each computation runs in one step: the body of a loop once for each of its rounds."""
    runs = collections.Counter({list(computations)[-1]: 1})  # the entry stands last, and callers behind what they call
    for name in reversed(computations):
        for found in computations[name].values():
            rounds = ROUNDS.search(found[7]) if found[5] == "while" else None
            for called in CALLED.findall(found[7]):
                runs[called] += runs[name] * (int(rounds[1]) if rounds else 1)
    return runs


def find_outputs(fused: dict[str, re.Match]) -> list[re.Match]:
    """Returns the operations whose results a fusion writes: a bitcast or a tuple moves nothing by itself."""
    pending, outputs = [x for x in fused.values() if x[1]], []
    while pending:
        found = pending.pop()
        operands = [fused[name] for name in re.findall(r"%([\w.-]+)", found[6]) if name in fused]
        if found[5] in ("tuple", "bitcast"):
            pending += operands
        else:
            outputs.append(found)
    return outputs


def shorten(source: str) -> str:
    """Returns the modules of an operation's name, without the functions around them and the number of the block."""
    parts = [part for part in source.split("/") if not part.startswith("jit(")]
    return "/".join(re.sub(r"(block)_\d+", r"\1", part) for part in parts[-4:])


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
            counted.append(count_operations(compile_step(name, model, 1, device).as_text()))
        # `subtract` keeps what is negative: it shows where three blocks are fused in another way than two.
        block, rest = counted[1].copy(), counted[0].copy()
        block.subtract(counted[0])
        for _ in range(2):
            rest.subtract(block)
        for part, counts in (("a block", block), ("the rest", rest)):
            cells = []
            for kind in KINDS:
                found = {key: number for key, number in counts.items() if key[0] == kind and number}
                total = sum(size * number for (_, size, _), number in found.items())
                cells.append(f"{sum(found.values())} ({total / 2**20:.1f})" if found else "")
            rows.append((name, part, *cells))
            if options.sources:
                for (kind, size, source), number in sorted(counts.items(), key=lambda item: -item[0][1] * item[1]):
                    if number:
                        tqdm.write(f"{name}, {part}: {number} x {kind} of {size / 2**20:.2f} MiB: {source}")
    print("\n".join(table(("model", "part", *(f"{kind} (MiB)" for kind in KINDS)), rows)))


if __name__ == "__main__":
    main()
