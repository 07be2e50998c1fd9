"""Residual networks of bottleneck blocks: C2D, I3D, Slow, CSN and R(2+1)D, as PyTorchVideo has them.

C2D: Wang et al. 2018, arXiv:1711.07971, table 1. I3D: the same, section 5, after Carreira & Zisserman 2017,
arXiv:1705.07750. Slow: Feichtenhofer et al. 2019, arXiv:1812.03982, table 1. CSN: Tran et al. 2019, arXiv:1904.02811.
R(2+1)D: Tran et al. 2018, arXiv:1711.11248, in whose blocks PyTorchVideo puts time before space.
"""

import math

from flax import linen as nn
from jaxtyping import Array, Float

from vitx.configuration import register, setting
from vitx.layers.convolution import ConvolutionUnit, average_windows, max_pool
from vitx.layers.types import Triple
from vitx.models.cnn import Stage, WindowedCNN

R50, R101 = (3, 4, 6, 3), (3, 4, 23, 3)
TemporalSizes = tuple[int, ...]  # temporal sizes of a stage's blocks in turn; repeated if there are more blocks


class Bottleneck(nn.Module):
    """x + a convolution to a quarter of the width, one within it, one back to the width.

    Attributes:
        width: output channels.
        temporal_size: frames that the first convolution extends over.
        kernel_size: kernel of the middle convolution.
        stride: stride of the middle convolution.
        depthwise: whether the middle convolution is depthwise.
        unit: settings that all convolutions share.
        factorised: whether the middle convolution is two, along time and then over space.
    """

    width: int
    temporal_size: int
    kernel_size: Triple
    stride: Triple
    depthwise: bool
    unit: ConvolutionUnit
    factorised: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "b t h w c"], *, train: bool) -> Float[Array, "b to ho wo o"]:
        inner = self.unit.copy(width=self.width // 4)
        outer = self.unit.copy(width=self.width, relu=False)
        groups = inner.width if self.depthwise else 1
        shortcut = x
        if x.shape[-1] != self.width or math.prod(self.stride) > 1:
            shortcut = outer.copy(stride=self.stride, name="shortcut")(x, train=train)
        x = inner.copy(kernel_size=(self.temporal_size, 1, 1), name="conv_a")(x, train=train)
        kernel, stride = self.kernel_size, self.stride
        if self.factorised:
            along_time = {"kernel_size": (kernel[0], 1, 1), "stride": (stride[0], 1, 1)}
            x = inner.copy(**along_time, groups=groups, name="conv_b_time")(x, train=train)
            kernel, stride = (1, *kernel[1:]), (1, *stride[1:])
        x = inner.copy(kernel_size=kernel, stride=stride, groups=groups, name="conv_b")(x, train=train)
        x = outer.copy(zero_init=True, name="conv_c")(x, train=train)
        return nn.relu(x + shortcut)


def create_stage(
    depth: int,
    width: int,
    unit: ConvolutionUnit,
    *,
    stride: Triple,
    temporal_sizes: TemporalSizes,
    kernel_size: Triple = (1, 3, 3),
    depthwise: bool = False,
    factorised: bool = False,
    name: str,
) -> Stage:
    """Returns a stage of bottleneck blocks, the first of which strides."""
    sizes = (temporal_sizes * depth)[:depth]
    strides = (stride, *[(1, 1, 1)] * (depth - 1))
    blocks = (
        Bottleneck(width, size, kernel_size, step, depthwise, unit, factorised, parent=None)
        for size, step in zip(sizes, strides, strict=True)
    )
    return Stage(tuple(blocks), name=name)


@register
class BottleneckResNet(WindowedCNN):
    """A stem, four stages of bottleneck blocks; width doubles and, but for the first, resolution halves with each.

    Attributes:
        depths: blocks of each stage.
        stem_frames: frames that the stem's kernel extends over.
        temporal_sizes: for each stage, frames that the first convolutions of its blocks extend over, in turn.
        kernel_size: kernel of the middle convolutions.
        depthwise: whether the middle convolutions are depthwise (CSN, section 3.2, interaction-reduced).
        factorised: whether the middle convolutions are two, along time and then over space.
        stem_pooling: whether the stem's maps are pooled; if not, the first stage halves resolution as the others do.
        temporal_strides: stride of each stage along time.
        pooled_frames: size of the max pooling along time after the first stage; 1 pools nothing.
        See `WindowedCNN` for inherited fields.
    """

    depths: tuple[int, int, int, int] = R50
    stem_frames: int = 1
    temporal_sizes: tuple[TemporalSizes, TemporalSizes, TemporalSizes, TemporalSizes] = ((1,), (1,), (3,), (3,))
    kernel_size: Triple = (1, 3, 3)
    depthwise: bool = False
    factorised: bool = False
    stem_pooling: bool = setting(True, changes_function=True)
    temporal_strides: tuple[int, int, int, int] = setting((1, 1, 1, 1), changes_function=True)
    pooled_frames: int = setting(1, changes_function=True)

    @property
    def strides(self) -> Triple:
        """Frames, rows and columns of the video for one place of the last feature map."""
        return self.pooled_frames * math.prod(self.temporal_strides), 32, 32

    @nn.compact
    def windows(self, video: Float[Array, "b t h w 3"], *, train: bool) -> Float[Array, "b to ho wo d"]:
        """Returns the average of the last feature maps in every window."""
        x = create_stem(self.unit, self.width, self.stem_frames, "stem")(video, train=train)
        if self.stem_pooling:
            x = max_pool(x, (1, 3, 3), (1, 2, 2))
        for i, depth in enumerate(self.depths):
            step = 2 if i or not self.stem_pooling else 1
            stage = create_stage(
                depth,
                4 * self.width * 2**i,
                self.unit,
                stride=(self.temporal_strides[i], step, step),
                temporal_sizes=self.temporal_sizes[i],
                kernel_size=self.kernel_size,
                depthwise=self.depthwise,
                factorised=self.factorised,
                name=f"stage_{i + 1}",
            )
            x = stage(x, train=train)
            if i == 0 and self.pooled_frames > 1:
                window = (self.pooled_frames, 1, 1)
                x = max_pool(x, window, window, padded=False)
        return average_windows(x, self.window)


def create_stem(unit: ConvolutionUnit, width: int, frames: int, name: str) -> ConvolutionUnit:
    """Returns the first convolution."""
    return unit.copy(width=width, kernel_size=(frames, 7, 7), stride=(1, 2, 2), name=name)


VARIANTS: dict[str, WindowedCNN] = {
    "c2d_r50": BottleneckResNet(
        temporal_sizes=((1,),) * 4, pooled_frames=2, window=(4, 7, 7), dropout_rate=0.5, clip=(8, 256, 256)
    ),
    "i3d_r50": BottleneckResNet(
        stem_frames=5,
        temporal_sizes=((3,), (3, 1), (3, 1), (1, 3)),
        pooled_frames=2,
        window=(4, 7, 7),
        dropout_rate=0.5,
        clip=(8, 256, 256),
    ),
    "slow_r50": BottleneckResNet(window=(8, 7, 7), dropout_rate=0.5, clip=(8, 256, 256)),
    "csn_r101": BottleneckResNet(
        depths=R101,
        stem_frames=3,
        temporal_sizes=((1,),) * 4,
        kernel_size=(3, 3, 3),
        depthwise=True,
        temporal_strides=(1, 2, 2, 2),
        window=(4, 7, 7),
        clip=(32, 256, 256),
    ),
    "r2plus1d_r50": BottleneckResNet(
        temporal_sizes=((1,),) * 4,
        kernel_size=(3, 3, 3),
        factorised=True,
        stem_pooling=False,
        temporal_strides=(1, 1, 2, 2),
        window=(4, 7, 7),
        dropout_rate=0.5,
        clip=(16, 256, 256),
    ),
}
