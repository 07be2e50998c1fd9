"""Gradients: micro-batches make up the one batch, SAM is its two steps, frozen parameters have none."""

import functools
import math
import os
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

import vitx
from vitx.models.resnet3d import ResNet3D
from vitx.tasks.classification import Classification
from vitx.tasks.task import LossOutput
from vitx.training.gradients import accumulate_gradients, compute_gradient, perturb_parameters, skip_frozen
from vitx.training.optimizers import SGD, AdamW
from vitx.training.step import init_state, train_step

ViViT = functools.partial(
    vitx.create_model,
    "vivit_b_16x2_fsa",
    num_frames=2,
    image_size=16,
    tubelet_size=(1, 8, 8),
    hidden_size=8,
    num_layers=1,
    num_heads=2,
    mlp_dim=12,
    num_classes=4,
    qkv_bias=False,  # softmax does not see the keys' biases, and Adam would blow up the rounding of no gradient
)


class Pixels(nn.Module):
    """The smallest model: a linear one, of pixels averaged over time."""

    num_classes: int = 4

    @nn.compact
    def __call__(self, video, *, train=False):
        return nn.Dense(self.num_classes, name="head")(video.mean(1).reshape(len(video), -1))


def create_batch(size, seed=0):
    rng = np.random.default_rng(seed)
    return {
        "video": jnp.asarray(rng.integers(0, 255, (size, 2, 16, 16, 3), np.uint8)),
        "labels": {"action": jnp.asarray(rng.integers(0, 4, size, np.int32))},
        "weight": jnp.asarray(rng.uniform(0, 2, size) * (np.arange(size) != 1), jnp.float32),
    }


def prepare_step(model, optimizer, num_parts=1, **settings):
    """The jitted step, and the state before the first."""
    task, transformation = Classification(), optimizer.build(10)
    init = functools.partial(
        init_state, model, task, transformation, seed=3, with_ema=settings["ema_decay"] is not None
    )
    step = functools.partial(train_step, model=model, task=task, optimizer=transformation, seed=3, **settings)
    return jax.jit(functools.partial(step, gradient_fn=optimizer.build_gradient_fn(num_parts))), jax.jit(init)(
        create_batch(8)
    )


SHARP = SGD(peak_lr=0.3, sam_rho=0.05)  # not Adam, which takes full steps by the rounding of gradients near nothing


# An epsilon above the rounding of gradients: with 1e-8, Adam takes full steps by the rounding of gradients near zero.
STEADY = AdamW(peak_lr=1e-2, eps=1e-3)


@pytest.mark.parametrize("optimizer", [STEADY, pytest.param(SHARP, marks=pytest.mark.slow)])
def test_ten_accumulated_steps_equal_those_of_whole_batches(optimizer):
    """With weights of examples that differ, one of them zero; metrics too."""
    ends = []
    for num_parts in (1, 4):
        step, state = prepare_step(ViViT(), optimizer, num_parts, ema_decay=None)
        start, metrics = state.variables["params"], []
        for number in range(10):
            state, row = step(state, create_batch(8, number))
            metrics.append(row)
        ends.append((state.variables["params"], metrics))
    assert optax.tree.norm(jax.tree.map(jnp.subtract, start, ends[0][0])) > 0.1
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=0, atol=1e-5), *[params for params, _ in ends])
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=2e-4), *[metrics for _, metrics in ends])


def linear(params, batch, key):
    """Additive over examples; reports the key, and a statistic of the batch."""
    losses = batch["x"] @ params["w"] + params["b"]
    return losses.sum(), LossOutput(
        {"draw": jax.random.uniform(key)}, {"mean": batch["x"].mean(), "var": batch["x"].var()}
    )


def test_micro_batches_have_their_own_keys_and_average_statistics():
    x = np.random.default_rng(0).standard_normal((6, 5)).astype(np.float32)
    params, key = {"w": jnp.ones(5), "b": jnp.float32(0)}, jax.random.key(1)
    (value, aux), gradient = jax.jit(accumulate_gradients(compute_gradient, 3), static_argnums=0)(
        linear, params, {"x": x}, key
    )
    np.testing.assert_allclose(value, x.sum(), rtol=1e-5)
    np.testing.assert_allclose(gradient["w"], x.sum(0), rtol=1e-5)
    draws = [float(jax.random.uniform(jax.random.fold_in(key, i))) for i in range(3)]
    assert len(set(draws)) == 3
    np.testing.assert_allclose(aux.metric_sums["draw"], sum(draws), rtol=1e-6)
    micro_batches = [x[i::3] for i in range(3)]
    np.testing.assert_allclose(aux.collections["mean"], x.mean(), rtol=1e-5)
    np.testing.assert_allclose(aux.collections["var"], np.mean([part.var() for part in micro_batches]), rtol=1e-5)
    assert aux.collections["var"] < x.var()


def test_sam_takes_the_gradient_at_perturbed_parameters():
    """Of a logistic loss, in numpy and float64."""
    rng = np.random.default_rng(0)
    x, y, w = rng.standard_normal((7, 3)), rng.integers(0, 2, 7), rng.standard_normal(3)

    def gradient(w):
        return x.T @ (1 / (1 + np.exp(-x @ w)) - y)

    def loss(params, batch, key):
        logits = batch["x"] @ params
        return optax.sigmoid_binary_cross_entropy(logits, batch["y"]).sum(), LossOutput({}, {})

    batch = {"x": jnp.float32(x), "y": jnp.float32(y)}
    (value, _), found = perturb_parameters(compute_gradient, 0.3)(loss, jnp.float32(w), batch, jax.random.key(0))
    ascent_gradient = gradient(w)
    np.testing.assert_allclose(found, gradient(w + 0.3 * ascent_gradient / np.linalg.norm(ascent_gradient)), rtol=1e-5)
    logits = x @ w
    np.testing.assert_allclose(value, (np.log1p(np.exp(logits)) - y * logits).sum(), rtol=1e-5)
    assert np.abs(found - ascent_gradient).max() > 0.01


def test_frozen_parameters_have_no_gradient_and_cost_nothing():
    def find_frozen(params):
        return {"w": True, "b": False}

    def flops(gradients):
        args = ({"w": jnp.ones(500), "b": jnp.float32(0)}, {"x": jnp.ones((60, 500))}, jax.random.key(0))
        return jax.jit(functools.partial(gradients, linear)).lower(*args).compile().cost_analysis()["flops"]

    args = (linear, {"w": jnp.ones(5), "b": jnp.float32(0)}, {"x": jnp.ones((6, 5))}, jax.random.key(0))
    _, found = skip_frozen(compute_gradient, find_frozen)(*args)
    assert not found["w"].any() and found["b"] == 6
    assert flops(skip_frozen(compute_gradient, find_frozen)) < 0.8 * flops(compute_gradient)


def test_non_finite_step_changes_only_the_step_number():
    """Neither parameters, statistics, the optimiser's state nor the average; the next step is as if it had not been."""
    model = ResNet3D(width=4, stem_width=3, kernels=(((1, 3, 3), (3, 1, 1)),), depths=(1,), num_classes=4)
    step, start = prepare_step(model, AdamW(freeze=("stem_a/",)), ema_decay=0.5)
    good = create_batch(8)
    state, metrics = step(start, good | {"weight": jnp.full(8, jnp.nan)})
    assert metrics["skipped"] == 1 and not np.isfinite(metrics["loss"]) and np.isfinite(metrics["parameter_norm"])
    assert state.step == 1
    jax.tree.map(np.testing.assert_array_equal, state.replace(step=0), start.replace(step=0))
    after, metrics = step(state, good)
    assert metrics["skipped"] == 0
    expected, _ = step(start, good)  # nothing in this model is drawn from the step's key
    jax.tree.map(np.testing.assert_array_equal, after.replace(step=0), expected.replace(step=0))
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), after.variables, start.variables)
    assert not any(jax.tree.leaves(moved["params"].pop("stem_a"))) and all(jax.tree.leaves(moved["params"]["head"]))


def test_ema_warmup_begins_with_a_short_memory():
    averages = {}
    for warmup in (False, True):
        step, state = prepare_step(Pixels(), AdamW(peak_lr=1e-2), ema_decay=0.999, ema_warmup=warmup)
        kernels = [state.variables["params"]["head"]["kernel"]]
        for number in range(3):
            state, _ = step(state, create_batch(8, number))
            kernels.append(state.variables["params"]["head"]["kernel"])
        averages[warmup] = state.ema["params"]["head"]["kernel"]
    expected = {False: kernels[0], True: kernels[0]}
    for number, kernel in enumerate(kernels[1:]):
        for warmup in expected:
            decay = min(0.999, (1 + number) / (10 + number)) if warmup else 0.999
            expected[warmup] = decay * expected[warmup] + (1 - decay) * kernel
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-7), averages, expected)


ACCUMULATE = """
import jax, jax.numpy as jnp
from vitx.tasks.task import LossOutput
from vitx.training.gradients import accumulate_gradients, compute_gradient
from vitx.layers.partition import batch_sharding
from vitx.training.sharding import Mesh

rows = batch_sharding(Mesh(fsdp=2).build(32))
def loss(w, batch, key):
    return jnp.tanh(batch["x"].astype(jnp.float32) @ w).sum(), LossOutput({}, {})
x = jax.ShapeDtypeStruct((32, 640), jnp.uint8, sharding=rows)
step = jax.jit(lambda w, x: accumulate_gradients(compute_gradient, 4)(loss, w, {"x": x}, jax.random.key(0)))
print(step.lower(jax.ShapeDtypeStruct((640, 8), jnp.float32), x).compile().as_text())
"""


@pytest.mark.slow
def test_micro_batches_move_no_video_between_devices():
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=8"
    words, environment = [sys.executable, "-c", ACCUMULATE], os.environ | {"XLA_FLAGS": flags}
    text = subprocess.run(words, check=True, env=environment, capture_output=True, text=True).stdout
    assert "all-reduce" in text
    assert not [line for line in text.splitlines() if "u8" in line and ("all-" in line or "collective" in line)]
    rows = {math.prod(map(int, shape.split(","))) for shape in re.findall(r"u8\[([\d,]+),640\]", text)}
    assert rows == {4, 1}  # those that a device has, and its one of each micro-batch
