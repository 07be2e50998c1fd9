"""S3D (Xie et al. 2018, arXiv:1712.04851), an Inception network of factorised convolutions, as torchvision has it."""

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from vitx.configuration import register
from vitx.layers.convolution import ConvolutionUnit, average_windows, max_pool
from vitx.layers.types import Triple
from vitx.models.cnn import Stage, WindowedCNN


class Separable(nn.Module):
    """A convolution in space and then one in time (figure 6).

    Attributes:
        width: output channels of both.
        size: size of both kernels along the axes that they extend over.
        stride: stride along all axes.
        unit: settings that all convolutions share.
    """

    width: int
    size: int
    stride: int
    unit: ConvolutionUnit

    @nn.compact
    def __call__(self, x: Float[Array, "b t h w c"], *, train: bool) -> Float[Array, "b to ho wo o"]:
        k, s = self.size, self.stride
        unit = self.unit.copy(width=self.width)
        x = unit.copy(kernel_size=(1, k, k), stride=(1, s, s), name="space")(x, train=train)
        return unit.copy(kernel_size=(k, 1, 1), stride=(s, 1, 1), name="time")(x, train=train)


Branches = tuple[int, int, int, int, int, int]


class Inception(nn.Module):
    """Four branches side by side, their channels one after the other (figure 7).

    Attributes:
        widths: channels of the plain branch, of the first separable branch before and after, of the second one before
            and after, and of the pooled branch.
        unit: settings that all convolutions share.
    """

    widths: Branches
    unit: ConvolutionUnit

    @nn.compact
    def __call__(self, x: Float[Array, "b t h w c"], *, train: bool) -> Float[Array, "b t h w o"]:
        plain, before_1, after_1, before_2, after_2, pooled = self.widths

        def point(x: Array, width: int, name: str) -> Array:
            return self.unit.copy(width=width, name=name)(x, train=train)

        def separable(before: int, after: int, name: str) -> Array:
            inner = point(x, before, f"{name}_in")
            return Separable(after, 3, 1, self.unit, name=name)(inner, train=train)

        branches = [
            point(x, plain, "branch_0"),
            separable(before_1, after_1, "branch_1"),
            separable(before_2, after_2, "branch_2"),
            point(max_pool(x, (3, 3, 3), (1, 1, 1)), pooled, "branch_3"),
        ]
        return jnp.concatenate(branches, axis=-1)


@register
class S3D(WindowedCNN):
    """Two separable convolutions, then Inception blocks in three stages with pooling between.

    Attributes:
        stages: widths of the blocks' branches for a `width` of 64, scaled for others; see `Inception`.
        See `WindowedCNN` for inherited fields.
    """

    stages: tuple[tuple[Branches, ...], tuple[Branches, ...], tuple[Branches, ...]] = (
        ((64, 96, 128, 16, 32, 32), (128, 128, 192, 32, 96, 64)),
        (
            (192, 96, 208, 16, 48, 64),
            (160, 112, 224, 24, 64, 64),
            (128, 128, 256, 24, 64, 64),
            (112, 144, 288, 32, 64, 64),
            (256, 160, 320, 32, 128, 128),
        ),
        ((256, 160, 320, 32, 128, 128), (384, 192, 384, 48, 128, 128)),
    )

    def __post_init__(self):
        if self.width % 4:
            raise ValueError(
                f"width is {self.width}; expected a multiple of 4, so that every branch has whole channels"
            )
        super().__post_init__()

    @property
    def strides(self) -> Triple:
        """Frames, rows and columns of the video for one place of the last feature map."""
        return 8, 32, 32

    @property
    def unit(self) -> ConvolutionUnit:
        """Settings that all convolutions share; eps and momentum are the original's."""
        return super().unit.copy(eps=1e-3, momentum=1e-3)

    def block(self, widths: Branches) -> Inception:
        """Returns a block in proportion to the model's width."""
        return Inception(tuple(width * self.width // 64 for width in widths), self.unit, parent=None)

    @nn.compact
    def windows(self, video: Float[Array, "b t h w 3"], *, train: bool) -> Float[Array, "b to ho wo d"]:
        """Returns the average of the last feature maps in every window."""
        x = Separable(self.width, 7, 2, self.unit, name="stem_a")(video, train=train)
        x = max_pool(x, (1, 3, 3), (1, 2, 2))
        x = self.unit.copy(width=self.width, name="stem_b")(x, train=train)
        x = Separable(3 * self.width, 3, 1, self.unit, name="stem_c")(x, train=train)
        x = max_pool(x, (1, 3, 3), (1, 2, 2))
        first, second, third = (tuple(self.block(widths) for widths in stage) for stage in self.stages)
        x = max_pool(Stage(first, name="stage_1")(x, train=train), (3, 3, 3), (2, 2, 2))
        x = max_pool(Stage(second, name="stage_2")(x, train=train), (2, 2, 2), (2, 2, 2), padded=False)
        x = Stage(third, name="stage_3")(x, train=train)
        return average_windows(x, self.window)


VARIANTS: dict[str, WindowedCNN] = {"s3d": S3D(dropout_rate=0.2, window=(2, 7, 7), clip=(16, 224, 224))}
