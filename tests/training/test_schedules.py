"""Schedules: exact values where it matters, fractions of the run, and files that name them as they once were."""

import numpy as np
import pytest

from vitx.training.schedules import Constant, Cosine, InverseSquareRoot, Milestones, OneCycle

pytestmark = pytest.mark.smoke

HALF_WAY = (1 + np.cos(np.pi / 2)) / 2
QUARTER_WAY = (1 + np.cos(np.pi / 4)) / 2


@pytest.mark.parametrize(
    ("schedule", "values"),
    [
        (Cosine(), {0: 0.2, 9: 2, 10: 2, 55: 2 * HALF_WAY, 32.5: 2 * QUARTER_WAY, 100: 0}),
        (Cosine(end_factor=0.1), {10: 2, 55: 2 * (0.1 + 0.9 * HALF_WAY), 100: 0.2}),
        (Cosine(warmup=0.0, cooldown=0.5), {0: 2, 25: 2 * QUARTER_WAY, 50: 1, 75: 2 * (1 - QUARTER_WAY) / 2, 100: 0}),
        (OneCycle(warmup=0.4), {0: 0.08, 20: 0.08 + 1.92 * HALF_WAY, 40: 2, 70: 1.000004, 100: 8e-6}),
        (Constant(warmup=0.0), {0: 2, 50: 2, 99: 2}),
        (Constant(cooldown=0.2), {0: 0.2, 4: 1, 9: 2, 10: 2, 80: 2, 81: 1.9, 90: 1, 99: 0.1, 100: 0}),
        (Constant(warmup=1.0), {0: 0.02, 49: 1, 99: 2}),
        (Milestones(), {0: 0.2, 10: 2, 49: 2, 50: 0.2, 74: 0.2, 75: 0.02, 99: 0.02}),
        (Milestones(warmup=0.0, milestones=(11 / 15, 14 / 15), factor=0.5), {72: 2, 73: 1, 92: 1, 93: 0.5}),
        (InverseSquareRoot(), {0: 0.2, 10: 2, 20: 2 / np.sqrt(2), 40: 1, 90: 2 / 3}),
        (InverseSquareRoot(timescale=30, cooldown=0.5), {10: 2, 40: 2 / np.sqrt(2), 75: 2 * np.sqrt(30 / 95) / 2}),
    ],
    ids=lambda value: str(value) if not isinstance(value, dict) else "",
)
def test_schedules_have_their_values_at_key_steps(schedule, values):
    rate = schedule.build(2.0, 100)
    np.testing.assert_allclose([rate(step) for step in values], list(values.values()), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("schedule", [Cosine, OneCycle, Constant, Milestones, InverseSquareRoot])
def test_schedules_scale_with_the_peak_and_serve_a_run_of_one_step(schedule):
    steps = np.arange(40)
    ones, threes = (np.array([schedule().build(peak, 40)(step) for step in steps]) for peak in (1.0, 3.0))
    np.testing.assert_allclose(threes, 3 * ones, rtol=1e-6)
    assert (ones > 0).all() and ones.max() == pytest.approx(1, rel=1e-3)
    assert np.isfinite(schedule().build(1.0, 1)(0))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"warmup": 0.6, "cooldown": 0.5}, "warmup is 0.6 and cooldown 0.5"),
        ({"warmup": -0.1}, "warmup is -0.1"),
        ({"milestones": (0.5, 0.5)}, "rising"),
        ({"milestones": (0.75, 0.5)}, "rising"),
        ({"milestones": (0.05,)}, "milestones"),
    ],
)
def test_invalid_fractions_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Milestones(**settings)


def test_a_timescale_of_no_steps_is_refused():
    with pytest.raises(ValueError, match="timescale is 0"):
        InverseSquareRoot(timescale=0)
