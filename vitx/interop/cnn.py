"""Names of convolutional networks elsewhere: torchvision's and PyTorchVideo's state dicts."""

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path

from vitx.errors import UserError
from vitx.interop.fill import Source
from vitx.interop.names import BATCH_NORM, CONVOLUTION, Rule, Tensors, to_ours
from vitx.models.cnn import VideoCNN
from vitx.models.resnet3d import ResNet3D


@dataclasses.dataclass(frozen=True)
class Layout:
    """How one family's tensors are named.

    Attributes:
        family: of models, and whose.
        sign: name of a tensor that this family has and no other.
        rules: for a model of the family.
    """

    family: str
    sign: str
    rules: Callable[[VideoCNN], Iterator[Rule]]


def unit(conv: str, norm: str, ours: str) -> Iterator[Rule]:
    """Yields the rules of a `ConvolutionUnit`."""
    yield Rule(conv, f"{ours}/conv", CONVOLUTION)
    yield Rule(norm, f"{ours}/norm", BATCH_NORM)


def resnet3d_rules(model: ResNet3D) -> Iterator[Rule]:
    """Yields the rules of torchvision's r3d_18 and its like."""
    for part in range(len(model.stem_kernels)):
        yield from unit(f"stem.{3 * part}", f"stem.{3 * part + 1}", f"stem_{'abc'[part]}")
    for stage, kernels in enumerate(model.kernels, 1):
        theirs, ours = f"layer{stage}.{{i}}", f"stage_{stage}/block_{{i}}"
        yield from unit(f"{theirs}.downsample.0", f"{theirs}.downsample.1", f"{ours}/shortcut")
        for conv in (1, 2):
            first = f"{theirs}.conv{conv}"
            for part in range(len(kernels) - 1):
                within = f"{first}.0"
                yield from unit(f"{within}.{3 * part}", f"{within}.{3 * part + 1}", f"{ours}/conv_{conv}{'abc'[part]}")
            last = len(kernels) - 1
            place = f"{first}.0.{3 * last}" if last else f"{first}.0"
            yield from unit(place, f"{first}.1", f"{ours}/conv_{conv}{'abc'[last]}")
    yield Rule("fc", "head/logits")


LAYOUTS = {
    ResNet3D: Layout("torchvision's r3d_18, mc3_18 or r2plus1d_18", "stem.0.weight", resnet3d_rules),
}


def state_dict_source(path: Path, tensors: Tensors, model: VideoCNN) -> Source:
    """Returns the tensors of a state dict in our names.

    Raises:
        UserError: the state dict is of another family, or lacks the statistics of batch normalisation.
    """
    layout = LAYOUTS[type(model)]
    if layout.sign not in tensors:
        found = [other.family for other in LAYOUTS.values() if other.sign in tensors]
        raise UserError(
            f"{path} holds {found[0] if found else 'no state dict that is known here'} (it names "
            f"{', '.join(sorted(tensors)[:3])}, ...); a {type(model).__name__} is read from {layout.family}"
        )
    if not any(name.endswith(".running_mean") for name in tensors):
        raise UserError(
            f"{path} has no statistics of batch normalisation (running_mean, running_var), without which the network "
            "cannot be evaluated; save the whole state_dict(), not the parameters alone"
        )
    kept = {name: x for name, x in tensors.items() if not name.endswith(".num_batches_tracked")}
    return Source(*to_ours(kept, tuple(layout.rules(model))), model)
