"""Tests of differences: known answers, coverage under the null hypothesis, and Holm's correction."""

import numpy as np
import pytest
from scipy import stats

from vitx.ablations.statistics import (
    Difference,
    bootstrap_mean,
    compare_clips,
    compare_seeds,
    correct_for_rows,
    mean_and_deviation,
)


def test_a_single_value_has_no_deviation():
    assert mean_and_deviation([3.0]) == (3.0, None)
    assert mean_and_deviation([1.0, 3.0]) == (2.0, pytest.approx(np.std([1, 3], ddof=1)))


def test_the_bootstrap_of_one_seed_has_the_standard_error_of_the_mean():
    values = np.random.default_rng(0).normal(5, 2, (1, 400))
    resampled = bootstrap_mean(values, resamples=4000)
    assert resampled.mean() == pytest.approx(values.mean(), abs=0.02)
    assert resampled.std() == pytest.approx(values.std() / 20, rel=0.05)


def test_clips_without_a_value_count_neither_in_the_mean_nor_in_its_spread():
    values = np.full((2, 50), np.nan)
    values[:, :25] = np.random.default_rng(0).normal(5, 2, (2, 25))
    whole, part = bootstrap_mean(values), bootstrap_mean(values[:, :25])
    assert whole.mean() == pytest.approx(part.mean(), abs=0.05)
    assert whole.std() == pytest.approx(part.std(), rel=0.15)


def test_a_large_difference_is_significant_and_one_of_noise_is_not():
    random = np.random.default_rng(1)
    theirs = 100.0 * (random.random((3, 300)) < 0.5)
    better = 100.0 * ((theirs > 0) | (random.random((3, 300)) < 0.3))
    noise = 100.0 * (random.random((3, 300)) < 0.5)
    found = compare_clips("a", "b", "top1", better, theirs)
    assert found.is_significant and 0 < found.low < found.mean < found.high
    found = compare_clips("a", "b", "top1", noise, theirs)
    assert not found.is_significant and found.low < 0 < found.high and found.verdict == "no significant difference"


def test_equal_rows_have_the_p_value_one():
    values = 100.0 * (np.random.default_rng(0).random((2, 60)) < 0.5)
    found = compare_clips("a", "b", "top1", values, values)
    assert (found.mean, found.low, found.high, found.p) == (0, 0, 0, 1)
    found = compare_clips("a", "b", "top1", values + 1, values)
    assert (found.mean, found.p) == (1, 0) and found.is_significant


def test_pairing_finds_what_unpaired_intervals_would_hide():
    difficulty = np.random.default_rng(0).normal(0, 10, (1, 200))
    found = compare_clips("a", "b", "loss", difficulty + 0.5, difficulty)
    assert found.is_significant and found.mean == pytest.approx(0.5)


def test_seeds_that_disagree_widen_the_interval():
    clips = np.random.default_rng(0).normal(1, 1, (3, 500))
    agreeing = compare_clips("a", "b", "loss", clips, np.zeros_like(clips))
    disagreeing = compare_clips("a", "b", "loss", clips + np.array([[-2.0], [0.0], [2.0]]), np.zeros_like(clips))
    assert disagreeing.high - disagreeing.low > 5 * (agreeing.high - agreeing.low)


@pytest.mark.parametrize("num_seeds", [1, 3, 5])
@pytest.mark.parametrize("spread", [0, 10])
def test_the_test_rejects_rarely_where_there_is_no_difference(num_seeds, spread):
    """Seeds that differ by ten points are what small models show; one seed cannot tell that from a difference."""
    random, rejected = np.random.default_rng(2), 0
    for _ in range(200):
        accuracies = 60 + (spread if num_seeds > 1 else 0) * random.standard_normal((2, num_seeds, 1))
        a, b = 100.0 * (random.random((2, num_seeds, 80)) < accuracies / 100)
        rejected += compare_clips("a", "b", "top1", a, b).is_significant
    assert rejected <= 20  # 10 are expected of an exact test


def test_a_difference_between_seeds_that_agree_is_as_sure_as_its_clips():
    random = np.random.default_rng(0)
    clips = np.tile(random.normal(0.5, 1, 400), (3, 1))
    found = compare_clips("a", "b", "loss", clips, np.zeros_like(clips))
    expected = stats.ttest_1samp(clips[0], 0.0)
    assert found.p == pytest.approx(expected.pvalue, rel=0.5) and found.low > 0.3


def test_metrics_of_whole_runs_are_tested_over_seeds():
    values, theirs = [3.0, 4.0, 5.5], [1.0, 2.5, 3.0]
    found = compare_seeds("a", "b", "macro_f1", values, theirs)
    assert found.p == pytest.approx(stats.ttest_rel(values, theirs).pvalue)
    assert compare_seeds("a", "b", "macro_f1", [3.0], [1.0]).verdict == "not tested"


def test_p_values_are_corrected_for_the_rows_of_each_column():
    def difference(row, column, p):
        return Difference(row, "base", column, 1.0, 0.0, 2.0, p, "")

    found = correct_for_rows(
        [difference("a", "x", 0.03), difference("b", "x", 0.01), difference("c", "x", None), difference("a", "y", 0.03)]
    )
    assert [d.p for d in found] == [0.03, 0.02, None, 0.03]
