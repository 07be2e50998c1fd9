"""Our own format: one .safetensors file with our names, which carries its model, preprocessing and labels."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
from flax import linen as nn

from vitx import strict_json
from vitx.configuration import from_dict, to_dict
from vitx.errors import UserError
from vitx.interop.fill import WeightsSource, flatten_variables
from vitx.interop.preprocessing import Preprocessing
from vitx.interop.tensors import read_metadata, read_tensors, write_safetensors
from vitx.layers.head import classes_of

KEY = "vitx"  # entry of the file's metadata


def is_own(path: Path) -> bool:
    """Returns whether a file is of our format."""
    return path.suffix == ".safetensors" and path.is_file() and KEY in read_metadata(path)


def save_own(
    model: nn.Module,
    variables: Mapping[str, Any],
    path: Path,
    *,
    preprocessing: Preprocessing | None,
    labels: Mapping[str, tuple[str, ...]] | None,
) -> None:
    """Writes a file of our format atomically."""
    about = {
        "model": to_dict(model),
        "preprocessing": to_dict(preprocessing),
        "labels": None if labels is None else {head: list(names) for head, names in labels.items()},
    }
    tensors = flatten_variables(jax.device_get(variables))
    write_safetensors(tensors, path, {"format": "np", KEY: strict_json.dumps(about)})


def read_own(path: Path) -> WeightsSource:
    """Returns the weights of a file of our format; its model can only be of a registered type.

    Raises:
        UserError: the file is damaged, or does not describe its model.
    """
    try:
        about = json.loads(read_metadata(path)[KEY])
        model, preprocessing = (from_dict(about[part], str(path)) for part in ("model", "preprocessing"))
        labels = about["labels"] and {head: tuple(map(str, names)) for head, names in about["labels"].items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{path}: its metadata names no model: {error}") from error
    if not isinstance(model, nn.Module) or not isinstance(preprocessing, Preprocessing | None):
        raise UserError(f"{path}: found a {type(model).__name__} in its metadata; expected a model")
    classifies = hasattr(model, "num_classes")  # a forecaster does not
    if (
        labels
        and classifies
        and {head: len(names) for head, names in labels.items()} != classes_of(model.num_classes, labels)
    ):
        raise UserError(f"{path}: its labels are not those of {model.num_classes} classes")
    return WeightsSource(read_tensors(path), {}, (), model, preprocessing=preprocessing, labels=labels or None)
