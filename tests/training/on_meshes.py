"""Trains a small model on meshes of simulated devices and prints the results as JSON; tests run it by itself.

python on_meshes.py MODEL FOLDER PAIRS MESH ...        a MESH is data,fsdp,tensor,frames; the first is the reference
"""

import collections
import functools
import json
import re
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np

import vitx
from vitx.checkpoints import Checkpoints, abstract_state
from vitx.layers.partition import batch_sharding, to_devices
from vitx.models.timesformer import TimeSformer
from vitx.models.vivit import FactorisedEncoder, ViViT
from vitx.tasks.classification import Classification
from vitx.training.optimizers import SGD
from vitx.training.sharding import Mesh, bytes_per_device, state_shardings
from vitx.training.step import init_state, train_step

STEPS, SAVED = 20, 3
SMALL: dict[str, Any] = {
    "num_classes": 4,
    "num_frames": 8,
    "image_size": (24, 36),  # six places of a frame, which four devices do not divide
    "tubelet_size": (2, 12, 12),
    "hidden_size": 16,
    "num_layers": 1,
    "num_heads": 4,
    "mlp_dim": 32,
    "drop_path_rate": 0.2,
}
MODELS = {
    "two_encoders": FactorisedEncoder(**SMALL, num_temporal_layers=1, dropout_rate=0.1),
    "divided": TimeSformer(**SMALL),
    "divided_mean": ViViT(**SMALL, layouts=("time", "space"), pooling="mean", dropout_rate=0.1, scan_layers=True),
    "halves": ViViT(**SMALL, layouts=("time_and_space",), pooling="mean", dropout_rate=0.1),
    "frame_convolutions": vitx.create_model(
        "cnn_small", num_classes=4, width=8, clip=(8, 24, 36), implementation="cpu"
    ),
    "convolutions": vitx.create_model(
        "r2plus1d_18", num_classes=4, width=8, depths=(1, 1, 1, 1), clip=(8, 24, 36), implementation="cpu"
    ),
}
RATES = {
    "frame_convolutions": 0.002,
    "convolutions": 0.002,
}  # at more, batch normalisation of so few values amplifies rounding
TASK = Classification(label="action")
COLLECTIVE = re.compile(r" = (.*?) (all-gather|all-reduce|all-to-all|reduce-scatter|collective-permute)(?:-start)?\(")


def create_batch(number: int) -> dict[str, Any]:
    rng = np.random.default_rng(number)
    return {
        "video": rng.integers(0, 255, (8, 8, 24, 36, 3), np.uint8),
        "labels": {"action": rng.integers(0, 4, 8).astype(np.int32)},
        "weight": np.ones(8, np.float32),
        "index": np.arange(8, dtype=np.int32),
    }


@functools.cache
def create_initial(name: str) -> tuple[Any, Any]:
    """The optimiser, and the state before the first step, on one device."""
    transformation = SGD(peak_lr=RATES.get(name, 0.1)).build(STEPS)
    init = functools.partial(init_state, MODELS[name], TASK, transformation, create_batch(0), 0, with_ema=False)
    return transformation, jax.device_get(jax.jit(init)())


class OnMesh:
    """A model, its training step compiled for one mesh, and states on it."""

    def __init__(self, name: str, axes: str):
        model, shape = MODELS[name], [int(size) for size in axes.split(",")]
        mesh = Mesh(*shape).build(8, model, jax.devices()[: int(np.prod(shape))])
        self.rows, (transformation, first) = batch_sharding(mesh), create_initial(name)
        shardings = state_shardings(first, mesh)
        self.abstract, self.first = abstract_state(first, shardings), jax.device_put(first, shardings)
        step = functools.partial(train_step, model=model, task=TASK, optimizer=transformation, seed=0, ema_decay=None)
        everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
        with jax.set_mesh(mesh):
            jitted = jax.jit(step, out_shardings=(shardings, everywhere))
            self.step = jitted.lower(self.abstract, to_devices(create_batch(0), self.rows)).compile()

    def train(self, state: Any, steps: range) -> tuple[Any, list[float]]:
        losses = []
        for number in steps:
            state, metrics = self.step(state, to_devices(create_batch(number), self.rows))
            losses.append(float(metrics["loss"]))
        return state, losses

    def collectives(self) -> dict[str, int]:
        return collections.Counter(kind for _, kind in COLLECTIVE.findall(self.step.as_text()))


def main(name: str, folder: str, pairs: str, *axes: str) -> None:
    meshes = {shape: OnMesh(name, shape) for shape in axes}
    reference, report = meshes[axes[0]], {}
    final, saved = {}, {}
    for shape, mesh in meshes.items():
        state, before = mesh.train(mesh.first, range(SAVED))
        if pairs != "none":
            saved[shape] = Checkpoints(Path(folder) / shape)
            saved[shape].save(SAVED, {"state": state}, {"best": None})
        state, after = mesh.train(state, range(SAVED, STEPS))
        final[shape] = jax.device_get(state.variables)
        difference = jax.tree.map(lambda a, b: np.abs(a - b).max(), final[shape], final[axes[0]])
        report[shape] = {
            "losses": before + after,
            "parameters": float(max(jax.tree.leaves(difference))),
            "bytes": bytes_per_device(state),
            "collectives": mesh.collectives(),
        }
    continued = {}
    for i, source in enumerate(saved):
        saved[source].wait()
        for j, target in enumerate(saved):
            if pairs == "all" or j == (i + 1) % len(saved):
                mesh = meshes[target]
                restored, _ = saved[source].restore(SAVED, {"state": mesh.abstract})
                continued[f"{source} {target}"] = mesh.train(restored["state"], range(SAVED, SAVED + 3))[1]
    moved = max(
        np.abs(a - b).max()
        for a, b in zip(*map(jax.tree.leaves, (final[axes[0]], jax.device_get(reference.first.variables))), strict=True)
    )
    print(json.dumps({"meshes": report, "continued": continued, "moved": float(moved)}))


if __name__ == "__main__":
    main(*sys.argv[1:])
