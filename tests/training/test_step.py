"""The step: scanned and rematerialised blocks train as listed and plain ones do, under every optimiser."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

import vitx
from vitx.layers.transformer import Encoder, EncoderBlock
from vitx.tasks.classification import Classification
from vitx.training.gradients import accumulate_gradients, compute_gradient
from vitx.training.optimizers import LAMB, SGD, Adafactor, AdamW, Lion, Muon
from vitx.training.step import init_state, train_step

SMALL = {
    "num_frames": 2,
    "image_size": 16,
    "tubelet_size": (1, 8, 8),
    "hidden_size": 8,
    "num_layers": 3,
    "num_heads": 2,
    "mlp_dim": 12,
    "num_classes": 4,
}
OPTIMIZERS = {
    "SGD": SGD(peak_lr=0.1, weight_decay=0.01),
    "AdamW": AdamW(peak_lr=1e-2),
    "LAMB": LAMB(peak_lr=1e-2),
    "Lion": Lion(peak_lr=3e-3),
    "Adafactor": Adafactor(min_dim_size_to_factor=8),
    "Muon": Muon(peak_lr=1e-2),
    "layer decay": AdamW(peak_lr=1e-2, layer_decay=0.5),
}


SPARING = [
    {"scan_layers": True},
    {"remat_policy": "nothing_saveable"},
    {"scan_layers": True, "remat_policy": "dots_saveable"},
    {"remat_policy": "dots_with_no_batch_dims_saveable"},
]


@functools.cache
def compute_gradients(name, **fields):
    """The jitted loss and gradient of a model, once for all optimisers; and variables of random numbers.

    No biases of keys: softmax does not see them, and Adam would amplify the rounding of a zero gradient.
    """
    if name == "vivit_b_16x2_fe":
        fields["num_temporal_layers"] = 2
    model, rng = vitx.create_model(name, qkv_bias=False, **SMALL, **fields), np.random.default_rng(0)
    batch = {
        "video": jnp.asarray(rng.integers(0, 255, (4, 2, 16, 16, 3), np.uint8)),
        "labels": {"action": jnp.arange(4)},
        "weight": jnp.ones(4),
    }
    task, key = Classification(), jax.random.key(0)
    shapes = jax.eval_shape(functools.partial(task.init, model, key), batch)["params"]
    params = jax.tree.map(lambda leaf: jnp.asarray(0.3 * rng.standard_normal(leaf.shape), jnp.float32), shapes)

    def loss(params):
        losses, _ = task.loss(model, {"params": params}, batch, key=key, step=jnp.int32(0), train=True)
        return losses.mean()

    return jax.jit(jax.value_and_grad(loss)), params


@functools.cache
def find_update(optimizer):
    transformation = OPTIMIZERS[optimizer].build(5)

    def update(gradient, state, params):
        updates, state = transformation.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    return jax.jit(transformation.init), jax.jit(update)


def take_five_steps(name, optimizer, **fields):
    gradients, params = compute_gradients(name, **fields)
    init, update = find_update(optimizer)
    state, losses = init(params), []
    for _ in range(5):
        loss, gradient = gradients(params)
        params, state = update(gradient, state, params)
        losses.append(loss)
    return jnp.array(losses), params


@pytest.mark.parametrize(
    ("name", "sparing"),
    [
        ("vivit_b_16x2_fe", SPARING[:1]),
        pytest.param("vivit_b_16x2_fe", SPARING[1:], marks=pytest.mark.slow),
        pytest.param("timesformer_b_16_divided", SPARING, marks=pytest.mark.slow),
    ],
)
def test_scanning_and_rematerialisation_change_no_training_step(name, sparing):
    for optimizer in OPTIMIZERS:  # in one test, so that the gradients are compiled once
        losses, params = take_five_steps(name, optimizer)
        assert losses[-1] < 0.99 * losses[0], optimizer
        for fields in sparing:
            other_losses, other = take_five_steps(name, optimizer, **fields)
            np.testing.assert_allclose(losses, other_losses, rtol=1e-5, err_msg=f"{optimizer} {fields}")
            assert jax.tree.structure(params) == jax.tree.structure(other)
            close = functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-4, err_msg=f"{optimizer} {fields}")
            jax.tree.map(close, params, other)


@pytest.mark.parametrize("scan", [False, True])
def test_stochastic_depth_differs_between_blocks_when_scanned_too(scan):
    """At a last rate of nearly one the first of two blocks, with rate 0, always stays; the last never does."""
    block = EncoderBlock(num_heads=2, mlp_dim=8)
    encoder = Encoder(2, block, drop_path_rate=1 - 1e-6, scan_layers=scan)
    first = Encoder(1, block)
    x = jax.random.normal(jax.random.key(0), (4, 3, 8))
    call = {"grid": (1, 1, 3), "train": True}
    p = encoder.init(jax.random.key(1), x, grid=(1, 1, 3), train=False)["params"]
    found = encoder.apply({"params": p}, x, **call, rngs={"drop_path": jax.random.key(2)})
    expected = first.apply({"params": {"block_0": p["block_0"], "norm": p["norm"]}}, x, **call)
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("scan", [False, True])
def test_dropout_differs_from_block_to_block_and_from_key_to_key(scan):
    """Two equal blocks that add a constant, dropped out by halves: 0, 2 or 4 where their masks differ, else 0 or 4."""
    encoder = Encoder(2, EncoderBlock(num_heads=2, mlp_dim=8, dropout_rate=0.5), scan_layers=scan)
    x = jnp.zeros((64, 3, 8))
    p = jax.tree.map(jnp.zeros_like, encoder.init(jax.random.key(1), x, grid=(1, 1, 3), train=False)["params"])
    for i in range(2):
        p[f"block_{i}"]["mlp"]["out"]["bias"] = jnp.ones(8)
    outputs = []

    def record(x):
        outputs.append(x)
        return x

    for seed in range(2):
        rngs = {"dropout": jax.random.key(seed)}
        encoder.apply({"params": p}, x, grid=(1, 1, 3), train=True, rngs=rngs, before_norm=record)
    for output in outputs:
        values, counts = np.unique(output, return_counts=True)
        np.testing.assert_array_equal(values, [0, 2, 4])
        np.testing.assert_allclose(counts / counts.sum(), [0.25, 0.5, 0.25], atol=0.06)
    assert not np.array_equal(*outputs)


class MeanColour(nn.Module):
    """A model of a linear head for each label, on a clip's mean colour."""

    num_classes: Any

    @nn.compact
    def __call__(self, video, *, train=False):
        x, heads = video.mean(axis=(1, 2, 3)), self.num_classes
        if isinstance(heads, int):
            return nn.Dense(heads)(x)
        return {name: nn.Dense(classes)(x) for name, classes in heads}


@pytest.mark.smoke
@pytest.mark.parametrize("heads", [4, (("action", 4), ("place", 2))])
def test_examples_without_a_label_change_neither_loss_nor_gradient(heads):
    """A batch of two examples steps as the same two do beside two that have no label, also in micro-batches."""
    model, task, optimizer = MeanColour(heads), Classification(), optax.sgd(0.1)
    rng = np.random.default_rng(0)
    unlabelled = jnp.array([2, -1, 1, -1])
    batch = {
        "video": jnp.asarray(rng.integers(0, 255, (4, 2, 16, 16, 3), np.uint8)),
        "labels": {"action": unlabelled, "place": jnp.minimum(unlabelled, 1)},
        "weight": jnp.ones(4),
    }
    if heads == 4:
        del batch["labels"]["place"]
    state = init_state(model, task, optimizer, batch, 0, with_ema=False)

    def step(batch, gradient_fn=compute_gradient):
        settings = {"model": model, "task": task, "optimizer": optimizer, "seed": 0, "ema_decay": None}
        return train_step(state, batch, **settings, gradient_fn=gradient_fn)

    both, metrics = step(batch)
    labelled, expected = step(jax.tree.map(lambda rows: rows[::2], batch))
    # Micro-batch 0 has rows 0 and 2, the labelled ones; micro-batch 1 has none with a label.
    parts, summed = step(batch, accumulate_gradients(compute_gradient, 2))
    assert metrics["loss"] > 0.5
    for found, state_found in ((metrics, both), (summed, parts)):
        np.testing.assert_allclose(found["loss"], expected["loss"], rtol=1e-5)
        np.testing.assert_allclose(found["gradient_norm"], expected["gradient_norm"], rtol=1e-4)
        close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6)
        jax.tree.map(close, state_found.variables["params"], labelled.variables["params"])
