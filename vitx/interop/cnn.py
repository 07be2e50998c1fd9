"""Names of convolutional networks elsewhere: torchvision's, timm's and PyTorchVideo's state dicts."""

import dataclasses
import functools
import operator
from collections.abc import Callable, Iterator
from pathlib import PurePath

import jax
from flax import linen as nn

from vitx.errors import UserError
from vitx.interop.fill import WeightsSource, flatten_variables, initial_variables
from vitx.interop.images import FromImage
from vitx.interop.names import BATCH_NORM, CONVOLUTION, CONVOLUTION_2D, POINTWISE, Kind, NameRule, Tensors, to_ours
from vitx.interop.preprocessing import Preprocessing
from vitx.models import VARIANTS
from vitx.models.bottleneck import BottleneckResNet
from vitx.models.cnn import VideoCNN
from vitx.models.frames import LRCN, FrameCNN, ResNetTrunk
from vitx.models.resnet3d import ResNet3D
from vitx.models.s3d import S3D
from vitx.models.slowfast import SlowFast
from vitx.models.x3d import X3D


@dataclasses.dataclass(frozen=True)
class StateDictLayout:
    """How one family's tensors are named.

    Attributes:
        description: name of the family and of its library.
        models: our classes that it fills.
        sign: name of a tensor that this family has and no other.
        rules: returns the names of a model's tensors.
        mean: mean of the pixels that its weights were trained on.
        std: standard deviation of those pixels.
        is_image: whether the family is an image network, whose kernels are inflated.
    """

    description: str
    models: tuple[type[VideoCNN], ...]
    sign: str
    rules: Callable[[VideoCNN], Iterator[NameRule]]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    is_image: bool = False

    def fills(self, model: nn.Module) -> bool:
        """Returns whether the family's tensors can fill a model."""
        return type(model) in self.models and isinstance(getattr(model, "trunk", None), ResNetTrunk | None)


def unit_rules(conv: str, norm: str, ours: str, kind: Kind = CONVOLUTION) -> Iterator[NameRule]:
    """Yields the rules of a `ConvolutionUnit`."""
    yield NameRule(conv, f"{ours}/conv", kind)
    yield NameRule(norm, f"{ours}/norm", BATCH_NORM)


def resnet3d_rules(model: ResNet3D) -> Iterator[NameRule]:
    """Yields the rules of torchvision's r3d_18 and its like."""
    for part in range(len(model.stem_kernels)):
        yield from unit_rules(f"stem.{3 * part}", f"stem.{3 * part + 1}", f"stem_{'abc'[part]}")
    for stage, kernels in enumerate(model.kernels, 1):
        theirs, ours = f"layer{stage}.{{i}}", f"stage_{stage}/block_{{i}}"
        yield from unit_rules(f"{theirs}.downsample.0", f"{theirs}.downsample.1", f"{ours}/shortcut")
        for conv in (1, 2):
            first = f"{theirs}.conv{conv}"
            for part in range(len(kernels) - 1):
                within = f"{first}.0"
                yield from unit_rules(
                    f"{within}.{3 * part}", f"{within}.{3 * part + 1}", f"{ours}/conv_{conv}{'abc'[part]}"
                )
            last = len(kernels) - 1
            place = f"{first}.0.{3 * last}" if last else f"{first}.0"
            yield from unit_rules(place, f"{first}.1", f"{ours}/conv_{conv}{'abc'[last]}")
    yield NameRule("fc", "head/logits")


def s3d_rules(model: S3D) -> Iterator[NameRule]:
    """Yields the rules of torchvision's s3d, which numbers its layers, pooling among them, from first to last."""

    def plain(theirs: str, ours: str) -> Iterator[NameRule]:
        yield from unit_rules(f"{theirs}.0", f"{theirs}.1", ours)

    def separable(theirs: str, ours: str) -> Iterator[NameRule]:
        yield from plain(f"{theirs}.0", f"{ours}/space")
        yield from plain(f"{theirs}.1", f"{ours}/time")

    yield from separable("features.0", "stem_a")
    yield from plain("features.2", "stem_b")
    yield from separable("features.3", "stem_c")
    place = 5
    for stage, blocks in enumerate(model.stages, 1):
        for block in range(len(blocks)):
            theirs, ours = f"features.{place}.branch", f"stage_{stage}/block_{block}/branch"
            yield from plain(f"{theirs}0", f"{ours}_0")
            for branch in (1, 2):
                yield from plain(f"{theirs}{branch}.0", f"{ours}_{branch}_in")
                yield from separable(f"{theirs}{branch}.1", f"{ours}_{branch}")
            yield from plain(f"{theirs}3.1", f"{ours}_3")
            place += 1
        place += 1
    yield NameRule("classifier.1", "head/logits", POINTWISE)


def stage_rules(theirs: str, ours: str) -> Iterator[NameRule]:
    """Yields the rules of a stage of PyTorchVideo's bottleneck blocks."""
    theirs, ours = f"{theirs}.res_blocks.{{i}}", f"{ours}/block_{{i}}"
    yield from unit_rules(f"{theirs}.branch1_conv", f"{theirs}.branch1_norm", f"{ours}/shortcut")
    for conv in "abc":
        yield from unit_rules(f"{theirs}.branch2.conv_{conv}", f"{theirs}.branch2.norm_{conv}", f"{ours}/conv_{conv}")


def bottleneck_rules(model: BottleneckResNet) -> Iterator[NameRule]:
    """Yields the rules of PyTorchVideo's c2d_r50, i3d_r50, slow_r50, csn_r101 and r2plus1d_r50."""
    yield from unit_rules("blocks.0.conv", "blocks.0.norm", "stem")
    pooling = int(model.pooled_frames > 1)  # a block of its own, after the first stage
    for stage in range(1, 5):
        theirs, ours = f"blocks.{stage + pooling * (stage > 1)}", f"stage_{stage}"
        if model.factorised:
            conv, block = f"{theirs}.res_blocks.{{i}}.branch2.conv_b", f"{ours}/block_{{i}}"
            yield from unit_rules(f"{conv}.conv_t", f"{conv}.norm", f"{block}/conv_b_time")
            yield NameRule(f"{conv}.conv_xy", f"{block}/conv_b/conv", CONVOLUTION)
        yield from stage_rules(theirs, ours)
    yield NameRule(f"blocks.{5 + pooling}.proj", "head/logits")


def slowfast_rules(_: SlowFast) -> Iterator[NameRule]:
    """Yields the rules of PyTorchVideo's slowfast_r50 and slowfast_r101."""
    for number, pathway in enumerate(("slow", "fast")):
        stem = f"blocks.0.multipathway_blocks.{number}"
        yield from unit_rules(f"{stem}.conv", f"{stem}.norm", f"{pathway}_stem")
        for stage in range(1, 5):
            yield from stage_rules(f"blocks.{stage}.multipathway_blocks.{number}", f"{pathway}_stage_{stage}")
    for i in range(4):
        fusion = f"blocks.{i}.multipathway_fusion"
        yield from unit_rules(f"{fusion}.conv_fast_to_slow", f"{fusion}.norm", f"fusion_{i}")
    yield NameRule("blocks.6.proj", "head/logits")


def x3d_rules(_: X3D) -> Iterator[NameRule]:
    """Yields the rules of PyTorchVideo's x3d_xs, _s, _m and _l."""
    # theirs are called conv_t and conv_xy the other way round
    yield NameRule("blocks.0.conv.conv_t", "stem_space", CONVOLUTION)
    yield from unit_rules("blocks.0.conv.conv_xy", "blocks.0.norm", "stem_time")
    yield NameRule("blocks.1.res_blocks.{i}.branch1_conv", "stage_1/block_{i}/shortcut", CONVOLUTION)  # has no norm
    for stage in range(1, 5):
        theirs, ours = f"blocks.{stage}.res_blocks.{{i}}.branch2", f"stage_{stage}/block_{{i}}"
        yield NameRule(f"{theirs}.norm_b.0", f"{ours}/conv_b/norm", BATCH_NORM)
        yield NameRule(f"{theirs}.norm_b.1.block.0", f"{ours}/excitation/squeeze", POINTWISE)
        yield NameRule(f"{theirs}.norm_b.1.block.2", f"{ours}/excitation/excite", POINTWISE)
        yield from stage_rules(f"blocks.{stage}", f"stage_{stage}")
    yield from unit_rules("blocks.5.pool.pre_conv", "blocks.5.pool.pre_norm", "last")
    yield NameRule("blocks.5.pool.post_conv", "hidden", CONVOLUTION)
    yield NameRule("blocks.5.proj", "head/logits")


def image_rules(_: VideoCNN) -> Iterator[NameRule]:
    """Yields the rules of torchvision's and timm's resnet50 and its deeper like."""
    yield from unit_rules("conv1", "bn1", "stem", CONVOLUTION_2D)
    for stage in range(1, 5):
        theirs, ours = f"layer{stage}.{{i}}", f"stage_{stage}/block_{{i}}"
        yield from unit_rules(f"{theirs}.downsample.0", f"{theirs}.downsample.1", f"{ours}/shortcut", CONVOLUTION_2D)
        for number, letter in enumerate("abc", 1):
            yield from unit_rules(
                f"{theirs}.conv{number}", f"{theirs}.bn{number}", f"{ours}/conv_{letter}", CONVOLUTION_2D
            )
    yield NameRule("fc", "head/logits")


TORCHVISION = ((0.43216, 0.394666, 0.37645), (0.22803, 0.22145, 0.216989))  # statistics of Kinetics-400
PYTORCHVIDEO = ((0.45,) * 3, (0.225,) * 3)
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
# Of several layouts that fill a model, the first is that of the original.
LAYOUTS = (
    StateDictLayout(
        "torchvision's r3d_18, mc3_18 or r2plus1d_18", (ResNet3D,), "stem.0.weight", resnet3d_rules, *TORCHVISION
    ),
    StateDictLayout("torchvision's s3d", (S3D,), "features.0.0.0.weight", s3d_rules, *TORCHVISION),
    StateDictLayout(
        "PyTorchVideo's c2d_r50, i3d_r50, slow_r50, csn_r101 or r2plus1d_r50",
        (BottleneckResNet,),
        "blocks.0.conv.weight",
        bottleneck_rules,
        *PYTORCHVIDEO,
    ),
    StateDictLayout(
        "PyTorchVideo's slowfast_r50 or slowfast_r101",
        (SlowFast,),
        "blocks.0.multipathway_blocks.0.conv.weight",
        slowfast_rules,
        *PYTORCHVIDEO,
    ),
    StateDictLayout(
        "PyTorchVideo's x3d_xs, x3d_s, x3d_m or x3d_l", (X3D,), "blocks.0.conv.conv_t.weight", x3d_rules, *PYTORCHVIDEO
    ),
    StateDictLayout(
        "torchvision's or timm's resnet50",
        (BottleneckResNet, FrameCNN, LRCN),
        "layer1.0.conv3.weight",
        image_rules,
        *IMAGENET,
        is_image=True,
    ),
)


def original_layout(model: nn.Module) -> StateDictLayout:
    """Returns the names that a model's tensors have in its original."""
    return next(layout for layout in LAYOUTS if layout.fills(model))


def matching_variants(tensors: Tensors, layout: StateDictLayout) -> list[str]:
    """Returns the names of the variants that a state dict fits, its classifier left out."""

    def fits(model: VideoCNN) -> bool:
        found, _, unknown = to_ours(tensors, tuple(layout.rules(model)))
        wanted = flatten_variables(jax.eval_shape(functools.partial(initial_variables, model)))
        shapes = ({path: x.shape for path, x in side.items() if "head/" not in path} for side in (found, wanted))
        return not unknown and operator.eq(*shapes)

    return [name for name, model in VARIANTS.items() if layout.fills(model) and fits(model)]


def state_dict_source(
    path: PurePath, tensors: Tensors, layout: StateDictLayout, model: VideoCNN, how: FromImage
) -> WeightsSource:
    """Returns the tensors of a state dict under our paths.

    An image network's classifier is kept for `FrameCNN`, which is that network on every frame, with its number of
    classes; other models leave it.

    Args:
        path: path of the file, for messages.
        tensors: content of the file.
        layout: names of the tensors; fills the model.
        model: model to fill.
        how: how an image network is inflated.

    Raises:
        UserError: the state dict lacks the statistics of batch normalisation.
    """
    if not any(name.endswith(".running_mean") for name in tensors):
        raise UserError(
            f"{path} has no statistics of batch normalisation (running_mean, running_var), without which the network "
            "cannot be evaluated; save the whole state_dict(), not the parameters alone"
        )
    weights = {name: x for name, x in tensors.items() if not name.endswith(".num_batches_tracked")}
    frames, height, width, _ = model.input_shape
    preprocessing = Preprocessing(layout.mean, layout.std, (height, width), None, frames)
    found, names, unknown = to_ours(weights, tuple(layout.rules(model)))
    if not layout.is_image:
        variants = functools.partial(matching_variants, weights, layout)
        return WeightsSource(found, names, unknown, model, preprocessing=preprocessing, matching_variants=variants)
    head = [path for path in found if path.startswith("head/")]
    if head and type(model) is FrameCNN:
        model, head = model.copy(num_classes=found[head[0]].shape[-1]), []
    return WeightsSource(
        {path: x for path, x in found.items() if path not in head},
        names,
        unknown,
        model,
        may_miss=("head/*", "recurrent/*"),
        set_aside=tuple(names[path] for path in head),
        preprocessing=preprocessing,
        inflation=how.inflation,
    )
