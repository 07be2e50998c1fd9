"""Optimisers: their definitions written out, what decays, what is frozen, and what their state takes."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AbstractMesh, AxisType

from vitx.errors import UserError
from vitx.parameters import layer_numbers
from vitx.training.optimizers import LAMB, SGD, Adafactor, AdamW, Lion, Muon, Optax
from vitx.training.schedules import Constant
from vitx.training.sharding import state_shardings

PARAMS = {"dense": {"kernel": jnp.full((2, 2), 2.0), "bias": jnp.ones(2)}, "positions": jnp.ones(3)}


SHAPES = {
    "embedding": {"kernel": (4, 6), "bias": (6,)},
    "encoder": {"block_0": {"mlp": {"kernel": (6, 9), "bias": (9,)}}},
    "positions": {"positions": (5,)},
}


def draw_leaf(seed):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda shape: rng.standard_normal(shape), SHAPES, is_leaf=lambda x: isinstance(x, tuple))


# What each optimiser is, in numpy, for one array: (parameter, gradient, number of the step from 1, state) -> step of
# unit learning rate, without weight decay
def sgd(p, g, t, s):
    s["m"] = g + 0.9 * s.get("m", 0)
    return s["m"]


def nesterov(p, g, t, s):
    return g + 0.9 * sgd(p, g, t, s)


def adam(p, g, t, s):
    s["m"] = 0.9 * s.get("m", 0) + 0.1 * g
    s["v"] = 0.999 * s.get("v", 0) + 0.001 * g**2
    return s["m"] / (1 - 0.9**t) / (np.sqrt(s["v"] / (1 - 0.999**t)) + 1e-8)


def lion(p, g, t, s):
    m = s.get("m", 0)
    s["m"] = 0.99 * m + 0.01 * g
    return np.sign(0.9 * m + 0.1 * g)


def adafactor(p, g, t, s):
    keep, square = 1 - t**-0.8, g**2 + 1e-30
    if g.ndim == 2:
        s["r"] = keep * s.get("r", 0) + (1 - keep) * square.mean(1, keepdims=True)
        s["c"] = keep * s.get("c", 0) + (1 - keep) * square.mean(0, keepdims=True)
        v = s["r"] * s["c"] / s["r"].mean()
    else:
        v = s["v"] = keep * s.get("v", 0) + (1 - keep) * square
    step = g / np.sqrt(v)
    step = step / max(1, np.sqrt((step**2).mean()))
    return step * max(1e-3, np.sqrt((p**2).mean()))


def muon(p, g, t, s):
    """Of a block's matrix; all else is Adam with Nesterov's momentum."""
    b = 0.95 if g.shape == (6, 9) else 0.9
    s["m"] = b * s.get("m", 0) + (1 - b) * g
    corrected = b * s["m"] / (1 - b ** (t + 1)) + (1 - b) * g / (1 - b**t)
    if g.shape != (6, 9):
        s["v"] = 0.999 * s.get("v", 0) + 0.001 * g**2
        return corrected / (np.sqrt(s["v"] / (1 - 0.999**t)) + 1e-8)
    x = corrected / (np.linalg.norm(corrected) + 1e-8)
    for _ in range(5):
        square = x @ x.T
        x = 3.4445 * x + (-4.775 * square + 2.0315 * square @ square) @ x
    return 0.2 * np.sqrt(9) * x


@pytest.mark.parametrize(
    ("optimizer", "direction", "trusted"),
    [
        (SGD(), sgd, False),
        (SGD(nesterov=True, weight_decay=0.1), nesterov, False),
        (AdamW(weight_decay=0.1), adam, False),
        (LAMB(weight_decay=0.1, eps=1e-8), adam, True),
        (Lion(peak_lr=1e-2), lion, False),
        (Adafactor(min_dim_size_to_factor=2, weight_decay=0.1, clip_norm=1.0), adafactor, False),
        (Muon(), muon, False),
    ],
    ids=["sgd", "nesterov", "adamw", "lamb", "lion", "adafactor", "muon"],
)
def test_ten_steps_follow_the_definition(optimizer, direction, trusted):
    """Clipped by the global norm, decayed where it is a kernel, as long as the parameter under LAMB; float64."""
    transformation = optimizer.build(10)
    ours = jax.tree.map(jnp.float32, draw_leaf(0))
    state, update = transformation.init(ours), jax.jit(transformation.update)
    paths, structure = jax.tree_util.tree_flatten_with_path(draw_leaf(0))
    theirs, moments = [leaf for _, leaf in paths], [{} for _ in paths]
    for t in range(1, 11):
        gradient = draw_leaf(t)
        updates, state = update(jax.tree.map(jnp.float32, gradient), state, ours)
        ours = optax.apply_updates(ours, updates)
        leaves, rate = jax.tree.leaves(gradient), float(optimizer.schedule.build(optimizer.peak_lr, 10)(t - 1))
        norm = np.sqrt(sum((leaf**2).sum() for leaf in leaves))
        for i, (path, _) in enumerate(paths):
            step = direction(theirs[i], leaves[i] / max(1, norm), t, moments[i])
            if path[-1].key == "kernel":
                step = step + optimizer.weight_decay * theirs[i]
            if trusted:
                step = step * np.linalg.norm(theirs[i]) / np.linalg.norm(step)
            theirs[i] = theirs[i] - rate * step
    close = functools.partial(np.testing.assert_allclose, rtol=2e-5, atol=2e-6)
    jax.tree.map(close, ours, jax.tree.unflatten(structure, theirs))


@pytest.mark.peers
@pytest.mark.parametrize(
    ("ours", "name", "settings"),
    [
        (SGD(clip_norm=None), "SGD", {"momentum": 0.9}),
        (SGD(clip_norm=None, nesterov=True), "SGD", {"momentum": 0.9, "nesterov": True}),
        (AdamW(clip_norm=None, weight_decay=0.0), "AdamW", {"weight_decay": 0.0}),
        (Adafactor(min_dim_size_to_factor=2), "Adafactor", {}),
    ],
)
def test_ten_steps_equal_those_of_torch(ours, name, settings):
    import torch

    transformation, params = ours.build(10), jax.tree.map(jnp.float32, draw_leaf(0))
    theirs = [torch.nn.Parameter(torch.tensor(leaf, dtype=torch.float64)) for leaf in jax.tree.leaves(draw_leaf(0))]
    optimizer, state = getattr(torch.optim, name)(theirs, lr=1.0, **settings), transformation.init(params)
    for step in range(10):
        gradient = draw_leaf(step + 1)
        updates, state = transformation.update(jax.tree.map(jnp.float32, gradient), state, params)
        params = optax.apply_updates(params, updates)
        optimizer.param_groups[0]["lr"] = float(ours.schedule.build(ours.peak_lr, 10)(step))
        for parameter, leaf in zip(theirs, jax.tree.leaves(gradient), strict=True):
            parameter.grad = torch.tensor(leaf)
        optimizer.step()
    for leaf, parameter in zip(jax.tree.leaves(params), theirs, strict=True):
        np.testing.assert_allclose(leaf, parameter.detach().numpy(), rtol=2e-5, atol=2e-6)


def test_coupled_decay_joins_the_gradient_before_the_momentum():
    coupled = SGD(clip_norm=None, weight_decay=0.1, coupled_decay=True).build(10)
    plain, params = SGD(clip_norm=None).build(10), {"kernel": jnp.arange(6.0).reshape(2, 3)}
    states = [coupled.init(params), plain.init(params)]
    for step in range(3):
        gradient = {"kernel": jnp.full((2, 3), 0.5 * step)}
        decayed = jax.tree.map(lambda g, p: g + 0.1 * p, gradient, params)
        ours, states[0] = coupled.update(gradient, states[0], params)
        theirs, states[1] = plain.update(decayed, states[1], params)
        np.testing.assert_allclose(ours["kernel"], theirs["kernel"], rtol=1e-6)
        params = optax.apply_updates(params, ours)


EVERY = [SGD(), AdamW(), LAMB(), Lion(), Adafactor(min_dim_size_to_factor=2, momentum=0.9), Muon()]


@pytest.mark.parametrize("optimizer", EVERY, ids=lambda value: type(value).__name__)
def test_frozen_parameters_have_no_optimizer_state(optimizer):
    mesh = AbstractMesh((2, 4), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)
    for freeze in ((), ("embedding/", r".*block_[02]/")):
        transformation = dataclasses.replace(optimizer, freeze=freeze).build(10)
        state = jax.eval_shape(transformation.init, BLOCKS)
        paths = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in jax.tree.leaves_with_path(state)]
        for part, stays in (("embedding/", True), ("block_0/", True), ("block_2/", True), ("block_1/", False)):
            assert any(part in path for path in paths) != (bool(freeze) and stays)
        assert len(jax.tree.leaves(state_shardings(state, mesh))) == len(paths)


@pytest.mark.parametrize("optimizer", [AdamW(weight_decay=0.1), Muon(weight_decay=0.1)])
def test_freezing_changes_no_step_of_other_parameters(optimizer):
    """Nothing is clipped, so that none hears of another; layers are counted with the frozen ones."""
    whole = dataclasses.replace(optimizer, clip_norm=None, layer_decay=0.5)
    frozen = dataclasses.replace(whole, freeze=("embedding/", r".*block_[02]/"))

    def first(transformation):
        return jax.jit(lambda tree: transformation.update(tree, transformation.init(tree), tree)[0])(BLOCKS)

    steps, expected = first(frozen.build(10)), first(whole.build(10))
    for (path, step), other in zip(jax.tree.leaves_with_path(steps), jax.tree.leaves(expected), strict=True):
        stays = re.match("embedding/|.*block_[02]/", jax.tree_util.keystr(path, simple=True, separator="/"))
        assert other.any()
        np.testing.assert_allclose(step, 0 * other if stays else other, rtol=1e-6)


def test_freeze_pattern_without_a_match_is_refused_with_the_nearest_path():
    with pytest.raises(UserError, match=r"'embeding/'.* did you mean embedding/\? .*embedding/, head/"):
        AdamW(freeze=("head/", "embeding/")).build(10).init(BLOCKS)
    with pytest.raises(UserError, match=r"freeze is \('\.\*',\)"):
        AdamW(freeze=(".*",)).build(10).init(BLOCKS)
    with pytest.raises(ValueError, match="freeze has"):
        AdamW(freeze=("(",))


@pytest.mark.parametrize("optimizer", EVERY, ids=lambda value: type(value).__name__)
def test_first_moments_in_bfloat16_take_half_the_memory(optimizer):
    size, room = sum(leaf.size for leaf in jax.tree.leaves(BLOCKS)), {}
    for dtype in ("float32", "bfloat16"):
        init = dataclasses.replace(optimizer, state_dtype=dtype).build(10).init
        room[dtype] = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(jax.eval_shape(init, BLOCKS)))
    assert room["float32"] - room["bfloat16"] == 2 * size


@pytest.mark.parametrize("optimizer", [SGD(), AdamW()])
def test_first_moments_in_bfloat16_give_nearly_the_same_steps(optimizer):
    start, ends = jax.tree.map(jnp.float32, draw_leaf(0)), []
    for dtype in ("float32", "bfloat16"):
        transformation = dataclasses.replace(optimizer, state_dtype=dtype).build(20)
        params, state, update = start, transformation.init(start), jax.jit(transformation.update)
        for t in range(20):
            updates, state = update(jax.tree.map(jnp.float32, draw_leaf(t)), state, params)
            params = jax.tree.map(lambda p, u: p + u, params, updates)
        ends.append(params)
    moved, difference = (
        np.sqrt(sum(((a - b) ** 2).sum() for a, b in zip(*map(jax.tree.leaves, pair), strict=True)))
        for pair in ((start, ends[0]), ends)
    )
    assert 0 < difference < 0.01 * moved


@pytest.mark.smoke
def test_weight_decay_applies_to_kernels_alone():
    optimizer = AdamW(weight_decay=0.1).build(10)
    zero = jax.tree.map(jnp.zeros_like, PARAMS)
    updates, _ = optimizer.update(zero, optimizer.init(PARAMS), PARAMS)
    assert (updates["dense"]["kernel"] < 0).all()
    assert not updates["dense"]["bias"].any() and not updates["positions"].any()


BLOCKS = {
    "embedding": {"kernel": jnp.ones((2, 2))},
    "spatial_positions": {"positions": jnp.ones(3)},
    "temporal_positions": {"positions": jnp.ones(3)},
    "spatial_encoder": {
        **{f"block_{i}": {"mlp": {"kernel": jnp.eye(3, 5) + i, "bias": jnp.ones(5)}} for i in range(11)},
        "norm": {"scale": jnp.ones(3)},
    },
    "temporal_encoder": {"block_0": {"mlp": {"kernel": jnp.ones((3, 5))}}, "norm": {"scale": jnp.ones(3)}},
    "head": {"logits": {"kernel": jnp.ones((3, 2))}},
}


def test_layers_are_numbered_from_embedding_to_head():
    numbers = layer_numbers(BLOCKS)
    assert numbers["embedding"]["kernel"] == numbers["spatial_positions"]["positions"] == 0
    spatial = [numbers["spatial_encoder"][f"block_{i}"]["mlp"]["kernel"] for i in range(11)]
    assert spatial == list(range(1, 12))
    assert numbers["temporal_positions"]["positions"] == numbers["spatial_encoder"]["norm"]["scale"] == 11
    assert numbers["temporal_encoder"]["norm"]["scale"] == 13
    assert numbers["temporal_encoder"]["block_0"]["mlp"]["kernel"] == 12
    assert numbers["head"]["logits"]["kernel"] == 13


def test_layer_decay_slows_early_layers():
    ones = jax.tree.map(jnp.ones_like, BLOCKS)
    fast, slow = (SGD(clip_norm=None, layer_decay=decay).build(10) for decay in (None, 0.5))
    steps = [transformation.update(ones, transformation.init(BLOCKS), BLOCKS)[0] for transformation in (fast, slow)]
    ratio = jax.tree.map(lambda a, b: float((b / a).mean()), *steps)
    assert ratio == jax.tree.map(lambda layer: pytest.approx(0.5 ** (13 - layer)), layer_numbers(BLOCKS))


@pytest.mark.smoke
def test_muon_orthogonalises_block_matrices_and_uses_adam_elsewhere():
    rng = np.random.default_rng(0)
    gradient = jax.tree.map(lambda leaf: jnp.asarray(rng.standard_normal(leaf.shape), jnp.float32), BLOCKS)
    optimizer = Muon(weight_decay=0.0, clip_norm=None, peak_lr=1.0, newton_schulz_steps=10).build(10)
    step, _ = optimizer.update(gradient, optimizer.init(BLOCKS), BLOCKS)
    rate = Muon().schedule.build(1.0, 10)(0)
    matrix = step["spatial_encoder"]["block_3"]["mlp"]["kernel"] / rate
    singular = np.linalg.svd(matrix, compute_uv=False) / (0.2 * np.sqrt(5))
    assert singular.min() > 0.6 and singular.max() < 1.3
    assert np.sign(-np.einsum("ij,ij", matrix, gradient["spatial_encoder"]["block_3"]["mlp"]["kernel"])) == 1
    for path in (("head", "logits", "kernel"), ("embedding", "kernel")):
        found, sign = step, gradient
        for key in path:
            found, sign = found[key], sign[key]
        # Adam's first step is the sign; with Nesterov's momentum, which Optax's Muon gives to both, a little longer
        length = 0.9 * 0.1 / (1 - 0.9**2) + 0.1 / (1 - 0.9)
        np.testing.assert_allclose(found / rate, -length * jnp.sign(sign), rtol=1e-3)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (Optax(name="adabelief", arguments=(("eps", 1e-8),)), lambda rate: optax.adabelief(rate, eps=1e-8)),
        (Optax(name="contrib.schedule_free_adamw"), lambda rate: optax.contrib.schedule_free_adamw(rate)),
        (Optax(name="scale_by_rms"), lambda rate: optax.chain(optax.scale_by_rms(), optax.scale(-rate))),
    ],
)
def test_any_optax_optimizer_can_be_named(ours, theirs):
    """With a constant rate, ten steps equal those of Optax's own."""
    ours = dataclasses.replace(ours, clip_norm=None, peak_lr=0.01, schedule=Constant(warmup=0.0))
    params = {"kernel": jnp.arange(6.0).reshape(2, 3), "bias": jnp.ones(3)}
    found = []
    for transformation in (ours.build(10), theirs(0.01)):
        state, now = transformation.init(params), params
        for step in range(10):
            gradient = jax.tree.map(lambda p, step=step: jnp.sin(p + step), now)
            updates, state = transformation.update(gradient, state, now)
            now = optax.apply_updates(now, updates)
        found.append(now)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), *found)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "adabelif"}, "adabelif.*did you mean adabelief"),
        ({"name": "adam", "arguments": (("betas", 1),)}, "adam has no argument 'betas'"),
        ({"name": "adam", "arguments": (("learning_rate", 1.0),)}, "peak_lr"),
        ({"name": "adam", "state_dtype": "bfloat16"}, "state_dtype is bfloat16.*mu_dtype"),
    ],
)
def test_unknown_optax_names_and_arguments_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Optax(**settings)
