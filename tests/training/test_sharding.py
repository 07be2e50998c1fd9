"""Sharding: every parameter is accounted for and split, meshes do not change results, mistakes are reported."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh, AxisType, PartitionSpec

from vitx.errors import UserError
from vitx.layers.partition import batch_sharding, entry_sharding
from vitx.models import VARIANTS
from vitx.models.timesformer import TimeSformer
from vitx.models.vivit import FactorisedEncoder, ViViT
from vitx.training.optimizers import Adafactor, AdamW
from vitx.training.sharding import AXES, Mesh, device_array, state_shardings


def abstract_mesh(*sizes: int) -> AbstractMesh:
    return AbstractMesh(sizes, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def create_state(name: str, optimizer=AdamW()) -> dict:  # noqa: B008  settings are frozen
    model = VARIANTS[name]
    params = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, *model.input_shape)))["params"]
    return {"params": params, "optimizer": jax.eval_shape(optimizer.build(10).init, params)}


def fraction_held(state: dict, mesh: AbstractMesh) -> float:
    """Returns the fraction of all numbers that one device holds."""
    shardings = jax.tree.leaves(state_shardings(state, mesh))
    leaves = jax.tree.leaves(state)
    held = sum(np.prod(sharding.shard_shape(leaf.shape)) for leaf, sharding in zip(leaves, shardings, strict=True))
    return held / sum(leaf.size for leaf in leaves)


@pytest.mark.parametrize(
    "name", ["vivit_b_16x2", "vivit_b_16x2_fe", "vivit_ti_16x4_avg", "vivit_b_16x2_fsa", "timesformer_b_16_divided"]
)
def test_every_large_array_is_split(name):
    state = create_state(name)
    assert fraction_held(state, abstract_mesh(2, 4, 1, 1)) == pytest.approx(1 / 4, rel=0.02)
    assert fraction_held(state, abstract_mesh(1, 64, 1, 1)) == pytest.approx(
        1 / 64, abs=0.006
    )  # vectors are on every device
    # heads split all of the blocks but their norms; embeddings and the classifier are on every device
    sizes = {jax.tree_util.keystr(path): leaf.size for path, leaf in jax.tree_util.tree_leaves_with_path(state)}
    blocks = sum(size for path, size in sizes.items() if "block_" in path and "dense" not in path) / sum(sizes.values())
    heads = 3 if "_ti_" in name else 4
    assert fraction_held(state, abstract_mesh(1, 1, heads, 1)) == pytest.approx(1 - blocks + blocks / heads, abs=0.003)
    assert fraction_held(state, abstract_mesh(1, 2, heads, 1)) < 0.51 * fraction_held(
        state, abstract_mesh(1, 1, heads, 1)
    )


def test_convolution_kernels_are_split_over_fsdp_and_replicated_over_tensor():
    state = create_state("slow_r50")
    assert fraction_held(state, abstract_mesh(1, 4, 1, 1)) == pytest.approx(1 / 4, rel=0.02)
    assert fraction_held(state, abstract_mesh(1, 1, 4, 1)) == 1


def test_tensor_splits_whole_heads():
    params = create_state("vivit_b_16x2_fe")["params"]
    specs = jax.tree.map(lambda sharding: sharding.spec, state_shardings(params, abstract_mesh(1, 1, 4, 1)))
    block = specs["spatial_encoder"]["block_0"]
    attention, mlp = block["attention"], block["mlp"]
    for into in (attention["query"], attention["key"], attention["value"], mlp["hidden"]):
        assert into["kernel"][1] == "tensor" and into["bias"][0] == "tensor"
    for out in (attention["out"], mlp["out"]):
        assert out["kernel"][0] == "tensor" and out["bias"][0] is None


def test_factored_optimizer_state_is_sharded():
    assert fraction_held(create_state("vivit_ti_16x4_avg", Adafactor()), abstract_mesh(1, 4, 3, 1)) < 0.2


def test_unknown_parameters_are_split_if_they_are_matrices_and_replicated_otherwise():
    shapes = {"mask_token": (1, 1, 64), "rel_pos_h": (31, 64), "gate": (), "odd": (3, 5)}
    state = {"params": {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in shapes.items()}}
    specs = {name: tuple(s.spec) for name, s in state_shardings(state, abstract_mesh(1, 4, 1, 1))["params"].items()}
    assert specs == {"mask_token": (None,) * 3, "rel_pos_h": (None, "fsdp"), "gate": (), "odd": (None, None)}


EIGHT = [SimpleNamespace(id=i, platform="cpu", device_kind="cpu", process_index=0) for i in range(8)]
JOINT = ViViT(num_heads=4, mlp_dim=64, hidden_size=64)
HALVES = JOINT.clone(layouts=("time_and_space",), pooling="mean")


@pytest.mark.parametrize("axes", [(3,), (0,), (-1, -1), (2, 2), (-1, 0), (-2,), (16,)])
@pytest.mark.smoke
def test_mesh_that_does_not_cover_the_devices_is_refused(axes):
    with pytest.raises(UserError, match="8 devices"):
        Mesh(*axes).build(8, devices=EIGHT)


@pytest.mark.parametrize(
    ("mesh", "batch", "model", "found", "would"),
    [
        (Mesh(), 12, JOINT, "a batch of 12 does not divide over 8 devices", "data=4 tensor=2"),
        (Mesh(tensor=8), 8, JOINT, r"tensor=8 .*num_heads \(4\) and mlp_dim \(64\)", "data=2 tensor=4"),
        (Mesh(tensor=4), 8, HALVES, r"tensor=4 .*num_heads / 2 \(2\)", "data=4 tensor=2"),
        (Mesh(frames=8), 8, HALVES.clone(num_frames=8), "frames=8 .* 4 time indices", "frames=4"),
        (Mesh(frames=2), 8, JOINT, "frames=2 .*layouts.*joint", "data=8"),
        (Mesh(frames=2), 8, TimeSformer(layouts=("space", "time")), "frames=2 .*pooling 'class'", "data=8"),
        (Mesh(frames=2), 8, VARIANTS["slow_r50"], "frames=2 .*whole clips", "data=8"),
        (Mesh(tensor=8), 3, FactorisedEncoder(num_heads=4, hidden_size=64), "tensor=8", "tensor=2 frames=4"),
    ],
)
def test_invalid_mesh_is_refused_with_valid_ones(mesh, batch, model, found, would):
    with pytest.raises(UserError, match=found) as error:
        mesh.build(batch, model, EIGHT)
    assert "valid meshes: " in str(error.value) and would in str(error.value)


def test_impossible_batch_is_refused():
    with pytest.raises(UserError, match=r"a batch of 3 .*no mesh"):
        Mesh().build(3, JOINT.clone(num_heads=1, hidden_size=64), EIGHT)


def create_slices(number: int) -> list[SimpleNamespace]:
    return [
        SimpleNamespace(id=i, platform="gpu", device_kind="gpu", process_index=i // 4, slice_index=i % number)
        for i in range(8)
    ]


@pytest.mark.parametrize("sizes", [(4, 1, 2, 1), (2, 2, 2, 1), (1, 4, 2, 1), (1, 2, 4, 1)])
def test_slices_of_a_pod_share_only_the_batch(sizes):
    devices = device_array(sizes, create_slices(2))
    number = np.vectorize(lambda device: device.slice_index)(devices).reshape(-1, sizes[2])
    assert {*number.flat} == {0, 1}
    assert (number == number[:, :1]).all()  # heads of one layer are within a slice
    halves = number[:, 0].reshape(2, -1)
    assert (halves == halves[:, :1]).all()


def test_slices_that_would_share_heads_are_refused():
    with pytest.raises(UserError, match="2 slices do not divide data x fsdp = 1 x 1"):
        Mesh(1, 1, 8).build(8, devices=create_slices(2))


def test_video_shards_hold_whole_frames():
    rows = batch_sharding(Mesh().build(8, devices=jax.devices()))
    assert entry_sharding("video", 5, rows).spec == PartitionSpec(("data", "fsdp"), "frames")
    assert entry_sharding("video", 6, rows).spec == PartitionSpec(("data", "fsdp"), None, "frames")
    assert entry_sharding("weight", 1, rows).spec == PartitionSpec(("data", "fsdp"))


def on_meshes(model: str, folder: Path, pairs: str, meshes: list[str]) -> dict:
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=8"
    command = [sys.executable, str(Path(__file__).with_name("on_meshes.py")), model, str(folder), pairs, *meshes]
    environment = os.environ | {"XLA_FLAGS": flags}
    return json.loads(subprocess.run(command, check=True, env=environment, stdout=subprocess.PIPE).stdout)


def check_agreement(report: dict) -> None:
    """Twenty steps, with dropout and stochastic depth, follow those of one device, restored from other meshes too."""
    reference, *others = report["meshes"].values()
    assert report["moved"] > 0.1 and len(reference["losses"]) == 20
    for other in others:
        np.testing.assert_allclose(other["losses"], reference["losses"], rtol=2e-5)
        assert other["parameters"] < 1e-5
    for name, losses in report["continued"].items():
        np.testing.assert_allclose(losses, reference["losses"][3:6], rtol=2e-5, err_msg=name)


def test_meshes_of_eight_devices_compute_what_one_does(tmp_path):
    report = on_meshes("two_encoders", tmp_path, "next", ["1,1,1,1", "2,4,1,1", "1,2,2,2", "1,1,1,4"])
    check_agreement(report)
    assert len(report["continued"]) == 4
    meshes = report["meshes"]
    whole = meshes["1,1,1,1"]["bytes"]
    assert meshes["2,4,1,1"]["bytes"] / whole == pytest.approx(1 / 4, abs=0.03)
    assert meshes["1,1,1,4"]["bytes"] == whole
    # time apart: the few tokens of the temporal encoder are gathered, and nothing else moves but gradients
    assert meshes["1,1,1,4"]["collectives"]["all-gather"] == 1 and "all-to-all" not in meshes["1,1,1,4"]["collectives"]
    assert meshes["2,4,1,1"]["collectives"]["all-gather"] > 10


def test_time_attention_exchanges_time_shards_for_space_shards(tmp_path):
    report = on_meshes("divided_mean", tmp_path, "none", ["1,1,1,1", "1,1,1,4"])
    check_agreement(report)
    # to space and back, forward and backward
    assert report["meshes"]["1,1,1,4"]["collectives"]["all-to-all"] == 4


@pytest.mark.parametrize("model", ["frame_convolutions", pytest.param("convolutions", marks=pytest.mark.slow)])
def test_batch_statistics_cover_the_whole_batch_on_any_mesh(model, tmp_path):
    check_agreement(on_meshes(model, tmp_path, "none", ["1,1,1,1", "2,2,1,1"]))


ALL = ["1,1,1,1", "8,1,1,1", "1,8,1,1", "2,4,1,1", "2,1,4,1", "2,1,1,4", "1,2,2,2", "4,1,1,2"]
TWO = ["1,1,1,1", "2,1,1,1", "1,2,1,1", "1,1,2,1", "1,1,1,2", "1,1,2,4", "1,1,2,2"]
HEADS_HALVED = [mesh.replace("2,1,4,1", "4,1,2,1") for mesh in ALL]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "meshes"),
    [("two_encoders", TWO), ("divided", ALL), ("divided", TWO), ("divided_mean", ALL), ("halves", HEADS_HALVED)],
)
def test_any_mesh_computes_what_one_device_does(model, meshes, tmp_path):
    check_agreement(on_meshes(model, tmp_path, "none", meshes))


@pytest.mark.slow
def test_checkpoint_of_any_mesh_resumes_on_any_other(tmp_path):
    report = on_meshes("two_encoders", tmp_path, "all", ALL)
    assert len(report["continued"]) == 64
    check_agreement(report)
