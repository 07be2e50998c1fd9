"""Numbers that say whether an explanation is true."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vitx
from tests.explain.conftest import TARGET, Linear, exact_parts
from vitx.data.moving_digits import CONFIGS, ClipConfig, digit_coverage, render_clip
from vitx.data.sources import MovingDigits
from vitx.errors import UserError
from vitx.explain.faithfulness import (
    deletion_and_insertion,
    localisation,
    order_dependence,
    random_like,
    randomisation_check,
)
from vitx.explain.methods import relevance
from vitx.explain.score import Target
from vitx.run import train


def test_deletion_falls_and_insertion_rises_faster_for_the_true_order(linear, video):
    truth = exact_parts(linear, video, 0.0).astype(np.float32)
    noise = np.random.default_rng(0).permutation(truth.ravel()).reshape(truth.shape)
    true, shuffled = (deletion_and_insertion(*linear, video, TARGET, values) for values in (truth, noise))
    assert true.deletion_area < shuffled.deletion_area and true.insertion_area > shuffled.insertion_area
    np.testing.assert_allclose(true.deletion[[0, -1]], true.insertion[[-1, 0]], rtol=1e-5)
    assert len(true.fraction) == 21 and true.fraction[0] == 0 and true.fraction[-1] == 1


def test_randomisation_separates_what_was_learnt_from_what_the_video_shows(linear, video):
    model, variables = linear
    other = random_like(variables, jax.random.key(1))
    check = [
        randomisation_check(model, variables, x, video, TARGET, "integrated_gradients", steps=2)
        for x in (variables, other)
    ]
    assert check[0] == pytest.approx(1) and abs(check[1]) < 0.1


def test_order_matters_to_a_model_that_weighs_frames_and_not_to_their_average(linear, video):
    model, variables = linear
    kernel = variables["params"]["Dense_0"]["kernel"]
    same = kernel.reshape(len(video), -1, 3).mean(axis=0, keepdims=True)
    average = {
        "params": {"Dense_0": variables["params"]["Dense_0"] | {"kernel": jnp.tile(same, (4, 1, 1)).reshape(-1, 3)}}
    }
    ordered = [abs(order_dependence(model, x, video, TARGET, jax.random.key(0))) for x in (variables, average)]
    assert ordered[0] > 0.01 and ordered[1] == pytest.approx(0, abs=1e-5)


def test_one_output_has_no_probability_to_lose(video):
    model = Linear(num_classes=1)
    variables = model.init(jax.random.key(0), video[None])
    with pytest.raises(UserError, match="one output"):
        order_dependence(model, variables, video, Target(0), jax.random.key(0))


def test_localisation_is_the_density_of_relevance_on_the_object():
    mask = np.zeros((2, 4, 4), bool)
    mask[:, :2, :2] = True
    assert localisation(np.ones((2, 4, 4), np.float32), mask) == pytest.approx(1)
    assert localisation(mask.astype(np.float32), mask) == pytest.approx(4)
    assert localisation(-mask.astype(np.float32), mask) == 1  # nothing speaks for the class


@pytest.mark.parametrize("name", ["standard", "harder"])
def test_the_digit_is_where_its_coverage_says(name):
    config = CONFIGS[name]
    frames, _, _ = render_clip(config, "test", 5)
    coverage = digit_coverage(config, "test", 5)
    assert coverage.shape == frames.shape[:3] and coverage.min() >= 0 and coverage.max() > 0.8
    grey = frames.mean(axis=-1)
    on, off = grey[coverage > 0.8], grey[coverage == 0]
    assert np.median(on) > 180 > np.median(off) + 60


@pytest.mark.slow
def test_methods_find_the_digit_better_than_chance(tmp_path, pytestconfig):
    """Trains for three minutes on a CPU."""
    config = ClipConfig(num_clips=(2000, 200, 200))
    experiment = vitx.load_experiment(pytestconfig.rootpath / "experiments" / "quickstart.py").override(
        {"data.dataset": MovingDigits(config, str(tmp_path / "digits")), "training.steps": 300}
    )
    run = train(experiment, tmp_path / "run")
    densities = {name: [] for name in ("gradient_attention", "occlusion", "integrated_gradients", "attention_rollout")}
    for index in range(8):
        frames, _, motion = render_clip(config, "test", index)
        video = run.experiment.task.normalise(frames)
        for name, found in densities.items():
            _, values = relevance(run.experiment.model, run.variables, video, Target(motion), name)
            found.append(localisation(values, digit_coverage(config, "test", index) > 0.5))
    means = {name: np.mean(found) for name, found in densities.items()}
    assert all(mean > 1.2 for mean in means.values()), means
