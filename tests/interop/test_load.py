"""Loading: other shapes and heads, a report of every tensor, and errors that name what does not fit."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

import vitx
from vitx.errors import UserError
from vitx.interop.names import NameRule, to_ours
from vitx.interop.own import save_own
from vitx.interop.tensors import read_tensors, write_safetensors
from vitx.layers.embeddings import resize_positions
from vitx.layers.token_learner import TokenLearner
from vitx.pretrained import start_from

GOLDEN = Path(__file__).parent / "golden"
BARE = {
    "image_size": 16,
    "num_frames": 4,
    "tubelet_size": (2, 8, 8),
    "hidden_size": 24,
    "num_layers": 2,
    "num_heads": 3,
    "mlp_dim": 40,
    "num_classes": 5,
}


def edit(directory, change, file="model.safetensors"):
    """The directory with its tensors, or its config, changed in place."""
    path = directory / file
    if file.endswith(".json"):
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))
    else:
        tensors = {name: np.array(x) for name, x in read_tensors(path).items()}
        change(tensors)
        write_safetensors(tensors, path, {})
    return directory


def test_positions_are_resized_in_time_and_in_space(vivit, capsys):
    _, variables = vitx.load_pretrained(vivit)
    loaded = vitx.load_pretrained(vivit, num_frames=8, image_size=(16, 32))
    bigger, other = loaded
    assert loaded.report.resized == {"positions/positions": ((1, 9, 24), (1, 33, 24))}
    assert "resized positions/positions: [1, 9, 24] to [1, 33, 24]" in capsys.readouterr().err
    assert bigger.apply(other, jnp.zeros((1, 8, 16, 32, 3))).shape == (1, 5)
    # every frame's table is a mixture of the old ones: constant along space stays constant
    table = np.asarray(variables["params"]["positions"]["positions"])
    flat = np.repeat(table[:, 1::4], 4, axis=1)
    resized = resize_positions(np.concatenate([table[:, :1], flat], 1), 1, (2, 2, 2), (4, 2, 4))
    grid = resized[:, 1:].reshape(4, 8, 24)
    np.testing.assert_allclose(grid, np.repeat(grid[:, :1], 8, axis=1), atol=1e-5)
    np.testing.assert_allclose(grid[0, 0], table[0, 1], atol=1e-6)  # the ends stay
    np.testing.assert_allclose(grid[3, 0], table[0, 5], atol=1e-6)


def test_positions_of_the_same_number_of_tokens_in_another_grid_are_resized_too(vivit):
    same = vitx.load_pretrained(vivit, image_size=(32, 8))
    table = vitx.load_pretrained(vivit)[1]["params"]["positions"]["positions"]
    assert same.report.resized and not np.allclose(same[1]["params"]["positions"]["positions"], table)


def test_another_number_of_classes_swaps_the_head(vivit):
    loaded = vitx.load_pretrained(vivit, num_classes=(("verb", 3), ("noun", 4)))
    assert {path.split("/")[1] for path in loaded.report.fresh} == {"verb", "noun"}
    assert set(loaded.report.left_over) == {"classifier.weight", "classifier.bias"} and loaded.labels is None
    features = vitx.load_pretrained(vivit, num_classes=0)
    assert not features.report.fresh and "head" not in features[1]["params"]


def test_names_of_transformers_5_are_read(vivit):
    _, variables = vitx.load_pretrained(vivit)

    def rename(tensors):
        for name in list(tensors):
            new = name.replace("vivit.encoder.layer.", "vivit.layers.")
            for old, short in (("query", "q"), ("key", "k"), ("value", "v")):
                new = new.replace(f"attention.attention.{old}", f"attention.{short}_proj")
            new = new.replace("attention.output.dense", "attention.o_proj")
            new = new.replace("intermediate.dense", "mlp.fc1").replace("output.dense", "mlp.fc2")
            tensors[new] = tensors.pop(name)

    _, again = vitx.load_pretrained(edit(vivit, rename))
    jax.tree.map(np.testing.assert_array_equal, variables, again)


def test_a_bare_file_takes_the_models_name(vivit):
    _, variables = vitx.load_pretrained(vivit)
    _, bare = vitx.load_pretrained(vivit / "model.safetensors", "vivit_b_16x2", **BARE)
    jax.tree.map(np.testing.assert_array_equal, variables, bare)
    with pytest.raises(UserError, match="model's name"):
        vitx.load_pretrained(vivit / "model.safetensors")


@pytest.mark.parametrize("model", ["vivit_b_16x2", "vivit_b_16x2_fe", "vivit_b_16x2_fsa"])
@pytest.mark.parametrize("suffix", [".npz", ".msgpack"])
def test_trees_of_scenic_are_read(model, suffix, tmp_path):
    from flax import serialization
    from flax.traverse_util import unflatten_dict

    created = vitx.create_model(model, **(BARE | ({"num_temporal_layers": 1} if model.endswith("fe") else {})))
    shapes = jax.eval_shape(created.init, jax.random.key(0), jnp.zeros((1, 4, 16, 16, 3)))
    rng, tree = np.random.default_rng(0), {}
    expected = jax.tree.map(lambda x: rng.standard_normal(x.shape).astype(np.float32), shapes)
    tree["optimizer/state/param_states/Transformer/encoder_norm/bias/grad_ema"] = np.ones(3, np.float32)
    for path, x in flatten_dict(expected["params"], sep="/").items():
        for ours, theirs in (
            ("spatial_positions/positions", "SpatialTransformer/posembed_input/pos_embedding"),
            ("temporal_positions/positions", "TemporalTransformer/posembed_input/pos_embedding"),
            ("positions/positions", "Transformer/posembed_input/pos_embedding"),
            ("spatial_positions/class_token", "cls_SpatialTransformer"),
            ("temporal_positions/class_token", "cls_TemporalTransformer"),
            ("positions/class_token", "cls"),
            ("spatial_encoder", "SpatialTransformer"),
            ("temporal_encoder", "TemporalTransformer"),
            ("encoder", "Transformer"),
            ("block_", "encoderblock_"),
            ("Transformer/norm", "Transformer/encoder_norm"),
            ("mlp_norm", "LayerNorm_mlp" if model.endswith("fsa") else "LayerNorm_1"),
            ("time_attention_norm", "LayerNorm_time"),
            ("space_attention_norm", "LayerNorm_space"),
            ("time_attention", "MultiHeadDotProductAttention_time"),
            ("space_attention", "MultiHeadDotProductAttention_space"),
            ("attention_norm", "LayerNorm_0"),
            ("/attention/", "/MultiHeadDotProductAttention_0/"),
            ("mlp/hidden", "mlp/Dense_0"),
            ("mlp/out", "mlp/Dense_1"),
            ("/mlp/", "/MlpBlock/" if model.endswith("fsa") else "/MlpBlock_0/"),
            ("head/logits", "output_projection"),
        ):
            path = path.replace(ours, theirs)
        if "/query/" in path or "/key/" in path or "/value/" in path:
            x = x.reshape(*x.shape[:-1], 3, 8)
        elif path.endswith("/out/kernel") and "Attention" in path:
            x = x.reshape(3, 8, -1)
        tree[f"optimizer/target/{path}"] = x
    file = tmp_path / f"scenic{suffix}"
    if suffix == ".npz":
        np.savez(file, **tree)
    else:
        file.write_bytes(serialization.msgpack_serialize(unflatten_dict(tree, sep="/")))
    fields = {
        name: getattr(created, name) for name in (*BARE, *(["num_temporal_layers"] if model.endswith("fe") else []))
    }
    loaded = vitx.load_pretrained(file, model, **fields)
    assert loaded[0] == created and not loaded.report.fresh
    assert loaded.report.left_over == ("optimizer/state/param_states/Transformer/encoder_norm/bias/grad_ema",)
    jax.tree.map(np.testing.assert_array_equal, loaded[1], expected)
    swapped = vitx.load_pretrained(file, model, **(fields | {"num_classes": 9}))
    assert swapped.report.fresh == ("head/logits/bias", "head/logits/kernel")


def drop(name):
    return lambda content: content.pop(name)


def put(name, value):
    return lambda content: content.__setitem__(name, value)


def with_nan(tensors):
    tensors["classifier.bias"][2] = np.nan


@pytest.mark.parametrize(
    ("change", "file", "message"),
    [
        (drop("model_type"), "config.json", "describes a model of type None. Known are vivit, timesformer"),
        (put("model_type", "timeformer"), "config.json", "did you mean timesformer?"),
        (drop("hidden_size"), "config.json", "lacks 'hidden_size'"),
        (put("num_hidden_layers", 3), "config.json", "missing encoder/block_2/"),
        (put("num_hidden_layers", 1), "config.json", "unexpected vivit.encoder.layer.1"),
        (put("hidden_size", 48), "config.json", "expected [48"),
        (put("num_attention_heads", 5), "config.json", "hidden_size 24 is not divisible by num_heads 5"),
        (put("tubelet_size", [3, 8, 8]), "config.json", "does not divide a clip of (4, 16, 16)"),
        (put("hidden_act", "swish"), "config.json", "has hidden_act 'swish'; expected one of gelu"),
        (put("qkv_bias", False), "config.json", "unexpected vivit.encoder.layer.0.attention.attention"),
        (put("num_frames", "many"), "config.json", "num_frames is 'many'; expected int"),
        (put("num_frames", 4.0), "config.json", "num_frames is 4.0; expected int"),
        (put("num_frames", 2_000_000), "config.json", "has shape [1, 9, 24], expected [1, 4000001, 24]"),
        (put("num_attention_heads", True), "config.json", "expected int"),
        (put("hidden_size", -24), "config.json", "hidden_size is -24"),
        (put("layer_norm_eps", float("nan")), "config.json", "layer_norm_eps is nan"),
        (put("hidden_dropout_prob", 5), "config.json", "dropout_rate is 5.0; expected"),
        (put("qkv_bias", "false"), "config.json", "qkv_bias is 'false'; expected bool"),
        (put("num_channels", 1), "config.json", "num_channels 1"),
        (put("image_size", [16]), "config.json", "image_size is (16,); expected"),
        (put("tubelet_size", 2), "config.json", "tubelet_size is 2; expected"),
        (put("hidden_act", []), "config.json", "has hidden_act []"),
        (put("id2label", {"a": "b"}), "config.json", "id2label is not a dictionary from the numbers"),
        (put("id2label", []), "config.json", "id2label is not a dictionary from the numbers"),
        (
            put("vivit.embeddings.patch_embeddings.projection.weight", np.ones((3, 3), np.float32)),
            "model.safetensors",
            "projection.weight has shape [3, 3]",
        ),
        (drop("vivit.layernorm.weight"), "model.safetensors", "missing encoder/norm/scale"),
        (put("pooler.dense.weight", np.ones(3, np.float32)), "model.safetensors", "unexpected pooler.dense.weight"),
        (with_nan, "model.safetensors", "classifier.bias holds values that are not finite"),
        (put("classifier.bias", np.ones(5, np.int32)), "model.safetensors", "expected floating-point numbers"),
        (put("classifier.bias", np.ones(6, np.float32)), "model.safetensors", "has shape [6], expected [5]"),
    ],
)
def test_tensors_and_settings_that_do_not_fit_are_named(change, file, message, vivit):
    with pytest.raises(UserError) as error:
        vitx.load_pretrained(edit(vivit, change, file))
    assert message in str(error.value)


def test_missing_and_unexpected_tensors_may_be_named(vivit):
    edit(vivit, drop("vivit.layernorm.weight"))
    edit(vivit, put("pooler.dense.weight", np.ones(3, np.float32)))
    loaded = vitx.load_pretrained(vivit, allow_missing=["encoder/norm/*"], allow_unexpected=["pooler*"])
    assert loaded.report.fresh == ("encoder/norm/scale",) and loaded.report.left_over == ("pooler.dense.weight",)
    np.testing.assert_array_equal(loaded[1]["params"]["encoder"]["norm"]["scale"], 1)


def test_a_reducer_with_parameters_starts_from_a_model_without(vivit):
    learner = TokenLearner(num_tokens=1, after_layer=1)
    loaded = vitx.load_pretrained(vivit, reducer=learner)
    assert {path.split("/")[1] for path in loaded.report.fresh} == {"token_learner"}


def test_a_tensor_that_is_there_twice_is_refused(vivit):
    rules = [NameRule("head", "head/logits"), NameRule("classifier", "head/logits")]
    tensors = {f"{name}.weight": np.ones((3, 2), np.float32) for name in ("head", "classifier")}
    with pytest.raises(UserError, match=r"head\.weight and classifier\.weight are both head/logits/kernel"):
        to_ours(tensors, rules)


def test_fixed_positions_of_another_grid_are_noted(capsys):
    path = Path(__file__).parent / "golden" / "videomae"
    model, _ = vitx.load_pretrained(path)
    loaded = vitx.load_pretrained(path, num_frames=2 * model.num_frames)
    assert any("fixed positions" in note for note in loaded.report.notes)
    assert not any("fixed positions" in note for note in vitx.load_pretrained(path).report.notes)


def test_shards_are_read_by_their_index(vivit, tmp_path):
    tensors = read_tensors(vivit / "model.safetensors")
    _, variables = vitx.load_pretrained(vivit)
    (vivit / "model.safetensors").unlink()
    half = len(tensors) // 2
    parts = {"one.safetensors": list(tensors)[:half], "two.safetensors": list(tensors)[half:]}
    for file, names in parts.items():
        write_safetensors({name: tensors[name] for name in names}, vivit / file, {})
    index = {name: file for file, names in parts.items() for name in names}
    (vivit / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    _, again = vitx.load_pretrained(vivit)
    jax.tree.map(np.testing.assert_array_equal, variables, again)
    index["vivit.layernorm.weight"] = "../../secret.safetensors"
    (vivit / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    with pytest.raises(UserError, match="names files outside its directory"):
        vitx.load_pretrained(vivit)


def test_a_checkpoint_of_another_family_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"timesformer .*ViViT is read from"):
        vitx.load_pretrained(GOLDEN / "timesformer_divided" / "model.safetensors", "vivit_b_16x2")
    write_safetensors({"conv1.weight": np.ones((3, 3), np.float32)}, tmp_path / "resnet.safetensors", {})
    with pytest.raises(UserError, match=r"conv1.weight.*ViViT is read from"):
        vitx.load_pretrained(tmp_path / "resnet.safetensors", "vivit_b_16x2")


@pytest.mark.parametrize("fields", [{"num_frames": 5}, {"num_frames": 0}, {"image_size": 20}])
def test_a_shape_that_the_model_cannot_take_is_refused(fields, vivit):
    with pytest.raises(UserError, match="does not divide a clip of"):
        vitx.load_pretrained(vivit, **fields)


def test_directories_without_config_or_weights_are_refused(vivit, tmp_path):
    with pytest.raises(UserError, match=r"it has no config\.json"):
        vitx.load_pretrained(tmp_path)
    (vivit / "model.safetensors").unlink()
    with pytest.raises(UserError, match="has no weights"):
        vitx.load_pretrained(vivit)
    for text in ("[1]", "null", "5", '"format"', "[" * 100_000):
        (vivit / "config.json").write_text(text)
        with pytest.raises(UserError, match=r"is no JSON object|is not JSON"):
            vitx.load_pretrained(vivit)
    with pytest.raises(UserError, match="there is no"):
        vitx.load_pretrained(tmp_path / "nothing")


@pytest.mark.parametrize("index", ["[]", "5", '{"weight_map": []}', '{"weight_map": null}', "{}"])
def test_a_malformed_index_of_shards_is_refused(index, vivit):
    (vivit / "model.safetensors.index.json").write_text(index)
    with pytest.raises(UserError, match="names files outside its directory, or none"):
        vitx.load_pretrained(vivit)


def test_a_name_must_agree_with_what_is_found(vivit):
    with pytest.raises(UserError, match=r"(?s)another model than vivit_s_16x4.*hidden_size: 24 .*384"):
        vitx.load_pretrained(vivit, "vivit_s_16x4")
    with pytest.raises(UserError, match=r"another model than timesformer_b_16_divided.*\n  model: ViViT .*TimeSformer"):
        vitx.load_pretrained(vivit, "timesformer_b_16_divided")


def write_own_file(path, model):
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, *model.input_shape)))
    save_own(model, jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes), path, preprocessing=None, labels=None)
    return path


def test_a_name_must_agree_with_a_file_of_ours(tmp_path):
    own = write_own_file(tmp_path / "own.safetensors", vitx.create_model("mc3_18", width=4, num_classes=3))
    with pytest.raises(UserError, match=r"(?s)another model than mc3_18; leave the name out.*\n  width: 4 .*64"):
        vitx.load_pretrained(own, "mc3_18")
    assert vitx.load_pretrained(own, "mc3_18", width=4)[0].num_classes == 3
    longer = vitx.create_model("vivit_ti_16x2", num_frames=4, image_size=(32, 48), num_classes=3)
    resized = write_own_file(tmp_path / "resized.safetensors", longer)
    assert vitx.load_pretrained(resized, "vivit_ti_16x2")[0].num_frames == 4
    with pytest.raises(UserError, match=r"leave the name out, or give its own\n  model: ViViT .*ResNet3D"):
        vitx.load_pretrained(resized, "mc3_18")
    for other in ("r3d_18", "r2plus1d_18"):
        with pytest.raises(UserError, match=rf"(?s)holds another model than {other}; .*\n  kernels: "):
            vitx.load_pretrained(own, other)
    with pytest.raises(UserError, match=r"video has shape \[1, 4, 15, 112, 3\]; ResNet3D strides over"):
        vitx.load_pretrained(own, clip=(4, 15, 112))


@pytest.mark.parametrize(
    ("name", "fields", "other", "message"),
    [
        ("convlstm_small", {"widths": (4,)}, {"forget_bias": 0.0}, r"forget_bias: 1\.0 .*0\.0"),
        ("lrcn_gru_small", {"width": 2, "grid": (2, 3)}, {"grid": (3, 2)}, r"grid: \(2, 3\) .*\(3, 2\)"),
    ],
)
def test_recurrent_networks_do_not_start_from_weights_of_another_function(name, fields, other, message, tmp_path):
    model = vitx.create_model(name, num_classes=3, **fields)
    own = write_own_file(tmp_path / "own.safetensors", model)
    assert start_from(own, model)[0]
    with pytest.raises(UserError, match=message):
        start_from(own, model.copy(**other))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_heads": 6}, "num_heads: 3 .*6"),
        ({"activation": "gelu"}, "activation: 'gelu_tanh' .*'gelu'"),
        ({"layer_norm_eps": 1e-2}, "layer_norm_eps: 1e-06 .*0.01"),
    ],
)
def test_training_does_not_start_from_weights_of_another_function(fields, message, vivit):
    model = vitx.create_model("vivit_b_16x2", **(BARE | fields))
    with pytest.raises(UserError, match=message):
        start_from(vivit, model)
    assert set(start_from(vivit, vitx.create_model("vivit_b_16x2", **(BARE | {"num_classes": 9})))[0]) == {"params"}


def write_named_file(path, names):
    """A file of ours with random weights of a small model and these names of its classes."""
    model = vitx.create_model("vivit_b_16x2", **(BARE | {"num_classes": len(names)}))
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, *model.input_shape)))
    random = np.random.RandomState(0)
    variables = jax.tree.map(lambda x: random.standard_normal(x.shape).astype(np.float32), shapes)
    save_own(model, variables, path, preprocessing=None, labels={"class": names})
    return model, variables["params"]["head"]["logits"]


@pytest.mark.parametrize(
    ("names", "columns"),
    [
        (("run", "jump", "walk"), [2, 0, 1]),
        (("walk", "fly", "jump", "swim"), [1, None, 0, None]),
        (("fly", "swim", "dive"), [None, None, None]),
        (("jump", "walk", "run"), [0, 1, 2]),
    ],
)
def test_classes_are_matched_by_name(names, columns, tmp_path, capsys):
    model, head = write_named_file(tmp_path / "own.safetensors", ("jump", "walk", "run"))
    target = model.copy(num_classes=len(names))
    variables, report = start_from(tmp_path / "own.safetensors", target, {"action": names})
    found = variables["params"]["head"]["logits"]
    for i, column in enumerate(columns):  # a fresh head is zero
        expected = np.zeros(24) if column is None else head["kernel"][:, column]
        np.testing.assert_array_equal(found["kernel"][:, i], expected)
        np.testing.assert_array_equal(found["bias"][i], 0 if column is None else head["bias"][column])
    matched = sum(column is not None for column in columns)
    assert report.classes == ({} if columns == [0, 1, 2] else {"head/logits": (matched, len(names))})
    assert ("fresh: head/logits/bias" in capsys.readouterr().err) == (matched == 0)
    assert ("head/logits/kernel" in report.left_over) == (matched == 0)


def test_classes_without_names_on_both_sides_are_matched_by_their_number(tmp_path, vivit):
    model, head = write_named_file(tmp_path / "own.safetensors", ("jump", "walk", "run"))
    kernel = start_from(tmp_path / "own.safetensors", model)[0]["params"]["head"]["logits"]["kernel"]
    np.testing.assert_array_equal(kernel, head["kernel"])
    other, report = start_from(tmp_path / "own.safetensors", model.copy(num_classes=2))
    assert (
        set(report.fresh) == {"head/logits/kernel", "head/logits/bias"}
        and not other["params"]["head"]["logits"]["bias"].any()
    )
    target = vitx.create_model("vivit_b_16x2", **BARE)
    _, report = start_from(vivit, target, {"class": tuple("abcde")})  # transformers calls them LABEL_0, ...
    assert not report.fresh and not report.classes and any("does not name" in note for note in report.notes)


def test_spellings_of_a_class_match_and_classes_of_one_name_do_not(tmp_path):
    model, head = write_named_file(tmp_path / "own.safetensors", ("cafe\u0301", "walk", "walk", "run "))
    names = ("run", "caf\u00e9", "walk", "swim")
    variables, report = start_from(tmp_path / "own.safetensors", model, {"class": names})
    kernel = variables["params"]["head"]["logits"]["kernel"]
    np.testing.assert_array_equal(kernel[:, :2], head["kernel"][:, [3, 0]])
    assert not kernel[:, 2:].any() and report.classes == {"head/logits": (2, 4)}
    assert any("walk" in note for note in report.notes) and any("swim" in note for note in report.notes)


def test_a_name_of_the_hub_answers_with_the_command_that_fetches_it():
    with pytest.raises(UserError, match=r"downloads nothing.*hf download google/vivit-b-16x2-kinetics400 --local-dir"):
        vitx.load_pretrained("google/vivit-b-16x2-kinetics400")


def test_what_is_loaded_has_names_and_a_short_repr(vivit):
    loaded = vitx.load_pretrained(vivit, num_classes=9)
    assert loaded.model is loaded[0] and loaded.variables is loaded[1]
    assert (
        repr(loaded).startswith("<Pretrained ViViT, ") and "2 tensors fresh" in repr(loaded) and len(repr(loaded)) < 100
    )


def test_a_backbone_without_its_head_is_read(tmp_path):
    for name, model in (("vivit", "vivit_b_16x2"), ("timesformer_divided", "timesformer_b_16_divided")):
        tensors = read_tensors(GOLDEN / name / "model.safetensors")
        bare = {key.split(".", 1)[1]: x for key, x in tensors.items() if not key.startswith("classifier")}
        write_safetensors(bare, tmp_path / "backbone.safetensors", {})
        config = vitx.load_pretrained(GOLDEN / name)[0]
        fields = {field: getattr(config, field) for field in BARE} | {"num_classes": 0}
        loaded = vitx.load_pretrained(tmp_path / "backbone.safetensors", model, **fields)
        assert not loaded.report.fresh and not loaded.report.left_over


def test_saving_refuses_models_that_hugging_face_lacks_and_overwrites_nothing(vivit, tmp_path):
    model, variables = vitx.load_pretrained(vivit)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="is not empty"):
        vitx.save_huggingface(model, variables, tmp_path / "full")
    with pytest.raises(UserError, match="there are 2 labels and the model has 5 classes"):
        vitx.save_huggingface(model, variables, tmp_path / "new", labels=["a", "b"])
    with pytest.raises(UserError, match="two of the labels are equal"):
        vitx.save_huggingface(model, variables, tmp_path / "new", labels=["a", "a", "b", "c", "d"])
    (tmp_path / "new.tmp").write_text("mine")
    wide = vitx.create_model("timesformer_b_16_divided", image_size=(16, 32))
    with pytest.raises(UserError, match="for squares, TimeSformer"):
        vitx.save_huggingface(wide, variables, tmp_path / "new")
    other = vitx.create_model("vivit_b_16x2_fsa", **BARE)
    with pytest.raises(UserError, match="Hugging Face has no model like this ViViT"):
        vitx.save_huggingface(other, variables, tmp_path / "new")
    assert not (tmp_path / "new").exists() and (tmp_path / "new.tmp").read_text() == "mine"
    vitx.save_huggingface(model, variables, tmp_path / "new")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["full", "new", "new.tmp", "vivit"]
