"""Augmentation: one draw for a whole clip, boxes inside the frame, colours by hand, the same clip when drawn again."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vitx.data.augmentation import LUMA, Augmentation, erased, random_box, recoloured
from vitx.data.decoding import decode_frames, encode_video
from vitx.data.pipeline import Data
from vitx.data.sources import MovingDigits


@pytest.fixture(scope="module")
def ramp() -> bytes:
    """Frames of 64 x 96 whose red says the column and whose green says the row."""
    rows, columns = np.mgrid[:64, :96]
    frame = np.stack([2 * columns, 3 * rows, np.full_like(rows, 99)], -1).astype(np.uint8)
    return encode_video(np.stack([frame] * 6), pixel_format="yuv444p", options={"qp": "0"})


CLIP = np.random.default_rng(0).integers(0, 256, (3, 20, 30, 3), np.uint8)


@given(st.integers(0, 1000), st.integers(1, 400), st.integers(1, 400), st.floats(0.01, 1), st.floats(0.1, 3))
def test_a_box_lies_inside_the_frame_and_has_the_area_that_was_asked(seed, height, width, least, ratio):
    top, left, tall, wide = random_box(np.random.default_rng(seed), height, width, (least, 1.0), (ratio, 2 * ratio))
    assert -1e-6 <= top <= top + tall <= height + 1e-6 and -1e-6 <= left <= left + wide <= width + 1e-6
    assert ratio * 0.999 <= wide / tall <= 2.001 * ratio
    if ratio <= width / height <= 2 * ratio:
        assert tall * wide >= least * height * width * 0.999


def test_a_box_is_what_is_seen(ramp):
    whole = decode_frames(ramp, [0])
    for box in ((10.0, 20.0, 32.0, 48.0), (0.0, 0.0, 64.0, 96.0), (31.0, 47.0, 33.0, 49.0)):
        top, left, tall, wide = map(int, box)
        (same,) = decode_frames(ramp, [0], size=(tall, wide), box=lambda height, width, box=box: box)
        np.testing.assert_array_equal(same, whole[0, top : top + tall, left : left + wide])
        (half,) = decode_frames(ramp, [0], size=(16, 16), box=lambda height, width, box=box: box)
        assert abs(half[8, :, 0].astype(float) - 2 * (left + (np.arange(16) + 0.5) * wide / 16 - 0.5)).max() < 5
        assert abs(half[:, 8, 1].astype(float) - 3 * (top + (np.arange(16) + 0.5) * tall / 16 - 0.5)).max() < 6


def test_nothing_is_varied_unless_asked(ramp):
    data = Data(MovingDigits(), num_frames=3, frame_stride=1, image_size=(24, 24))
    plain = data.clip({"video": ramp}, 0.5)
    np.testing.assert_array_equal(data.clip({"video": ramp}, 0.5, np.random.default_rng(0)), plain)


def test_a_clip_is_varied_as_a_whole_and_the_same_when_drawn_again(ramp):
    everything = Augmentation((0.2, 0.9), flip=0.5, brightness=0.3, contrast=0.3, saturation=0.3, grey=0.2, erase=0.5)
    data = Data(MovingDigits(), num_frames=4, frame_stride=1, image_size=(24, 32), augmentation=everything)
    seen = set()
    for seed in range(12):
        clip = data.clip({"video": ramp}, 0.5, np.random.default_rng(seed))
        assert clip.shape == (4, 24, 32, 3)
        np.testing.assert_array_equal(clip, data.clip({"video": ramp}, 0.5, np.random.default_rng(seed)))
        assert (clip == clip[:1]).all()  # the video stands still, and so must what was done to it
        seen.add(clip.tobytes())
    assert len(seen) == 12


def test_colours_by_hand():
    np.testing.assert_array_equal(recoloured(CLIP, 1.0, 1.0, 1.0), CLIP)
    np.testing.assert_array_equal(recoloured(CLIP, 0.5, 1.0, 1.0), np.floor(CLIP / 2 + 0.5))
    grey = recoloured(CLIP, 1.0, 1.0, 0.0)
    assert (grey == grey[..., :1]).all() and abs(grey[..., 0] - CLIP @ LUMA).max() <= 0.51
    flat = recoloured(CLIP, 1.0, 0.0, 1.0)
    assert np.ptp(flat) == 0 and abs(flat[0, 0, 0, 0] - (CLIP @ LUMA).mean()) < 1
    assert recoloured(CLIP, 2.0, 1.0, 1.0).max() == 255


def test_mirroring_and_erasing():
    rng = np.random.default_rng(0)
    np.testing.assert_array_equal(Augmentation(flip=1.0).vary(rng, CLIP), CLIP[:, :, ::-1])
    for seed in range(20):
        changed = (erased(np.random.default_rng(seed), CLIP) != CLIP).any(axis=(0, 3))
        rows, columns = np.flatnonzero(changed.any(1)), np.flatnonzero(changed.any(0))
        assert 0 < changed.mean() <= 0.36
        assert changed.sum() >= 0.9 * len(range(rows[0], rows[-1] + 1)) * len(range(columns[0], columns[-1] + 1))


@pytest.mark.parametrize(
    "fields", [{"crop_area": (0.0, 1.0)}, {"crop_area": (0.9, 0.5)}, {"crop_ratio": (2.0, 1.0)}, {"flip": 1.5}]
)
def test_settings_that_cannot_be(fields):
    with pytest.raises(ValueError, match=f"{next(iter(fields))} is .*; expected"):
        Augmentation(**fields)
