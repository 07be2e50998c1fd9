"""Training with budgets: what a step draws, and that it is the step of a model of that budget alone."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import vitx
from vitx.configuration import from_dict, to_dict
from vitx.errors import UserError
from vitx.layers.dynamic_tokens import DynamicTokens
from vitx.models.base import resize_position_tables
from vitx.models.budgets import Budget, check_budgets
from vitx.tasks.classification import Classification
from vitx.training.step import TrainState, train_step

SMALL = {"num_frames": 4, "image_size": 8, "tubelet_size": (1, 4, 4), "num_classes": 4}
SMALL |= {"hidden_size": 8, "num_layers": 1, "num_heads": 2, "mlp_dim": 8}
BUDGETS = (Budget(), Budget(num_tokens=5), Budget(num_tokens=2, num_frames=2, image_size=(4, 8)))


def test_a_step_is_that_of_the_budget_which_seed_and_step_draw():
    model, task = vitx.create_model("vivit_b_16x2", **SMALL), Classification()
    rng = np.random.default_rng(0)
    batch = {"video": jnp.asarray(rng.integers(0, 255, (4, 4, 8, 8, 3), np.uint8))}
    batch |= {"labels": {"action": jnp.arange(4)}, "weight": jnp.ones(4)}
    shapes = jax.eval_shape(lambda: task.init(model, jax.random.key(0), batch))
    variables = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape, scale=0.3), jnp.float32), shapes)
    optimizer = optax.sgd(0.1)
    step = functools.partial(train_step, model=model, task=task, optimizer=optimizer, seed=3, ema_decay=None)

    def loss_of(budget, params):
        """The loss of a model that was created for the budget, on clips that are reduced beforehand."""
        fitted = budget.fit_model(model)
        frames, *size = fitted.input_shape[:3]
        first = (np.arange(frames) + 0.5) * 4 / frames
        video = batch["video"][:, first.astype(int)].astype(jnp.float32)
        video = video.reshape(4, frames, size[0], 8 // size[0], 8, 3).mean(axis=3).round().astype(jnp.uint8)
        variables = resize_position_tables({"params": params}, model, fitted)
        logits = fitted.apply(variables, task.normalise(video))
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch["labels"]["action"]).mean()

    @jax.jit
    def run(variables):
        state = TrainState(jnp.int32(0), variables, optimizer.init(variables["params"]), {})
        steps = jax.lax.map(lambda n: step(state.replace(step=n), batch, budgets=BUDGETS)[1], jnp.arange(12))
        return steps, [loss_of(budget, variables["params"]) for budget in BUDGETS]

    steps, losses = run(variables)
    losses = [float(loss) for loss in losses]
    drawn = [int(np.abs(loss - np.array(losses)).argmin()) for loss in steps["loss"]]
    assert set(drawn) == {0, 1, 2} and len({round(loss, 4) for loss in losses}) == 3
    np.testing.assert_allclose(steps["loss"], [losses[i] for i in drawn], rtol=1e-2)
    norms = np.asarray(steps["gradient_norm"])
    assert all(np.ptp(norms[np.array(drawn) == i]) < 1e-4 * norms.max() for i in range(3))


@pytest.fixture
def joint(small):
    """The small experiment with a model of one encoder: 2 times, 2 x 2 places."""
    shape = {name: getattr(small.model, name) for name in ("num_frames", "image_size", "tubelet_size", "num_classes")}
    return small.override({"model": vitx.create_model("vivit_ti_16x2", **shape, num_layers=1)})


def test_budgets_are_settings_like_any_other(joint):
    experiment = joint.override({"training.budgets": (Budget(num_tokens=3), Budget(num_frames=2, image_size=(12, 24)))})
    assert from_dict(to_dict(experiment)) == experiment
    few, small = (budget.fit_model(joint.model) for budget in experiment.training.budgets)
    assert few.reducer == DynamicTokens(3) and small.grid == (1, 1, 2) and small.reducer is None
    assert Budget(num_tokens=1, image_size=12).fit_model(few).reducer == DynamicTokens(1)  # in place of 3 of 2


@pytest.mark.parametrize(
    ("budget", "words"),
    [
        (Budget(num_tokens=0), ["reducer.budget is 0", "expected 1", "8"]),
        (Budget(num_tokens=5, image_size=12), ["reducer.budget is 5", "2"]),
        (Budget(num_frames=3), ["3, 24, 24", "num_frames"]),
        (Budget(num_frames=8), ["8, 24, 24", "4, 24, 24"]),
        (Budget(image_size=48), ["4, 48, 48", "4, 24, 24"]),
    ],
)
def test_a_budget_that_the_model_cannot_have_is_refused_with_the_settings(budget, words, joint):
    with pytest.raises(UserError, match=r"training\.budgets\[1\].*" + ".*".join(words)):
        check_budgets(joint.override({"training.budgets": (Budget(), budget)}))


def test_other_clips_need_positions_that_can_be_interpolated(joint):
    fixed = joint.override({"model.position_kind": "sinusoidal"})
    with pytest.raises(UserError, match=r"training\.budgets\[0\].*ViViT has positions"):
        check_budgets(fixed.override({"training.budgets": (Budget(num_frames=2),)}))
    check_budgets(fixed.override({"training.budgets": (Budget(num_tokens=2),)}))
    with pytest.raises(UserError, match=r"data\.num_frames cannot change"):
        fixed.for_evaluation({"data.num_frames": 2})
    assert joint.for_evaluation({"data.num_frames": 2}).model.num_frames == 2


def test_a_network_without_tokens_has_budgets_of_frames_and_size(small):
    cnn = small.override({"model": "cnn_small"})
    check_budgets(cnn.override({"training.budgets": (Budget(num_frames=2, image_size=12),)}))
    with pytest.raises(UserError, match=r"training\.budgets\[0\].*no tokens"):
        check_budgets(cnn.override({"training.budgets": (Budget(num_tokens=2),)}))
