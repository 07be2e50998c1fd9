"""Bytes that a mesh of TPUs moves in one training step, read from the compiled step; no TPU needed.

    pip install -e '.[plan]'
    python experiments/benchmarks/collectives.py MODEL TOPOLOGY BATCH data,fsdp,tensor,frames ... [--field value ...]
    python experiments/benchmarks/collectives.py vivit_l_16x2 v5p:4x4x4 256 4,16,1,1 1,64,1,1 --num_frames 16

Bytes are those that one device sends. In a group of g devices that is (g - 1) / g of what they gather or scatter,
twice that of what they reduce (around a ring), and (g - 1) / g of its own part of what they exchange. Blocks are
scanned, rematerialised and in bfloat16.
"""

import argparse
import ast
import collections
import functools
import math
import os
import re
from typing import Any

import jax
import numpy as np
from jax.experimental import topologies
from jax.sharding import NamedSharding, PartitionSpec

import vitx
from vitx.checkpoints import abstract_state
from vitx.layers.partition import batch_sharding, entry_sharding
from vitx.models import resolve_implementation
from vitx.tasks.classification import Classification
from vitx.training.optimizers import SGD
from vitx.training.sharding import AXES, Mesh, state_shardings
from vitx.training.step import init_state, train_step

BYTES = {"token": 0, "pred": 1, "u8": 1, "s8": 1, "bf16": 2, "f16": 2, "f32": 4, "s32": 4, "u32": 4}
KINDS = ("all-gather", "reduce-scatter", "all-reduce", "all-to-all", "collective-permute")
COLLECTIVE = re.compile(rf"= (?P<result>.*?) (?P<kind>{'|'.join(KINDS)})(?P<start>-start)?\(")
UNCOUNTED = re.compile(rf" ({'|'.join(KINDS[:-1])})-start\(| (call|conditional)\(")
MIB = 2**20


def compiled_step(model: Any, shape: tuple[int, ...], batch_size: int, devices: list[Any]) -> Any:
    """Returns the training step of a model, compiled for a mesh of devices that need not exist."""
    mesh = Mesh(*shape).build(batch_size, model, devices)
    rows, model = batch_sharding(mesh), resolve_implementation(model, mesh.devices.flat[0])
    task, optimizer = Classification(label="action"), SGD(peak_lr=0.1).build(1000)
    parts = {
        "video": ((batch_size, *model.input_shape), np.uint8),
        "weight": ((batch_size,), np.float32),
        "index": ((batch_size,), np.int32),
    }
    batch: dict[str, Any] = {
        name: jax.ShapeDtypeStruct(shape, dtype, sharding=entry_sharding(name, len(shape), rows))
        for name, (shape, dtype) in parts.items()
    }
    batch["labels"] = {"action": jax.ShapeDtypeStruct((batch_size,), np.int32, sharding=rows)}
    shapes = jax.eval_shape(functools.partial(init_state, model, task, optimizer, seed=0, with_ema=False), batch)
    shardings = state_shardings(shapes, mesh)
    step = functools.partial(train_step, model=model, task=task, optimizer=optimizer, seed=0, ema_decay=None)
    with jax.set_mesh(mesh):
        everywhere = NamedSharding(mesh, PartitionSpec())
        jitted = jax.jit(step, donate_argnums=0, out_shardings=(shardings, everywhere))
        return jitted.lower(abstract_state(shapes, shardings), batch).compile()


def bytes_moved(program: str) -> dict[str, float]:
    """Returns {kind of collective: bytes that a device sends in one run} of a compiled program's text.

    Raises:
        ValueError: the program has an operation that is not counted here.
    """
    if found := UNCOUNTED.search(program):
        raise ValueError(f"{found[0].strip()} is not counted")
    computations, entry = split_computations(program)
    runs = count_runs(computations, entry)
    moved: dict[str, float] = collections.defaultdict(float)
    for name, lines in computations.items():
        for line in lines:
            if found := COLLECTIVE.search(line):
                kind, result = found["kind"], num_bytes(found["result"])
                if kind == "collective-permute":
                    # an asynchronous start returns its operand, its result and two counters
                    moved[kind] += runs[name] * ((result - 8) // 2 if found["start"] else result)
                    continue
                devices = group_size(line)
                if kind == "all-reduce" and "all-reduce-scatter" in name:  # how TPUs fuse a reduce-scatter
                    kind = "reduce-scatter"
                elif kind == "reduce-scatter":
                    result *= devices
                sent = (devices - 1) / devices * (2 if kind == "all-reduce" else 1)
                moved[kind] += runs[name] * result * sent
    return moved


def split_computations(program: str) -> tuple[dict[str, list[str]], str]:
    """Returns ({computation: its lines}, name of the entry computation)."""
    computations: dict[str, list[str]] = {}
    name = entry = ""
    for line in program.splitlines():
        if head := re.match(r"(ENTRY )?%?([\w.\-]+) \(.*\{\s*$", line):
            name = head[2]
            computations[name] = []
            entry = name if head[1] else entry
        elif name:
            computations[name].append(line)
    return computations, entry


def count_runs(computations: dict[str, list[str]], entry: str) -> dict[str, int]:
    """Returns {computation: number of runs}; the bound of a loop is the constant in its condition."""
    runs: dict[str, int] = collections.Counter()

    def walk(name: str, times: int) -> None:
        runs[name] += times
        for line in computations.get(name, []):
            if loop := re.search(r" while\(.*condition=%?([\w.\-]+), body=%?([\w.\-]+)", line):
                (bound,) = re.findall(r"constant\((\d+)\)", "\n".join(computations[loop[1]]))
                walk(loop[2], times * int(bound))
            else:
                for called in re.findall(r" calls=%?([\w.\-]+)", line):
                    walk(called, times)

    walk(entry, 1)
    return runs


def group_size(line: str) -> int:
    """Returns the number of devices in each group of a collective."""
    if axes := re.search(r"replica_groups=mesh\[(.*?)\].*? \{(.*?)\}", line):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", axes[1]))
        return math.prod(int(sizes[axis]) for axis in re.findall(r"'(\w+)'", axes[2]))
    if table := re.search(r"replica_groups=\[\d+,(\d+)\]", line):
        return int(table[1])
    if listed := re.search(r"replica_groups=\{\{([\d,]+)\}", line):
        return len(listed[1].split(","))
    raise ValueError(f"found no groups in {line.strip()[:200]}")


def num_bytes(shapes: str) -> int:
    """Returns the bytes of an HLO shape, or of all shapes in a tuple."""
    found = re.findall(r"\b([a-z]+\d*)\[([\d,]*)\]", shapes)
    return sum(BYTES[dtype] * math.prod(int(n) for n in dims.split(",") if n) for dtype, dims in found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, kind in (("model", str), ("topology", str), ("batch", int)):
        parser.add_argument(name, type=kind)
    parser.add_argument("mesh", nargs="+")
    options, words = parser.parse_known_args()
    jax.config.update("jax_platforms", "cpu")
    os.environ |= {"TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost"}  # libtpu must not look for a TPU
    fields = {
        name.removeprefix("--"): ast.literal_eval(value) for name, value in zip(words[::2], words[1::2], strict=True)
    }
    model = vitx.create_model(
        options.model, dtype="bfloat16", scan_layers=True, remat_policy="nothing_saveable", **fields
    )
    devices = list(topologies.get_topology_desc(options.topology, platform="tpu").devices)
    print(f"| {', '.join(AXES)} | held | work | {' | '.join(KINDS)} | all |")
    print("| --- |" + " ---: |" * (len(KINDS) + 3))
    for axes in options.mesh:
        step = compiled_step(model, tuple(map(int, axes.split(","))), options.batch, devices)
        memory, moved = step.memory_analysis(), bytes_moved(step.as_text())
        sizes = [memory.argument_size_in_bytes, memory.temp_size_in_bytes, *(moved[kind] for kind in KINDS)]
        cells = [f"{size / MIB:,.0f}" for size in [*sizes, sum(moved.values())]]
        print(f"| {', '.join(axes.split(','))} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
