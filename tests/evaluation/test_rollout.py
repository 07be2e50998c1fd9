"""Pictures of forecasts: colours of errors and places of frames."""

import io

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image

from vitx.evaluation.rollout import (
    CONTEXT_BORDER,
    GAP,
    PREDICTED_BORDER,
    animation,
    error_map,
    errors_over_time,
    strip,
    to_rgb,
)

pytestmark = pytest.mark.smoke

RED, BLUE = (0.70, 0.09, 0.11), (0.13, 0.40, 0.67)
HEIGHT, WIDTH, INPUT, HORIZON = 4, 6, 6, 3


@pytest.fixture(scope="module")
def clips():
    """Two clips and their forecasts; all frames differ, and no frame is symmetric."""
    frames = np.random.default_rng(0).uniform(0, 1, (2, INPUT + 2 * HORIZON, HEIGHT, WIDTH, 1))
    return [(to_rgb(clip[: INPUT + HORIZON]), to_rgb(clip[INPUT + HORIZON :])) for clip in frames]


@pytest.mark.parametrize(
    ("forecast", "truth", "colour"),
    [
        (1.0, 0.0, RED),
        (0.0, 1.0, BLUE),
        (0.3, 0.3, (1, 1, 1)),
        (0.75, 0.25, np.add(1, RED) / 2),
        (0.25, 0.75, np.add(1, BLUE) / 2),
        (7.0, 0.0, RED),  # clipped to the brightest pixel
        (-7.0, 0.0, (1, 1, 1)),
    ],
)
def test_error_is_red_where_too_bright_and_blue_where_too_dark(forecast, truth, colour):
    shape = (1, 1, 1, 3)
    np.testing.assert_allclose(error_map(np.full(shape, forecast), np.full(shape, truth))[0, 0, 0], colour, atol=1e-12)


def test_to_rgb_repeats_grey_and_clips_to_the_unit_interval():
    np.testing.assert_array_equal(to_rgb(np.array([[-1.0], [0.5], [2.0]])), [[0.0] * 3, [0.5] * 3, [1.0] * 3])
    np.testing.assert_array_equal(to_rgb(np.array([[0.1, 0.2, 0.3]])), [[0.1, 0.2, 0.3]])


def test_strip_aligns_truth_forecast_and_error_of_a_frame(clips):
    figure = strip(clips, INPUT, max_context=4)
    assert len(figure.axes) == 2
    for axes, (truth, forecast) in zip(figure.axes, clips, strict=True):
        picture = np.asarray(axes.images[0].get_array())
        assert picture.shape == (3 * (HEIGHT + GAP), (4 + HORIZON) * (WIDTH + GAP), 3)

        def tile(row, column, picture=picture):
            top, left = row * (HEIGHT + GAP), column * (WIDTH + GAP)
            return picture[top : top + HEIGHT, left : left + WIDTH]

        for column in range(4 + HORIZON):
            frame = INPUT - 4 + column
            np.testing.assert_array_equal(tile(0, column), truth[frame])
            i = frame - INPUT  # index of the predicted frame
            below = (forecast[i], error_map(forecast, truth[INPUT:])[i]) if i >= 0 else (1, 1)
            np.testing.assert_array_equal(tile(1, column), np.broadcast_to(below[0], (HEIGHT, WIDTH, 3)))
            np.testing.assert_array_equal(tile(2, column), np.broadcast_to(below[1], (HEIGHT, WIDTH, 3)))
        assert [label.get_text() for label in axes.get_yticklabels()] == ["truth", "forecast", "error"]
        assert [label.get_text() for label in axes.get_xticklabels()] == ["-3", "-2", "-1", "0", "+1", "+2", "+3"]
        (line,) = axes.lines  # between context and prediction
        assert 4 * (WIDTH + GAP) - GAP <= line.get_xdata()[0] <= 4 * (WIDTH + GAP)
    FigureCanvasAgg(figure).draw()  # matplotlib would warn about text that does not fit


def test_strip_of_a_short_context_begins_with_its_first_frame(clips):
    short = [(truth[INPUT - 2 :], forecast) for truth, forecast in clips[:1]]
    (axes,) = strip(short, 2).axes
    assert [label.get_text() for label in axes.get_xticklabels()] == ["-1", "0", "+1", "+2", "+3"]
    np.testing.assert_array_equal(axes.images[0].get_array()[:HEIGHT, :WIDTH], short[0][0][0])


def test_animation_shows_context_then_forecast_beside_the_truth(clips):
    with Image.open(io.BytesIO(animation(clips, INPUT, scale=2, frame_milliseconds=100))) as gif:
        assert gif.n_frames == INPUT + HORIZON and gif.info["duration"] == 100 and gif.info["loop"] == 0
        for number in (0, INPUT - 1, INPUT, INPUT + HORIZON - 1):
            gif.seek(number)
            picture = np.asarray(gif.convert("RGB"))[::2, ::2] / 255
            assert picture.shape == (2 * (HEIGHT + 2 + GAP), 2 * (WIDTH + 2 + GAP), 3)
            for row, (truth, forecast) in enumerate(clips):
                predicted = number >= INPUT
                right = forecast[number - INPUT] if predicted else truth[number]
                right_border = PREDICTED_BORDER if predicted else CONTEXT_BORDER
                tiles = [(truth[number], CONTEXT_BORDER), (right, right_border)]
                for column, (frame, border) in enumerate(tiles):
                    top, left = row * (HEIGHT + 2 + GAP), column * (WIDTH + 2 + GAP)
                    framed = picture[top : top + HEIGHT + 2, left : left + WIDTH + 2]
                    np.testing.assert_allclose(framed[1:-1, 1:-1], frame, atol=1.01 / 255)
                    np.testing.assert_allclose(framed[0], np.broadcast_to(border, framed[0].shape), atol=1.01 / 255)


def test_errors_of_every_frame_are_drawn_beside_those_of_the_baselines():
    per_frame = {"mse": [1.0, 4.0], "mse/copy": [2.0, 5.0], "mse/linear": [3.0, 6.0], "ssim": [0.5, 0.4]}
    (axes,) = errors_over_time(per_frame).axes
    drawn = {line.get_label(): line.get_xydata().tolist() for line in axes.lines}
    assert drawn == {
        "forecast": [[1, 1], [2, 4]],
        "last frame copied": [[1, 2], [2, 5]],
        "linear extrapolation": [[1, 3], [2, 6]],
    }
