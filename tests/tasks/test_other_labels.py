"""Multi-label classification and regression: losses and metrics by hand, missing labels, whole runs."""

import dataclasses
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from scipy.special import expit
from sklearn.metrics import average_precision_score, r2_score

from vitx import cli
from vitx.configuration import register
from vitx.data.moving_digits import MOTIONS
from vitx.data.sources import MovingDigits
from vitx.errors import UserError
from vitx.evaluation.evaluate import Predictions
from vitx.evaluation.presentation import presenter_for
from vitx.run import load_run, train
from vitx.tasks.classification import Classification
from vitx.tasks.mixing import Mixing
from vitx.tasks.multilabel import MultiLabel
from vitx.tasks.regression import Regression
from vitx.training.logs import read_metrics

RNG = np.random.default_rng(0)


class Constant(nn.Module):
    """A model that returns fixed outputs."""

    outputs: Any
    num_classes: Any = (("a", 3), ("b", 2))

    def __call__(self, video, *, train):
        return dict(self.outputs)


def loss_of(task, outputs, labels):
    batch = {
        "video": jnp.zeros((3, 1, 2, 2, 3), jnp.uint8),
        "labels": {name: jnp.asarray(label) for name, label in labels.items()},
        "weight": jnp.array([1.0, 1.0, 0.5]),
    }
    losses, aux = task.loss(Constant(outputs), {}, batch, key=jax.random.key(0), step=jnp.int32(0), train=False)
    return losses, aux.metric_sums


def test_example_without_a_label_counts_only_for_its_other_labels():
    outputs = {
        "a": jnp.asarray(RNG.normal(size=(3, 3)), jnp.float32),
        "b": jnp.asarray(RNG.normal(size=(3, 2)), jnp.float32),
    }
    labels = {"a": np.array([0, -1, 2], np.int32), "b": np.array([1, 0, -1], np.int32)}
    losses, sums = loss_of(Classification(), outputs, labels)
    a, b = (-np.asarray(jax.nn.log_softmax(outputs[name])) for name in "ab")
    np.testing.assert_allclose(losses, [(a[0, 0] + b[0, 1]) / 2, b[1, 0], a[2, 2]], rtol=1e-6)
    assert sums["a/weight"] == 1.5 and sums["b/weight"] == 2
    np.testing.assert_allclose(sums["a/loss"], a[0, 0] + 0.5 * a[2, 2], rtol=1e-6)
    predictions = Predictions({name: np.asarray(x) for name, x in outputs.items()}, labels, np.arange(3), (), "1x1")
    metrics = Classification().metrics(predictions)
    np.testing.assert_allclose(metrics["a/loss"], (a[0, 0] + a[2, 2]) / 2, rtol=1e-6)
    assert (
        presenter_for(Classification()).tables(predictions, {"a": tuple("xyz"), "b": tuple("pq")})["per_class"]["a"][
            "y"
        ]["support"]
        == 0
    )


@pytest.mark.smoke
def test_multilabel_loss_and_mAP_match_their_formulas():
    logits = RNG.normal(size=(3, 3)).astype(np.float32)
    labels = np.array([[1, 0, 0], [0, 1, 0], [np.nan] * 3], np.float32)
    losses, _ = loss_of(MultiLabel(label_smoothing=0.2), {"a": jnp.asarray(logits)}, {"a": labels})
    p = expit(logits[:2].astype(np.float64))
    target = 0.8 * labels[:2] + 0.1
    expected = -(target * np.log(p) + (1 - target) * np.log(1 - p)).mean(axis=1)
    np.testing.assert_allclose(losses, [*expected, 0], rtol=1e-5)
    metrics = MultiLabel().metrics(Predictions({"a": logits}, {"a": labels}, np.arange(3), (), "1x1"))
    precisions = [
        100 * average_precision_score(labels[:2, i], logits[:2, i]) for i in (0, 1)
    ]  # no example has the third class
    assert metrics["a/mAP"] == pytest.approx(np.mean(precisions))


def test_regression_learns_standardised_values_and_predicts_in_the_units_of_the_data():
    task = Regression(moments=(("b", (50.0, 2.0), (10.0, 0.5)),))
    outputs = {"b": jnp.asarray(RNG.normal(size=(3, 2)), jnp.float32)}
    labels = {"b": np.array([[60, 2.5], [40, 1], [np.nan, 1]], np.float32)}
    losses, sums = loss_of(task, outputs, labels)
    error = np.asarray(outputs["b"])[:2] - [[1, 1], [-1, -2]]
    np.testing.assert_allclose(losses, [*(error**2).mean(axis=1), 0], rtol=1e-5)
    np.testing.assert_allclose(sums["b/mae"], np.abs(error * [10, 0.5]).mean(axis=1).sum(), rtol=1e-5)
    values = task.predict(Constant(outputs), {}, jnp.zeros((3, 1, 2, 2, 3), jnp.uint8))["b"]
    np.testing.assert_allclose(values, np.asarray(outputs["b"]) * [10, 0.5] + [50, 2], rtol=1e-5)
    predictions = Predictions({"b": np.asarray(values)}, labels, np.arange(3), (), "1x1")
    metrics = task.metrics(predictions)
    assert metrics["b/mae"] == pytest.approx(np.abs(values[:2] - labels["b"][:2]).mean(), rel=1e-5)
    assert metrics["b/r2"] == pytest.approx(r2_score(labels["b"][:2], values[:2]), rel=1e-5)
    assert task.is_better("b/mae", 1.0, than=2.0) and task.is_better("b/r2", 2.0, than=1.0)


@pytest.mark.smoke
@pytest.mark.parametrize(
    ("task", "label"),
    [(Regression(), np.int32(2)), (MultiLabel(), np.int32(2)), (Classification(), np.zeros(3, np.float32))],
)
def test_labels_of_another_kind_are_one_message(task, label):
    names = {"a": ("x", "y", "z")}
    with pytest.raises(UserError, match=rf"label a; {type(task).__name__} learns"):
        task.check_label_kinds(names, {"a": np.asarray(label)})
    other = np.zeros(3, np.float32) if task.label_ndim else np.asarray(2, np.int32)
    task.check_label_kinds(names, {"a": other, "b": np.asarray(label)})


def test_regression_on_classes_is_refused_before_training(small, tmp_path):
    with pytest.raises(UserError, match="label motion; Regression learns"):
        train(small.override({"task": Regression(label="motion"), "model.num_classes": 8}), tmp_path / "run")
    assert not (tmp_path / "run" / "config.json").exists()


@register
@dataclasses.dataclass(frozen=True)
class OtherLabels:
    """Moving digits with other labels: two motions at once, or a speed that grows with the number of the motion."""

    digits: MovingDigits
    kind: str

    def open(self, split):
        return _Relabelled(self.digits.open(split), self.kind)


@dataclasses.dataclass(frozen=True)
class _Relabelled:
    source: object
    kind: str

    @property
    def label_names(self):
        return {"motions": MOTIONS} if self.kind == "motions" else {"speed": ("speed",)}

    def __len__(self):
        return len(self.source)

    def __getitem__(self, index):
        example = self.source[index]
        motion = example["labels"]["motion"]
        label = {"motions": np.eye(8)[motion] + np.eye(8)[(motion + 1) % 8], "speed": [20.0 + 5 * motion]}[self.kind]
        return {"video": example["video"], "labels": {self.kind: label}}


@pytest.mark.usefixtures("pictures")
@pytest.mark.parametrize(
    ("task", "kind", "classes", "metric"),
    [
        (MultiLabel(mixing=Mixing(0.8, 1.0), average="probabilities"), "motions", 8, "motions/mAP"),
        (Regression(error="huber"), "speed", 1, "speed/mae"),
    ],
)
def test_a_run_trains_evaluates_reports_and_predicts(small, digits, tmp_path, capsys, task, kind, classes, metric):
    changes = {
        "data.dataset": OtherLabels(digits, kind),
        "model.num_classes": classes,
        "task": task,
        "training.monitor": metric,
        "training.steps": 4,
        "data.eval_crops": 3,
    }
    run = tmp_path / "run"
    train(small.override(changes), run)
    (test,) = (row for row in read_metrics(run) if row["split"] == "test")
    views = "1x3 probability-averaged" if getattr(task, "average", "") == "probabilities" else "1x3"
    assert test["views"] == views and (run / "report.md").read_text().count(f"{views} views") == 1
    assert metric in test and metric.replace("mae", "loss").replace("mAP", "loss") in test
    assert f"| {metric} |" in (run / "report.md").read_text()
    clip = tmp_path / "clip.mp4"
    clip.write_bytes(digits.open("test")[0]["video"])
    (answer,) = load_run(run).predict([clip], top=3)[str(clip)].values()
    assert len(answer) == min(classes, 3)
    if kind == "speed":
        assert 10 < answer["speed"] < 70  # the mean is near 37.5, and the head began at zero
    assert cli.main(["evaluate", str(run), "--json"]) == 0
    assert metric in json.loads(capsys.readouterr().out)
    assert cli.main(["predict", str(run), str(clip)]) == 0
    assert ("%" in capsys.readouterr().out) == (kind == "motions")
