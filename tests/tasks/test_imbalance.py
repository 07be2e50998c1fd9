"""Losses for classes of unequal size: by hand, by limits, and with the counts of the training split."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

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


def test_weights_are_the_inverse_of_effective_numbers():
    for beta in (0.9, 0.999):
        numbers = (1 - beta ** np.array([90, 9, 1])) / (1 - beta)
        expected = (1 / numbers) / (1 / numbers).mean()
        np.testing.assert_allclose(balanced_weights((90, 9, 1), beta), expected, rtol=1e-5)
    np.testing.assert_array_equal(balanced_weights((90, 9, 1), 0.0), 1)
    inverse = balanced_weights((90, 9, 1), 1.0)
    np.testing.assert_allclose(inverse[1:] / inverse[:-1], [10, 9], rtol=1e-6)
    np.testing.assert_allclose(balanced_weights((90, 9, 1), 1 - 1e-9), inverse, rtol=1e-5)
    assert np.isfinite(balanced_weights((5, 0), 1.0)).all()


def test_a_weighted_loss_is_the_plain_one_times_the_weight_of_the_class():
    plain = head_loss(Classification())
    weighted = head_loss(Classification(class_balance=0.99, counts=COUNTS))
    np.testing.assert_allclose(weighted, plain * balanced_weights(COUNTS[0][1], 0.99)[np.asarray(LABELS)], rtol=1e-6)


@pytest.mark.smoke
def test_focal_loss():
    shares = np.asarray(jax.nn.softmax(LOGITS))[np.arange(5), LABELS]
    np.testing.assert_allclose(
        head_loss(Classification(focal_gamma=2.0)), -((1 - shares) ** 2) * np.log(shares), rtol=1e-5
    )
    onehot = jax.nn.one_hot(LABELS, 3)
    np.testing.assert_array_equal(focal_cross_entropy(LOGITS, onehot, 0.0), head_loss(Classification()))
    certain = jnp.array([[200.0, 0.0, 0.0]])
    gradient = jax.grad(lambda x: focal_cross_entropy(x, jnp.array([[1.0, 0, 0]]), 0.5).sum())(certain)
    assert np.isfinite(gradient).all()


def test_focal_loss_of_several_labels():
    labels = jnp.asarray(RNG.integers(0, 2, (5, 3)), jnp.float32)
    shares = 1 / (1 + np.exp(-np.asarray(LOGITS, np.float64)))
    right = np.where(labels > 0, shares, 1 - shares)
    expected = (-((1 - right) ** 2) * np.log(right)).mean(axis=1)
    np.testing.assert_allclose(head_loss(MultiLabel(focal_gamma=2.0), labels=labels), expected, rtol=1e-5)


def test_adjusted_logits_are_of_training_alone():
    task = Classification(logit_adjustment=1.5, counts=COUNTS)
    adjusted = LOGITS + 1.5 * jnp.log(jnp.array([0.9, 0.09, 0.01]))
    np.testing.assert_allclose(head_loss(task), head_loss(Classification(), adjusted), rtol=1e-5)
    np.testing.assert_allclose(log_priors((90, 9, 1)), np.log([0.9, 0.09, 0.01]), rtol=1e-6)
    predictions = Predictions({"a": np.asarray(LOGITS)}, {"a": np.asarray(LABELS)}, np.arange(5), (), "1x1")
    assert task.metrics(predictions) == Classification().metrics(predictions)


def test_counts_come_from_the_training_split(digits):
    source = digits.open("train")
    counts = dict(class_counts(source))
    assert sum(counts["motion"]) == sum(counts["appearance"]) == len(source) == 52
    assert Classification().fit(source).counts == ()
    task = Classification(class_balance=1.0).fit(source)
    assert dict(task.counts) == counts and task.fit(digits.open("test")) == task


def test_an_action_is_right_where_all_of_its_labels_are():
    verbs, nouns = np.eye(3)[[0, 1, 2, 0]], np.eye(4)[[3, 0, 1, 2]]
    labels = {"verb": np.array([0, 1, 1, 0]), "noun": np.array([3, 1, 1, -1])}
    given = Predictions({"verb": verbs, "noun": nouns}, labels, np.arange(4), (), "1x1")
    figures = Classification(action=("verb", "noun")).metrics(given)
    assert figures["action/top1"] == pytest.approx(100 / 3)  # the last has no noun
    assert figures["verb/top1"] == 75 and figures["noun/top1"] == pytest.approx(200 / 3)
    assert "action/top1" not in Classification().metrics(given)

    class Heads(nn.Module):
        num_classes: tuple = (("verb", 3), ("noun", 4))

    names = {"verb": tuple("abc"), "noun": tuple("pqrs")}
    assert set(Classification(action=("verb", "noun")).outputs(Heads(), names)) == {"verb", "noun"}
    with pytest.raises(UserError, match=r"task.action names verb, adverb and the model predicts verb, noun"):
        Classification(action=("verb", "adverb")).outputs(Heads(), names)


def test_probabilities_may_be_averaged_over_views():
    views = jnp.asarray(RNG.normal(size=(4, 2, 3)) * 3, jnp.float32)
    for task, share in (
        (Classification(average="probabilities"), jax.nn.softmax),
        (MultiLabel(average="probabilities"), jax.nn.sigmoid),
    ):
        mean = task.from_average(jnp.mean(jnp.stack([task.to_average(view) for view in views]), axis=0))
        np.testing.assert_allclose(share(mean), share(views).mean(axis=0), atol=1e-5)
        assert abs(share(views.mean(axis=0)) - share(mean)).max() > 0.02
        plain = type(task)()
        np.testing.assert_array_equal(plain.from_average(plain.to_average(views[0])), views[0])


class Pixels(nn.Module):
    """A model whose logits are pixels."""

    def __call__(self, video, *, train):
        return video.reshape(len(video), -1)[:, :3] * 4


@pytest.mark.parametrize("average", ["logits", "probabilities"])
def test_views_are_averaged_as_set_and_blank_ones_left_out(average):
    video, views = RNG.integers(0, 256, (2, 4, 1, 2, 2, 3), np.uint8), np.array([4, 2], np.int32)
    task = Classification(average=average)
    found = predict({}, jnp.asarray(video), jnp.asarray(views), model=Pixels(), task=task)
    for row, count in enumerate(views):
        logits = Pixels()(task.normalise(jnp.asarray(video[row, :count])), train=False)
        shares = jax.nn.softmax(logits).mean(0) if average == "probabilities" else jax.nn.softmax(logits.mean(0))
        np.testing.assert_allclose(jax.nn.softmax(found[row]), shares, atol=1e-5)


def test_videos_of_no_class_come_last_as_charades_has_it():
    logits = np.array([[0.9], [0.8], [0.7], [0.1]])
    labels = np.array([[0.0, 0], [1, 0], [0, 1], [1, 0]])
    figures = MultiLabel().head_metrics(np.concatenate([logits, -logits], axis=1), labels)
    assert figures["mAP"] == pytest.approx(100 * ((1 / 2 + 2 / 4) / 2 + 1 / 2) / 2)
    assert figures["mAP_labelled"] == pytest.approx(100 * ((1 + 2 / 3) / 2 + 1 / 2) / 2)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        ("squared", lambda e: e**2),
        ("absolute", np.abs),
        ("huber", lambda e: np.where(abs(e) < 1, e**2 / 2, abs(e) - 0.5)),
    ],
)
def test_errors_of_regression(error, expected):
    task = Regression(error=error, moments=(("a", (1.0, 2.0), (0.5, 4.0)),))
    outputs, labels = RNG.normal(size=(4, 2)).astype(np.float32) * 2, RNG.normal(size=(4, 2)).astype(np.float32)
    target = (labels - [1, 2]) / [0.5, 4]
    run = functools.partial(head_loss, task, jnp.asarray(outputs), jnp.asarray(labels))
    np.testing.assert_allclose(run(), expected(outputs - target).mean(axis=1), rtol=1e-4)


@pytest.mark.parametrize("fields", [{"class_balance": 1.5}, {"focal_gamma": -1.0}, {"label_smoothing": 2.0}])
def test_settings_that_cannot_be(fields):
    with pytest.raises(ValueError, match=f"{next(iter(fields))} is .*expected"):
        Classification(**fields)
