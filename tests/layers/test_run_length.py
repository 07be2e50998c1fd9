"""Run-length tokens: against a slow loop, on clips that change everywhere, nowhere, or more than the budget allows."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vitx
from vitx.configuration import override
from vitx.errors import UserError
from vitx.layers.run_length import RunLengthTokens, find_runs

SMALL = {"num_frames": 6, "image_size": 8, "tubelet_size": (2, 4, 4), "num_classes": 3}
SMALL |= {"hidden_size": 16, "num_layers": 2, "num_heads": 2, "mlp_dim": 16}
GRID, SIZE = (3, 2, 2), 12


def find_slowly(tubelets, threshold, budget):
    """Returns (first token of each run, length of each, run of each token) of one clip of GRID."""
    x = np.asarray(tubelets, np.float64).reshape(3, 4, -1)
    change = {(t, p): np.inf if t == 0 else np.abs(x[t, p] - x[t - 1, p]).mean() for t in range(3) for p in range(4)}
    starts = sorted((where for where in change if change[where] > threshold), key=lambda where: -change[where])
    kept = sorted(starts[:budget])
    owners = [kept.index(max(start for start in kept if start[1] == p and start[0] <= t)) for t, p in sorted(change)]
    return (
        [4 * t + p for t, p in kept],
        [owners.count(run) for run in range(len(kept))],
        owners,
        len(starts) - len(kept),
    )


@pytest.mark.parametrize("threshold", [0.0, 0.4, 10.0])
@pytest.mark.parametrize("budget", [None, 4, 7, 12])
def test_runs_equal_those_of_a_slow_loop(threshold, budget):
    rng = np.random.default_rng(0)
    tubelets = rng.normal(size=(3, SIZE, 5, 3)).astype(np.float32)
    tubelets *= rng.uniform(size=(3, SIZE, 1, 1)) ** 2
    tubelets[1, 4:8] = tubelets[1, :4]  # the second time repeats the first
    found = find_runs(jnp.asarray(tubelets), GRID, threshold=threshold, budget=budget)
    for clip in range(3):
        first, lengths, owners, num_dropped = find_slowly(tubelets[clip], threshold, budget or SIZE)
        assert found.used[clip].tolist() == [slot < len(first) for slot in range(budget or SIZE)]
        assert found.first[clip, : len(first)].tolist() == first
        assert found.lengths[clip, : len(first)].tolist() == lengths and found.lengths[clip].sum() == SIZE
        assert found.owners[clip].tolist() == owners and found.num_dropped[clip] == num_dropped


@pytest.fixture(scope="module")
def video():
    return jax.random.normal(jax.random.key(3), (2, 6, 8, 8, 3))


@pytest.fixture(scope="module", params=["vivit_b_16x2", "videomae_b_16x2", "timesformer_b_16_joint"])
def trained(request, video):
    """(model, variables far from the initial ones)."""
    model = vitx.create_model(request.param, **SMALL)
    variables = jax.jit(model.init)(jax.random.key(0), video)
    return model, jax.tree.map(lambda x: x + 0.2 * jnp.sin(jnp.arange(x.size)).reshape(x.shape), variables)


def logits(model, variables, video, **reducer):
    return jax.jit(override(model, {"reducer": RunLengthTokens(**reducer)}).apply)(variables, video)


def test_a_clip_that_changes_everywhere_is_left_as_it_is(trained, video):
    model, variables = trained
    found = logits(model, variables, video, threshold=0.0)
    np.testing.assert_allclose(found, jax.jit(model.apply)(variables, video), rtol=1e-5, atol=1e-6)


def test_a_still_clip_keeps_the_tokens_of_one_time_whatever_the_budget(trained, video):
    model, variables = trained
    still = jnp.broadcast_to(video[:, :1], video.shape)
    runs = RunLengthTokens(threshold=0.0).observe(
        jnp.broadcast_to(jnp.arange(4.0)[:, None, None], (1, 3, 4, 1, 1)).reshape(1, 12, 1, 1), GRID
    )
    assert runs.used.sum() == 4 and runs.lengths[0, :4].tolist() == [3, 3, 3, 3]
    expected = logits(model, variables, still, threshold=0.0)
    np.testing.assert_allclose(logits(model, variables, still, budget=4), expected, rtol=1e-5, atol=1e-6)


def test_unused_slots_and_what_they_hold_change_nothing(trained, video):
    """A clip whose second half repeats its first frame, alone and beside a clip that needs every slot."""
    model, variables = trained
    partly = video.at[0, 2:].set(video[0, :1])
    alone = logits(model, variables, partly[:1], threshold=0.0, budget=8)
    beside = logits(model, variables, partly, threshold=0.0, budget=12)
    np.testing.assert_allclose(alone[0], beside[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("threshold", [0.0, 0.4])
def test_packed_runs_are_those_of_each_clip_where_there_are_slots_for_all(threshold):
    tubelets = jax.random.normal(jax.random.key(0), (4, SIZE, 5, 3)).at[1, 4:].set(0.0)
    alone = find_runs(tubelets, GRID, threshold=threshold)
    packed = find_runs(tubelets, GRID, threshold=threshold, clips_per_sequence=2)
    for clip in range(4):
        row, offset = clip // 2, clip % 2 * SIZE
        first = np.asarray(packed.first[row])[np.asarray(packed.used[row])]
        own = first[(first >= offset) & (first < offset + SIZE)] - offset
        assert own.tolist() == alone.first[clip][alone.used[clip]].tolist()
        begins = packed.first[row][packed.owners[row, offset : offset + SIZE]] - offset
        assert begins.tolist() == alone.first[clip][alone.owners[clip]].tolist()
    assert not packed.num_dropped.any()


def test_a_still_clip_leaves_its_slots_to_the_one_it_is_packed_with():
    moving = jax.random.normal(jax.random.key(0), (1, SIZE, 5, 3))
    tubelets = jnp.concatenate([jnp.zeros_like(moving), moving])
    alone = find_runs(tubelets, GRID, budget=8)
    assert alone.num_dropped.tolist() == [0, 4]  # 12 runs of the moving clip in 8 slots
    packed = find_runs(tubelets, GRID, budget=8, clips_per_sequence=2)
    assert packed.num_dropped.tolist() == [0] and packed.used.all()


@pytest.mark.parametrize("pooling", ["class", "mean"])
def test_packed_clips_attend_to_themselves_alone(pooling):
    model = vitx.create_model("vivit_b_16x2", **SMALL, pooling=pooling)
    clips = jax.random.normal(jax.random.key(5), (6, 6, 8, 8, 3))
    clips = clips.at[::2].set(clips[::2, :1])  # every other clip is still
    variables = jax.jit(model.init)(jax.random.key(0), clips)
    variables = jax.tree.map(lambda x: x + 0.2 * jnp.sin(jnp.arange(x.size)).reshape(x.shape), variables)
    alone = logits(model, variables, clips, threshold=0.0)
    for clips_per_sequence in (2, 3, 4):  # 4 is packed by 2
        packed = logits(model, variables, clips, threshold=0.0, budget=12, clips_per_sequence=clips_per_sequence)
        np.testing.assert_allclose(packed, alone, rtol=1e-5, atol=1e-6)
    shared = logits(model, variables, clips, threshold=0.0, budget=8, clips_per_sequence=2)
    np.testing.assert_allclose(shared, alone, rtol=1e-5, atol=1e-6)
    assert np.abs(logits(model, variables, clips, threshold=0.0, budget=8) - alone).max() > 1e-4


@pytest.mark.parametrize("clips", [1, 2])
def test_gradients_are_finite_and_reach_the_length_embedding(video, clips):
    reducer = RunLengthTokens(budget=6, length_embedding=True, clips_per_sequence=clips)
    model = vitx.create_model("vivit_b_16x2", **SMALL, reducer=reducer)
    variables = jax.jit(model.init)(jax.random.key(0), video)
    table = variables["params"]["encoder"]["length_embedding"]["embedding"]
    assert table.shape == (4, 16) and not table.any()
    variables = jax.tree.map(lambda x: x + 0.1, variables)  # the head begins with zeros, which let no gradient through
    gradients = jax.jit(jax.grad(lambda v: (model.apply(v, video) ** 2).sum()))(variables)
    assert all(jnp.isfinite(x).all() for x in jax.tree.leaves(gradients))
    assert gradients["params"]["encoder"]["length_embedding"]["embedding"].any()


def test_an_encoder_without_a_carry_raises(trained, video):
    model, variables = trained
    model = override(model, {"reducer": RunLengthTokens()})
    tokens = jax.jit(functools.partial(model.apply, method="tokens"))(variables, video)
    with pytest.raises(ValueError, match="observe"):
        model.apply(variables, tokens, method="encode")


@pytest.mark.parametrize("name", ["vivit_b_16x2_fe", "vivit_b_16x2_fsa", "timesformer_b_16_divided"])
def test_models_that_need_every_token_are_refused(name):
    settings = SMALL | ({"num_frames": 3, "tubelet_size": (1, 4, 4)} if name.startswith("times") else {})
    with pytest.raises(UserError, match="reducer"):
        vitx.create_model(name, **settings, reducer=RunLengthTokens(budget=6))
    with pytest.raises(UserError, match="reducer"):  # no token is left out, and yet they change their order
        vitx.create_model(name, **settings, reducer=RunLengthTokens())


@pytest.mark.parametrize("budget", [0, 3, 13])
def test_a_budget_below_one_time_or_above_the_clip_is_refused(budget):
    with pytest.raises(UserError, match=f"budget is {budget}; expected 4, .* 12"):
        vitx.create_model("vivit_b_16x2", **SMALL, reducer=RunLengthTokens(budget=budget))


def test_a_negative_threshold_and_no_clip_in_a_sequence_are_refused():
    with pytest.raises(ValueError, match=r"threshold is -0\.1"):
        RunLengthTokens(threshold=-0.1)
    with pytest.raises(ValueError, match="clips_per_sequence is 0"):
        RunLengthTokens(clips_per_sequence=0)
