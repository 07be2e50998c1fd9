"""Batch statistics in training: two real steps, their average, a run's folder, and weights out of it again."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

import vitx
from vitx.cli import main
from vitx.models.resnet3d import ResNet3D
from vitx.pretrained import start_from
from vitx.run import load_run, train
from vitx.tasks.classification import Classification
from vitx.training.optimizers import SGD
from vitx.training.step import init_state, train_step

FACTORISED = ((1, 3, 3), (3, 1, 1))
SMALL = ResNet3D(
    width=4, stem_width=3, kernels=(FACTORISED, FACTORISED), depths=(1, 1), num_classes=4, implementation="cpu"
)


def test_training_steps_alone_move_batch_statistics():
    task, key = Classification(), jax.random.key(7)
    optimizer = SGD(peak_lr=0.1, weight_decay=0.5).build(100)
    video = np.random.default_rng(0).integers(0, 255, (4, 4, 12, 12, 3), np.uint8)
    batch = {"video": jnp.asarray(video), "labels": {"action": jnp.arange(4)}, "weight": jnp.ones(4)}
    state = jax.jit(functools.partial(init_state, SMALL, task, optimizer, seed=7, with_ema=True))(batch)
    step = jax.jit(functools.partial(train_step, model=SMALL, task=task, optimizer=optimizer, seed=7, ema_decay=0.75))

    @jax.jit
    def statistics(variables):
        _, after = SMALL.apply(variables, task.normalise(batch["video"]), train=True, mutable=["batch_stats"])
        return after["batch_stats"]

    close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)
    averaged, losses = state.variables, []
    for _ in range(2):
        expected = statistics(state.variables)
        state, metrics = step(state, batch)
        losses.append(metrics["loss"])
        jax.tree.map(close, state.variables["batch_stats"], expected)
        averaged = jax.tree.map(lambda old, new: 0.75 * old + 0.25 * new, averaged, state.variables)
    jax.tree.map(close, state.eval_variables, averaged)
    assert losses[1] < losses[0]
    evaluate = jax.jit(functools.partial(task.loss, SMALL, key=key, train=False))
    losses, aux = evaluate(state.eval_variables, batch, step=state.step)
    assert np.isfinite(losses).all() and not aux.collections


def test_cnn_trains_evaluates_and_converts(small, tmp_path, capsys):
    model = SMALL.copy(num_classes=(("appearance", 10), ("motion", 8)))
    experiment = small.override({"model": model, "training.steps": 2, "training.ema_decay": 0.5})
    train(experiment, tmp_path / "run")
    metrics = load_run(tmp_path / "run", "last").evaluate("validation")
    assert np.isfinite(metrics["loss"])
    run = load_run(tmp_path / "run", which="last")
    moved = run.variables["batch_stats"]["stem_a"]["norm"]["mean"]
    assert np.abs(moved).min() > 0

    loaded = vitx.load_pretrained(tmp_path / "run")
    assert main(["convert", str(tmp_path / "run"), str(tmp_path / "own.safetensors")]) == 0
    again = vitx.load_pretrained(tmp_path / "own.safetensors")
    jax.tree.map(np.testing.assert_array_equal, again[1], loaded[1])
    assert again[0] == loaded[0] and loaded[0].clip == (4, 24, 24)
    assert (loaded.preprocessing.num_frames, loaded.preprocessing.size) == (4, (24, 24))
    assert not loaded.report.fresh and not loaded.report.left_over

    started = start_from(tmp_path / "own.safetensors", model)[0]
    jax.tree.map(np.testing.assert_array_equal, started, again[1])
