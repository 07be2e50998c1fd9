"""Mixup and cutmix: mixing ratios that match the pixels, pairs that may not be mixed, off in evaluation."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from scipy.special import expit, log_softmax

from vitx.tasks.classification import Classification
from vitx.tasks.mixing import Mixing
from vitx.tasks.multilabel import MultiLabel
from vitx.tasks.task import MIXING_KEY

VIDEO = np.random.default_rng(0).normal(size=(6, 2, 12, 10, 3)).astype(np.float32)
PARTNER = VIDEO[::-1]
ALL = np.ones(6, bool)


def mix(mixing, num_draws=200, may_mix=ALL):
    """Returns an iterator over (video, own ratio) of so many draws, computed in one program."""
    keys = jax.random.split(jax.random.key(0), num_draws)
    draw = jax.jit(jax.vmap(lambda key: mixing(key, jnp.asarray(VIDEO), jnp.asarray(may_mix))))
    return zip(*jax.device_get(draw(keys)), strict=True)


def test_mixup_blends_every_pixel_by_the_ratio():
    ratios = []
    for video, own in mix(Mixing(mixup=0.8)):
        assert (own == own[0]).all()
        np.testing.assert_allclose(video, own[0] * VIDEO + (1 - own[0]) * PARTNER, atol=1e-5)
        ratios.append(own[0])
    # mean and standard deviation of Beta(0.8, 0.8)
    assert abs(np.mean(ratios) - 0.5) < 0.08 and np.std(ratios) == pytest.approx(np.sqrt(1 / (4 * 2.6)), abs=0.04)


def test_cutmix_pastes_a_box_whose_area_is_the_partners_fraction():
    areas = []
    for video, own in mix(Mixing(cutmix=1.0)):
        pasted = (video == PARTNER).all(axis=(1, 4))
        assert ((video == VIDEO).all(axis=(1, 4)) ^ pasted).all()  # each pixel equals one of the two exactly
        assert (pasted == pasted[0]).all()
        np.testing.assert_allclose(1 - own, pasted.mean(axis=(1, 2)), atol=1e-6)
        box = pasted[0]
        assert (box == box.any(1)[:, None] & box.any(0)[None]).all()
        assert all(np.diff(np.flatnonzero(side)).max(initial=1) == 1 for side in (box.any(0), box.any(1)))
        areas.append(box.mean())
    assert 0.1 < np.mean(areas) < 0.5 and max(areas) > 0.5 and min(areas) == 0


@pytest.mark.parametrize(("switch", "probability"), [(0.5, 1.0), (0.2, 0.6), (1.0, 1.0)])
def test_switch_is_the_probability_of_cutmix_and_probability_that_of_mixing(switch, probability):
    cut = blended = 0
    for video, own in mix(Mixing(mixup=0.8, cutmix=1.0, switch=switch, probability=probability)):
        if (video == VIDEO).all():
            assert (own == 1).all()
        elif (video == VIDEO).any() or (video == PARTNER).all():
            cut += 1
        else:
            blended += 1
    assert blended == pytest.approx(200 * probability * (1 - switch), abs=25)
    assert cut == pytest.approx(200 * probability * switch, abs=30)  # some boxes are empty


def test_a_pair_is_mixed_only_where_both_clips_may_be():
    may_mix = np.array([True, False, True, True, True, True])
    for video, own in mix(Mixing(mixup=0.8), 20, may_mix):
        np.testing.assert_array_equal(video[[1, 4]], VIDEO[[1, 4]])
        assert (own[[1, 4]] == 1).all() and (own[[0, 2, 3, 5]] < 1).all()


class Pixels(nn.Module):
    """A model whose logits are some of its pixels."""

    num_classes: tuple = (("a", 3), ("b", 4))

    def __call__(self, video, *, train):
        pixels = video.reshape(len(video), -1)
        return {"a": pixels[:, :3], "b": pixels[:, 10:14]}


PIXELS = ((VIDEO + 4) * 30).astype(np.uint8)


def losses(task, labels, weight=(1, 1, 1, 1, 1, 1), seed=0, train=True):
    batch = {"video": PIXELS, "labels": labels, "weight": np.array(weight, np.float32)}
    loss = jax.jit(functools.partial(task.loss, Pixels(), {"params": {}}, step=jnp.int32(0), train=train))
    return np.asarray(loss(batch, key=jax.random.key(seed))[0])


def mixed_outputs(task, may_mix, seed=0):
    """Returns (the model's outputs for mixed clips, own ratio) with the key that the loss derives from its own."""

    @jax.jit
    def run(key):
        pixels = task.normalise(jnp.asarray(PIXELS))
        video, own = task.mixing(jax.random.fold_in(key, MIXING_KEY), pixels, jnp.asarray(may_mix))
        return Pixels()(video, train=True), own

    return jax.device_get(run(jax.random.key(seed)))


def test_targets_of_every_head_are_mixed_like_the_clips_and_smoothed():
    labels = {"a": np.array([0, 1, 2, 0, 1, -1]), "b": np.array([3, 2, -1, -1, 0, 1])}
    task = Classification(mixing=Mixing(mixup=0.8), label_smoothing=0.1)
    found = losses(task, labels, weight=(1, 1, 1, 1, 0, 1))
    # Clips 0 and 5 have different sets of labels, clip 4 has no weight: only 2 and 3 are mixed.
    outputs, own = mixed_outputs(task, np.array([False, False, True, True, False, False]))
    own, expected = own[:, None], np.zeros((2, 6))
    valid = np.array([[1, 1, 1, 1, 1, 0], [1, 1, 0, 0, 1, 1]])
    for row, (name, classes) in enumerate(Pixels.num_classes):
        # one_hot of -1 is a row of zeros
        target = 0.9 * np.where(labels[name][:, None] == np.arange(classes), 1.0, 0.0) + 0.1 / classes
        target = own * target + (1 - own) * target[::-1]
        np.testing.assert_allclose(target.sum(1)[valid[row] > 0], 1, rtol=1e-6)
        expected[row] = valid[row] * -(target * log_softmax(outputs[name], axis=1)).sum(1)
    np.testing.assert_allclose(found, expected.sum(0) / valid.sum(0), rtol=1e-5)
    assert 0 < own[2] < 1


@pytest.mark.parametrize("off", [{}, {"mixup": 0.8, "probability": 0.0}])
def test_nothing_is_mixed_where_mixing_is_off_and_in_evaluation(off):
    labels = {"a": np.array([0, 1, 2, 0, 1, 2]), "b": np.array([3, 2, 1, 0, 0, 1])}
    plain = losses(Classification(), labels)
    np.testing.assert_array_equal(losses(Classification(mixing=Mixing(**off)), labels), plain)
    on = Classification(mixing=Mixing(mixup=0.8))
    np.testing.assert_array_equal(losses(on, labels, train=False), plain)
    assert (losses(on, labels) != plain).all()


def test_multilabel_targets_are_mixed():
    random = np.random.default_rng(1)
    labels = {name: random.integers(0, 2, (6, k)).astype(np.float32) for name, k in Pixels.num_classes}
    task = MultiLabel(mixing=Mixing(cutmix=1.0))
    outputs, own = mixed_outputs(task, ALL, seed=3)
    expected = 0
    for name, label in labels.items():
        target = own[:, None] * label + (1 - own[:, None]) * label[::-1]
        logits = outputs[name].astype(np.float64)
        expected += -(target * np.log(expit(logits)) + (1 - target) * np.log(expit(-logits))).mean(1) / 2
    np.testing.assert_allclose(losses(task, labels, seed=3), expected, rtol=1e-5)


@pytest.mark.parametrize("fields", [{"mixup": -1.0}, {"cutmix": -2.0}, {"switch": 2.0}, {"probability": -0.1}])
def test_invalid_settings_are_refused(fields):
    ((name, value),) = fields.items()
    with pytest.raises(ValueError, match=f"{name} is {value}"):
        Mixing(**fields)


def test_mixing_is_true_where_it_is_on():
    assert Mixing(cutmix=1.0) and not Mixing() and not Mixing(mixup=1.0, probability=0.0)
