"""Layouts: every layout equals a plain attention under a mask, and may own parameters, on a mesh too."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from vitx.layers.attention import SelfAttention, attention_weights, core
from vitx.layers.layouts import LAYOUTS, Layout, Parameter, attend_in_groups, split_heads

GRIDS = [(4, 4, 6), (3, 5, 4), (1, 3, 5), (3, 1, 2)]


@pytest.mark.parametrize("name", sorted(LAYOUTS))
def test_layout_equals_masked_joint_attention(name, masked_attention):
    cases = [(grid, num_prefix) for grid in GRIDS for num_prefix in (0, 1, 2)]
    qkvs = [
        jax.random.normal(jax.random.key(0), (3, 2, num_prefix + np.prod(grid), 4, 3)) for grid, num_prefix in cases
    ]

    @jax.jit
    def attend(qkvs):
        calls = zip(qkvs, cases, strict=True)
        return [LAYOUTS[name](core, *qkv, grid=grid, num_prefix=num_prefix) for qkv, (grid, num_prefix) in calls]

    for qkv, (grid, num_prefix), found in zip(qkvs, cases, attend(qkvs), strict=True):
        expected = masked_attention(name, *qkv, grid, num_prefix)
        np.testing.assert_allclose(found, expected, atol=2e-5, err_msg=f"{grid}, num_prefix {num_prefix}")


def attend_to_past(core, q, k, v, *, grid, num_prefix, decay):
    """Lines of time, with a learned penalty for each step back in time."""
    steps = np.arange(grid[0])[:, None] - np.arange(grid[0])

    def biased(q, k, v, mask=None):
        return core(q, k, v, bias=-decay[:, None, None] * steps, mask=jnp.asarray(steps >= 0))

    return attend_in_groups(biased, q, k, v, grid=grid, num_prefix=num_prefix, groups="h w", members="t")


def declare_decay(*, grid, num_prefix, num_heads, head_dim):
    return {"decay": Parameter((num_heads,), jax.nn.initializers.uniform(1.0), head_axis=0)}


PAST = Layout(attend_to_past, "locations", parameters=declare_decay)


def test_layout_with_parameters_has_them_in_the_scope_of_its_attention():
    LAYOUTS.add("past_and_space", split_heads(PAST, LAYOUTS["space"]))
    attention, x, grid = SelfAttention(4, "past_and_space"), jax.random.normal(jax.random.key(0), (2, 12, 8)), (3, 2, 2)
    variables = attention.init(jax.random.key(1), x, grid=grid)
    shapes = {path: leaf.shape for path, leaf in flatten_dict(variables["params"], sep="/").items()}
    assert shapes["0_decay"] == (2,) and len(shapes) == 4 * 2 + 1

    p = variables["params"]
    q, k, v = ((x @ p[name]["kernel"] + p[name]["bias"]).reshape(2, 3, 4, 4, 2) for name in ("query", "key", "value"))
    expected = []
    for place in range(4):  # one line of time for each place of the frame, with half of the heads
        line = [part[:, :, place, :2] for part in (q, k, v)]
        steps = np.arange(3)[:, None] - np.arange(3)
        bias = jnp.asarray(-np.asarray(p["0_decay"])[:, None, None] * steps)
        expected.append(core(*line, bias=bias, mask=jnp.asarray(steps >= 0)))
    out = attention.apply(variables, x, grid=grid)
    unprojected = (out - p["out"]["bias"]) @ np.linalg.inv(p["out"]["kernel"])
    found = unprojected.reshape(2, 3, 4, 4, 2)[:, :, :, :2]
    np.testing.assert_allclose(found, jnp.stack(expected, axis=2), rtol=1e-3, atol=1e-3)


def test_weights_of_a_fully_masked_row_are_equal():
    q, k = jax.random.normal(jax.random.key(0), (2, 1, 4, 1, 2))
    weights = attention_weights(q, k, mask=jnp.zeros((4, 4), bool))
    np.testing.assert_allclose(weights, 0.25)


def test_mesh_computes_a_layout_with_parameters_as_one_device_does():
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=8"
    command = [sys.executable, str(Path(__file__).with_name("layout_on_mesh.py"))]
    subprocess.run(command, check=True, env=os.environ | {"XLA_FLAGS": flags})
