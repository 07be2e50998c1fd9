"""Frame prediction: losses by hand, scheduled sampling, metrics beside the baselines, a run and its pictures."""

import functools
import io
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import vitx
from vitx.cli import main
from vitx.evaluation.evaluate import Predictions
from vitx.evaluation.frames import BASELINES, FRAME_METRICS, frame_metrics, ssim
from vitx.evaluation.presentation import FramePredictionPresenter
from vitx.models.convlstm import ConvLSTM
from vitx.models.forecaster import EncoderForecaster, NextFrameForecaster
from vitx.run import load_run, train
from vitx.tasks.classification import Classification
from vitx.tasks.frame_prediction import FramePrediction
from vitx.training.logs import read_metrics

SMALL = {"widths": (4,), "input_kernel": 3, "state_kernel": 3, "patch": 4, "horizon": 2}
MODEL = NextFrameForecaster(**SMALL)


def batch_of(frames=5, size=8):
    video = np.random.default_rng(0).integers(0, 256, (3, frames, size, size, 3), np.uint8)
    return {"video": jnp.asarray(video), "weight": jnp.array([1.0, 1.0, 0.0])}


def init(model, task, batch):
    variables = jax.jit(task.init, static_argnums=0)(model, jax.random.key(0), batch)
    return jax.tree.map(lambda leaf: leaf + 0.1 * jnp.sin(jnp.arange(leaf.size)).reshape(leaf.shape), variables)


def loss_of(model, task, variables, batch, *, step=0, train=False, seed=0):
    loss = functools.partial(task.loss, model, train=train)
    losses, aux = jax.jit(loss)(variables, batch, key=jax.random.key(seed), step=jnp.int32(step))
    return np.asarray(losses), aux.metric_sums


@pytest.mark.parametrize("channels", [1, 3])
def test_loss_is_the_weighted_sum(channels):
    model, batch = MODEL.copy(channels=channels), batch_of()
    task = FramePrediction(mse=2.0, cross_entropy=0.5, ssim=0.25)
    variables = init(model, task, batch)
    losses, sums = loss_of(model, task, variables, batch)
    frames = np.asarray(batch["video"]) / 255
    if channels == 1:
        frames = frames @ np.array([[0.299], [0.587], [0.114]])
    found = np.asarray(jax.jit(model.apply)(variables, frames[:, :3]))
    truth = frames[:, 3:]
    entropy = -(truth * np.log(found) + (1 - truth) * np.log(1 - found))
    expected = 2 * ((found - truth) ** 2).mean((1, 2, 3, 4)) + 0.5 * entropy.mean((1, 2, 3, 4))
    expected += 0.25 * (1 - np.asarray(ssim(jnp.float32(found), jnp.float32(truth))).mean(1))
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    mse = ((found - truth) ** 2).sum((2, 3, 4)).mean(1)
    assert sums["weight"] == 2
    np.testing.assert_allclose(sums["mse"], mse[:2].sum(), rtol=1e-5)


@pytest.mark.smoke
def test_scheduled_sampling_falls_linearly_from_true_frames_to_predicted_ones():
    batch, task = batch_of(), FramePrediction(sampling_steps=100)
    fractions = [
        task.teacher_forcing((2000, 4), jax.random.key(1), jnp.int32(step)).mean() for step in (0, 25, 75, 100, 1000)
    ]
    np.testing.assert_allclose(fractions, [1, 0.75, 0.25, 0, 0], atol=0.02)

    variables = init(MODEL, task, batch)
    run = functools.partial(loss_of, MODEL, task, variables, batch)
    own, _ = run(train=False)
    assert not np.allclose(run(train=True)[0], own)
    np.testing.assert_allclose(run(train=True, step=100)[0], own, rtol=1e-6)
    # with teacher forcing the second frame is predicted from the true first one
    frames = task.normalise(batch["video"]) @ jnp.array([[0.299], [0.587], [0.114]])
    again = jax.jit(MODEL.apply)(variables, frames[:, :4])[:, 0]
    first = jax.jit(MODEL.apply)(variables, frames[:, :3])[:, 0]
    expected = ((jnp.stack([first, again], 1) - frames[:, 3:]) ** 2).mean((1, 2, 3, 4))
    np.testing.assert_allclose(run(train=True)[0], expected, rtol=1e-5)


def test_predictions_are_metrics_of_forecast_and_baselines():
    batch, task = batch_of(), FramePrediction()
    variables = init(MODEL, task, batch)
    found = jax.jit(functools.partial(task.predict, MODEL))(variables, batch["video"])
    context, truth = task.split_clip(MODEL, batch["video"])
    for who, forecast in {
        "": jax.jit(MODEL.apply)(variables, context),
        **{f"/{name}": baseline(context, 2) for name, baseline in BASELINES.items()},
    }.items():
        for name, expected in frame_metrics(forecast, truth).items():
            np.testing.assert_allclose(found[name + who], expected, rtol=1e-5, atol=1e-6)
    names = task.output_names(MODEL, {})
    assert {name: values.shape[1] for name, values in found.items()} == {name: len(n) for name, n in names.items()}
    assert task.is_better("sequence_mse", 1.0, 2.0) and task.is_better("ssim", 2.0, 1.0)
    metrics = task.metrics(Predictions(jax.device_get(found), {}, np.arange(3), (), "1x1"))
    assert set(task.metric_names(names)) == metrics.keys()
    assert metrics.keys() >= {"loss", "mse", "ssim/copy", "sequence_cross_entropy/linear"}


@pytest.mark.parametrize(
    ("model", "task", "batch", "message"),
    [
        (ConvLSTM(), {}, {}, "ConvLSTM"),
        (EncoderForecaster(**SMALL), {"sampling_steps": 5}, {}, "task.sampling_steps is 5"),
        (
            MODEL.copy(output="linear"),
            {"cross_entropy": 0.5},
            {},
            "task.cross_entropy is 0.5",
        ),
        (MODEL, {}, {"frames": 3}, "clips have 3 frames"),
        (MODEL, {}, {"size": 6}, "6 x 6 pixels"),
        (MODEL, {}, {"size": 10}, "10 x 10"),
    ],
)
def test_model_or_clips_that_do_not_fit_are_an_error(model, task, batch, message):
    task = FramePrediction(**task)
    with pytest.raises(vitx.UserError) as error:
        task.output_names(model, {})
        jax.eval_shape(functools.partial(task.init, model), jax.random.key(0), batch_of(**batch))
    assert message in str(error.value)


def test_classification_of_a_forecaster_suggests_frame_prediction():
    with pytest.raises(vitx.UserError, match=r"NextFrameForecaster has no num_classes.*FramePrediction"):
        Classification().output_names(MODEL, {"action": ("fall", "walk")})


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ({"mse": 0.0}, "expected one above 0"),
        ({"ssim": -1.0}, "and none below"),
        ({"sampling_steps": -1}, "sampling_steps is -1"),
        ({"mean": (0.5, 0.5, 0.5)}, r"mean is \(0\.5"),
    ],
)
def test_invalid_settings_are_refused(task, message):
    with pytest.raises(ValueError, match=message):
        FramePrediction(**task)


@pytest.mark.usefixtures("pictures")
def test_a_run_reports_forecasts_with_pictures(small, tmp_path, capsys, monkeypatch):
    implementations, sections = [], FramePredictionPresenter.sections

    def spy(presenter, results):
        implementations.append(results.model.implementation)
        return sections(presenter, results)

    monkeypatch.setattr(FramePredictionPresenter, "sections", spy)
    task = FramePrediction(cross_entropy=1.0, sampling_steps=2)
    changes = {"training.steps": 2, "data.num_frames": 6, "training.monitor": "mse", "training.checkpoint_every": 1}
    run = tmp_path / "run"
    train(small.override({"model": MODEL, "task": task, **changes}), run)
    assert implementations == ["cpu"]  # "auto" is resolved for the report's pictures, too
    (test,) = (row for row in read_metrics(run) if row["split"] == "test")
    assert {f"{measure}{who}" for measure in FRAME_METRICS for who in ("", "/copy", "/linear")} < test.keys()
    assert test["sequence_mse"] == pytest.approx(2 * test["mse"], rel=1e-6)
    metrics = load_run(run).evaluate("validation")
    assert np.mean(metrics["per_frame"]["mse/copy"]) == pytest.approx(metrics["mse/copy"], rel=1e-6)
    report = (run / "report.md").read_text()
    assert "![forecasts beside the truth](test_rollout.png)" in report and "linear extrapolation" in report
    assert "(test_errors.png)" in report and (run / "test_errors.png").read_bytes().startswith(b"\x89PNG")
    with Image.open(io.BytesIO((run / "test_rollout.gif").read_bytes())) as gif:
        assert gif.n_frames == 6
    assert main(["evaluate", str(run)]) == 0
    assert "ssim/linear" in capsys.readouterr().out


def test_predict_of_a_run_scores_the_forecast_of_a_files_last_frames(small, tmp_path, capsys):
    run, video = tmp_path / "run", tmp_path / "clip.mp4"
    changes = {"training.steps": 1, "data.num_frames": 6}
    trained = train(small.override({"model": MODEL, "task": FramePrediction(), **changes}), run)
    video.write_bytes(small.data.dataset.open("test")[0]["video"])
    capsys.readouterr()
    assert main(["predict", str(run), str(video), "--json"]) == 0
    (answer,) = json.loads(capsys.readouterr().out).values()
    assert answer.keys() == {"forecast", "copy", "linear"} and answer["copy"]["mse"] > 0
    forecast = trained.forecast(video)  # its frames have the error that is reported
    assert (len(forecast.context), len(forecast.truth)) == (4, 2) and forecast.predicted.shape == forecast.truth.shape
    errors = (forecast.predicted - forecast.truth)[..., :1] ** 2
    assert errors.sum((1, 2, 3)).mean() == pytest.approx(answer["forecast"]["mse"], rel=1e-4)
    assert forecast._repr_png_().startswith(b"\x89PNG")
    forecast.save(tmp_path / "forecast.gif")
    assert (tmp_path / "forecast.gif").read_bytes().startswith(b"GIF8")
    with pytest.raises(vitx.UserError, match=r"\.mp4.*\.png, \.gif"):
        forecast.save(tmp_path / "forecast.mp4")
    assert main(["convert", str(run), str(tmp_path / "own.safetensors")]) == 0
    model, variables = vitx.load_pretrained(tmp_path / "own.safetensors")
    assert type(model).__name__ == "NextFrameForecaster" and "params" in variables
