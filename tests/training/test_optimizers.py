"""Optimisers: the schedule's shape, what decays, and agreement with Optax's own."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vitx.training.optimizers import SGD, AdamW, Schedule

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
