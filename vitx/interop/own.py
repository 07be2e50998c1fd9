"""Our own file: one .safetensors with our names, which carries its model, preprocessing and labels."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from vitx.configuration import from_dict, to_dict
from vitx.errors import UserError
from vitx.interop.fill import Source, VideoModel, flattened
from vitx.interop.preprocessing import Preprocessing
from vitx.interop.tensors import read_metadata, read_tensors, write_safetensors
from vitx.layers.head import classes_of

KEY = "vitx"  # of the metadata


def is_own(path: Path) -> bool:
    """Whether a file is one of ours."""
    return path.suffix == ".safetensors" and path.is_file() and KEY in read_metadata(path)


def save_own(
    model: VideoModel,
    variables: Mapping[str, Any],
    path: Path,
    *,
    preprocessing: Preprocessing | None,
    labels: Mapping[str, tuple[str, ...]] | None,
) -> None:
    """Writes the file in one piece."""
    about = {
        "model": to_dict(model),
        "preprocessing": to_dict(preprocessing),
        "labels": None if labels is None else {head: list(names) for head, names in labels.items()},
    }
    tensors = flattened(jax.device_get(variables))
    write_safetensors(tensors, path, {"format": "np", KEY: json.dumps(about)})


def read_own(path: Path) -> Source:
    """Returns what a file of ours holds; parts of registered types only.

    Raises:
        UserError: damaged, or it does not say what it is of.
    """
    try:
        about = json.loads(read_metadata(path)[KEY])
        model, preprocessing = (from_dict(about[part], str(path)) for part in ("model", "preprocessing"))
        labels = about["labels"] and {head: tuple(map(str, names)) for head, names in about["labels"].items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{path} does not say which model it is of: {error}") from error
    if not isinstance(model, VideoModel) or not isinstance(preprocessing, Preprocessing | None):
        raise UserError(f"{path} does not say which model it is of: found {type(model).__name__}")
    if labels and {head: len(names) for head, names in labels.items()} != classes_of(model.num_classes, labels):
        raise UserError(f"{path}: its labels are not those of {model.num_classes} classes")
    return Source(read_tensors(path), {}, (), model, preprocessing=preprocessing, labels=labels or None)
