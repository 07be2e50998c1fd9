"""Precise batch normalisation: the statistics of a population, before each evaluation, without a trace on training."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vitx
from vitx.layers.normalization import BatchNorm
from vitx.layers.partition import to_devices
from vitx.run import load_run, train
from vitx.tasks.classification import Classification
from vitx.training import trainer
from vitx.training.statistics import precise_statistics


def create_batches(number):
    random = np.random.default_rng(0)
    shared = {"weight": jnp.ones(3), "labels": {"class": jnp.zeros(3, jnp.int32)}}
    clips = random.integers(0, 256, (number, 3, 2, 16, 16, 3), np.uint8)
    return [{"video": jnp.asarray(clip // (i + 1)), **shared} for i, clip in enumerate(clips)]  # ever darker


def test_precise_statistics_equal_those_of_all_batches_together():
    task, many = Classification(), create_batches(5)
    model = vitx.create_model("cnn_small", width=4, num_classes=2)
    variables = task.init(model, jax.random.key(0), many[0])
    found = precise_statistics(variables, many, model=model, task=task, seed=0, step=jnp.int32(3))
    assert jax.tree.structure(found) == jax.tree.structure(dict(variables))
    jax.tree.map(np.testing.assert_array_equal, found["params"], variables["params"])

    pixels = np.concatenate([task.normalise(batch["video"]) for batch in many])
    kernel = variables["params"]["stage_1"]["block_0"]["conv"]["kernel"]
    dense = jax.lax.conv_general_dilated(
        pixels.reshape(-1, 16, 16, 3), kernel[0], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    values = np.asarray(dense, np.float64).reshape(-1, 4)
    first = found["batch_stats"]["stage_1"]["block_0"]["norm"]
    np.testing.assert_allclose(first["mean"], values.mean(0), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(first["var"], values.var(0), rtol=1e-4)


@pytest.fixture(scope="module")
def runs(small, tmp_path_factory):
    """One run with precise statistics, one without, one that was stopped and resumed: {name: folder}."""
    folder = tmp_path_factory.mktemp("precise")
    plain = small.override(
        {
            "model": vitx.create_model("cnn_small", width=4, num_classes=small.model.num_classes),
            "training.steps": 4,
            "training.evaluate_every": 2,
        }
    )
    found = {name: folder / name for name in ("plain", "precise", "stopped")}
    train(plain, found["plain"])
    precise = plain.override({"training.precise_bn_batches": 3})
    train(precise, found["precise"])
    given = iter(range(5))  # two steps and one evaluation

    def interrupt(batch, rows):
        if next(given, None) is None:
            raise KeyboardInterrupt
        return to_devices(batch, rows)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "to_devices", interrupt)
        with pytest.raises(KeyboardInterrupt):
            train(precise, found["stopped"])
    train(precise, found["stopped"])
    return found


def test_precise_statistics_leave_parameters_and_resume_unchanged(runs):
    plain, precise, stopped = (load_run(runs[name], "last").variables for name in ("plain", "precise", "stopped"))
    jax.tree.map(np.testing.assert_array_equal, plain["params"], precise["params"])
    jax.tree.map(np.testing.assert_array_equal, precise, stopped)
    stats = zip(*(jax.tree.leaves(variables["batch_stats"]) for variables in (plain, precise)), strict=True)
    assert not any(np.allclose(a, b) for a, b in stats)

    def losses(name):
        lines = [json.loads(line) for line in (runs[name] / "metrics.jsonl").read_text().splitlines()]
        return [(row["split"], row["loss"]) for row in lines]

    training = [[loss for split, loss in losses(name) if split == "train"] for name in ("plain", "precise")]
    assert training[0] == training[1] and losses("plain") != losses("precise")


def test_model_without_batch_normalisation_is_refused(small, tmp_path):
    with pytest.raises(vitx.UserError, match=r"precise_bn_batches is 3 .*FactorisedEncoder"):
        train(small.override({"training.precise_bn_batches": 3}), tmp_path / "run")


@pytest.mark.parametrize("groups", [1, 2, 3])
def test_norm_groups_normalise_as_separate_devices_do(groups):
    x = jnp.asarray(np.random.default_rng(0).standard_normal((6, 2, 3, 3, 4)) + np.arange(6).reshape(6, 1, 1, 1, 1))
    variables = BatchNorm().init(jax.random.key(0), x, train=False)
    found, after = BatchNorm(groups=groups).apply(variables, x, train=True, mutable=["batch_stats", "moments"])
    parts = np.split(np.asarray(x, np.float64), groups)
    expected = [(part - part.mean((0, 1, 2, 3))) / np.sqrt(part.var((0, 1, 2, 3)) + 1e-5) for part in parts]
    np.testing.assert_allclose(found, np.concatenate(expected), rtol=1e-4, atol=1e-5)
    unbiased = np.mean([part.var((0, 1, 2, 3), ddof=1) for part in parts], axis=0)
    np.testing.assert_allclose(after["batch_stats"]["mean"], 0.1 * np.mean(x, (0, 1, 2, 3)), rtol=1e-4)
    np.testing.assert_allclose(after["batch_stats"]["var"], 0.9 + 0.1 * unbiased, rtol=1e-5)
    np.testing.assert_allclose(after["moments"]["var"], np.var(np.asarray(x, np.float64), (0, 1, 2, 3)), rtol=1e-4)


def test_groups_that_do_not_divide_the_batch_are_refused():
    x = jnp.zeros((4, 1, 1, 1, 2))
    variables = BatchNorm().init(jax.random.key(0), x, train=False)
    with pytest.raises(ValueError, match=r"batch of 4.* 3 groups"):
        BatchNorm(groups=3).apply(variables, x, train=True, mutable=["batch_stats"])
    with pytest.raises(vitx.UserError, match="norm_groups is 0"):
        vitx.create_model("r3d_18", norm_groups=0)
