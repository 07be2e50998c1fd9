"""X3D (Feichtenhofer 2020, arXiv:2004.04730), as PyTorchVideo has it."""

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from vitx.configuration import register
from vitx.layers.convolution import Convolution, ConvolutionUnit, average_windows
from vitx.layers.types import Triple
from vitx.models.cnn import Stage, WindowedCNN


class SqueezeExcitation(nn.Module):
    """Scales every channel by a factor that depends on the averages of all (Hu et al. 2018, arXiv:1709.01507).

    Attributes:
        hidden: width of the layer in between.
    """

    hidden: int

    @nn.compact
    def __call__(self, x: Float[Array, "b t h w c"]) -> Float[Array, "b t h w c"]:
        means = jnp.mean(x, axis=(1, 2, 3), keepdims=True)
        hidden = nn.relu(nn.Dense(self.hidden, dtype=x.dtype, name="squeeze")(means))
        return x * nn.sigmoid(nn.Dense(x.shape[-1], dtype=x.dtype, name="excite")(hidden))


class X3DBlock(nn.Module):
    """x + a convolution to 2.25 times the width, a depthwise one, and one back (table 1).

    Attributes:
        width: output channels.
        stride: stride of the depthwise convolution in space.
        excitation: whether squeeze and excitation follows the depthwise convolution.
        unit: settings that all convolutions share.
    """

    width: int
    stride: int
    excitation: bool
    unit: ConvolutionUnit

    @nn.compact
    def __call__(self, x: Float[Array, "b t h w c"], *, train: bool) -> Float[Array, "b to ho wo o"]:
        inner, stride = int(2.25 * self.width), (1, self.stride, self.stride)
        outer = self.unit.copy(width=self.width, relu=False)
        shortcut = x
        if x.shape[-1] != self.width:
            shortcut = outer.copy(stride=stride, name="shortcut")(x, train=train)
        elif self.stride > 1:  # the original has no normalisation here
            shortcut = Convolution(
                self.width, (1, 1, 1), stride, 1, self.unit.implementation, self.unit.dtype, name="shortcut"
            )(x)
        x = self.unit.copy(width=inner, name="conv_a")(x, train=train)
        x = self.unit.copy(width=inner, kernel_size=(3, 3, 3), stride=stride, groups=inner, relu=False, name="conv_b")(
            x, train=train
        )
        if self.excitation:
            x = SqueezeExcitation(round_to_eight(inner / 16), name="excitation")(x)
        x = outer.copy(zero_init=True, name="conv_c")(nn.swish(x), train=train)
        return nn.relu(x + shortcut)


def round_to_eight(width: float) -> int:
    """Returns a multiple of 8 near the width, not under 0.9 of it."""
    near = max(8, int(width + 4) // 8 * 8)
    return near if near >= 0.9 * width else near + 8


@register
class X3D(WindowedCNN):
    """A stem in space, then in time; four stages of depthwise bottlenecks; a wide layer after the average.

    The result is logits; PyTorchVideo's networks of this name end in a softmax.

    Attributes:
        depths: blocks of each stage; every other one, from the first, has squeeze and excitation.
        hidden_size: width of the layer between the average and the head.
        See `WindowedCNN` for inherited fields; width doubles with each stage but the first.
    """

    width: int = 24
    depths: tuple[int, int, int, int] = (3, 5, 11, 7)
    hidden_size: int = 2048

    @property
    def strides(self) -> Triple:
        """Frames, rows and columns of the video for one place of the last feature map."""
        return 1, 32, 32

    @nn.compact
    def windows(self, video: Float[Array, "b t h w 3"], *, train: bool) -> Float[Array, "b to ho wo d"]:
        """Returns the wide layer's output for the average of the last feature maps in every window."""
        how = {"implementation": self.implementation, "dtype": self.dtype}
        x = Convolution(self.width, (1, 3, 3), (1, 2, 2), name="stem_space", **how)(video)
        x = self.unit.copy(width=self.width, kernel_size=(5, 1, 1), groups=self.width, name="stem_time")(x, train=train)
        for i, depth in enumerate(self.depths):
            width = self.width * 2**i
            blocks = (X3DBlock(width, 1 if j else 2, j % 2 == 0, self.unit, parent=None) for j in range(depth))
            x = Stage(tuple(blocks), name=f"stage_{i + 1}")(x, train=train)
        x = self.unit.copy(width=int(2.25 * x.shape[-1]), name="last")(x, train=train)
        return nn.relu(Convolution(self.hidden_size, name="hidden", **how)(average_windows(x, self.window)))


VARIANTS: dict[str, WindowedCNN] = {
    "x3d_xs": X3D(window=(4, 5, 5), dropout_rate=0.5, clip=(4, 160, 160)),
    "x3d_s": X3D(window=(13, 5, 5), dropout_rate=0.5, clip=(13, 160, 160)),
    "x3d_m": X3D(window=(16, 7, 7), dropout_rate=0.5, clip=(16, 224, 224)),
    "x3d_l": X3D(depths=(5, 10, 25, 15), window=(16, 10, 10), dropout_rate=0.5, clip=(16, 312, 312)),
}
