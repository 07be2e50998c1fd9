"""Hugging Face's video Transformers, Vivit and Timesformer: names, settings, files."""

import dataclasses
import functools
import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

import jax
import numpy as np
from flax import linen as nn
from flax.traverse_util import flatten_dict

from vitx.configuration import override
from vitx.console import print_text
from vitx.errors import UserError, closest
from vitx.interop.names import CONVOLUTION, CONVOLUTION_2D, NORM, PLAIN, NameRule, Tensors, to_theirs
from vitx.interop.preprocessing import Preprocessing
from vitx.interop.tensors import read_tensors, write_safetensors
from vitx.layers.embeddings import height_and_width
from vitx.local_copies import local_copy
from vitx.models.timesformer import TimeSformer, TimeSformerSpace
from vitx.models.transformer import VideoTransformer
from vitx.models.vivit import ViViT
from vitx.storage import is_file, read_json, write_json
from vitx.stores import report_io_errors

ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_fast": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
}
THEIR_ACTIVATIONS = {"gelu": "gelu", "gelu_tanh": "gelu_fast"}


def encoder_rules(prefix: str, attention: str = "attention") -> list[NameRule]:
    """Returns the rules of a stack of blocks; `attention` is our name of the attention that is called so in theirs."""
    theirs, ours = f"{prefix}.encoder.layer.{{i}}", "encoder/block_{i}"
    return [
        *(NameRule(f"{theirs}.attention.attention.{x}", f"{ours}/{attention}/{x}") for x in ("query", "key", "value")),
        NameRule(f"{theirs}.attention.output.dense", f"{ours}/{attention}/out"),
        NameRule(f"{theirs}.layernorm_before", f"{ours}/{attention}_norm", NORM),
        NameRule(f"{theirs}.layernorm_after", f"{ours}/mlp_norm", NORM),
        NameRule(f"{theirs}.intermediate.dense", f"{ours}/mlp/hidden"),
        NameRule(f"{theirs}.output.dense", f"{ours}/mlp/out"),
        NameRule(f"{prefix}.layernorm", "encoder/norm", NORM),
        NameRule("classifier", "head/logits"),
        NameRule(f"{prefix}.embeddings.cls_token", "positions/class_token", PLAIN),
        NameRule(f"{prefix}.embeddings.position_embeddings", "positions/positions", PLAIN),
    ]


VIVIT_RULES = [
    *encoder_rules("vivit"),
    NameRule("vivit.embeddings.patch_embeddings.projection", "embedding", CONVOLUTION),
]
TIMESFORMER_RULES = [
    *encoder_rules("timesformer"),
    NameRule("timesformer.embeddings.time_embeddings", "positions/time_positions", PLAIN),
    NameRule("timesformer.embeddings.patch_embeddings.projection", "embedding", CONVOLUTION_2D),
]
TIME = "timesformer.encoder.layer.{i}.temporal_"
DIVIDED_RULES = [
    *encoder_rules("timesformer", "space_attention"),
    *TIMESFORMER_RULES[-2:],
    *(
        NameRule(f"{TIME}attention.attention.{x}", f"encoder/block_{{i}}/time_attention/{x}")
        for x in ("query", "key", "value")
    ),
    NameRule(f"{TIME}attention.output.dense", "encoder/block_{i}/time_attention/out"),
    NameRule(f"{TIME}layernorm", "encoder/block_{i}/time_attention_norm", NORM),
    NameRule(f"{TIME}dense", "encoder/block_{i}/time_dense"),
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
        model_type: kind of the model in config.json.
        class_name: class of the classifier in transformers.
        processor: class of its preprocessing in transformers.
        rules: names of its tensors.
        model: our model, with the settings that config.json does not name.
        fits: whether one of our Transformers is of this kind.
        fields: our settings from those of config.json that not all kinds share.
        settings: settings of config.json that not all kinds share, from our model.
        attention_type: the kind's attention_type in config.json, where it has one.
        joins_qkv: whether one tensor holds queries, keys and values.
        note: what users of transformers should know, printed when weights are saved.
    """

    model_type: str
    class_name: str
    processor: str
    rules: Sequence[NameRule]
    model: VideoTransformer
    fits: Callable[[VideoTransformer], bool]
    fields: Callable[[Mapping[str, Any]], dict[str, Any]]
    settings: Callable[[VideoTransformer], dict[str, Any]]
    attention_type: str | None = None
    joins_qkv: bool = False
    note: str = ""


def _fits_vivit(model: VideoTransformer) -> bool:
    return isinstance(model, ViViT) and model.layouts == ("joint",) and model.position_kind == "learned"


def _fits_timesformer(model: VideoTransformer, like: VideoTransformer) -> bool:
    rows, columns = height_and_width(model.image_size)
    square = rows == columns and model.tubelet_size[1] == model.tubelet_size[2]  # transformers has squares alone
    return type(model) is type(like) and model.layouts == like.layouts and square and model.tubelet_size[0] == 1


def _timesformer(
    attention_type: str, rules: Sequence[NameRule], model: VideoTransformer, note: str = ""
) -> Architecture:
    return Architecture(
        model_type="timesformer",
        class_name="TimesformerForVideoClassification",
        processor="VideoMAEImageProcessor",
        rules=rules,
        model=model,
        fits=functools.partial(_fits_timesformer, like=model),
        fields=lambda config: {
            "tubelet_size": (1, config["patch_size"], config["patch_size"]),
            "drop_path_rate": config.get("drop_path_rate", 0.0),
        },
        # drop_path_rate is not written: the config of transformers 5.0 (2026-01) accepts whole numbers only
        settings=lambda model: {"patch_size": model.tubelet_size[1], "attention_type": attention_type},
        attention_type=attention_type,
        joins_qkv=True,
        note=note,
    )


# a kind of model is one entry here; config.json's model_type and attention_type choose
ARCHITECTURES = (
    Architecture(
        model_type="vivit",
        class_name="VivitForVideoClassification",
        processor="VivitImageProcessor",
        rules=VIVIT_RULES,
        model=ViViT(),
        fits=_fits_vivit,
        fields=lambda config: {"tubelet_size": config["tubelet_size"]},
        settings=lambda model: {"tubelet_size": list(model.tubelet_size)},
    ),
    _timesformer("divided_space_time", DIVIDED_RULES, TimeSformer()),
    _timesformer("joint_space_time", TIMESFORMER_RULES, TimeSformer(layouts=("joint",))),
    _timesformer(
        "space_only",
        TIMESFORMER_RULES,
        TimeSformerSpace(),
        note="transformers 5 gives space-only attention logits for every frame; its authors, and vitx, average the "
        "frames before the last norm",
    ),
)
MODEL_TYPES = tuple(dict.fromkeys(architecture.model_type for architecture in ARCHITECTURES))


def architecture_of(config: Mapping[str, Any], where: str) -> Architecture:
    """Returns the kind of model that a config.json describes.

    Raises:
        UserError: it is not known here.
    """
    model_type = str(config.get("model_type"))
    of_type = [architecture for architecture in ARCHITECTURES if architecture.model_type == model_type]
    if not of_type:
        raise UserError(
            f"{where} describes a model of type {config.get('model_type')!r}{closest(model_type, MODEL_TYPES)} "
            f"Known are {', '.join(MODEL_TYPES)}"
        )
    if len(of_type) == 1:
        return of_type[0]
    kinds = {str(architecture.attention_type): architecture for architecture in of_type}
    kind = config.get("attention_type", of_type[0].attention_type)  # the first is the default of transformers
    if str(kind) not in kinds:
        raise UserError(f"{where} has attention_type {kind!r}; expected one of {', '.join(kinds)}")
    return kinds[str(kind)]


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
        raise error.within(where) from error


def family_of(tensors: Mapping[str, np.ndarray]) -> str | None:
    """Returns "vivit" or "timesformer" where the tensors are of such a classifier or its bare backbone."""
    for family in ("vivit", "timesformer"):
        if any(name.startswith(f"{family}.") for name in tensors):
            return family
    kernels = [x for name, x in tensors.items() if name == "embeddings.patch_embeddings.projection.weight"]
    if kernels and kernels[0].ndim == 5:
        return "vivit"
    return "timesformer" if any(".attention.attention.qkv." in name for name in tensors) else None


def rename_tensors(tensors: Mapping[str, np.ndarray], model_type: str) -> Tensors:
    """Returns the tensors under the names of the hub, transformers 4's; queries, keys and values split."""
    found = {}
    for name, tensor in tensors.items():
        if name.startswith(("embeddings.", "encoder.", "layernorm.", "layers.")):
            name = f"{model_type}.{name}"  # a bare backbone
        for pattern, replacement in RENAMED:
            name = pattern.sub(replacement, name)
        found[name] = tensor
    return split_qkv(found)


def split_qkv(tensors: Mapping[str, np.ndarray]) -> Tensors:
    """Returns the tensors with queries, keys and values split where one tensor holds all three."""
    found = {}
    for name, tensor in tensors.items():
        if match := re.fullmatch(r"(.*)\.qkv\.(weight|bias)", name):
            if len(tensor) % 3:
                raise UserError(f"{name} has shape {list(tensor.shape)}; expected queries, keys and values in one")
            for part, name in zip(np.split(tensor, 3), ("query", "key", "value"), strict=True):
                found[f"{match[1]}.{name}.{match[2]}"] = part
        else:
            found[name] = tensor
    return found


def read_weights(directory: PurePath) -> Tensors:
    """Returns all tensors of a Hugging Face directory, from one file or from several with an index."""
    index = directory / "model.safetensors.index.json"
    if is_file(index):
        content = read_json(index)
        table = content.get("weight_map") if isinstance(content, dict) else None
        files = sorted({str(name) for name in table.values()}) if isinstance(table, dict) else []
        outside = [name for name in files if Path(name).name != name]
        if outside or not files:
            raise UserError(f"{index} names files outside its directory, or none: {', '.join(outside[:3])}")
        return _read_shards(directory, index, table, files)
    for name in ("model.safetensors", "pytorch_model.bin"):
        if is_file(directory / name):
            return read_tensors(local_copy(directory / name))
    raise UserError(f"{directory} has no weights: expected model.safetensors or pytorch_model.bin")


def _read_shards(directory: PurePath, index: PurePath, table: Mapping[str, str], files: Sequence[str]) -> Tensors:
    """Returns the tensors of several files, each from the file that the index names for it."""
    found: Tensors = {}
    for file in files:
        tensors = read_tensors(local_copy(directory / file))
        if wrong := [name for name in (*tensors, *table) if (name in tensors) != (table.get(name) == file)]:
            where = "has" if wrong[0] in tensors else "lacks"
            raise UserError(f"{directory / file} {where} {wrong[0]}, which {index} says is in {table.get(wrong[0])}")
        found |= tensors
    return found


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
    model: nn.Module,
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
        UserError: Hugging Face has no such model, the labels are not as many as the classes, or the directory is not
            empty.
    """
    directory = Path(directory)
    architecture = architecture_for(model)
    if not isinstance(model.num_classes, int) or model.num_classes < 1:
        raise UserError(f"num_classes is {model.num_classes!r}; Hugging Face's classifiers have one head of classes")
    labels = tuple(labels or (f"LABEL_{i}" for i in range(model.num_classes)))
    if len(set(labels)) != len(labels):
        raise UserError("two of the labels are equal; Hugging Face needs a different name for each class")
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
    if architecture.joins_qkv:
        tensors = _join_qkv(tensors)
    if architecture.note:
        print_text(f"{directory}: {architecture.note}", error=True)
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


def _join_qkv(tensors: Tensors) -> Tensors:
    found = {}
    for name, tensor in tensors.items():
        if match := re.fullmatch(r"(.*)\.query\.(weight|bias)", name):
            parts = [tensors[f"{match[1]}.{part}.{match[2]}"] for part in ("query", "key", "value")]
            found[f"{match[1]}.qkv.{match[2]}"] = np.concatenate(parts)
        elif not re.fullmatch(r".*\.(key|value)\.(weight|bias)", name):
            found[name] = tensor
    return found


def find_architecture(model: nn.Module) -> Architecture | None:
    """Returns the kind of model that Hugging Face has for one of ours, or None."""
    if not isinstance(model, VideoTransformer) or model.pooling != "class" or model.sampled_frames:
        return None
    return next((architecture for architecture in ARCHITECTURES if architecture.fits(model)), None)


def architecture_for(model: nn.Module) -> Architecture:
    """Returns the kind of model that Hugging Face has for one of ours.

    Raises:
        UserError: it has none.
    """
    if not isinstance(model, VideoTransformer):
        raise UserError(f"Hugging Face has no {type(model).__name__}; write one .safetensors file instead")
    architecture = find_architecture(model)
    if architecture is None:
        raise UserError(
            f"Hugging Face has no model like this {type(model).__name__} (layouts {model.layouts}, pooling "
            f"{model.pooling!r}); it has ViViT 1 with a class token, and, for squares, TimeSformer divided, joint and "
            "space. Write one .safetensors file instead"
        )
    return architecture
