"""VideoMAE for pre-training: parity with transformers (peers), golden files, the authors' names, fine-tuning."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

import vitx
from vitx.interop import architectures, names
from vitx.interop.tensors import write_safetensors
from vitx.pretrained import start_from
from vitx.tasks.masked_prediction import MaskedPrediction

GOLDEN = Path(__file__).parent / "golden"
COMMON = {
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 40,
    "decoder_hidden_size": 12,
    "decoder_num_hidden_layers": 1,
    "decoder_num_attention_heads": 2,
    "decoder_intermediate_size": 20,
}
CONFIGS = [
    {"num_frames": 4, "image_size": 16, "patch_size": 8, "tubelet_size": 2, "use_mean_pooling": False},
    {"num_frames": 6, "image_size": [16, 24], "patch_size": 8, "tubelet_size": 3, "layer_norm_eps": 1e-3},
    {"num_frames": 3, "image_size": 12, "patch_size": 4, "tubelet_size": 1, "qv_bias": False, "norm_pix_loss": False},
]


def peer(config, directory):
    """A masked autoencoder of transformers with random weights, saved; what it computes of two clips."""
    import torch
    import transformers

    torch.manual_seed(0)
    model = transformers.VideoMAEForPreTraining(transformers.VideoMAEConfig(**(COMMON | config))).eval()
    with torch.no_grad():
        for tensor in model.parameters():
            tensor.copy_(0.2 * torch.randn_like(tensor))
    size = config["image_size"]
    video = np.random.default_rng(0).integers(
        0, 256, (2, config["num_frames"], *(size if isinstance(size, list) else (size, size)), 3), np.uint8
    )
    num_tokens, num_masked = model.videomae.embeddings.num_patches, model.videomae.embeddings.num_patches // 2
    mask = torch.stack([torch.randperm(num_tokens) < num_masked for _ in video])
    pixels = torch.tensor(np.asarray(MaskedPrediction().normalise(video)).transpose(0, 1, 4, 2, 3))
    output = model(pixels, bool_masked_pos=mask)
    output.loss.backward()
    model.save_pretrained(directory)
    gradients = {name: tensor.grad.numpy() for name, tensor in model.named_parameters() if tensor.grad is not None}
    return {"video": video, "mask": mask.numpy(), "logits": output.logits.detach().numpy()} | {
        "loss": output.loss.detach().numpy(),
        "normalise_cubes": np.asarray(config.get("norm_pix_loss", True)),
        **{f"gradient:{name}": gradient for name, gradient in gradients.items()},
    }


def check(directory, expected):
    """Predictions within 1e-4, loss within 1e-5 and gradients by every parameter within 1e-3, relative."""
    model, variables = vitx.load_pretrained(directory)
    task = MaskedPrediction(normalise_cubes=bool(expected["normalise_cubes"]))
    keep = jnp.asarray(np.stack([np.flatnonzero(~row) for row in expected["mask"]]))
    video = jnp.asarray(expected["video"])

    def loss(variables):
        predicted = model.apply(variables, task.normalise(video), keep=keep)
        return task.errors(model, predicted, video, keep)[0].mean(), predicted

    (value, predicted), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(variables)
    assert np.linalg.norm(predicted - expected["logits"]) <= 1e-4 * np.linalg.norm(expected["logits"])
    np.testing.assert_allclose(value, expected["loss"], rtol=1e-5)
    theirs = {key.removeprefix("gradient:"): x for key, x in expected.items() if key.startswith("gradient:")}
    renamed, _, unknown = names.to_ours(architectures.rename_tensors(theirs, "videomae"), architectures.VIDEOMAE_RULES)
    ours = flatten_dict(gradient["params"], sep="/")
    assert not unknown and ours.keys() == renamed.keys()
    for path, x in renamed.items():
        assert np.linalg.norm(ours[path] - x) <= 1e-3 * np.linalg.norm(x), path


@pytest.mark.peers
@pytest.mark.parametrize("config", CONFIGS)
def test_predictions_loss_and_gradients_are_those_of_transformers(config, tmp_path):
    check(tmp_path, peer(config, tmp_path))


@pytest.mark.peers
@pytest.mark.parametrize("config", CONFIGS)
def test_an_autoencoder_that_we_save_computes_the_same_in_transformers(config, tmp_path):
    import torch
    import transformers

    expected = peer(config, tmp_path / "theirs")
    vitx.save_huggingface(*vitx.load_pretrained(tmp_path / "theirs"), tmp_path / "ours")
    load = transformers.VideoMAEForPreTraining.from_pretrained
    again, info = load(tmp_path / "ours", output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    pixels = np.asarray(MaskedPrediction().normalise(expected["video"])).transpose(0, 1, 4, 2, 3)
    with torch.no_grad():
        found = again(torch.tensor(pixels), bool_masked_pos=torch.tensor(expected["mask"])).logits.numpy()
    assert np.linalg.norm(found - expected["logits"]) <= 1e-5 * np.linalg.norm(expected["logits"])


def test_golden_predictions_of_transformers_equal_ours():
    check(GOLDEN / "videomae_pretraining", dict(np.load(GOLDEN / "videomae_pretraining.npz")))


def test_an_autoencoder_survives_a_round_trip_through_a_directory(tmp_path):
    model, variables = vitx.load_pretrained(GOLDEN / "videomae_pretraining")
    assert model.encoder_norm and model.layer_norm_eps == 1e-12 and model.decoder_norm_eps == 1e-5
    vitx.save_huggingface(model, variables, tmp_path / "new")
    again = vitx.load_pretrained(tmp_path / "new")
    assert again.model == model and not again.report.fresh and not again.report.left_over
    jax.tree.map(np.testing.assert_array_equal, again.variables, variables)


SMALL = {"hidden_size": 24, "num_layers": 2, "num_heads": 3, "mlp_dim": 40, "num_frames": 4, "image_size": 16}
SMALL |= {"tubelet_size": (2, 8, 8)}
DECODER = {"decoder_hidden_size": 12, "decoder_num_layers": 1, "decoder_num_heads": 2, "decoder_mlp_dim": 20}
EPS = {"layer_norm_eps": 1e-12}


def classifier(**fields):
    return vitx.create_model("videomae_b_16x2", num_classes=5, **SMALL, **fields)


def test_a_classifier_starts_from_the_encoder_alone(capsys):
    source, (_, pretrained) = GOLDEN / "videomae_pretraining", vitx.load_pretrained(GOLDEN / "videomae_pretraining")
    variables, report = start_from(source, classifier(**EPS))
    for part in ("embedding", "encoder"):
        ours = flatten_dict(variables["params"][part])
        for path, x in ours.items():
            np.testing.assert_array_equal(x, flatten_dict(pretrained["params"][part])[path])
    assert {path.split("/")[0] for path in report.fresh} == {"norm", "head"}
    assert {name.split(".")[0] for name in report.left_over} == {
        *("decoder", "encoder_to_decoder", "mask_token", "videomae")
    }
    assert "decoder left out" in capsys.readouterr().err

    probe, report = start_from(source, classifier(pooling="attention", **EPS))
    assert (
        {path.split("/")[0] for path in report.fresh}
        == {"pooler", "head"}
        == probe["params"].keys() - {*("embedding", "encoder")}
    )
    loaded = vitx.load_pretrained(source, "videomae_b_16x2", num_classes=5, **SMALL)
    assert loaded.model == classifier(**EPS)
    with pytest.raises(vitx.UserError, match="num_heads: 3 in the source, 2 expected"):
        start_from(source, classifier(**EPS).copy(num_heads=2))


def authors_names(directory, prefix=""):
    """The tensors of one of our golden directories as VideoMAE's authors name them."""
    model, variables = vitx.load_pretrained(directory)
    tensors = names.to_theirs(
        {path: np.asarray(x) for path, x in flatten_dict(variables["params"], sep="/").items()},
        architectures.VIDEOMAE_RULES,
    )
    for theirs, authors in (
        (r"^videomae\.embeddings\.patch_embeddings\.projection", f"{prefix}patch_embed.proj"),
        (r"^videomae\.encoder\.layer", f"{prefix}blocks"),
        (r"^videomae\.layernorm", f"{prefix}norm"),
        (r"^decoder\.decoder_layers", "decoder.blocks"),
        (r"^classifier", "head"),
        (r"attention\.output\.dense", "attn.proj"),
        (r"attention\.attention", "attn"),
        (r"layernorm_before", "norm1"),
        (r"layernorm_after", "norm2"),
        (r"intermediate\.dense", "mlp.fc1"),
        (r"output\.dense", "mlp.fc2"),
        (r"query\.bias", "q_bias"),
        (r"value\.bias", "v_bias"),
    ):
        tensors = {re.sub(theirs, authors, name): x for name, x in tensors.items()}
    for name in [name for name in tensors if name.endswith("query.weight")]:
        stem = name.removesuffix("query.weight")
        parts = [tensors.pop(f"{stem}{part}.weight") for part in ("query", "key", "value")]
        tensors[f"{stem}qkv.weight"] = np.concatenate(parts)
    return model, variables, tensors


@pytest.mark.parametrize("wrapper", ["", "module.", "model."])
def test_authors_files_of_classifiers_are_read(wrapper, tmp_path):
    model, variables, tensors = authors_names(GOLDEN / "videomae")
    assert {"blocks.1.attn.qkv.weight", "blocks.0.attn.q_bias", "fc_norm.weight", "head.bias"} <= tensors.keys()
    write_safetensors({wrapper + name: x for name, x in tensors.items()}, tmp_path / "file.safetensors", {})
    fields = {**SMALL, **EPS, "final_norm_eps": 1e-5}
    loaded = vitx.load_pretrained(tmp_path / "file.safetensors", "videomae_b_16x2", num_classes=5, **fields)
    assert loaded.model == model and not loaded.report.fresh and not loaded.report.left_over
    jax.tree.map(np.testing.assert_array_equal, loaded.variables, variables)


def test_authors_files_of_autoencoders_are_read_into_autoencoders_and_classifiers(tmp_path):
    model, variables, tensors = authors_names(GOLDEN / "videomae_pretraining", "encoder.")
    assert {"encoder.blocks.0.attn.v_bias", "encoder.norm.weight", "decoder.blocks.0.norm1.bias"} <= tensors.keys()
    write_safetensors(tensors, tmp_path / "file.safetensors", {})
    fields = {**SMALL, **DECODER, **EPS, "decoder_norm_eps": 1e-5}
    loaded = vitx.load_pretrained(tmp_path / "file.safetensors", "videomae_b_16x2_pretrain", **fields)
    assert loaded.model == model and not loaded.report.fresh and not loaded.report.left_over
    jax.tree.map(np.testing.assert_array_equal, loaded.variables, variables)

    # Unmasked Teacher has the same encoder, and a decoder of its own
    encoder = {name: x for name, x in tensors.items() if name.startswith("encoder.")}
    teacher = encoder | {"clip_decoder.0.head.weight": np.zeros((3, 3), np.float32)}
    write_safetensors(teacher, tmp_path / "teacher.safetensors", {})
    for file in ("file", "teacher"):
        found, report = start_from(tmp_path / f"{file}.safetensors", classifier(**EPS))
        assert {path.split("/")[0] for path in report.fresh} == {"norm", "head"}
        np.testing.assert_array_equal(
            found["params"]["encoder"]["block_1"]["attention"]["query"]["bias"],
            variables["params"]["encoder"]["block_1"]["attention"]["query"]["bias"],
        )
