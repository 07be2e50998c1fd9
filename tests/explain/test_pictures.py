"""Pictures of explanations: relevant places glow, every head has a row, animations show each frame."""

import numpy as np
import pytest

from vitx.explain.explanation import Explanation
from vitx.explain.pictures import heads, side_by_side, strip


@pytest.fixture
def explanation():
    """A grey clip of 5 frames whose lower left quarter is relevant in frame 3, and speaks against the class in 0."""
    relevance = np.zeros((5, 24, 32), np.float32)
    relevance[3, 12:, :16], relevance[0] = 1, -1
    return Explanation(np.full((5, 24, 32, 3), 128, np.uint8), relevance, "lime", "motion", "left", 0.5)


def test_what_speaks_for_the_class_glows_and_the_rest_is_grey(explanation):
    overlaid = explanation.overlay().astype(int)
    saturation = overlaid.max(axis=-1) - overlaid.min(axis=-1)
    assert saturation[3, 16:22, 2:12].min() > 60
    assert saturation[[0, 1, 2, 4]].max() == 0 == saturation[3, :6, 24:].max()
    np.testing.assert_array_equal(explanation.over_time, [0, 0, 0, 1, 0])


def test_nothing_relevant_gives_every_frame_the_same_importance(explanation):
    empty = Explanation(explanation.frames, -np.abs(explanation.relevance), "lime", "motion", "left")
    np.testing.assert_allclose(empty.over_time, 0.2)


def test_an_animation_has_an_enlarged_pair_and_a_bar_for_each_frame(explanation):
    whole = side_by_side(explanation.frames, explanation.overlay(), explanation.over_time)
    assert whole.shape[0] == 5 and whole.shape[1] % 2 == whole.shape[2] % 2 == 0
    assert whole.shape[2] == 2 * 320  # 24 rows become at least 224
    bars = whole[:, -4:, 3 * 128 + 4 : 4 * 128 - 4]  # of frame 3, which is orange in its own picture alone
    assert [bool((bar[..., 0] > 200).all()) for bar in bars] == [False, False, False, True, False]


@pytest.mark.parametrize("count", [1, 8, 9, 16, 25, 26, 50])
def test_a_strip_shows_at_most_eight_frames_and_a_bar_for_every_one(count):
    frames = np.zeros((count, 8, 8, 3), np.uint8)
    *pictures, bars = strip(frames, frames, np.full(count, 1 / count), "title").axes
    assert len(pictures) == 2 * len(bars.get_xticks()) <= 16 and bars.get_xticks()[-1] < count
    assert bars.get_xlim()[0] < 0 and bars.get_xlim()[1] > count - 1


def test_heads_are_rows_over_space_and_lines_over_time():
    frames, rng = np.zeros((4, 24, 32, 3), np.uint8), np.random.default_rng(0)
    over_space = heads(frames, rng.random((3, 2, 3, 4)).astype(np.float32), "first block")
    assert len(over_space.axes) == (3 + 1) * 2  # a row of frames above the heads
    over_time = heads(frames, rng.random((3, 2, 1, 1)).astype(np.float32), "last block")
    assert len(over_time.axes) == 1 and len(over_time.axes[0].lines) == 3
