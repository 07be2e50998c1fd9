"""Hugging Face: live parity on random weights (peers), the same check on golden files, files in and out."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict

import vitx
from vitx.interop import architectures, names
from vitx.interop.preprocessing import Preprocessing
from vitx.layers.token_merging import TokenMerging

GOLDEN = Path(__file__).parent / "golden"
COMMON = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 40, "num_labels": 5}
VIVIT = [
    {"num_frames": 4, "image_size": 16, "tubelet_size": [2, 8, 8]},
    {"num_frames": 6, "image_size": 20, "tubelet_size": [3, 5, 5], "qkv_bias": False, "layer_norm_eps": 1e-3},
    {"num_frames": 3, "image_size": 14, "tubelet_size": [1, 7, 7], "hidden_act": "gelu", "num_hidden_layers": 3},
    {"num_frames": 4, "image_size": [16, 24], "tubelet_size": [2, 8, 4]},
]
TIMESFORMER = [
    {"num_frames": 3, "image_size": 16, "patch_size": 8},
    {"num_frames": 5, "image_size": 21, "patch_size": 7, "layer_norm_eps": 1e-3, "qkv_bias": False},
    {"num_frames": 2, "image_size": 20, "patch_size": 4, "attention_type": "joint_space_time"},
    {
        "num_frames": 4,
        "image_size": 16,
        "patch_size": 8,
        "attention_type": "joint_space_time",
        "hidden_act": "gelu_new",
    },
    {"num_frames": 3, "image_size": 16, "patch_size": 8, "attention_type": "space_only"},
    {"num_frames": 6, "image_size": 15, "patch_size": 5, "attention_type": "space_only"},
]
VIDEOMAE = [
    {"num_frames": 4, "image_size": 16, "patch_size": 8, "tubelet_size": 2},
    {"num_frames": 6, "image_size": [16, 24], "patch_size": 8, "tubelet_size": 3, "layer_norm_eps": 1e-3},
    {"num_frames": 2, "image_size": 14, "patch_size": 7, "tubelet_size": 1, "qv_bias": False, "hidden_act": "gelu_new"},
]
CONFIGS = [
    (kind, config)
    for kind, configs in (("vivit", VIVIT), ("timesformer", TIMESFORMER), ("videomae", VIDEOMAE))
    for config in configs
]


FILES = ("vivit", "timesformer_divided", "timesformer_joint", "timesformer_space", "videomae")


def peer(kind, config, directory):
    """A model of transformers with random weights, saved; (its logits, gradients by its names, video, labels)."""
    import torch
    import transformers

    torch.manual_seed(0)
    make = {
        "vivit": (transformers.VivitConfig, transformers.VivitForVideoClassification),
        "timesformer": (transformers.TimesformerConfig, transformers.TimesformerForVideoClassification),
        "videomae": (transformers.VideoMAEConfig, transformers.VideoMAEForVideoClassification),
    }[kind]
    model = make[1](make[0](**(COMMON | config))).eval()
    with torch.no_grad():
        for tensor in model.parameters():
            tensor.copy_(0.2 * torch.randn_like(tensor))
    size = config["image_size"]
    video = torch.randn(2, config["num_frames"], 3, *(size if isinstance(size, list) else (size, size)))
    labels = torch.tensor([1, 3])
    space = config.get("attention_type") == "space_only"
    logits = over_frames(model, video) if space else model(video).logits
    torch.nn.functional.cross_entropy(logits, labels).backward()
    model.save_pretrained(directory)
    gradients = {name: tensor.grad.numpy() for name, tensor in model.named_parameters() if tensor.grad is not None}
    return logits.detach().numpy(), gradients, video.numpy().transpose(0, 1, 3, 4, 2), labels.numpy()


def over_frames(model, video):
    """Space-only attention as its authors have it: transformers leaves out the mean over frames before the norm."""
    hidden = model.timesformer.encoder(model.timesformer.embeddings(video))[0]
    hidden = hidden.reshape(*video.shape[:2], *hidden.shape[1:]).mean(1)
    return model.classifier(model.timesformer.layernorm(hidden)[:, 0])


def check(directory, logits, gradients, video, labels):
    """Logits within 1e-4 relative, gradients by every parameter within 1e-3 relative."""
    model, variables = vitx.load_pretrained(directory)
    video = jnp.asarray(video)

    def loss(variables):
        logits = model.apply(variables, video)
        return optax.softmax_cross_entropy_with_integer_labels(logits, jnp.asarray(labels)).mean(), logits

    (_, found), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(variables)
    assert np.linalg.norm(found - logits) <= 1e-4 * np.linalg.norm(logits)
    config = json.loads((Path(directory) / "config.json").read_text())
    architecture = architectures.architecture_of(config, "")
    expected, _, unknown = names.to_ours(
        architectures.rename_tensors(gradients, config["model_type"]), architecture.rules
    )
    ours = flatten_dict(gradient["params"], sep="/")
    assert not unknown and set(ours) == set(expected)
    scale = max(map(np.linalg.norm, expected.values()))
    for path, theirs in expected.items():
        # keys' biases have no gradient but rounding
        assert np.linalg.norm(ours[path] - theirs) <= 1e-3 * np.linalg.norm(theirs) + 1e-6 * scale, path


@pytest.mark.peers
@pytest.mark.parametrize(("kind", "config"), CONFIGS)
def test_logits_and_gradients_are_those_of_transformers(kind, config, tmp_path):
    check(tmp_path, *peer(kind, config, tmp_path))


@pytest.mark.peers
@pytest.mark.parametrize(("kind", "config"), CONFIGS)
def test_what_we_save_transformers_loads_and_computes_the_same(kind, config, tmp_path):
    import torch
    import transformers

    logits, _, video, _ = peer(kind, config, tmp_path / "theirs")
    model, variables = vitx.load_pretrained(tmp_path / "theirs")
    labels = [f"class {i}" for i in range(5)]
    vitx.save_huggingface(model, variables, tmp_path / "ours", labels=labels)
    load = transformers.AutoModelForVideoClassification.from_pretrained
    again, info = load(tmp_path / "ours", output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert [again.config.id2label[i] for i in range(5)] == labels
    with torch.no_grad():
        video = torch.tensor(video.transpose(0, 1, 4, 2, 3))
        space = config.get("attention_type") == "space_only"
        found = (over_frames(again, video) if space else again(video).logits).numpy()
    assert np.linalg.norm(found - logits) <= 1e-5 * np.linalg.norm(logits)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.smoke
def test_golden_files_of_transformers_equal_our_outputs(name):
    golden = np.load(GOLDEN / f"{name}.npz")
    gradients = {key.removeprefix("gradient:"): golden[key] for key in golden.files if key.startswith("gradient:")}
    check(GOLDEN / name, golden["logits"], gradients, golden["video"], golden["labels"])


@pytest.mark.parametrize("name", FILES)
def test_a_round_trip_through_files_changes_nothing(name, tmp_path):
    model, variables = vitx.load_pretrained(GOLDEN / name)
    preprocessing = Preprocessing((0.45,) * 3, (0.225,) * 3, (16, 16), 20, model.num_frames, 4)
    labels = tuple("abcde")
    vitx.save_huggingface(model, variables, tmp_path / "new", preprocessing=preprocessing, labels=labels)
    loaded = vitx.load_pretrained(tmp_path / "new")
    assert loaded[0] == model and loaded.labels == labels and not loaded.report.fresh and not loaded.report.left_over
    jax.tree.map(np.testing.assert_array_equal, loaded[1], variables)
    assert loaded.preprocessing.frame_stride == 4 and loaded.preprocessing.short_side == 20
    np.testing.assert_allclose(loaded.preprocessing.mean, preprocessing.mean)
    np.testing.assert_allclose(loaded.preprocessing.std, preprocessing.std)


def test_a_model_with_a_reducer_is_no_model_of_transformers(tmp_path):
    model, variables = vitx.load_pretrained(GOLDEN / "vivit", reducer=TokenMerging(1))
    with pytest.raises(vitx.UserError, match="found reducer TokenMerging"):
        vitx.save_huggingface(model, variables, tmp_path / "new")
    assert not (tmp_path / "new").exists()
