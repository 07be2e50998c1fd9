"""Directories of Hugging Face's video Transformers: settings and weights, in and out."""

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

import jax
import numpy as np
from flax import linen as nn
from flax.traverse_util import flatten_dict

from vitx.configuration import override
from vitx.console import print_text
from vitx.errors import UserError
from vitx.interop.architectures import architecture_for, architecture_of
from vitx.interop.names import Tensors, to_theirs
from vitx.interop.preprocessing import Preprocessing
from vitx.interop.tensors import read_tensors, write_safetensors
from vitx.layers.embeddings import height_and_width
from vitx.local_copies import local_copy
from vitx.models.transformer import VideoEncoder, VideoTransformer
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


def model_of(config: Mapping[str, Any], where: str) -> VideoEncoder:
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
        # transformers leaves out its default of two classes
        classes = {"num_classes": len(labels_of(config, where) or (0, 1))}
        fields = {
            **(classes if isinstance(architecture.model, VideoTransformer) else {}),
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
        model: a ViViT of model 1 with a class token, a TimeSformer (divided, joint, space) or a VideoMAE, with one head
            of classes; or a VideoMAE for pre-training.
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
    if getattr(model, "reducer", None) is not None:
        raise UserError(
            f"found reducer {model.reducer}, which transformers lacks; expected None: write one .safetensors "
            "file, which keeps it, or load the weights with reducer=None first"
        )
    label_settings = _label_settings(model, labels) if isinstance(model, VideoTransformer) else {}
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
        **label_settings,
        "torch_dtype": "float32",
        **architecture.settings(model),
    }
    half = (0.5,) * 3
    preprocessing = preprocessing or Preprocessing(half, half, size, None, model.num_frames)
    params = {
        path: np.asarray(x, np.float32)
        for path, x in flatten_dict(jax.device_get(variables["params"]), sep="/").items()
    }
    tensors = architecture.rewrite(to_theirs(params, architecture.rules))
    if note := architecture.note(model):
        print_text(f"{directory}: {note}", error=True)
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


def _label_settings(model: VideoTransformer, labels: Sequence[str] | None) -> dict[str, Any]:
    """Returns the names of the classes as config.json has them."""
    if not isinstance(model.num_classes, int) or model.num_classes < 1:
        raise UserError(f"num_classes is {model.num_classes!r}; Hugging Face's classifiers have one head of classes")
    labels = tuple(labels or (f"LABEL_{i}" for i in range(model.num_classes)))
    if len(set(labels)) != len(labels):
        raise UserError("two of the labels are equal; Hugging Face needs a different name for each class")
    if len(labels) != model.num_classes:
        raise UserError(f"there are {len(labels)} labels and the model has {model.num_classes} classes")
    return {
        "id2label": {str(i): label for i, label in enumerate(labels)},
        "label2id": {label: i for i, label in enumerate(labels)},
    }
