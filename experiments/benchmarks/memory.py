"""Memory of a compiled training step by setting, from XLA's plan: python experiments/benchmarks/memory.py

Programs are compiled and never run. On a CPU XLA's plan is the same every time.
"""

import functools

import jax
import jax.numpy as jnp

import vitx
from vitx.tasks.classification import Classification
from vitx.training.optimizers import Adafactor, AdamW, Lion
from vitx.training.step import init_state, train_step

CLIPS = 8
MODEL = vitx.create_model("vivit_s_16x2_fe", num_frames=16, image_size=112, num_layers=6, num_temporal_layers=2)
SCANNED = MODEL.copy(scan_layers=True)
CASES = {
    "nothing saved": (MODEL, AdamW(), 1),
    "training.num_micro_batches 2": (MODEL, AdamW(), 2),
    "training.num_micro_batches 4": (MODEL, AdamW(), 4),
    "training.num_micro_batches 8": (MODEL, AdamW(), 8),
    "model.remat_policy nothing_saveable": (MODEL.copy(remat_policy="nothing_saveable"), AdamW(), 1),
    "model.scan_layers True": (SCANNED, AdamW(), 1),
    "model.scan_layers True, model.remat_policy dots_saveable": (
        SCANNED.copy(remat_policy="dots_saveable"),
        AdamW(),
        1,
    ),
    "model.scan_layers True, model.remat_policy nothing_saveable": (
        SCANNED.copy(remat_policy="nothing_saveable"),
        AdamW(),
        1,
    ),
    "the same, training.num_micro_batches 4": (SCANNED.copy(remat_policy="nothing_saveable"), AdamW(), 4),
    "optimizer.state_dtype bfloat16": (MODEL, AdamW(state_dtype="bfloat16"), 1),
    "Lion": (MODEL, Lion(), 1),
    "Lion, optimizer.state_dtype bfloat16": (MODEL, Lion(state_dtype="bfloat16"), 1),
    "Adafactor": (MODEL, Adafactor(), 1),
    "optimizer.freeze embedding/ spatial": (MODEL, AdamW(freeze=("embedding/", "spatial")), 1),
    "optimizer.sam_rho 0.05": (MODEL, AdamW(sam_rho=0.05), 1),
}

for name, (model, optimizer, num_parts) in CASES.items():
    task, transformation = Classification(), optimizer.build(100)
    batch = {
        "video": jax.ShapeDtypeStruct((CLIPS, *model.input_shape), jnp.uint8),
        "labels": {"action": jax.ShapeDtypeStruct((CLIPS,), jnp.int32)},
        "weight": jax.ShapeDtypeStruct((CLIPS,), jnp.float32),
    }
    settings = {"model": model, "task": task, "optimizer": transformation, "seed": 0}
    state = jax.eval_shape(functools.partial(init_state, batch=batch, with_ema=False, **settings))
    step = functools.partial(train_step, ema_decay=None, gradient_fn=optimizer.build_gradient_fn(num_parts), **settings)
    memory = jax.jit(step, donate_argnums=0).lower(state, batch).compile().memory_analysis()
    held, work = (size / 2**20 for size in (memory.argument_size_in_bytes, memory.temp_size_in_bytes))
    print(f"| {name} | {held:.1f} | {work:.1f} |", flush=True)
