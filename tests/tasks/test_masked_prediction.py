"""Masked prediction: targets and losses by hand, masks, a run with its picture, fine-tuning, probes."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from PIL import Image

import vitx
from vitx.evaluation.presentation import MaskedPredictionPresenter, presenter_for
from vitx.layers.masking import complement
from vitx.run import load_run, train
from vitx.tasks.classification import Classification
from vitx.tasks.masked_prediction import MaskedPrediction
from vitx.training.logs import read_metrics

SIZE = {"num_frames": 4, "image_size": 24, "tubelet_size": (2, 6, 6), "num_layers": 2}
SIZE |= {"hidden_size": 24, "num_heads": 2, "mlp_dim": 24}
DECODER = {"decoder_hidden_size": 12, "decoder_num_heads": 2, "decoder_mlp_dim": 12, "decoder_num_layers": 1}
MODEL = vitx.create_model("videomae_b_16x2_pretrain", mask_ratio=0.75, encoder_norm=True, **SIZE, **DECODER)


@pytest.fixture(scope="module")
def batch():
    video = np.random.default_rng(0).integers(0, 256, (3, 4, 24, 24, 3), np.uint8)
    return {"video": jnp.asarray(video), "weight": jnp.array([1.0, 1.0, 0.0])}


@pytest.fixture(scope="module")
def variables(batch):
    variables = jax.jit(MaskedPrediction().init, static_argnums=0)(MODEL, jax.random.key(0), batch)
    return jax.tree.map(lambda leaf: leaf + 0.1 * jnp.sin(jnp.arange(leaf.size)).reshape(leaf.shape), variables)


@functools.partial(jax.jit, static_argnames=("task", "train"))
def loss_of(variables, batch, seed, *, task, train=True):
    losses, aux = task.loss(MODEL, variables, batch, key=jax.random.key(seed), step=jnp.int32(0), train=train)
    return losses, aux.metric_sums


def cubes_of(video):
    """The pixels of every cube, by slices: [b, 2 x 4 x 4, 2 * 6 * 6, 3]."""
    cubes = [
        video[:, 2 * t : 2 * t + 2, 6 * h : 6 * h + 6, 6 * w : 6 * w + 6].reshape(len(video), -1, 3)
        for t, h, w in np.ndindex(2, 4, 4)
    ]
    return np.stack(cubes, axis=1) / 255


@pytest.mark.parametrize("normalise_cubes", [True, False])
def test_loss_is_the_mean_squared_error_of_masked_cubes(normalise_cubes, batch, variables):
    task = MaskedPrediction(normalise_cubes=normalise_cubes)
    keep = jax.vmap(MODEL.draw_mask)(jax.random.split(jax.random.key(5), 3))
    predicted = jax.jit(MODEL.apply)(variables, task.normalise(batch["video"]), keep=keep)
    loss, psnr = jax.jit(task.errors, static_argnums=0)(MODEL, predicted, batch["video"], keep)

    masked = np.asarray(complement(keep, 32))[..., None, None]
    cubes = np.take_along_axis(cubes_of(np.asarray(batch["video"])), masked, axis=1)
    mean, std = cubes.mean(2, keepdims=True), cubes.std(2, keepdims=True, ddof=1) + 1e-6
    mean, std = (mean, std) if normalise_cubes else (0, 1)
    found = np.asarray(predicted).reshape(cubes.shape)
    np.testing.assert_allclose(loss, ((found - (cubes - mean) / std) ** 2).mean((1, 2, 3)), rtol=1e-4)
    mse = ((found * std + mean - cubes) ** 2).mean((1, 2, 3))
    np.testing.assert_allclose(psnr, -10 * np.log10(mse), rtol=1e-4)


def test_a_cube_of_one_colour_has_a_finite_loss_and_gradient(batch, variables):
    still = batch | {"video": jnp.full_like(batch["video"], 128)}
    gradient = jax.jit(jax.grad(lambda v: loss_of(v, still, 0, task=MaskedPrediction())[0].sum()))(variables)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


def test_masks_follow_from_the_key_in_training_and_from_the_clip_in_evaluation(batch, variables):
    task = MaskedPrediction()
    first, sums = loss_of(variables, batch, 0, task=task)
    np.testing.assert_array_equal(loss_of(variables, batch, 0, task=task)[0], first)
    assert not np.allclose(loss_of(variables, batch, 1, task=task)[0], first)
    assert sums["weight"] == 2

    predict = jax.jit(functools.partial(task.predict, MODEL))
    whole = predict(variables, batch["video"])
    alone = predict(variables, batch["video"][1:2])
    np.testing.assert_allclose(whole["loss"][1:2], alone["loss"], rtol=1e-5)
    masks = np.asarray(task.evaluation_mask(MODEL, batch["video"]))
    assert not (masks[0] == masks[1]).all()
    names = task.output_names(MODEL, {})
    assert {name: values.shape for name, values in whole.items()} == {name: (3, 1) for name in names}
    assert task.is_better("psnr", 2.0, 1.0) and task.is_better("loss", 1.0, 2.0)


def test_a_reconstruction_keeps_visible_pixels(batch, variables):
    task, video = MaskedPrediction(), batch["video"]
    frames, visible = jax.jit(functools.partial(task.reconstruct, MODEL))(variables, video)
    true, is_visible = np.asarray(video) / 255, np.broadcast_to(visible, video.shape) > 0
    assert is_visible.mean() == 0.25
    np.testing.assert_allclose(np.asarray(frames)[is_visible], true[is_visible], atol=1e-5)
    error = (np.asarray(frames) - true)[~is_visible].reshape(3, -1)
    # as in the metric, but for the clipping of pixels to [0, 1]
    psnr = np.asarray(jax.jit(functools.partial(task.predict, MODEL))(variables, video)["psnr"])[:, 0]
    assert (-10 * np.log10((error**2).mean(1)) >= psnr - 1e-3).all()


@pytest.fixture(scope="module")
def pretrained(small, drawing, tmp_path_factory):
    """A run of masked pre-training."""
    short = {"training.steps": 4, "training.evaluate_every": 0, "training.monitor": "psnr"}
    experiment = small.override({"model": MODEL, "task": MaskedPrediction(), **short})
    with drawing():
        return train(experiment, tmp_path_factory.mktemp("pretrained") / "run")


def test_a_run_reports_reconstructions(pretrained):
    (test,) = (row for row in read_metrics(pretrained.workdir) if row["split"] == "test")
    assert 0 < test["loss"] < 3 and test["psnr"] > 5
    report = (pretrained.workdir / "report.md").read_text()
    assert "Reconstructions" in report and "75% of each frame" in report
    picture = np.asarray(Image.open(pretrained.workdir / "test_reconstructions.png").convert("RGB"), int)
    grey = (np.abs(picture - 128) < 3).all(-1).mean()
    assert picture.std() > 20 and 0.05 < grey < 0.4
    assert isinstance(presenter_for(pretrained.experiment.task), MaskedPredictionPresenter)
    answer = load_run(pretrained.workdir).predict(np.zeros((6, 24, 24, 3), np.uint8))
    assert answer.keys() == {"loss", "psnr"}


def test_fine_tuning_takes_the_encoder_with_smaller_rates_in_front(pretrained, small, tmp_path):
    fields = {"model": vitx.create_model("videomae_b_16x2", num_classes=small.model.num_classes, **SIZE)}
    fields |= {"training.initialise_from": str(pretrained.workdir), "optimizer.layer_decay": 0.5, "training.steps": 1}
    tuned = train(small.override(fields | {"optimizer.peak_lr": 0.0}), tmp_path / "tuned")
    encoder, before = (run.variables["params"]["encoder"] for run in (tuned, pretrained))
    jax.tree.map(np.testing.assert_array_equal, encoder, {k: x for k, x in before.items() if k != "norm"})
    record = json.loads((tmp_path / "tuned" / "initialised_from.json").read_text())
    assert any("decoder" in note for note in record["notes"])
    assert {path.split("/")[0] for path in record["left_over"]} == {
        *("decoder", "decoder_norm", "encoder", "mask_token", "to_decoder", "to_pixels")
    }
    rates = [row for row in read_metrics(tmp_path / "tuned") if row["split"] == "train"][-1]
    assert {f"learning_rate/layer_{i}" for i in range(4)} <= rates.keys()


def test_an_attentive_probe_trains_nothing_of_the_encoder(pretrained, small, tmp_path):
    model = vitx.create_model("videomae_b_16x2", num_classes=small.model.num_classes, pooling="attention", **SIZE)
    fields = {"model": model, "training.initialise_from": str(pretrained.workdir), "training.steps": 2}
    probe = train(small.override(fields | {"optimizer.freeze": ("embedding/", "encoder/")}), tmp_path / "probe")
    after, before = probe.variables["params"], pretrained.variables["params"]
    assert after.keys() - {"embedding", "encoder"} == {"pooler", "head"}
    for path, x in flatten_dict(after, sep="/").items():
        if path.startswith(("embedding/", "encoder/")):
            np.testing.assert_array_equal(x, flatten_dict(before, sep="/")[path])
    assert np.asarray(jax.tree.leaves(after["head"])[0]).any()  # heads start at zero


def test_task_and_model_must_fit(small):
    with pytest.raises(vitx.UserError, match=r"VideoMAE;.*_pretrain"):
        MaskedPrediction().output_names(vitx.create_model("videomae_b_16x2", **SIZE), {})
    with pytest.raises(vitx.UserError, match="MaskedPrediction"):
        Classification().output_names(MODEL, {"motion": ("a", "b")})
