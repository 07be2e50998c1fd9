"""Named variants of every family, found and created by name."""

import fnmatch
from typing import Any

from flax import linen as nn

from vitx.configuration import override
from vitx.errors import UserError, did_you_mean
from vitx.layers.head import NumClasses
from vitx.models import (
    bottleneck,
    convlstm,
    forecaster,
    frames,
    resnet3d,
    s3d,
    slowfast,
    timesformer,
    videomae,
    vivit,
    x3d,
)
from vitx.models.base import TokenModel, VideoModel, resolve_implementation
from vitx.plugins import Registry

__all__ = [
    "VARIANTS",
    "TokenModel",
    "VideoModel",
    "create_model",
    "list_models",
    "resolve_implementation",
]

FAMILIES = (vivit, timesformer, videomae, resnet3d, s3d, bottleneck, slowfast, x3d, frames, convlstm, forecaster)
VARIANTS: Registry[nn.Module] = Registry(
    "model", {name: model for family in FAMILIES for name, model in family.VARIANTS.items()}
)


def list_models(pattern: str = "*") -> list[str]:
    """Returns the sorted names of all variants that match a shell pattern, such as "vivit_b_*"."""
    return sorted(fnmatch.filter(VARIANTS, pattern))


def create_model(name: str, *, num_classes: NumClasses = 400, **fields: Any) -> nn.Module:
    """Returns a named variant, with fields of its class replaced.

    Args:
        name: one of `list_models()`.
        num_classes: an int; 0 for pooled features; (("verb", 97), ("noun", 300)) for a dictionary of logits. Ignored
            by models that do not classify.
        fields: settings to replace, such as num_frames=16, image_size=(180, 320).

    Raises:
        UserError: no such model or field, a value of the wrong type, or a shape that the model cannot have.
    """
    if name not in VARIANTS:
        raise UserError(f"there is no model {name}{did_you_mean(name, VARIANTS)} `vitx models` lists them")
    heads = {"num_classes": num_classes} if hasattr(VARIANTS[name], "num_classes") else {}
    return override(VARIANTS[name], heads | fields)
