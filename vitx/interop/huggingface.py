"""Hugging Face's video Transformers, Vivit and Timesformer: names, settings, files."""

import dataclasses
import re
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict

from vitx.configuration import override
from vitx.errors import UserError, closest
from vitx.interop.fill import VideoModel
from vitx.interop.names import CONVOLUTION, CONVOLUTION_2D, NORM, PLAIN, Rule, Tensors, to_theirs
from vitx.interop.preprocessing import Preprocessing
from vitx.interop.tensors import read_tensors, write_safetensors
from vitx.layers.embeddings import height_and_width
from vitx.models.timesformer import TimeSformer, TimeSformerSpace
from vitx.models.transformer import VideoTransformer
from vitx.models.vivit import ViViT
from vitx.storage import read_json, report_io_errors, write_json

ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_fast": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
}
THEIR_ACTIVATIONS = {"gelu": "gelu", "gelu_tanh": "gelu_fast"}


def encoder_rules(prefix: str, attention: str = "attention") -> list[Rule]:
    """Returns the rules of a stack of blocks; `attention` is our name of the one that they call so."""
    theirs, ours = f"{prefix}.encoder.layer.{{i}}", "encoder/block_{i}"
    return [
        *(Rule(f"{theirs}.attention.attention.{x}", f"{ours}/{attention}/{x}") for x in ("query", "key", "value")),
        Rule(f"{theirs}.attention.output.dense", f"{ours}/{attention}/out"),
        Rule(f"{theirs}.layernorm_before", f"{ours}/{attention}_norm", NORM),
        Rule(f"{theirs}.layernorm_after", f"{ours}/mlp_norm", NORM),
        Rule(f"{theirs}.intermediate.dense", f"{ours}/mlp/hidden"),
        Rule(f"{theirs}.output.dense", f"{ours}/mlp/out"),
        Rule(f"{prefix}.layernorm", "encoder/norm", NORM),
        Rule("classifier", "head/logits"),
        Rule(f"{prefix}.embeddings.cls_token", "positions/class_token", PLAIN),
        Rule(f"{prefix}.embeddings.position_embeddings", "positions/positions", PLAIN),
    ]


VIVIT_RULES = [*encoder_rules("vivit"), Rule("vivit.embeddings.patch_embeddings.projection", "embedding", CONVOLUTION)]
TIMESFORMER_RULES = [
    *encoder_rules("timesformer"),
    Rule("timesformer.embeddings.time_embeddings", "positions/time_positions", PLAIN),
    Rule("timesformer.embeddings.patch_embeddings.projection", "embedding", CONVOLUTION_2D),
]
TIME = "timesformer.encoder.layer.{i}.temporal_"
DIVIDED_RULES = [
    *encoder_rules("timesformer", "space_attention"),
    *TIMESFORMER_RULES[-2:],
    *(
        Rule(f"{TIME}attention.attention.{x}", f"encoder/block_{{i}}/time_attention/{x}")
        for x in ("query", "key", "value")
    ),
    Rule(f"{TIME}attention.output.dense", "encoder/block_{i}/time_attention/out"),
    Rule(f"{TIME}layernorm", "encoder/block_{i}/time_attention_norm", NORM),
    Rule(f"{TIME}dense", "encoder/block_{i}/time_dense"),
]
# how transformers 5 renames what transformers 4 wrote
RENAMED = [
    (re.compile(r"^(\w+)\.layers\.(\d+)\."), r"\1.encoder.layer.\2."),
    (re.compile(r"\.attention\.q_proj\."), ".attention.attention.query."),
    (re.compile(r"\.attention\.k_proj\."), ".attention.attention.key."),
    (re.compile(r"\.attention\.v_proj\."), ".attention.attention.value."),
    (re.compile(r"\.attention\.o_proj\."), ".attention.output.dense."),
    (re.compile(r"\.mlp\.fc1\."), ".intermediate.dense."),
    (re.compile(r"\.mlp\.fc2\."), ".output.dense."),
]


@dataclasses.dataclass(frozen=True)
class Architecture:
    """One kind of model that Hugging Face has.

    Attributes:
        model_type: as config.json names it.
        class_name: of the classifier there.
        processor: of its preprocessing there.
        rules: names of its tensors.
        model: ours, with the settings that config.json does not name.
        fields: our settings from those of config.json that not all kinds share.
        settings: the other way round, from our model.
    """

    model_type: str
    class_name: str
    processor: str
    rules: Sequence[Rule]
    model: VideoTransformer
    fields: Callable[[Mapping[str, Any]], dict[str, Any]]
    settings: Callable[[VideoTransformer], dict[str, Any]]


def _timesformer(attention_type: str, rules: Sequence[Rule], model: VideoTransformer) -> Architecture:
    return Architecture(
        "timesformer",
        "TimesformerForVideoClassification",
        "VideoMAEImageProcessor",
        rules,
        model,
        lambda config: {
            "tubelet_size": (1, config["patch_size"], config["patch_size"]),
            "drop_path_rate": config.get("drop_path_rate", 0.0),
        },
        # drop_path_rate is not written: transformers 5 takes whole numbers alone
        lambda model: {"patch_size": model.tubelet_size[1], "attention_type": attention_type},
    )


VIVIT = Architecture(
    "vivit",
    "VivitForVideoClassification",
    "VivitImageProcessor",
    VIVIT_RULES,
    ViViT(),
    lambda config: {"tubelet_size": config["tubelet_size"]},
    lambda model: {"tubelet_size": list(model.tubelet_size)},
)
TIMESFORMERS = {
    "divided_space_time": _timesformer("divided_space_time", DIVIDED_RULES, TimeSformer()),
    "joint_space_time": _timesformer("joint_space_time", TIMESFORMER_RULES, TimeSformer(layouts=("joint",))),
    "space_only": _timesformer("space_only", TIMESFORMER_RULES, TimeSformerSpace()),
}


def architecture_of(config: Mapping[str, Any], where: str) -> Architecture:
    """Returns the kind of model that a config.json describes.

    Raises:
        UserError: none that is known here.
    """
    if config.get("model_type") == "timesformer":
        kind = config.get("attention_type", "divided_space_time")
        if str(kind) not in TIMESFORMERS:
            raise UserError(f"{where} has attention_type {kind!r}; expected one of {', '.join(TIMESFORMERS)}")
        return TIMESFORMERS[kind]
    if config.get("model_type") == "vivit":
        return VIVIT
    known = ("vivit", "timesformer")
    raise UserError(
        f"{where} describes a model of type {config.get('model_type')!r}"
        f"{closest(str(config.get('model_type')), known)} Known are {', '.join(known)}"
    )


def model_of(config: Mapping[str, Any], where: str) -> VideoTransformer:
    """Returns the model that a config.json describes.

    Raises:
        UserError: a setting is missing, or is one that no model here has.
    """
    architecture = architecture_of(config, where)
    try:
        if str(config["hidden_act"]) not in ACTIVATIONS:
            raise UserError(
                f"{where} has hidden_act {config['hidden_act']!r}; expected one of {', '.join(ACTIVATIONS)}"
            )
        if config.get("num_channels", 3) != 3:
            raise UserError(f"{where} has num_channels {config['num_channels']!r}; videos here have 3")
        fields = {
            "num_classes": len(labels_of(config, where) or (0, 1)),  # transformers leaves out its default of two
            "num_frames": config["num_frames"],
            "image_size": config["image_size"],
            "hidden_size": config["hidden_size"],
            "num_layers": config["num_hidden_layers"],
            "num_heads": config["num_attention_heads"],
            "mlp_dim": config["intermediate_size"],
            "dropout_rate": config.get("hidden_dropout_prob", 0.0),
            "layer_norm_eps": config["layer_norm_eps"],
            "activation": ACTIVATIONS[config["hidden_act"]],
            "qkv_bias": config.get("qkv_bias", True),
            **architecture.fields(config),
        }
    except KeyError as error:
        raise UserError(f"{where} lacks {error}") from error
    try:
        return override(architecture.model, fields)
    except UserError as error:
        raise UserError(f"{where}: {error}") from error


def family_of(tensors: Mapping[str, np.ndarray]) -> str | None:
    """Returns "vivit" or "timesformer" where the tensors are of such a classifier or its bare backbone."""
    for family in ("vivit", "timesformer"):
        if any(name.startswith(f"{family}.") for name in tensors):
            return family
    kernels = [x for name, x in tensors.items() if name == "embeddings.patch_embeddings.projection.weight"]
    if kernels and kernels[0].ndim == 5:
        return "vivit"
    return "timesformer" if any(".attention.attention.qkv." in name for name in tensors) else None


def renamed(tensors: Mapping[str, np.ndarray], model_type: str) -> Tensors:
    """Returns the tensors under the names of the hub, transformers 4's; queries, keys and values apart."""
    found = {}
    for name, tensor in tensors.items():
        if name.startswith(("embeddings.", "encoder.", "layernorm.", "layers.")):
            name = f"{model_type}.{name}"  # a bare backbone
        for pattern, replacement in RENAMED:
            name = pattern.sub(replacement, name)
        found[name] = tensor
    return qkv_apart(found)


def qkv_apart(tensors: Mapping[str, np.ndarray]) -> Tensors:
    """Returns the tensors with queries, keys and values apart where one tensor holds all three."""
    found = {}
    for name, tensor in tensors.items():
        if match := re.fullmatch(r"(.*)\.qkv\.(weight|bias)", name):
            if len(tensor) % 3:
                raise UserError(f"{name} has shape {list(tensor.shape)}; expected queries, keys and values in one")
            for part, each in zip(np.split(tensor, 3), ("query", "key", "value"), strict=True):
                found[f"{match[1]}.{each}.{match[2]}"] = part
        else:
            found[name] = tensor
    return found


def read_weights(directory: Path) -> Tensors:
    """Returns all tensors of a Hugging Face directory, from one file or from several with an index."""
    index = directory / "model.safetensors.index.json"
    if index.is_file():
        content = read_json(index)
        table = content.get("weight_map") if isinstance(content, dict) else None
        files = sorted({str(name) for name in table.values()}) if isinstance(table, dict) else []
        strangers = [name for name in files if Path(name).name != name]
        if strangers or not files:
            raise UserError(f"{index} names files outside its directory, or none: {', '.join(strangers[:3])}")
        return {name: x for file in files for name, x in read_tensors(directory / file).items()}
    for name in ("model.safetensors", "pytorch_model.bin"):
        if (directory / name).is_file():
            return read_tensors(directory / name)
    raise UserError(f"{directory} has no weights: expected model.safetensors or pytorch_model.bin")


def labels_of(config: Mapping[str, Any], where: str) -> tuple[str, ...] | None:
    """Returns the names of the classes in the order of the logits, where config.json has them.

    Raises:
        UserError: id2label is no dictionary from the numbers 0, 1, ... to names.
    """
    names = config.get("id2label")
    if names is None:
        return None
    if not isinstance(names, dict) or set(names) != {str(i) for i in range(len(names))}:
        raise UserError(f"{where}: id2label is not a dictionary from the numbers 0, 1, 2, ... to names")
    return tuple(str(names[str(i)]) for i in range(len(names)))


def save_huggingface(
    model: VideoModel,
    variables: Mapping[str, Any],
    directory: str | Path,
    *,
    preprocessing: Preprocessing | None = None,
    labels: Sequence[str] | None = None,
) -> None:
    """Writes a directory that `transformers` loads: config.json, preprocessor_config.json, model.safetensors.

    Args:
        model: a ViViT of model 1 with a class token, or a TimeSformer (divided, joint, space); one head of classes.
        variables: its parameters.
        directory: new or empty; complete when it appears.
        preprocessing: None writes pixels in [-1, 1] and a crop of the model's size.
        labels: names of the classes.

    Raises:
        UserError: Hugging Face has no such model, the labels are not as many as the classes, or there is something in
            the directory.
    """
    directory = Path(directory)
    architecture = architecture_for(model)
    if not isinstance(model.num_classes, int) or model.num_classes < 1:
        raise UserError(f"num_classes is {model.num_classes!r}; Hugging Face's classifiers have one head of classes")
    labels = tuple(labels or (f"LABEL_{i}" for i in range(model.num_classes)))
    if len(set(labels)) != len(labels):
        raise UserError("two of the labels are equal; Hugging Face tells classes apart by their names")
    if len(labels) != model.num_classes:
        raise UserError(f"there are {len(labels)} labels and the model has {model.num_classes} classes")
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise UserError(f"{directory} is not empty; choose a new directory")
    size = height_and_width(model.image_size)
    config = {
        "architectures": [architecture.class_name],
        "model_type": architecture.model_type,
        "num_frames": model.num_frames,
        "image_size": list(size) if size[0] != size[1] else size[0],
        "num_channels": 3,
        "hidden_size": model.hidden_size,
        "num_hidden_layers": model.num_layers,
        "num_attention_heads": model.num_heads,
        "intermediate_size": model.mlp_dim,
        "hidden_act": THEIR_ACTIVATIONS[model.activation],
        "hidden_dropout_prob": model.dropout_rate,
        "attention_probs_dropout_prob": 0.0,
        "layer_norm_eps": model.layer_norm_eps,
        "qkv_bias": model.qkv_bias,
        "id2label": {str(i): label for i, label in enumerate(labels)},
        "label2id": {label: i for i, label in enumerate(labels)},
        "torch_dtype": "float32",
        **architecture.settings(model),
    }
    half = (0.5,) * 3
    preprocessing = preprocessing or Preprocessing(half, half, size, None, model.num_frames)
    params = {
        path: np.asarray(x, np.float32)
        for path, x in flatten_dict(jax.device_get(variables["params"]), sep="/").items()
    }
    tensors = to_theirs(params, architecture.rules)
    if architecture.model_type == "timesformer":
        tensors = _joined(tensors)
    if architecture is TIMESFORMERS["space_only"]:
        print(
            f"{directory}: transformers 5 gives space-only attention logits for every frame; their authors, and vitx, "
            "average the frames before the last norm",
            file=sys.stderr,
        )
    with report_io_errors(directory):
        directory.absolute().parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{directory.name}.", dir=directory.absolute().parent) as draft:
            draft = Path(draft) / "draft"
            draft.mkdir()
            write_safetensors(tensors, draft / "model.safetensors", {"format": "pt"})
            write_json(draft / "config.json", config)
            write_json(draft / "preprocessor_config.json", preprocessing.to_huggingface(architecture.processor))
            if directory.exists():
                directory.rmdir()
            draft.rename(directory)


def _joined(tensors: Tensors) -> Tensors:
    found = {}
    for name, tensor in tensors.items():
        if match := re.fullmatch(r"(.*)\.query\.(weight|bias)", name):
            parts = [tensors[f"{match[1]}.{each}.{match[2]}"] for each in ("query", "key", "value")]
            found[f"{match[1]}.qkv.{match[2]}"] = np.concatenate(parts)
        elif not re.fullmatch(r".*\.(key|value)\.(weight|bias)", name):
            found[name] = tensor
    return found


def architecture_for(model: VideoModel) -> Architecture:
    """Returns the kind of model that Hugging Face has for one of ours.

    Raises:
        UserError: it has none.
    """
    if not isinstance(model, VideoTransformer):
        raise UserError(f"Hugging Face has no {type(model).__name__}; write one .safetensors file instead")
    plain = model.pooling == "class" and not model.sampled_frames
    if isinstance(model, ViViT) and plain and model.layouts == ("joint",) and model.position_kind == "learned":
        return VIVIT
    rows, columns = height_and_width(model.image_size)
    square = rows == columns and model.tubelet_size[1] == model.tubelet_size[2]  # theirs run on squares alone
    if plain and square and model.tubelet_size[0] == 1:
        if isinstance(model, TimeSformerSpace):
            return TIMESFORMERS["space_only"]
        kinds = {("time", "space"): "divided_space_time", ("joint",): "joint_space_time"}
        if isinstance(model, TimeSformer) and model.layouts in kinds:
            return TIMESFORMERS[kinds[model.layouts]]
    raise UserError(
        f"Hugging Face has no model like this {type(model).__name__} (layouts {model.layouts}, pooling "
        f"{model.pooling!r}); it has ViViT 1 with a class token, and, for squares, TimeSformer divided, joint and space"
    )
