"""Augmentation: one draw for a whole clip, boxes inside the frame, labels that have a direction."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from vitx.data import operations
from vitx.data.augmentation import Augmentation, erase, random_box
from vitx.data.decoding import decode_frames, open_video
from vitx.data.encoding import encode_video
from vitx.data.pipeline import Data
from vitx.data.rand_augment import RandAugment
from vitx.data.sources import MovingDigits
from vitx.errors import UserError


@pytest.fixture(scope="module")
def ramp() -> bytes:
    """Frames of 64 x 96 whose red says the column and whose green says the row."""
    rows, columns = np.mgrid[:64, :96]
    frame = np.stack([2 * columns, 3 * rows, np.full_like(rows, 99)], -1).astype(np.uint8)
    return encode_video(np.stack([frame] * 6), pixel_format="yuv444p", options={"qp": "0"})


GOLDEN = Path(__file__).parent / "golden" / "augmentation.npz"
CLIP = np.random.default_rng(0).integers(0, 256, (3, 20, 30, 3), np.uint8)


@given(st.integers(0, 1000), st.integers(1, 400), st.integers(1, 400), st.floats(0.01, 1), st.floats(0.1, 3))
def test_a_random_box_lies_inside_the_frame_with_the_requested_area(seed, height, width, least, ratio):
    top, left, tall, wide = random_box(np.random.default_rng(seed), height, width, (least, 1.0), (ratio, 2 * ratio))
    assert -1e-6 <= top <= top + tall <= height + 1e-6 and -1e-6 <= left <= left + wide <= width + 1e-6
    assert ratio * 0.999 <= wide / tall <= 2.001 * ratio
    if ratio <= width / height <= 2 * ratio:
        assert tall * wide >= least * height * width * 0.999


def test_reading_a_box_returns_its_pixels(ramp):
    whole = decode_frames(ramp, [0])
    for box in ((10.0, 20.0, 32.0, 48.0), (0.0, 0.0, 64.0, 96.0), (31.0, 47.0, 33.0, 49.0)):
        top, left, tall, wide = map(int, box)
        with open_video(ramp) as video:
            same = video.read([0], np.array([box]), (tall, wide))[0, 0]
            half = video.read([0], np.array([box]), (16, 16))[0, 0]
        np.testing.assert_array_equal(same, whole[0, top : top + tall, left : left + wide])
        assert abs(half[8, :, 0].astype(float) - 2 * (left + (np.arange(16) + 0.5) * wide / 16 - 0.5)).max() < 5
        assert abs(half[:, 8, 1].astype(float) - 3 * (top + (np.arange(16) + 0.5) * tall / 16 - 0.5)).max() < 6


@pytest.mark.smoke
def test_default_augmentation_changes_nothing(ramp):
    data = Data(MovingDigits(), num_frames=3, frame_stride=1, image_size=(24, 24))
    plain = data.read_clip({"video": ramp}, 0.5)
    np.testing.assert_array_equal(data.read_clip({"video": ramp}, 0.5, np.random.default_rng(0)), plain)


EVERYTHING = Augmentation(
    (0.2, 0.9),
    flip=0.5,
    brightness=0.3,
    contrast=0.3,
    saturation=0.3,
    hue=0.2,
    lightness=0.1,
    grey=0.2,
    rand_augment=RandAugment(layers=3, deviation=0.5),
    erase=0.5,
    erase_boxes=3,
)


@pytest.mark.parametrize(
    "augmentation",
    [EVERYTHING, dataclasses.replace(EVERYTHING, crop_area=None, short_side=(32, 40), stretch=(0.9, 1.3))],
)
def test_all_frames_get_one_draw_and_a_seed_repeats_it(ramp, augmentation):
    data = Data(MovingDigits(), num_frames=4, frame_stride=1, image_size=(24, 32), augmentation=augmentation)
    seen = set()
    for seed in range(12):
        clip = data.read_clip({"video": ramp}, 0.5, np.random.default_rng(seed))
        assert clip.shape == (4, 24, 32, 3)
        np.testing.assert_array_equal(clip, data.read_clip({"video": ramp}, 0.5, np.random.default_rng(seed)))
        assert (clip == clip[:1]).all()  # the video stands still, and so must what was done to it
        seen.add(clip.tobytes())
    assert len(seen) == 12


ALONE = {
    "crop_area": Augmentation(crop_area=(0.2, 0.9)),
    "short_side": Augmentation(short_side=(30, 40)),
    "stretch": Augmentation(short_side=(30, 40), stretch=(0.9, 1.33)),
    **{name: Augmentation(**{name: 0.4}) for name in ("brightness", "contrast", "saturation", "hue", "lightness")},
    "flip": Augmentation(flip=1.0),
    "grey": Augmentation(grey=1.0),
    "rand_augment": Augmentation(rand_augment=RandAugment(layers=2, deviation=0.5)),
    **{f"erase_{fill}": Augmentation(erase=1.0, erase_fill=fill) for fill in ("noise", "colour", "grey")},
    "everything": EVERYTHING,
}


def draw_changes(augmentation: Augmentation) -> dict[str, np.ndarray]:
    """Returns the box that a seed draws in frames of 64 x 96, and the clip after the seed's other draws."""
    rng = np.random.default_rng((7, 0, 3, 0))
    box = augmentation.draw_box(rng, 64, 96, (20, 30))
    clip, _ = augmentation.mirror(rng, augmentation.vary(rng, CLIP), {}, {})
    return {"box": np.array(box), "clip": clip}


@pytest.mark.parametrize("name", ALONE)
def test_draws_of_a_seed_equal_the_golden_file(name):
    """`python tests/data/make_golden_augmentation.py` writes the file again: runs of before are then other runs."""
    golden, found = np.load(GOLDEN), draw_changes(ALONE[name])
    np.testing.assert_allclose(found["box"], golden[f"{name}/box"], rtol=1e-12)
    np.testing.assert_array_equal(found["clip"], golden[f"{name}/clip"])
    assert (found["clip"] != CLIP).any() or (found["box"] != draw_changes(Augmentation())["box"]).any()


@given(st.integers(0, 1000), st.integers(20, 400), st.integers(20, 400), st.integers(16, 32), st.floats(1, 1.5))
@example(seed=113, height=112, width=106, short=16, stretch=1.25)  # by rounding, the box was higher than the frame
def test_short_side_and_stretch_stay_within_their_ranges(seed, height, width, short, stretch):
    size, rng = (16, 12), np.random.default_rng(seed)
    settings = Augmentation(short_side=(short, 2 * short), stretch=(1 / stretch, stretch))
    top, left, tall, wide = settings.draw_box(rng, height, width, size)
    assert -1e-6 <= top <= top + tall <= height + 1e-6 and -1e-6 <= left <= left + wide <= width + 1e-6
    scales = np.array([16 / tall, 12 / wide]) * min(height, width)  # length of the short side along each axis
    if short >= 16 * stretch:  # else the box does not fit into the frame and is scaled down
        assert (scales >= short / stretch - 1e-6).all() and (scales <= 2 * short * stretch + 1e-6).all()
    if stretch == 1:
        assert scales[0] == pytest.approx(scales[1])


def test_colours_follow_their_order_and_probability():
    first = Augmentation(brightness=1.0, contrast=1.0, colour=0.7)
    other = dataclasses.replace(first, colour_order=("contrast", "hue", "saturation", "brightness"))
    changed = 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        if rng.uniform() < 0.7:
            one, two = 1 + rng.uniform(-1, 1), 1 + rng.uniform(-1, 1)
            expected = operations.contrast(operations.brightness(CLIP, one), two)
            reverse = operations.brightness(operations.contrast(CLIP, one), two)
            changed += 1
        else:
            expected = reverse = CLIP
        np.testing.assert_array_equal(first.vary(np.random.default_rng(seed), CLIP), expected)
        np.testing.assert_array_equal(other.vary(np.random.default_rng(seed), CLIP), reverse)
    assert 120 < changed < 160


NAMES = {"motion": ("still", "to the left", "to the right", "text"), "seen": ("to the left", "dog", "to the right")}


def test_labels_with_a_direction_are_mirrored_with_the_clip():
    settings = Augmentation(flip=0.5, flip_labels=(("to the right", "to the left"),), flip_never=("text",))
    settings.check(NAMES)
    mirrored = {motion: 0 for motion in range(4)}
    for seed in range(100):
        for motion, mirror_image in ((0, 0), (1, 2), (2, 1), (3, 3)):
            labels = {"motion": np.asarray(motion, np.int32), "seen": np.array([0.25, 0.5, 1], np.float32)}
            clip, found = settings.mirror(np.random.default_rng(seed), CLIP, labels, NAMES)
            if (clip == CLIP).all():
                assert found == labels
            else:
                np.testing.assert_array_equal(clip, CLIP[:, :, ::-1])
                assert found["motion"] == mirror_image and found["motion"].dtype == np.int32
                np.testing.assert_array_equal(found["seen"], [1, 0.5, 0.25])
                mirrored[motion] += 1
    assert mirrored[3] == 0 and all(30 < mirrored[motion] < 70 for motion in range(3))
    missing = {"motion": np.asarray(-1, np.int32)}
    assert Augmentation(flip=1.0, flip_labels=settings.flip_labels).mirror(rng(), CLIP, missing, NAMES)[1] == missing


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"flip_labels": (("to the left", "to the rihgt"),)}, "'to the rihgt'.*did you mean to the right"),
        ({"flip_never": ("cat",)}, "'cat'"),
        ({"flip_labels": (("text", "dog"),)}, "text and dog"),
    ],
)
def test_unknown_classes_are_refused(fields, message):
    with pytest.raises(UserError, match=message):
        Augmentation(**fields).check(NAMES)


@pytest.mark.parametrize("fill", ["noise", "colour", "grey"])
@pytest.mark.parametrize("most", [1, 4])
def test_erased_boxes_are_equal_in_all_frames_and_bounded_in_area(fill, most):
    for seed in range(20):
        varied = erase(np.random.default_rng(seed), CLIP, most, fill)
        changed = (varied != CLIP).any(axis=(0, 3))
        assert 0 < changed.mean() <= 0.36
        values = np.unique(varied[:, changed].reshape(-1, 3), axis=0)
        assert len(values) <= most if fill == "colour" else (fill == "noise") == (len(values) > 1)
        assert (varied[:, changed] == varied[:1, changed]).all()
        rows, columns = np.flatnonzero(changed.any(1)), np.flatnonzero(changed.any(0))
        if most == 1:
            assert changed.sum() >= 0.9 * len(range(rows[0], rows[-1] + 1)) * len(range(columns[0], columns[-1] + 1))


@pytest.mark.parametrize(
    "fields",
    [
        {"crop_area": (0.0, 1.0)},
        {"crop_area": (0.9, 0.5)},
        {"crop_ratio": (2.0, 1.0)},
        {"short_side": (0, 10)},
        {"stretch": (0.5, 2.0)},
        {"flip": 1.5},
        {"hue": 0.6},
        {"colour_order": ("hue", "contrast", "brightness", "brightness")},
        {"erase_boxes": 0},
    ],
)
def test_invalid_settings_are_refused(fields):
    with pytest.raises(ValueError, match=f"{next(iter(fields))} is .*; expected"):
        Augmentation(**fields)
