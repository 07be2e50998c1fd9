"""Prefixes and dictionaries around weights are found, removed and reported."""

import functools
import json
import shutil

import jax
import numpy as np
import pytest

import vitx
from vitx.data.encoding import encode_video
from vitx.errors import UserError
from vitx.interop.huggingface import save_huggingface
from vitx.interop.predict import predict_each
from vitx.interop.tensors import read_tensors, write_safetensors
from vitx.interop.torch_files import join_keys
from vitx.interop.wrappers import unwrap

BARE = {
    "image_size": 16,
    "num_frames": 4,
    "tubelet_size": (2, 8, 8),
    "hidden_size": 24,
    "num_layers": 1,
    "num_heads": 3,
    "mlp_dim": 40,
    "num_classes": 3,
}


@pytest.fixture(scope="module")
def vivit(tmp_path_factory):
    """(a Hugging Face directory, its tensors, its variables)."""
    model = vitx.create_model("vivit_b_16x2", **BARE)
    shapes = jax.eval_shape(model.init, jax.random.key(0), np.zeros((1, *model.input_shape), np.float32))
    rng = np.random.default_rng(0)
    variables = jax.tree.map(lambda x: rng.standard_normal(x.shape).astype(np.float32), shapes)
    path = tmp_path_factory.mktemp("weights") / "vivit"
    save_huggingface(model, variables, path, labels=("run", "walk", "walk ", "x")[: BARE["num_classes"]])
    return path, read_tensors(path / "model.safetensors"), variables


def wrap(prefix, tensors):
    return {f"{prefix}{name}": x for name, x in tensors.items()}


PREFIXES = [
    "module.",
    "_orig_mod.",
    "model.",
    "ema.",
    "module._orig_mod.",
    "model.module.",
    "_fsdp_wrapped_module.",
    "net.",
    "student.",
    "base_model.model.",  # PEFT
    "encoder_q.",
    "learner.vivit_model.",  # attributes of somebody's module
]


@pytest.mark.parametrize("prefix", PREFIXES)
def test_prefixes_of_wrappers_are_removed_and_reported(prefix, vivit, tmp_path, capsys):
    _, tensors, variables = vivit
    write_safetensors(
        wrap(prefix, tensors) | {"criterion.weight": np.ones(3, np.float32)}, tmp_path / "x.safetensors", {}
    )
    loaded = vitx.load_pretrained(tmp_path / "x.safetensors", "vivit_b_16x2", **BARE)
    jax.tree.map(np.testing.assert_array_equal, loaded.variables, variables)
    assert loaded.report.left_over == ("criterion.weight",) and repr(prefix) in capsys.readouterr().err


def test_wrappers_within_names_are_removed(vivit, tmp_path):
    _, tensors, variables = vivit
    inner = {
        name.replace("encoder.layer.0.", "encoder.layer.0._checkpoint_wrapped_module."): x
        for name, x in tensors.items()
    }
    for name, content in (("bare", inner), ("both", wrap("module.", inner))):
        write_safetensors(content, tmp_path / f"{name}.safetensors", {})
        loaded = vitx.load_pretrained(tmp_path / f"{name}.safetensors", "vivit_b_16x2", **BARE)
        jax.tree.map(np.testing.assert_array_equal, loaded.variables, variables)
        assert loaded.report.notes


def test_plain_names_are_left_alone(vivit):
    path, tensors, _ = vivit
    loaded = vitx.load_pretrained(path / "model.safetensors", "vivit_b_16x2", **BARE)
    assert not loaded.report.notes and not loaded.report.left_over
    bare = {name.removeprefix("vivit."): x for name, x in tensors.items()}
    assert unwrap(bare, lambda found: "embeddings.cls_token" in found).tensors.keys() == bare.keys()


def test_a_directory_with_prefixed_weights_is_read(vivit, tmp_path):
    path, tensors, variables = vivit
    shutil.copytree(path, tmp_path / "copy")
    write_safetensors(wrap("_orig_mod.", tensors), tmp_path / "copy" / "model.safetensors", {})
    loaded = vitx.load_pretrained(tmp_path / "copy")
    jax.tree.map(np.testing.assert_array_equal, loaded.variables, variables)
    assert "'_orig_mod.'" in "".join(loaded.report.notes)


def fits(sign, tensors):
    return any(name.startswith(sign) for name in tensors)


def test_dictionaries_of_training_scripts_are_searched():
    weights = {"blocks.0.attn.w": np.ones(2), "head.w": np.zeros(2)}
    averaged = {name: x + 1 for name, x in weights.items()}
    scripts = {
        "optimizer": {"state": {0: {"exp_avg": np.ones(2)}}, "exp_avg": dict(weights)},
        "ema_state_dict": wrap("module.", averaged),
        "step": np.zeros(()),
        "a.b": {"deep": {"weights": wrap("module.", weights)}},
    }
    found = unwrap(dict(join_keys(scripts)), functools.partial(fits, "blocks."))
    assert (
        {name: x.sum() for name, x in found.tensors.items()} == {"blocks.0.attn.w": 2, "head.w": 0}
        and "a.b/deep/weights/module." in found.note
        and "ema" in found.note
    )
    only = {"optimizer": scripts["optimizer"], "model_ema": averaged}
    assert unwrap(dict(join_keys(only)), functools.partial(fits, "blocks.")).tensors.keys() == averaged.keys()
    nothing = {"x": {"y": np.ones(1)}}
    assert set(unwrap(dict(join_keys(nothing)), functools.partial(fits, "blocks.")).tensors) == {"x/y"}
    scripts["a.b"]["itself"] = scripts
    assert len(list(join_keys(scripts))) == 8


def test_weights_of_no_known_format_are_refused_by_their_names(vivit, tmp_path):
    write_safetensors({"module.strange": np.ones(2, np.float32)}, tmp_path / "x.safetensors", {})
    with pytest.raises(UserError, match=r"module\.strange"):
        vitx.load_pretrained(tmp_path / "x.safetensors", "vivit_b_16x2", **BARE)


@pytest.mark.peers
def test_a_checkpoint_of_a_training_script_is_read_from_torchs_file(vivit, tmp_path):
    import torch

    _, tensors, variables = vivit
    weights = {name: torch.tensor(x) for name, x in tensors.items()}
    torch.save({"epoch": 1, "args": {"lr": 0.1}, "state": {"model": wrap("module.", weights)}}, tmp_path / "x.pth")
    loaded = vitx.load_pretrained(tmp_path / "x.pth", "vivit_b_16x2", **BARE)
    jax.tree.map(np.testing.assert_array_equal, loaded.variables, variables)


def test_two_classes_of_one_name_both_survive_in_predictions(vivit, tmp_path):
    path = vivit[0]
    config = json.loads((path / "config.json").read_text())
    config["id2label"] = {"0": "run", "1": "walk", "2": "walk"}
    for name in ("model.safetensors", "preprocessor_config.json"):
        (tmp_path / name).write_bytes((path / name).read_bytes())
    (tmp_path / "config.json").write_text(json.dumps(config))
    clip = tmp_path / "clip.mp4"
    clip.write_bytes(encode_video(np.zeros((4, 16, 16, 3), np.uint8)))
    answer = dict(predict_each(vitx.load_pretrained(tmp_path), [clip]))[str(clip)]["class"]
    assert set(answer) == {"run", "walk (1)", "walk (2)"} and sum(answer.values()) == pytest.approx(1, abs=1e-5)
