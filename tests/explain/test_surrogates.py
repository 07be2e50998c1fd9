"""LIME and KernelSHAP against exact answers: enumeration of all coalitions, and linear models."""

import itertools
import math

import jax.numpy as jnp
import numpy as np
import pytest

from tests.explain.conftest import TARGET, exact_parts
from vitx.errors import UserError
from vitx.explain.perturbation import occlusion
from vitx.explain.score import class_score
from vitx.explain.surrogates import (
    draw_lime_coalitions,
    draw_shapley_coalitions,
    fit_ridge,
    fit_shapley,
    kernel_shap,
    lime,
)
from vitx.explain.tubelets import Tubelets, score_coalitions

TUBELET = (2, 12, 16)  # 8 tubelets, 256 coalitions
TUBELETS = Tubelets((4, 24, 32), TUBELET)


def per_tubelet(found):
    return np.asarray(found)[:: TUBELET[0], :: TUBELET[1], :: TUBELET[2]].ravel()


def shapley_by_definition(score_of, count):
    """Returns Shapley values as the mean over orders of what a tubelet adds (Shapley 1953), of every coalition once."""
    values = np.zeros(count)
    for members in itertools.product((False, True), repeat=count):
        for i in range(count):
            if not members[i]:
                size = sum(members)
                weight = math.factorial(size) * math.factorial(count - size - 1) / math.factorial(count)
                values[i] += weight * (score_of[(*members[:i], True, *members[i + 1 :])] - score_of[members])
    return values


@pytest.fixture(scope="module")
def scores(transformer, video):
    """(all coalitions of 8 tubelets, logit of each) of a small Transformer, each clip built by hand."""
    model, variables = transformer("vivit_ti_16x2_fe")
    coalitions = np.array(list(itertools.product((False, True), repeat=8)))
    clips = []
    for kept in coalitions.reshape(-1, 2, 2, 2):
        mask = kept.repeat(2, axis=0).repeat(12, axis=1).repeat(16, axis=2)[..., None]
        clips.append(np.where(mask, video, 0.5).astype(np.float32))
    return coalitions, np.asarray(class_score(model, variables, jnp.asarray(np.stack(clips)), TARGET), np.float64)


def test_kernel_shap_of_few_tubelets_is_shapleys_definition(transformer, video, scores):
    found = kernel_shap(*transformer("vivit_ti_16x2_fe"), video, TARGET, tubelet=TUBELET, baseline=0.5)
    coalitions, logits = scores
    expected = shapley_by_definition(dict(zip(map(tuple, coalitions.tolist()), logits, strict=True)), 8)
    np.testing.assert_allclose(per_tubelet(found), expected, atol=1e-4 * np.ptp(logits))
    assert np.ptp(expected) > 0.05 * np.ptp(logits)


def test_a_fit_to_all_coalitions_of_a_random_game_is_exact():
    every = list(itertools.product((False, True), repeat=6))
    table = dict(zip(every, np.random.default_rng(0).standard_normal(64), strict=True))
    coalitions, weights = draw_shapley_coalitions(6, 62, seed=0)
    scores = np.array([table[tuple(coalition)] for coalition in coalitions.tolist()])
    values = fit_shapley(coalitions, weights, scores, table[every[0]], table[every[-1]])
    np.testing.assert_allclose(values, shapley_by_definition(table, 6), atol=1e-12)


@pytest.mark.parametrize(("count", "samples"), [(8, 254), (12, 40), (64, 400), (64, 20), (2, 2), (1, 1)])
def test_shapley_values_sum_to_the_difference_however_few_the_samples(count, samples):
    coalitions, weights = draw_shapley_coalitions(count, samples, seed=0)
    assert len(coalitions) <= samples and len(weights) == len(coalitions)
    scores = np.random.default_rng(1).standard_normal(len(coalitions))
    values = fit_shapley(coalitions, weights, scores, -3.0, 4.0)
    assert len(values) == count and values.sum() == pytest.approx(7, abs=1e-12)


def test_drawn_coalitions_come_near_the_exact_values(scores):
    table = {coalition.tobytes(): logit for coalition, logit in zip(*scores, strict=True)}
    values = {}
    for samples in (254, 120):
        coalitions, weights = draw_shapley_coalitions(8, samples, seed=0)
        logits = np.array([table[coalition.tobytes()] for coalition in coalitions])
        values[samples] = fit_shapley(coalitions, weights, logits, scores[1][0], scores[1][-1])
        assert len(coalitions) == samples
    assert np.abs(values[254] - values[120]).max() < 0.1 * np.ptp(values[254])


def test_every_size_of_coalition_has_the_weight_of_the_kernel():
    for samples in (2**10 - 2, 300):
        coalitions, weights = draw_shapley_coalitions(10, samples, seed=0)
        sizes, complete = coalitions.sum(axis=1), len(np.unique(coalitions, axis=0)) == 2**10 - 2
        assert complete == (samples == 2**10 - 2)
        for size in (1, 2, 8, 9) if not complete else range(1, 10):
            assert weights[sizes == size].sum() == pytest.approx(1 / (size * (10 - size)))
        assert weights.sum() == pytest.approx(sum(1 / (size * (10 - size)) for size in range(1, 10)))


@pytest.mark.parametrize("samples", [256, 60])
def test_a_linear_model_is_explained_exactly_by_both(linear, video, samples):
    parts = exact_parts(linear, video, 0.5).reshape(2, 2, 2, 12, 2, 16).sum((1, 3, 5)).ravel()
    settings = {"tubelet": TUBELET, "baseline": 0.5, "samples": samples}
    np.testing.assert_allclose(per_tubelet(kernel_shap(*linear, video, TARGET, **settings)), parts, atol=1e-4)
    found = lime(*linear, video, TARGET, ridge=1e-9, **settings)
    np.testing.assert_allclose(per_tubelet(found), parts, atol=1e-4)


def test_lime_minimises_its_objective(scores):
    """No step away from the solution, of coefficients and intercept together, lowers the penalised error."""
    coalitions, weights = draw_lime_coalitions(8, 256, seed=0)
    np.testing.assert_array_equal(coalitions, scores[0])
    assert weights[-1] == 1 and weights[0] == pytest.approx(math.exp(-16))
    coefficients = fit_ridge(coalitions, weights, scores[1], 0.01)
    fractions = weights / weights.sum()
    intercept = fractions @ (scores[1] - coalitions @ coefficients)

    def objective(step):
        residuals = scores[1] - (intercept + step[0]) - coalitions @ (coefficients + step[1:])
        return fractions @ residuals**2 + 0.01 * np.sum((coefficients + step[1:]) ** 2)

    steps = 1e-3 * np.random.default_rng(0).standard_normal((50, 9))
    assert all(objective(step) > objective(np.zeros(9)) for step in steps)


def test_explanations_depend_on_the_seed_alone(linear, video):
    settings = {"tubelet": (1, 6, 8), "samples": 300}
    for method in (lime, kernel_shap):
        first, again = (method(*linear, video, TARGET, seed=0, **settings) for _ in range(2))
        np.testing.assert_array_equal(first, again)
        assert first.shape == (4, 24, 32)
    for draw in (draw_lime_coalitions, draw_shapley_coalitions):
        assert not np.array_equal(*(draw(64, 300, seed)[0][-100:] for seed in (0, 1)))


@pytest.mark.parametrize("samples", [64, 100, 126])
def test_samples_too_few_to_determine_shapley_values_are_refused(linear, video, samples):
    with pytest.raises(UserError, match=rf"samples is {samples}\b.*\b256\b.*tubelet"):
        kernel_shap(*linear, video, TARGET, tubelet=(1, 6, 8), samples=samples)


def test_a_linear_model_of_many_tubelets_is_explained_exactly(linear, video):
    parts = exact_parts(linear, video, 0.0).reshape(4, 4, 6, 4, 8).sum((2, 4)).ravel()
    values = kernel_shap(*linear, video, TARGET, tubelet=(1, 6, 8), samples=256)
    np.testing.assert_allclose(np.asarray(values)[:, ::6, ::8].ravel(), parts, atol=1e-4)


@pytest.mark.parametrize("batch_size", [1, 5, 1000])
def test_explanations_do_not_depend_on_the_batch_size(linear, video, batch_size):
    for method in (occlusion, kernel_shap):
        expected = method(*linear, video, TARGET, tubelet=(2, 12, 16))
        found = method(*linear, video, TARGET, tubelet=(2, 12, 16), batch_size=batch_size)
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_a_coalition_keeps_its_tubelets_and_replaces_the_others(linear, video):
    tubelets = Tubelets.divide((4, 24, 32), (3, 10, 20), num_parts=1)  # the last ones are smaller
    assert tubelets.grid == (2, 3, 2)
    kept = np.zeros((1, 12), bool)
    kept[0, [0, 11]] = True
    clip = np.full(video.shape, 0.5, np.float32)
    for place in (np.s_[:3, :10, :20], np.s_[3:, 20:, 20:]):
        clip[place] = np.asarray(video)[place]
    model, variables = linear
    settings = {"tubelets": tubelets, "baseline": 0.5, "batch_size": 16}
    (found,) = score_coalitions(model, variables, video, TARGET, lambda i: kept[i], 1, **settings)
    assert float(found) == pytest.approx(float(class_score(*linear, jnp.asarray(clip[None]), TARGET)[0]), rel=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"samples": 0}, r"samples.*0.*1"),
        ({"samples": 63}, r"samples.*63.*64.*\(1, 6, 8\)"),
        ({"seed": -1}, r"seed.*-1.*0"),
        ({"batch_size": -1}, r"batch_size.*-1"),
        ({"tubelet": (0, 8, 8)}, r"\(0, 8, 8\).*4 x 24 x 32"),
        ({"kernel_width": 0.0}, r"kernel_width.*0"),
    ],
)
def test_options_out_of_range_are_refused(linear, video, options, message):
    with pytest.raises(UserError, match=message):
        lime(*linear, video, TARGET, **options)


@pytest.mark.parametrize("size", [(8, 8), 8, (2, 8.0, 8), "288"])
def test_tubelets_of_another_kind_than_three_lengths_are_refused(size):
    with pytest.raises(UserError, match=r"8.*4 x 24 x 32"):
        Tubelets.divide((4, 24, 32), size, num_parts=4)
