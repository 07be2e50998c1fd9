"""Operations on pixels: torchvision's results to the bit, one mapping for a whole clip; RandAugment's draws."""

import collections
import importlib.util
from pathlib import Path

import numpy as np
import pytest

from vitx.data import operations
from vitx.data.rand_augment import OPERATIONS, RandAugment

spec = importlib.util.spec_from_file_location("peer", Path(__file__).parent / "torchvision_operations.py")
peer = importlib.util.module_from_spec(spec)
spec.loader.exec_module(peer)

CLIP = np.random.default_rng(0).integers(0, 256, (3, 20, 30, 3), np.uint8)


@pytest.mark.parametrize("name", peer.ARGUMENTS)
@pytest.mark.smoke
def test_pixels_equal_torchvisions_golden_file(name):
    golden = np.load(peer.GOLDEN)
    found = getattr(operations, name)(golden["frame"][None], *peer.ARGUMENTS[name])
    np.testing.assert_array_equal(found, golden[name][None])
    assert (found != golden["frame"]).any()


@pytest.mark.peers
def test_golden_pixels_equal_the_installed_torchvision():
    golden, computed = np.load(peer.GOLDEN), peer.computed()
    assert set(golden) == {"frame", *computed}
    np.testing.assert_array_equal(golden["frame"], peer.frame())
    for name, pixels in computed.items():
        np.testing.assert_array_equal(golden[name], pixels, err_msg=name)


def test_operations_that_torchvision_lacks_follow_their_definition():
    np.testing.assert_array_equal(operations.lightness(CLIP, 0.1), np.minimum(np.floor(CLIP + 26.0), 255))
    np.testing.assert_array_equal(operations.lightness(CLIP, -0.2), np.maximum(np.floor(CLIP - 50.5), 0))
    dark = CLIP < 128
    np.testing.assert_array_equal(operations.solarize_add(CLIP, 60)[dark], CLIP[dark] + 60)
    np.testing.assert_array_equal(operations.solarize_add(CLIP, 60)[~dark], CLIP[~dark])


@pytest.mark.parametrize("name", peer.ARGUMENTS)
def test_a_clip_is_changed_by_one_mapping(name):
    """What happens to a frame does not depend on the frame's own content, so that nothing flickers."""
    operation, arguments = getattr(operations, name), peer.ARGUMENTS[name]
    clip = np.stack([peer.frame(), peer.frame()[::-1], peer.frame() // 2, peer.frame()])
    changed = operation(clip, *arguments)
    np.testing.assert_array_equal(changed[0], changed[3])
    if name not in ("contrast", "autocontrast", "equalize"):  # these use statistics of the whole clip
        np.testing.assert_array_equal(changed[2], operation(clip[2:3], *arguments)[0])
    else:
        pairs = {(int(a), int(b)) for a, b in zip(clip[..., 0].ravel(), changed[..., 0].ravel(), strict=True)}
        assert len(pairs) == len(np.unique(clip[..., 0]))


@pytest.mark.parametrize("increasing", [True, False])
def test_strengths_equal_timms(increasing):
    """Arguments at magnitudes 0, 5 and 10, as timm's functions give them."""
    growing = {
        "posterize": (4, 2, 0),
        "solarize": (256, 128, 0),
        "saturation": (1.0, 1.45, 1.9),
        "sharpness": (1.0, 1.45, 1.9),
    }
    old = {
        "posterize": (0, 2, 4),
        "solarize": (0, 128, 256),
        "saturation": (0.1, 1.0, 1.9),
        "sharpness": (0.1, 1.0, 1.9),
    }
    expected = (growing if increasing else old) | {
        "rotate": (0.0, 15.0, 30.0),
        "shear_x": (0.0, 0.15, 0.3),
        "translate_y": (0.0, 0.225, 0.45),
        "solarize_add": (0, 55, 110),
    }
    table = {operation.__name__: (new, other) for operation, new, other in OPERATIONS}
    assert len(table) == 15
    for name, values in expected.items():
        new, other = table[name]
        arguments = new if increasing or other is None else other
        found = [arguments(strength, 1)[0] for strength in (0.0, 0.5, 1.0)]
        np.testing.assert_allclose(found, values, err_msg=name)
    assert table["brightness"][0](1.0, -1) == (0.1,)


def test_operations_are_drawn_evenly_and_applied_by_their_probability(monkeypatch):
    seen = collections.Counter()

    def spy(name):
        return lambda clip, *arguments: seen.update([(name, *arguments)]) or clip

    listed = tuple((spy(operation.__name__), new, old) for operation, new, old in OPERATIONS)
    monkeypatch.setattr("vitx.data.rand_augment.OPERATIONS", listed)
    vary = RandAugment(layers=4, magnitude=10.0, probability=0.5)
    for seed in range(1500):
        vary(np.random.default_rng(seed), CLIP)
    names = collections.Counter()
    for (name, *_), count in seen.items():
        names[name] += count
    assert abs(sum(names.values()) - 3000) < 150
    assert set(names) == {operation.__name__ for operation, _, _ in OPERATIONS}
    assert all(140 < count < 260 for count in names.values())
    turns = [seen["rotate", 30.0], seen["rotate", -30.0]]
    assert min(turns) > 0.35 * sum(turns) and sum(turns) == names["rotate"]


def test_the_magnitude_varies_within_its_range(monkeypatch):
    strengths = []
    monkeypatch.setattr(
        "vitx.data.rand_augment.OPERATIONS", ((lambda clip, x: strengths.append(x) or clip, lambda s, _: (s,), None),)
    )
    for magnitude in (9.5, 14.0):
        strengths.clear()
        vary = RandAugment(layers=2, magnitude=magnitude, deviation=0.5, probability=1.0)
        for seed in range(300):
            vary(np.random.default_rng(seed), CLIP)
        assert max(strengths) == max(1.0, magnitude / 10) and np.mean(strengths) == pytest.approx(
            magnitude / 10, abs=0.03
        )
        assert 0.02 < np.std(strengths) < 0.05


def test_no_layers_and_probability_0_change_nothing():
    for vary in (RandAugment(layers=0), RandAugment(probability=0.0)):
        assert vary(np.random.default_rng(0), CLIP) is CLIP


def test_timms_strings_are_parsed():
    expected = RandAugment(layers=4, magnitude=7.0, deviation=0.5, increasing=True)
    assert RandAugment.from_timm("rand-m7-n4-mstd0.5-inc1") == expected
    assert RandAugment.from_timm("rand-m9-p0.7") == RandAugment(magnitude=9.0, probability=0.7, increasing=False)
    for wrong in ("augmix-m5", "rand-m7-w0", "rand-mx"):
        with pytest.raises(ValueError, match=r"found .*expected"):
            RandAugment.from_timm(wrong)
    with pytest.raises(ValueError, match="magnitude -1"):
        RandAugment(magnitude=-1.0)
