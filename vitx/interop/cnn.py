"""Names of convolutional networks elsewhere: torchvision's, timm's and PyTorchVideo's state dicts."""

import dataclasses
import functools
import operator
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import jax.numpy as jnp

from vitx.errors import UserError
from vitx.interop.fill import Source, flattened
from vitx.interop.images import FromImage
from vitx.interop.names import BATCH_NORM, CONVOLUTION, CONVOLUTION_2D, POINTWISE, Kind, Rule, Tensors, to_ours
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
class Layout:
    """How one family's tensors are named.

    Attributes:
        family: of models, and whose.
        sign: name of a tensor that this family has and no other.
        rules: for a model of the family.
        mean: of the pixels that its weights were trained on.
        std: of the pixels, likewise.
    """

    family: str
    sign: str
    rules: Callable[[VideoCNN], Iterator[Rule]]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


def unit(conv: str, norm: str, ours: str, kind: Kind = CONVOLUTION) -> Iterator[Rule]:
    """Yields the rules of a `ConvolutionUnit`."""
    yield Rule(conv, f"{ours}/conv", kind)
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


def s3d_rules(model: S3D) -> Iterator[Rule]:
    """Yields the rules of torchvision's s3d, which numbers its layers, pooling among them, from first to last."""

    def plain(theirs: str, ours: str) -> Iterator[Rule]:
        yield from unit(f"{theirs}.0", f"{theirs}.1", ours)

    def separable(theirs: str, ours: str) -> Iterator[Rule]:
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
    yield Rule("classifier.1", "head/logits", POINTWISE)


def stage_rules(theirs: str, ours: str) -> Iterator[Rule]:
    """Yields the rules of a stage of PyTorchVideo's bottleneck blocks."""
    theirs, ours = f"{theirs}.res_blocks.{{i}}", f"{ours}/block_{{i}}"
    yield from unit(f"{theirs}.branch1_conv", f"{theirs}.branch1_norm", f"{ours}/shortcut")
    for conv in "abc":
        yield from unit(f"{theirs}.branch2.conv_{conv}", f"{theirs}.branch2.norm_{conv}", f"{ours}/conv_{conv}")


def bottleneck_rules(model: BottleneckResNet) -> Iterator[Rule]:
    """Yields the rules of PyTorchVideo's c2d_r50, i3d_r50, slow_r50, csn_r101 and r2plus1d_r50."""
    yield from unit("blocks.0.conv", "blocks.0.norm", "stem")
    pooling = int(model.pooled_frames > 1)  # a block of its own, after the first stage
    for stage in range(1, 5):
        theirs, ours = f"blocks.{stage + pooling * (stage > 1)}", f"stage_{stage}"
        if model.factorised:
            conv, block = f"{theirs}.res_blocks.{{i}}.branch2.conv_b", f"{ours}/block_{{i}}"
            yield from unit(f"{conv}.conv_t", f"{conv}.norm", f"{block}/conv_b_time")
            yield Rule(f"{conv}.conv_xy", f"{block}/conv_b/conv", CONVOLUTION)
        yield from stage_rules(theirs, ours)
    yield Rule(f"blocks.{5 + pooling}.proj", "head/logits")


def slowfast_rules(_: SlowFast) -> Iterator[Rule]:
    """Yields the rules of PyTorchVideo's slowfast_r50 and slowfast_r101."""
    for number, pathway in enumerate(("slow", "fast")):
        stem = f"blocks.0.multipathway_blocks.{number}"
        yield from unit(f"{stem}.conv", f"{stem}.norm", f"{pathway}_stem")
        for stage in range(1, 5):
            yield from stage_rules(f"blocks.{stage}.multipathway_blocks.{number}", f"{pathway}_stage_{stage}")
    for i in range(4):
        fusion = f"blocks.{i}.multipathway_fusion"
        yield from unit(f"{fusion}.conv_fast_to_slow", f"{fusion}.norm", f"fusion_{i}")
    yield Rule("blocks.6.proj", "head/logits")


def x3d_rules(_: X3D) -> Iterator[Rule]:
    """Yields the rules of PyTorchVideo's x3d_xs, _s, _m and _l."""
    # theirs are called conv_t and conv_xy the other way round
    yield Rule("blocks.0.conv.conv_t", "stem_space", CONVOLUTION)
    yield from unit("blocks.0.conv.conv_xy", "blocks.0.norm", "stem_time")
    yield Rule("blocks.1.res_blocks.{i}.branch1_conv", "stage_1/block_{i}/shortcut", CONVOLUTION)  # has no norm
    for stage in range(1, 5):
        theirs, ours = f"blocks.{stage}.res_blocks.{{i}}.branch2", f"stage_{stage}/block_{{i}}"
        yield Rule(f"{theirs}.norm_b.0", f"{ours}/conv_b/norm", BATCH_NORM)
        yield Rule(f"{theirs}.norm_b.1.block.0", f"{ours}/excitation/squeeze", POINTWISE)
        yield Rule(f"{theirs}.norm_b.1.block.2", f"{ours}/excitation/excite", POINTWISE)
        yield from stage_rules(f"blocks.{stage}", f"stage_{stage}")
    yield from unit("blocks.5.pool.pre_conv", "blocks.5.pool.pre_norm", "last")
    yield Rule("blocks.5.pool.post_conv", "hidden", CONVOLUTION)
    yield Rule("blocks.5.proj", "head/logits")


def image_rules(_: VideoCNN) -> Iterator[Rule]:
    """Yields the rules of torchvision's and timm's resnet50 and its deeper like."""
    yield from unit("conv1", "bn1", "stem", CONVOLUTION_2D)
    for stage in range(1, 5):
        theirs, ours = f"layer{stage}.{{i}}", f"stage_{stage}/block_{{i}}"
        yield from unit(f"{theirs}.downsample.0", f"{theirs}.downsample.1", f"{ours}/shortcut", CONVOLUTION_2D)
        for number, letter in enumerate("abc", 1):
            yield from unit(f"{theirs}.conv{number}", f"{theirs}.bn{number}", f"{ours}/conv_{letter}", CONVOLUTION_2D)
    yield Rule("fc", "head/logits")


TORCHVISION = ((0.43216, 0.394666, 0.37645), (0.22803, 0.22145, 0.216989))  # of Kinetics-400
PYTORCHVIDEO = ((0.45,) * 3, (0.225,) * 3)
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
IMAGE = Layout("torchvision's or timm's resnet50", "layer1.0.conv3.weight", image_rules, *IMAGENET)
BOTTLENECKS = Layout(
    "PyTorchVideo's c2d_r50, i3d_r50, slow_r50, csn_r101 or r2plus1d_r50",
    "blocks.0.conv.weight",
    bottleneck_rules,
    *PYTORCHVIDEO,
)
LAYOUTS = {
    ResNet3D: (Layout("torchvision's r3d_18, mc3_18 or r2plus1d_18", "stem.0.weight", resnet3d_rules, *TORCHVISION),),
    S3D: (Layout("torchvision's s3d", "features.0.0.0.weight", s3d_rules, *TORCHVISION),),
    BottleneckResNet: (BOTTLENECKS, IMAGE),
    SlowFast: (
        Layout(
            "PyTorchVideo's slowfast_r50 or slowfast_r101",
            "blocks.0.multipathway_blocks.0.conv.weight",
            slowfast_rules,
            *PYTORCHVIDEO,
        ),
    ),
    X3D: (
        Layout("PyTorchVideo's x3d_xs, x3d_s, x3d_m or x3d_l", "blocks.0.conv.conv_t.weight", x3d_rules, *PYTORCHVIDEO),
    ),
    FrameCNN: (IMAGE,),
    LRCN: (IMAGE,),
}


def variants_of(tensors: Tensors, layout: Layout) -> list[str]:
    """Returns the names of the variants that a state dict fits, its classifier aside."""

    def fits(model: VideoCNN) -> bool:
        found, _, unknown = to_ours(tensors, tuple(layout.rules(model)))
        clip = jax.ShapeDtypeStruct((1, *model.input_shape), jnp.float32)
        wanted = flattened(jax.eval_shape(model.init, jax.random.key(0), clip))
        shapes = ({path: x.shape for path, x in each.items() if "head/" not in path} for each in (found, wanted))
        return not unknown and operator.eq(*shapes)

    return [name for name, model in VARIANTS.items() if layout in LAYOUTS.get(type(model), ()) and fits(model)]


def state_dict_source(path: Path, tensors: Tensors, model: VideoCNN, how: FromImage) -> Source:
    """Returns the tensors of a state dict in our names.

    An image network's classifier comes along for `FrameCNN`, which is that network on every frame, with its number of
    classes; other models leave it.

    Args:
        how: an image network is inflated.

    Raises:
        UserError: the state dict is of another family, or lacks the statistics of batch normalisation.
    """
    of_trunk = f" of a {type(model.trunk).__name__}" if isinstance(model, FrameCNN) else ""
    readable = LAYOUTS[type(model)] if not of_trunk or isinstance(model.trunk, ResNetTrunk) else ()
    layout = next((layout for layout in readable if layout.sign in tensors), None)
    if layout is None:
        found = [other.family for others in LAYOUTS.values() for other in others if other.sign in tensors]
        families = " or ".join(layout.family for layout in readable)
        raise UserError(
            f"{path} holds {found[0] if found else 'no state dict that is known here'} (it names "
            f"{', '.join(sorted(tensors)[:3])}, ...); {type(model).__name__}{of_trunk} is read from "
            f"{families or 'runs of vitx and files that `vitx convert` wrote'}"
        )
    if not any(name.endswith(".running_mean") for name in tensors):
        raise UserError(
            f"{path} has no statistics of batch normalisation (running_mean, running_var), without which the network "
            "cannot be evaluated; save the whole state_dict(), not the parameters alone"
        )
    kept = {name: x for name, x in tensors.items() if not name.endswith(".num_batches_tracked")}
    frames, height, width, _ = model.input_shape
    preprocessing = Preprocessing(layout.mean, layout.std, (height, width), None, frames)
    found, theirs, unknown = to_ours(kept, tuple(layout.rules(model)))
    if layout is not IMAGE:
        kin = functools.partial(variants_of, kept, layout)
        return Source(found, theirs, unknown, model, preprocessing=preprocessing, kin=kin)
    head = [path for path in found if path.startswith("head/")]
    if head and type(model) is FrameCNN:
        model, head = model.copy(num_classes=found[head[0]].shape[-1]), []
    return Source(
        {path: x for path, x in found.items() if path not in head},
        theirs,
        unknown,
        model,
        may_miss=("head/*", "recurrent/*"),
        set_aside=tuple(theirs[path] for path in head),
        preprocessing=preprocessing,
        inflation=how.inflation,
    )
