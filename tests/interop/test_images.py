"""From images: an inflated image ViT, fed a still clip, gives the image model's features where mathematics says so."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

import vitx
from vitx.cli import main
from vitx.errors import UserError
from vitx.interop.images import FromImage
from vitx.interop.tensors import write_safetensors

D, HEADS, LAYERS, MLP = 12, 2, 2, 20
SMALL = {
    "image_size": (16, 24),
    "num_frames": 4,
    "tubelet_size": (2, 8, 8),
    "hidden_size": D,
    "num_layers": LAYERS,
    "num_heads": HEADS,
    "mlp_dim": MLP,
    "num_classes": 0,
}
PATCHES = 6


# what models of each kind compute: their activation and epsilon, and the patches of the image
FUNCTION = {
    "augreg": {"activation": "gelu_tanh", "layer_norm_eps": 1e-6},
    "timm": {"activation": "gelu", "layer_norm_eps": 1e-6},
    "huggingface": {"activation": "gelu", "layer_norm_eps": 1e-12},
}
GRID = (2, 3)


def image_vit(kind="augreg", pooling="class"):
    """Our own model on one frame, with random weights: the image model."""
    fields = SMALL | {"num_frames": 1, "tubelet_size": (1, 8, 8)}
    model = vitx.create_model("vivit_b_16x2", pooling=pooling, **FUNCTION[kind], **fields)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 1, 16, 24, 3)))
    rng = np.random.default_rng(0)
    return model, jax.tree.map(lambda x: jnp.asarray(0.3 * rng.standard_normal(x.shape), jnp.float32), shapes)


def as_augreg(params):
    """The image model's parameters under AugReg's names and shapes."""
    p, found = flatten_dict(params, sep="/"), {}
    for path, x in p.items():
        parts = path.split("/")
        if path.startswith("encoder/block_"):
            i, module, rest = parts[1].removeprefix("block_"), parts[2], "/".join(parts[3:])
            name = {
                "attention": "MultiHeadDotProductAttention_1",
                "attention_norm": "LayerNorm_0",
                "mlp_norm": "LayerNorm_2",
                "mlp": "MlpBlock_3",
            }[module]
            rest = rest.replace("hidden", "Dense_0").replace("out", "Dense_1") if module == "mlp" else rest
            if module == "attention":
                head_dim = D // HEADS
                out = rest == "out/kernel"
                if out:
                    x = x.reshape(HEADS, head_dim, D)
                elif not rest.startswith("out"):
                    x = x.reshape(*x.shape[:-1], HEADS, head_dim)
            found[f"Transformer/encoderblock_{i}/{name}/{rest}"] = x
        else:
            name = {
                "encoder/norm/scale": "Transformer/encoder_norm/scale",
                "encoder/norm/bias": "Transformer/encoder_norm/bias",
                "positions/positions": "Transformer/posembed_input/pos_embedding",
                "positions/class_token": "cls",
                "embedding/kernel": "embedding/kernel",
                "embedding/bias": "embedding/bias",
            }[path]
            found[name] = x[0] if name == "embedding/kernel" else x
    found["head/kernel"], found["head/bias"] = np.ones((D, 7), np.float32), np.ones(7, np.float32)
    return {name: np.asarray(x) for name, x in found.items()}


def as_timm(params):
    """The image model's parameters under timm's names and shapes."""
    p, found = flatten_dict(params, sep="/"), {}
    for i in range(LAYERS):
        ours, theirs = f"encoder/block_{i}", f"blocks.{i}"
        for leaf, their_leaf in (("kernel", "weight"), ("bias", "bias")):
            qkv = [p[f"{ours}/attention/{projection}/{leaf}"].T for projection in ("query", "key", "value")]
            found[f"{theirs}.attn.qkv.{their_leaf}"] = np.concatenate(qkv)
            found[f"{theirs}.attn.proj.{their_leaf}"] = p[f"{ours}/attention/out/{leaf}"].T
            found[f"{theirs}.mlp.fc1.{their_leaf}"] = p[f"{ours}/mlp/hidden/{leaf}"].T
            found[f"{theirs}.mlp.fc2.{their_leaf}"] = p[f"{ours}/mlp/out/{leaf}"].T
        for norm, theirs_norm in (("attention_norm", "norm1"), ("mlp_norm", "norm2")):
            found[f"{theirs}.{theirs_norm}.weight"] = p[f"{ours}/{norm}/scale"]
            found[f"{theirs}.{theirs_norm}.bias"] = p[f"{ours}/{norm}/bias"]
    found |= {"norm.weight": p["encoder/norm/scale"], "norm.bias": p["encoder/norm/bias"]}
    found |= {"pos_embed": p["positions/positions"], "cls_token": p["positions/class_token"]}
    found["patch_embed.proj.weight"] = p["embedding/kernel"][0].transpose(3, 2, 0, 1)
    found["patch_embed.proj.bias"] = p["embedding/bias"]
    found["head.weight"], found["head.bias"] = np.ones((7, D), np.float32), np.ones(7, np.float32)
    return {name: np.asarray(x) for name, x in found.items()}


def as_huggingface(params):
    names = {
        "blocks": "vit.encoder.layer",
        "attn.proj": "attention.output.dense",
        "norm1": "layernorm_before",
        "norm2": "layernorm_after",
        "mlp.fc1": "intermediate.dense",
        "mlp.fc2": "output.dense",
        "cls_token": "vit.embeddings.cls_token",
        "pos_embed": "vit.embeddings.position_embeddings",
        "patch_embed.proj": "vit.embeddings.patch_embeddings.projection",
    }
    found = {}
    for name, x in as_timm(params).items():
        if ".qkv." in name:
            parts = zip(("query", "key", "value"), np.split(x, 3), strict=True)
            for projection, part in parts:
                theirs = name.replace("attn.qkv", f"attention.attention.{projection}")
                found[theirs.replace("blocks", names["blocks"])] = part
            continue
        if name.startswith("norm."):
            name = f"vit.layernorm{name.removeprefix('norm')}"
        for theirs, other in names.items():
            name = name.replace(theirs, other)
        found[name.replace("head.", "classifier.")] = x
    return found


def save(tmp_path, params, kind):
    if kind == "augreg":
        np.savez(tmp_path / "image.npz", **as_augreg(params))
        return tmp_path / "image.npz"
    tensors = {"timm": as_timm, "huggingface": as_huggingface}[kind](params)
    write_safetensors(tensors, tmp_path / "image.safetensors", {})
    return tmp_path / "image.safetensors"


def create_still(frames=4):
    frame = jax.random.normal(jax.random.key(1), (2, 1, 16, 24, 3))
    return frame, jnp.repeat(frame, frames, axis=1)


@pytest.mark.parametrize("kind", ["augreg", "timm", "huggingface"])
@pytest.mark.parametrize("inflation", ["central", "average"])
def test_the_average_pool_model_of_a_still_clip_is_the_image_model(kind, inflation, tmp_path):
    image, variables = image_vit(kind)
    path = save(tmp_path, variables["params"], kind)
    how = FromImage(inflation=inflation, grid=GRID)
    model, inflated = vitx.load_pretrained(path, "vivit_b_16x2_avg", from_image=how, **SMALL)
    frame, clip = create_still()
    np.testing.assert_allclose(model.apply(inflated, clip), image.apply(variables, frame), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "fields", "other"),
    [
        ("timesformer_b_16_divided", {}, "copy"),
        ("timesformer_b_16_space", {}, "copy"),
        ("vivit_b_16x2_fsa", {}, "zero"),
        ("vivit_b_16x2", {"pooling": "mean"}, "copy"),
    ],
)
def test_other_models_of_a_still_clip_are_the_image_model_where_they_must(name, fields, other, tmp_path):
    """Divided: its dense layer after time is zero. Model 3: time attention zeroed. Joint: copies of equal tokens."""
    mean = name.startswith("vivit")
    image, variables = image_vit()
    path = save(tmp_path, variables["params"], "augreg")
    how = FromImage(inflation="average", other_attention=other, grid=GRID)
    model, inflated = vitx.load_pretrained(path, name, from_image=how, **(SMALL | fields))
    frame, clip = create_still()
    if mean:  # without its class token
        params = variables["params"]
        positions = {"positions": params["positions"]["positions"][:, 1:]}
        image, variables = image.copy(pooling="mean"), {"params": {**params, "positions": positions}}
    np.testing.assert_allclose(model.apply(inflated, clip), image.apply(variables, frame), rtol=1e-4, atol=1e-5)


def test_model_2_gets_a_fresh_temporal_encoder_which_the_report_lists(tmp_path, capsys):
    _, variables = image_vit()
    path = save(tmp_path, variables["params"], "timm")
    how = FromImage(grid=GRID)
    fields = SMALL | {"num_temporal_layers": 1}
    loaded = vitx.load_pretrained(path, "vivit_b_16x2_fe", from_image=how, **fields)
    fresh = {path.split("/")[0] for path in loaded.report.fresh}
    assert fresh == {"temporal_encoder", "temporal_positions"}
    assert set(loaded.report.left_over) == {"head.weight", "head.bias"}
    assert loaded.report.loaded["spatial_encoder/block_1/mlp/hidden/bias"] == "blocks.1.mlp.fc1.bias"
    assert "fresh: temporal" in capsys.readouterr().err


def test_time_attention_is_copied_or_zeroed(tmp_path):
    _, variables = image_vit()
    path = save(tmp_path, variables["params"], "augreg")
    for start in ("copy", "zero"):
        how = FromImage(other_attention=start, grid=GRID)
        _, loaded = vitx.load_pretrained(path, "vivit_b_16x2_fsa", from_image=how, **SMALL)
        block = loaded["params"]["encoder"]["block_1"]
        original = variables["params"]["encoder"]["block_1"]["attention"]
        np.testing.assert_array_equal(block["time_attention"]["query"]["kernel"], original["query"]["kernel"])
        out = np.asarray(block["time_attention"]["out"]["kernel"])
        np.testing.assert_array_equal(out, original["out"]["kernel"] if start == "copy" else np.zeros_like(out))


def test_an_unused_class_token_is_reported_as_left_over(tmp_path):
    _, variables = image_vit()
    path = save(tmp_path, variables["params"], "augreg")
    loaded = vitx.load_pretrained(path, "vivit_b_16x2_fsa", from_image=FromImage(grid=GRID), **SMALL)
    assert set(loaded.report.left_over) == {"head/kernel", "head/bias", "cls"}


def test_a_layer_before_the_logits_is_left_over(tmp_path):
    """The original ViTs of ImageNet-21k have one."""
    _, variables = image_vit()
    tensors = as_augreg(variables["params"])
    np.savez(tmp_path / "image.npz", **tensors, **{"pre_logits/kernel": np.ones((D, D)), "pre_logits/bias": np.ones(D)})
    loaded = vitx.load_pretrained(tmp_path / "image.npz", "vivit_b_16x2", from_image=FromImage(grid=GRID), **SMALL)
    assert {"pre_logits/kernel", "pre_logits/bias"} <= set(loaded.report.left_over)


def test_a_grid_is_never_guessed_and_is_interpolated(tmp_path):
    _, variables = image_vit()
    path = save(tmp_path, variables["params"], "augreg")
    for size in ((32, 48), (16, 24)):  # even where the number of patches agrees: which way round is not known
        with pytest.raises(UserError, match=r"7 positions, and the video .* patches.*FromImage\(grid"):
            vitx.load_pretrained(path, "vivit_b_16x2_avg", **(SMALL | {"image_size": size}))
    fields = SMALL | {"image_size": (32, 48)}
    how = FromImage(grid=GRID)
    model, loaded = vitx.load_pretrained(path, "vivit_b_16x2_avg", from_image=how, **fields)
    table = loaded["params"]["spatial_positions"]["positions"]
    assert table.shape == (1, 25, D) and model.apply(loaded, jnp.zeros((1, 4, 32, 48, 3))).shape == (1, D)
    np.testing.assert_array_equal(table[:, 0], variables["params"]["positions"]["positions"][:, 0])


def test_an_image_model_without_embedding_or_positions_is_refused(tmp_path):
    _, variables = image_vit()
    tensors = as_augreg(variables["params"])
    for name in ("embedding/kernel", "embedding/bias", "Transformer/posembed_input/pos_embedding"):
        np.savez(tmp_path / "image.npz", **{path: x for path, x in tensors.items() if path != name})
        with pytest.raises(UserError, match="holds no weights that are known here"):
            vitx.load_pretrained(tmp_path / "image.npz", "vivit_b_16x2_avg", **SMALL)


def test_the_command_converts_an_image_model_as_its_options_say(tmp_path):
    _, variables = image_vit()
    tensors = as_augreg(variables["params"])
    np.savez(tmp_path / "image.npz", extra=np.zeros(3), **{k: x for k, x in tensors.items() if k != "cls"})
    settings = [f"--{name}={list(value) if isinstance(value, tuple) else value}" for name, value in SMALL.items()]
    words = [str(tmp_path / "image.npz"), str(tmp_path / "own.safetensors"), "--model=vivit_b_16x2", *settings]
    words += ["--inflation=average", "--grid", "2", "3"]
    assert main(["convert", *words]) == 2  # a tensor too many, and one too few
    words += ["--allow_unexpected=extra", "--allow_missing=positions/class_token"]
    assert main(["convert", *words]) == 0
    _, loaded = vitx.load_pretrained(tmp_path / "own.safetensors")
    kernel = variables["params"]["embedding"]["kernel"]
    np.testing.assert_allclose(loaded["params"]["embedding"]["kernel"], jnp.repeat(kernel, 2, axis=0) / 2)
