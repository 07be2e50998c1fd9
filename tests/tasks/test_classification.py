"""Classification: losses by hand, padding without weight, labels that must fit the model."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vitx
from vitx.tasks.classification import Classification

FIELDS = {
    "num_frames": 2,
    "image_size": 8,
    "tubelet_size": (2, 4, 4),
    "hidden_size": 8,
    "num_layers": 1,
    "num_temporal_layers": 1,
    "num_heads": 2,
    "mlp_dim": 8,
}
NAMES = {"verb": ("a", "b", "c"), "noun": tuple("pqrs")}


def make(num_classes, **task):
    model = vitx.create_model("vivit_b_16x2_fe", num_classes=num_classes, **FIELDS)
    batch = {
        "video": jnp.asarray(np.random.default_rng(0).integers(0, 255, (3, 2, 8, 8, 3), np.uint8)),
        "labels": {"verb": jnp.array([0, 1, 2]), "noun": jnp.array([3, 0, 1])},
        "weight": jnp.array([1.0, 1.0, 0.0]),
    }
    task = Classification(**task)
    variables = jax.jit(task.init, static_argnums=0)(model, jax.random.key(0), batch)
    variables = jax.tree.map(lambda leaf: leaf + 0.1 * jnp.sin(jnp.arange(leaf.size)).reshape(leaf.shape), variables)
    return model, task, variables, batch


def loss_of(model, task, variables, batch):
    loss = functools.partial(task.loss, model, key=jax.random.key(0), step=jnp.int32(0), train=False)
    return jax.jit(loss)(variables, batch)


def logits_of(model, task, variables, batch):
    return jax.jit(functools.partial(task.predict, model))(variables, batch["video"])


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_the_loss_is_the_mean_of_the_heads_cross_entropies(smoothing):
    model, task, variables, batch = make((("verb", 3), ("noun", 4)), label_smoothing=smoothing)
    losses, aux = loss_of(model, task, variables, batch)
    logits = logits_of(model, task, variables, batch)
    expected = 0
    for name, labels in batch["labels"].items():
        classes = logits[name].shape[1]
        target = (1 - smoothing) * np.eye(classes)[labels] + smoothing / classes
        expected += -(target * jax.nn.log_softmax(logits[name])).sum(1) / 2
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    right = logits["verb"].argmax(1) == batch["labels"]["verb"]
    assert aux.metric_sums["weight"] == 2 and aux.metric_sums["verb/top1"] == 100 * right[:2].sum()


def test_one_head_learns_the_label_that_is_named():
    model, task, variables, batch = make(4, label="noun")
    assert task.outputs(model, NAMES) == {"noun": NAMES["noun"]}
    losses, _ = loss_of(model, task, variables, batch)
    logits = logits_of(model, task, variables, batch)
    np.testing.assert_allclose(losses, -jax.nn.log_softmax(logits)[jnp.arange(3), batch["labels"]["noun"]], rtol=1e-5)


@pytest.mark.parametrize(
    ("num_classes", "label", "message"),
    [
        (3, None, "name the one to learn"),
        (3, "noun", "the model predicts noun with 3 classes; the data has verb (3 classes), noun (4 classes)"),
        ((("adverb", 3),), None, "the model predicts adverb"),
    ],
)
@pytest.mark.smoke
def test_heads_that_are_not_labels_are_told(num_classes, label, message):
    model = vitx.create_model("vivit_b_16x2_fe", num_classes=num_classes, **FIELDS)
    with pytest.raises(vitx.UserError) as error:
        Classification(label=label).outputs(model, NAMES)
    assert message in str(error.value)


@pytest.mark.smoke
def test_pixels_are_normalised():
    task = Classification(mean=(0.0, 0.5, 1.0), std=(1.0, 0.5, 0.25))
    np.testing.assert_allclose(task.normalise(jnp.full((1, 3), 255, jnp.uint8)), [[1, 1, 0]], atol=1e-6)
