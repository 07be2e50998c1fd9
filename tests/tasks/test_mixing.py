"""Mixup and cutmix: shares that say what pixels are, pairs that may not be mixed, nothing where it is off."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from vitx.tasks.classification import Classification
from vitx.tasks.mixing import Mixing
from vitx.tasks.multilabel import MultiLabel

VIDEO = jnp.asarray(np.random.default_rng(0).normal(size=(6, 2, 12, 10, 3)), jnp.float32)
ALL = jnp.ones(6, bool)


def mixed(mixing, seeds=200, may_mix=ALL):
    run = jax.jit(lambda key: mixing(key, VIDEO, may_mix))
    return [jax.tree.map(np.asarray, run(jax.random.key(seed))) for seed in range(seeds)]


@pytest.mark.smoke
def test_mixup_blends_every_pixel_by_the_share():
    shares = []
    for video, share in mixed(Mixing(mixup=0.8)):
        assert (share == share[0]).all()
        np.testing.assert_allclose(video, share[0] * VIDEO + (1 - share[0]) * VIDEO[::-1], atol=1e-5)
        shares.append(share[0])
    assert abs(np.mean(shares) - 0.5) < 0.08 and np.std(shares) == pytest.approx(np.sqrt(1 / (4 * 2.6)), abs=0.04)


def test_cutmix_pastes_a_box_whose_area_is_the_share_of_the_other():
    areas = []
    for video, share in mixed(Mixing(cutmix=1.0)):
        theirs = (video == np.asarray(VIDEO[::-1])).all(axis=(1, 4))
        assert ((video == np.asarray(VIDEO)).all(axis=(1, 4)) ^ theirs).all()  # each pixel is of one, to the bit
        assert (theirs == theirs[0]).all()
        np.testing.assert_allclose(1 - share, theirs.mean(axis=(1, 2)), atol=1e-6)
        box = theirs[0]
        assert (box == box.any(1)[:, None] & box.any(0)[None]).all()
        assert all(np.diff(np.flatnonzero(side)).max(initial=1) == 1 for side in (box.any(0), box.any(1)))
        areas.append(box.mean())
    assert 0.1 < np.mean(areas) < 0.5 and max(areas) > 0.5 and min(areas) == 0


@pytest.mark.parametrize(("switch", "probability"), [(0.5, 1.0), (0.2, 0.6), (1.0, 1.0)])
def test_a_switch_between_them(switch, probability):
    cut = blended = 0
    for video, share in mixed(Mixing(mixup=0.8, cutmix=1.0, switch=switch, probability=probability)):
        if (video == np.asarray(VIDEO)).all():
            assert (share == 1).all()
        elif (video == np.asarray(VIDEO)).any() or (video == np.asarray(VIDEO[::-1])).all():
            cut += 1
        else:
            blended += 1
    assert blended == pytest.approx(200 * probability * (1 - switch), abs=25)
    assert cut == pytest.approx(200 * probability * switch, abs=30)  # some boxes are empty


def test_a_pair_is_mixed_where_both_may_be():
    may_mix = jnp.array([True, False, True, True, True, True])
    for video, share in mixed(Mixing(mixup=0.8), 20, may_mix):
        np.testing.assert_array_equal(video[[1, 4]], VIDEO[jnp.array([1, 4])])
        assert (share[[1, 4]] == 1).all() and (share[[0, 2, 3, 5]] < 1).all()


class Pixels(nn.Module):
    """A model whose logits are some of the pixels that it sees."""

    num_classes: tuple = (("a", 3), ("b", 4))

    def __call__(self, video, *, train):
        pixels = video.reshape(len(video), -1)
        return {"a": pixels[:, :3], "b": pixels[:, 10:14]}


def losses(task, labels, weight, seed=0, train=True):
    batch = {"video": ((VIDEO + 4) * 30).astype(jnp.uint8), "labels": labels, "weight": jnp.asarray(weight)}
    loss, aux = task.loss(Pixels(), {"params": {}}, batch, key=jax.random.key(seed), step=jnp.int32(0), train=train)
    return batch, np.asarray(loss), aux


def test_targets_are_mixed_as_clips_are_in_every_head_and_smoothed():
    labels = {"a": jnp.array([0, 1, 2, 0, 1, -1]), "b": jnp.array([3, 2, -1, -1, 0, 1])}
    weight = np.array([1, 1, 1, 1, 0, 1], np.float32)
    task = Classification(mixing=Mixing(mixup=0.8), label_smoothing=0.1)
    batch, found, _ = losses(task, labels, weight)
    # pairs: 0-5 differ in what labels they have, 1-4 has one without weight, 2-3 are mixed
    may_mix = jnp.array([False, False, True, True, False, False])
    video, share = task.mixing(jax.random.fold_in(jax.random.key(0), 2), task.normalise(batch["video"]), may_mix)
    outputs, expected = Pixels()(video, train=True), np.zeros((2, 6))
    there = np.array([[1, 1, 1, 1, 1, 0], [1, 1, 0, 0, 1, 1]])
    for row, (name, classes) in enumerate((("a", 3), ("b", 4))):
        target = 0.9 * np.asarray(jax.nn.one_hot(labels[name], classes)) + 0.1 / classes
        target = np.asarray(share)[:, None] * target + (1 - np.asarray(share)[:, None]) * target[::-1]
        np.testing.assert_allclose(target.sum(1)[there[row] > 0], 1, rtol=1e-6)
        expected[row] = there[row] * -(target * np.asarray(jax.nn.log_softmax(outputs[name]))).sum(1)
    np.testing.assert_allclose(found, expected.sum(0) / there.sum(0), rtol=1e-5)
    assert 0 < float(share[2]) < 1


@pytest.mark.parametrize("off", [{}, {"mixup": 0.8, "probability": 0.0}])
def test_nothing_is_mixed_where_it_is_off_and_in_evaluation(off):
    labels = {"a": jnp.array([0, 1, 2, 0, 1, 2]), "b": jnp.array([3, 2, 1, 0, 0, 1])}
    plain = losses(Classification(), labels, np.ones(6, np.float32))[1]
    np.testing.assert_array_equal(
        losses(Classification(mixing=Mixing(**off)), labels, np.ones(6, np.float32))[1], plain
    )
    on = Classification(mixing=Mixing(mixup=0.8))
    np.testing.assert_array_equal(losses(on, labels, np.ones(6, np.float32), train=False)[1], plain)
    assert (losses(on, labels, np.ones(6, np.float32))[1] != plain).all()


def test_several_labels_are_mixed_too():
    labels = {
        name: jnp.asarray(np.random.default_rng(1).integers(0, 2, (6, k)), jnp.float32)
        for name, k in (("a", 3), ("b", 4))
    }
    task = MultiLabel(mixing=Mixing(cutmix=1.0))
    batch, found, _ = losses(task, labels, np.ones(6, np.float32), seed=3)
    video, share = task.mixing(jax.random.fold_in(jax.random.key(3), 2), task.normalise(batch["video"]), ALL)
    outputs = Pixels()(video, train=True)
    expected = []
    for name, label in labels.items():
        target = share[:, None] * label + (1 - share[:, None]) * label[::-1]
        log = jax.nn.log_sigmoid
        expected.append(-(target * log(outputs[name]) + (1 - target) * log(-outputs[name])).mean(1))
    np.testing.assert_allclose(found, sum(expected) / 2, rtol=1e-5)


@pytest.mark.parametrize("fields", [{"mixup": -1.0}, {"switch": 2.0}, {"probability": -0.1}])
def test_settings_that_cannot_be(fields):
    with pytest.raises(ValueError, match=f"{next(iter(fields))} is .*expected"):
        Mixing(**fields)
    assert dataclasses.replace(Mixing(), cutmix=1.0) and not Mixing()
