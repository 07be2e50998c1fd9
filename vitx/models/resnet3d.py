"""R3D, MC3 and R(2+1)D of 18 layers (Tran et al. 2018, arXiv:1711.11248), as torchvision has them."""

import math

from flax import linen as nn
from jaxtyping import Array, Float

from vitx.configuration import register
from vitx.layers.convolution import ConvolutionUnit, average_windows
from vitx.layers.types import Triple
from vitx.models.cnn import Stage, WindowedCNN

Kernels = tuple[Triple, ...]  # kernels in sequence; each strides along the axes that it extends over


class BasicBlock(nn.Module):
    """x + two convolutions, each of one kernel or factorised in several (section 3, figure 1).

    Attributes:
        width: output channels.
        kernels: kernels of each of the two convolutions.
        stride: stride of the first convolution.
        unit: settings that all convolutions share.
    """

    width: int
    kernels: Kernels
    stride: int
    unit: ConvolutionUnit

    @nn.compact
    def __call__(self, x: Float[Array, "b t h w c"], *, train: bool) -> Float[Array, "b to ho wo o"]:
        channels, shortcut = x.shape[-1], x
        # as many parameters as a kernel of 3 x 3 x 3 (section 3.5); the original takes the same for both convolutions
        between = 27 * channels * self.width // (9 * channels + 3 * self.width)
        for number, stride in ((1, self.stride), (2, 1)):
            for part, kernel in enumerate(self.kernels):
                last = part == len(self.kernels) - 1
                x = self.unit.copy(
                    width=self.width if last else between,
                    kernel_size=kernel,
                    stride=strides_of(kernel, stride),
                    relu=not (last and number == 2),
                    name=f"conv_{number}{'abc'[part]}",
                )(x, train=train)
        if self.stride > 1 or channels != self.width:
            steps = (math.prod(axis) for axis in zip(*(strides_of(k, self.stride) for k in self.kernels), strict=True))
            shortcut = self.unit.copy(width=self.width, stride=tuple(steps), relu=False, name="shortcut")(
                shortcut, train=train
            )
        return nn.relu(x + shortcut)


def strides_of(kernel: Triple, stride: int) -> Triple:
    """Returns the stride along each axis that the kernel extends over, and 1 along others."""
    t, h, w = (stride if size > 1 else 1 for size in kernel)
    return t, h, w


@register
class ResNet3D(WindowedCNN):
    """A residual network of basic blocks.

    Attributes:
        stem_kernels: kernels of the stem.
        stem_width: channels between the stem's kernels if there are two.
        kernels: kernels of the convolutions in each stage. Width doubles with each stage, and resolution halves with
            each but the first.
        depths: blocks of each stage.
        See `WindowedCNN` for inherited fields.
    """

    stem_kernels: Kernels = ((3, 7, 7),)
    stem_width: int = 45
    kernels: tuple[Kernels, ...] = (((3, 3, 3),),) * 4
    depths: tuple[int, ...] = (2, 2, 2, 2)

    def __post_init__(self):
        if not self.depths or len(self.depths) != len(self.kernels) or min(self.depths) < 1:
            raise ValueError(
                f"depths is {self.depths} and kernels {self.kernels}; expected a depth of at "
                "least 1 and kernels for every stage"
            )
        super().__post_init__()

    @property
    def strides(self) -> Triple:
        """Frames, rows and columns of the video for one place of the last feature map."""
        later = self.kernels[1:]
        t = math.prod(2 for kernels in later if any(kernel[0] > 1 for kernel in kernels))
        return t, 2 * 2 ** len(later), 2 * 2 ** len(later)

    @nn.compact
    def windows(self, video: Float[Array, "b t h w 3"], *, train: bool) -> Float[Array, "b to ho wo d"]:
        """Returns the average of the last feature maps in every window."""
        x = video
        for part, kernel in enumerate(self.stem_kernels):
            last = part == len(self.stem_kernels) - 1
            x = self.unit.copy(
                width=self.width if last else self.stem_width,
                kernel_size=kernel,
                stride=(1, *strides_of(kernel, 2)[1:]),
                name=f"stem_{'abc'[part]}",
            )(x, train=train)
        for stage, (depth, kernels) in enumerate(zip(self.depths, self.kernels, strict=True)):
            width, stride = self.width * 2**stage, 2 if stage else 1
            blocks = (BasicBlock(width, kernels, 1 if i else stride, self.unit, parent=None) for i in range(depth))
            x = Stage(tuple(blocks), name=f"stage_{stage + 1}")(x, train=train)
        return average_windows(x, self.window)


DENSE, FLAT, FACTORISED = ((3, 3, 3),), ((1, 3, 3),), ((1, 3, 3), (3, 1, 1))
VARIANTS: dict[str, WindowedCNN] = {
    "r3d_18": ResNet3D(),
    "mc3_18": ResNet3D(kernels=(DENSE, FLAT, FLAT, FLAT)),
    "r2plus1d_18": ResNet3D(stem_kernels=((1, 7, 7), (3, 1, 1)), kernels=(FACTORISED,) * 4),
}
