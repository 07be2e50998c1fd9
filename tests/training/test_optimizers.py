"""Optimisers: the schedule's shape, what decays, and agreement with Optax's own."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vitx.training.optimizers import LAMB, SGD, AdamW, Muon, Schedule, layer_numbers

PARAMS = {"dense": {"kernel": jnp.full((2, 2), 2.0), "bias": jnp.ones(2)}, "positions": jnp.ones(3)}


def test_the_schedule_warms_up_and_falls_to_its_end():
    rate = Schedule(warmup=0.1, end_factor=0.1).make(2.0, 100)
    values = np.array([rate(step) for step in range(101)])
    np.testing.assert_allclose(values[:10], 2.0 * np.arange(1, 11) / 10, rtol=1e-6)
    assert values.argmax() in (9, 10) and (np.diff(values[10:]) < 0).all()
    assert values[100] == pytest.approx(0.2)


def test_a_run_of_one_step_has_a_schedule():
    assert np.isfinite(Schedule().make(1.0, 1)(0))


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (AdamW(weight_decay=0.0, clip_norm=None), lambda rate: optax.adam(rate)),
        (SGD(clip_norm=None), lambda rate: optax.sgd(rate, 0.9)),
        (
            LAMB(clip_norm=None, weight_decay=0.1),
            lambda rate: optax.lamb(
                rate, weight_decay=0.1, mask={"dense": {"kernel": True, "bias": False}, "positions": False}
            ),
        ),
        (
            SGD(clip_norm=0.5, nesterov=True),
            lambda rate: optax.chain(optax.clip_by_global_norm(0.5), optax.sgd(rate, 0.9, True)),
        ),
    ],
)
def test_steps_are_those_of_optax(ours, theirs):
    mine, other = ours.make(10), theirs(ours.schedule.make(ours.peak_lr, 10))
    params = [PARAMS, PARAMS]
    states = [mine.init(PARAMS), other.init(PARAMS)]
    for step in range(5):
        gradient = jax.tree.map(lambda leaf, step=step: jnp.sin(leaf * (step + 1)), PARAMS)
        for i, transformation in enumerate((mine, other)):
            updates, states[i] = transformation.update(gradient, states[i], params[i])
            params[i] = optax.apply_updates(params[i], updates)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), *params)


def test_only_kernels_decay():
    optimizer = AdamW(weight_decay=0.1).make(10)
    zero = jax.tree.map(jnp.zeros_like, PARAMS)
    updates, _ = optimizer.update(zero, optimizer.init(PARAMS), PARAMS)
    assert (updates["dense"]["kernel"] < 0).all()
    assert not updates["dense"]["bias"].any() and not updates["positions"].any()


BLOCKS = {
    "embedding": {"kernel": jnp.ones((2, 2))},
    "spatial_positions": {"positions": jnp.ones(3)},
    "temporal_positions": {"positions": jnp.ones(3)},
    "spatial_encoder": {
        **{f"block_{i}": {"mlp": {"kernel": jnp.eye(3, 5) + i, "bias": jnp.ones(5)}} for i in range(11)},
        "norm": {"scale": jnp.ones(3)},
    },
    "temporal_encoder": {"block_0": {"mlp": {"kernel": jnp.ones((3, 5))}}, "norm": {"scale": jnp.ones(3)}},
    "head": {"logits": {"kernel": jnp.ones((3, 2))}},
}


def test_layers_are_counted_from_the_embedding_to_the_head():
    numbers = layer_numbers(BLOCKS)
    assert numbers["embedding"]["kernel"] == numbers["spatial_positions"]["positions"] == 0
    spatial = [numbers["spatial_encoder"][f"block_{i}"]["mlp"]["kernel"] for i in range(11)]
    assert spatial == list(range(1, 12))
    assert numbers["temporal_positions"]["positions"] == numbers["spatial_encoder"]["norm"]["scale"] == 11
    assert numbers["temporal_encoder"]["norm"]["scale"] == 13
    assert numbers["temporal_encoder"]["block_0"]["mlp"]["kernel"] == 12
    assert numbers["head"]["logits"]["kernel"] == 13


def test_layer_decay_slows_early_layers():
    ones = jax.tree.map(jnp.ones_like, BLOCKS)
    fast, slow = (SGD(clip_norm=None, layer_decay=decay).make(10) for decay in (None, 0.5))
    steps = [make.update(ones, make.init(BLOCKS), BLOCKS)[0] for make in (fast, slow)]
    ratio = jax.tree.map(lambda a, b: float((b / a).mean()), *steps)
    assert ratio == jax.tree.map(lambda layer: pytest.approx(0.5 ** (13 - layer)), layer_numbers(BLOCKS))


def test_muon_makes_the_steps_of_the_blocks_matrices_orthogonal_and_leaves_the_rest_to_adam():
    rng = np.random.default_rng(0)
    gradient = jax.tree.map(lambda leaf: jnp.asarray(rng.standard_normal(leaf.shape), jnp.float32), BLOCKS)
    optimizer = Muon(weight_decay=0.0, clip_norm=None, peak_lr=1.0, newton_schulz_steps=10).make(10)
    step, _ = optimizer.update(gradient, optimizer.init(BLOCKS), BLOCKS)
    rate = Muon().schedule.make(1.0, 10)(0)
    matrix = step["spatial_encoder"]["block_3"]["mlp"]["kernel"] / rate
    singular = np.linalg.svd(matrix, compute_uv=False) / (0.2 * np.sqrt(5))
    assert singular.min() > 0.6 and singular.max() < 1.3
    assert np.sign(-np.einsum("ij,ij", matrix, gradient["spatial_encoder"]["block_3"]["mlp"]["kernel"])) == 1
    for path in (("head", "logits", "kernel"), ("embedding", "kernel")):
        found, sign = step, gradient
        for key in path:
            found, sign = found[key], sign[key]
        # Adam's first step is the sign; with Nesterov's momentum, which Optax's Muon gives to both, a little longer
        length = 0.9 * 0.1 / (1 - 0.9**2) + 0.1 / (1 - 0.9)
        np.testing.assert_allclose(found / rate, -length * jnp.sign(sign), rtol=1e-3)
