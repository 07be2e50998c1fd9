"""Classification: losses by hand, padding without weight, labels that must fit the model."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from scipy.special import log_softmax

import vitx
from vitx.tasks.classification import Classification

pytestmark = pytest.mark.smoke

NAMES = {"verb": ("a", "b", "c"), "noun": tuple("pqrs")}
LABELS = {"verb": np.array([0, 1, 2]), "noun": np.array([3, 0, 1])}
HEADS = (("verb", 3), ("noun", 4))


class PixelLogits(nn.Module):
    """A model whose logits are pixels: the first ones for the first head, and so on."""

    num_classes: Any

    def __call__(self, video, *, train):
        pixels = 3 * video.reshape(len(video), -1)
        if isinstance(self.num_classes, int):
            return pixels[:, : self.num_classes]
        return {name: pixels[:, 10 * i : 10 * i + classes] for i, (name, classes) in enumerate(self.num_classes)}


BATCH = {
    "video": np.random.default_rng(0).integers(0, 255, (3, 2, 4, 4, 3), np.uint8),
    "labels": LABELS,
    "weight": np.array([1.0, 1.0, 0.0], np.float32),  # the last example is padding
}


def loss_and_logits(model, task):
    @jax.jit
    def run(batch):
        loss = functools.partial(task.loss, model, {}, batch, key=jax.random.key(0), step=jnp.int32(0))
        losses, aux = loss(train=False)
        return losses, aux.metric_sums, task.predict(model, {}, batch["video"])

    return jax.device_get(run(BATCH))


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_loss_is_the_mean_of_the_heads_cross_entropies(smoothing):
    losses, sums, logits = loss_and_logits(PixelLogits(HEADS), Classification(label_smoothing=smoothing))
    expected = 0
    for name, labels in LABELS.items():
        classes = logits[name].shape[1]
        target = (1 - smoothing) * np.eye(classes)[labels] + smoothing / classes
        expected += -(target * log_softmax(logits[name], axis=1)).sum(1) / 2
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    correct = logits["verb"].argmax(1) == LABELS["verb"]
    assert sums["weight"] == 2 and sums["verb/top1"] == 100 * correct[:2].sum()


def test_model_with_one_head_learns_the_named_label():
    model, task = PixelLogits(4), Classification(label="noun")
    assert task.output_names(model, NAMES) == {"noun": NAMES["noun"]}
    losses, _, logits = loss_and_logits(model, task)
    np.testing.assert_allclose(losses, -log_softmax(logits, axis=1)[np.arange(3), LABELS["noun"]], rtol=1e-5)


@pytest.mark.parametrize(
    ("num_classes", "label", "values"),
    [
        (3, None, ("verb, noun", "task.label")),
        (3, "noun", ("noun with 3 classes", "verb (3 classes), noun (4 classes)")),
        ((("adverb", 3),), None, ("adverb",)),
    ],
)
def test_heads_that_do_not_fit_the_labels_are_an_error(num_classes, label, values):
    with pytest.raises(vitx.UserError) as error:
        Classification(label=label).output_names(PixelLogits(num_classes), NAMES)
    assert all(value in str(error.value) for value in values)


def test_model_without_classes_is_an_error_that_names_model_and_task():
    with pytest.raises(vitx.UserError, match=r"Dense has no num_classes.*Classification"):
        Classification().output_names(nn.Dense(3), NAMES)


def test_data_without_labels_is_an_error():
    with pytest.raises(vitx.UserError, match=r"data without labels; Classification"):
        Classification().output_names(PixelLogits(3), {})


def test_pixels_are_normalised_by_channel():
    task = Classification(mean=(0.0, 0.5, 1.0), std=(1.0, 0.5, 0.25))
    np.testing.assert_allclose(task.normalise(jnp.full((1, 3), 255, jnp.uint8)), [[1, 1, 0]], atol=1e-6)
