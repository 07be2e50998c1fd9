"""Sharding: every parameter is accounted for, kernels are split, batches are placed."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractMesh, AxisType

from vitx.errors import UserError
from vitx.models import VARIANTS
from vitx.training.optimizers import AdamW
from vitx.training.sharding import Mesh, state_shardings

EIGHT = AbstractMesh((2, 4), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)


@pytest.mark.parametrize(
    "name", ["vivit_b_16x2_fe", "vivit_ti_16x4_avg", "vivit_b_16x2_fsa", "timesformer_b_16_divided"]
)
def test_rules_account_for_every_array_and_split_the_kernels(name):
    model = VARIANTS[name]
    video = jnp.zeros((1, model.num_frames, model.image_size, model.image_size, 3))
    params = jax.eval_shape(model.init, jax.random.key(0), video)["params"]
    state = {"params": params, "optimizer": jax.eval_shape(AdamW().make(10).init, params)}
    shardings = state_shardings(state, EIGHT)
    held = whole = 0
    for leaf, sharding in zip(jax.tree.leaves(state), jax.tree.leaves(shardings), strict=True):
        whole += leaf.size
        held += leaf.size // (4 if "fsdp" in sharding.spec else 1)
    assert held / whole < 0.27


def test_a_parameter_without_a_rule_is_an_error():
    with pytest.raises(ValueError, match="no sharding rule accounts for the parameter /params/mystery"):
        state_shardings({"params": {"mystery": jax.ShapeDtypeStruct((3,), jnp.float32)}}, EIGHT)


@pytest.mark.parametrize("axes", [(3, 1), (0, 1), (-1, -1), (2, 2), (-1, 0)])
def test_a_mesh_that_does_not_cover_the_devices_is_told(axes):
    with pytest.raises(UserError, match="the product of the axes must be that number"):
        Mesh(*axes).make(8)
