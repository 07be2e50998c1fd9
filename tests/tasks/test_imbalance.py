"""Losses for imbalanced classes: by hand, by limits, and with the counts of the training split."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from scipy.special import expit

from vitx.errors import UserError
from vitx.evaluation.evaluate import Predictions, predict
from vitx.tasks.classification import Classification
from vitx.tasks.imbalance import balanced_weights, class_counts, focal_cross_entropy, log_priors
from vitx.tasks.multilabel import MultiLabel
from vitx.tasks.regression import Regression

RNG = np.random.default_rng(0)
LOGITS = jnp.asarray(RNG.normal(size=(5, 3)), jnp.float32)
LABELS = jnp.array([0, 1, 2, 1, 0])
COUNTS = (("a", (90, 9, 1)),)


def head_loss(task, outputs=LOGITS, labels=LABELS):
    return np.asarray(task.head_loss("a", outputs, task.target("a", labels, outputs.shape[1]), labels)[0])


def test_class_weights_are_inverse_to_effective_numbers():
    for beta in (0.9, 0.999):
        numbers = (1 - beta ** np.array([90, 9, 1])) / (1 - beta)
        expected = (1 / numbers) / (1 / numbers).mean()
        np.testing.assert_allclose(balanced_weights((90, 9, 1), beta), expected, rtol=1e-5)
    np.testing.assert_array_equal(balanced_weights((90, 9, 1), 0.0), 1)
    inverse = balanced_weights((90, 9, 1), 1.0)
    np.testing.assert_allclose(inverse[1:] / inverse[:-1], [10, 9], rtol=1e-6)
    np.testing.assert_allclose(balanced_weights((90, 9, 1), 1 - 1e-9), inverse, rtol=1e-5)
    assert np.isfinite(balanced_weights((5, 0), 1.0)).all()


def test_balanced_loss_is_the_plain_loss_times_the_class_weight():
    plain = head_loss(Classification())
    weighted = head_loss(Classification(class_balance=0.99, counts=COUNTS))
    np.testing.assert_allclose(weighted, plain * balanced_weights(COUNTS[0][1], 0.99)[np.asarray(LABELS)], rtol=1e-6)


@pytest.mark.smoke
def test_focal_loss_matches_its_formula_and_has_finite_gradients():
    p = np.asarray(jax.nn.softmax(LOGITS))[np.arange(5), LABELS]
    np.testing.assert_allclose(head_loss(Classification(focal_gamma=2.0)), -((1 - p) ** 2) * np.log(p), rtol=1e-5)
    onehot = jax.nn.one_hot(LABELS, 3)
    np.testing.assert_array_equal(focal_cross_entropy(LOGITS, onehot, 0.0), head_loss(Classification()))
    certain = jnp.array([[200.0, 0.0, 0.0]])
    gradient = jax.grad(lambda x: focal_cross_entropy(x, jnp.array([[1.0, 0, 0]]), 0.5).sum())(certain)
    assert np.isfinite(gradient).all()


def test_multilabel_focal_loss_matches_its_formula():
    labels = jnp.asarray(RNG.integers(0, 2, (5, 3)), jnp.float32)
    p = expit(np.asarray(LOGITS, np.float64))
    p_true = np.where(labels > 0, p, 1 - p)
    expected = (-((1 - p_true) ** 2) * np.log(p_true)).mean(axis=1)
    np.testing.assert_allclose(head_loss(MultiLabel(focal_gamma=2.0), labels=labels), expected, rtol=1e-5)


def test_logits_are_adjusted_in_training_only():
    task = Classification(logit_adjustment=1.5, counts=COUNTS)
    adjusted = LOGITS + 1.5 * jnp.log(jnp.array([0.9, 0.09, 0.01]))
    np.testing.assert_allclose(head_loss(task), head_loss(Classification(), adjusted), rtol=1e-5)
    np.testing.assert_allclose(log_priors((90, 9, 1)), np.log([0.9, 0.09, 0.01]), rtol=1e-6)
    predictions = Predictions({"a": np.asarray(LOGITS)}, {"a": np.asarray(LABELS)}, np.arange(5), (), "1x1")
    assert task.metrics(predictions) == Classification().metrics(predictions)


def test_fit_counts_the_training_split_where_counts_are_needed(digits):
    source = digits.open("train")
    counts = dict(class_counts(source))
    assert sum(counts["motion"]) == sum(counts["appearance"]) == len(source) == 52
    assert Classification().fit(source).counts == ()
    task = Classification(class_balance=1.0).fit(source)
    assert dict(task.counts) == counts and task.fit(digits.open("test")) == task


def test_action_accuracy_needs_all_labels_correct():
    verbs, nouns = np.eye(3)[[0, 1, 2, 0]], np.eye(4)[[3, 0, 1, 2]]
    labels = {"verb": np.array([0, 1, 1, 0]), "noun": np.array([3, 1, 1, -1])}
    predictions = Predictions({"verb": verbs, "noun": nouns}, labels, np.arange(4), (), "1x1")
    metrics = Classification(action=("verb", "noun")).metrics(predictions)
    assert metrics["action/top1"] == pytest.approx(100 / 3)  # the last has no noun
    assert metrics["verb/top1"] == 75 and metrics["noun/top1"] == pytest.approx(200 / 3)
    assert "action/top1" not in Classification().metrics(predictions)
    unlabelled = Predictions(predictions.outputs, labels | {"noun": np.full(4, -1)}, np.arange(4), (), "1x1")
    assert "action/top1" not in Classification(action=("verb", "noun")).metrics(unlabelled)

    class Heads(nn.Module):
        num_classes: tuple = (("verb", 3), ("noun", 4))

    names = {"verb": tuple("abc"), "noun": tuple("pqrs")}
    assert set(Classification(action=("verb", "noun")).output_names(Heads(), names)) == {"verb", "noun"}
    with pytest.raises(UserError, match=r"task\.action.*adverb.*verb, noun"):
        Classification(action=("verb", "adverb")).output_names(Heads(), names)


def test_average_over_views_is_that_of_probabilities_where_set():
    views = jnp.asarray(RNG.normal(size=(4, 2, 3)) * 3, jnp.float32)
    for task, probability in (
        (Classification(average="probabilities"), jax.nn.softmax),
        (MultiLabel(average="probabilities"), jax.nn.sigmoid),
    ):
        mean = task.from_average(jnp.mean(jnp.stack([task.to_average(view) for view in views]), axis=0))
        np.testing.assert_allclose(probability(mean), probability(views).mean(axis=0), atol=1e-5)
        assert abs(probability(views.mean(axis=0)) - probability(mean)).max() > 0.02
        plain = type(task)()
        np.testing.assert_array_equal(plain.from_average(plain.to_average(views[0])), views[0])


class Pixels(nn.Module):
    """A model whose logits are pixels."""

    def __call__(self, video, *, train):
        return video.reshape(len(video), -1)[:, :3] * 4


@pytest.mark.parametrize("average", ["logits", "probabilities"])
def test_predict_averages_the_views_of_each_video_and_ignores_padding(average):
    video, views = RNG.integers(0, 256, (2, 4, 1, 2, 2, 3), np.uint8), np.array([4, 2], np.int32)
    task = Classification(average=average)
    found = predict({}, jnp.asarray(video), jnp.asarray(views), model=Pixels(), task=task)
    for row, count in enumerate(views):
        logits = Pixels()(task.normalise(jnp.asarray(video[row, :count])), train=False)
        p = jax.nn.softmax(logits).mean(0) if average == "probabilities" else jax.nn.softmax(logits.mean(0))
        np.testing.assert_allclose(jax.nn.softmax(found[row]), p, atol=1e-5)


def test_mAP_labelled_ranks_videos_without_a_class_last():
    logits = np.array([[0.9], [0.8], [0.7], [0.1]])
    labels = np.array([[0.0, 0], [1, 0], [0, 1], [1, 0]])
    metrics = MultiLabel().head_metrics(np.concatenate([logits, -logits], axis=1), labels)
    assert metrics["mAP"] == pytest.approx(100 * ((1 / 2 + 2 / 4) / 2 + 1 / 2) / 2)
    assert metrics["mAP_labelled"] == pytest.approx(100 * ((1 + 2 / 3) / 2 + 1 / 2) / 2)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        ("squared", lambda e: e**2),
        ("absolute", np.abs),
        ("huber", lambda e: np.where(abs(e) < 1, e**2 / 2, abs(e) - 0.5)),
    ],
)
def test_regression_losses_match_their_formulas(error, expected):
    task = Regression(error=error, moments=(("a", (1.0, 2.0), (0.5, 4.0)),))
    outputs, labels = RNG.normal(size=(4, 2)).astype(np.float32) * 2, RNG.normal(size=(4, 2)).astype(np.float32)
    target = (labels - [1, 2]) / [0.5, 4]
    run = functools.partial(head_loss, task, jnp.asarray(outputs), jnp.asarray(labels))
    np.testing.assert_allclose(run(), expected(outputs - target).mean(axis=1), rtol=1e-4)


@pytest.mark.parametrize("fields", [{"class_balance": 1.5}, {"focal_gamma": -1.0}, {"label_smoothing": 2.0}])
def test_invalid_settings_are_refused(fields):
    with pytest.raises(ValueError, match=f"{next(iter(fields))} is .*expected"):
        Classification(**fields)
