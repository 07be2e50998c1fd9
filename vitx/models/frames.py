"""2D networks that see every frame alone: their average over frames, or a recurrent cell that reads them in order.

Average: temporal segment networks (TSN), Wang et al. 2016, arXiv:1608.00859, section 3.1. Recurrent: LRCN, Donahue et
al. 2015, arXiv:1411.4389, section 4. ResNet-50 is torchvision's, whose 3x3 convolutions have the stride.

In shapes: b batch, t h w c the video or maps, d width of features.
"""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from vitx.configuration import register, setting
from vitx.layers.convolution import ConvolutionUnit, max_pool
from vitx.layers.types import Triple, promote_to_float32
from vitx.models.bottleneck import R50, create_stage, create_stem
from vitx.models.cnn import Stage, VideoCNN
from vitx.models.streaming import RunningMean, StreamingCNN

CELLS = {"lstm": nn.OptimizedLSTMCell, "gru": nn.GRUCell}


@dataclasses.dataclass(frozen=True)
class Trunk:
    """A 2D network from frames to their last feature maps."""

    @property
    def stride(self) -> int:
        """Rows and columns of a frame for one place of the last maps."""
        raise NotImplementedError

    def channels(self, width: int) -> int:
        """Returns the channels of the last maps."""
        raise NotImplementedError

    def maps(self, x: Float[Array, "b t h w 3"], unit: ConvolutionUnit, *, train: bool) -> Float[Array, "b t ho wo c"]:
        """Returns the last maps. Called inside a compact module, which gets the layers, copies of the unit."""
        raise NotImplementedError


@register
@dataclasses.dataclass(frozen=True)
class PlainTrunk(Trunk):
    """In each stage a 3x3 convolution and 2x2 max pooling; width doubles with each stage.

    Attributes:
        stages: number of stages.
    """

    stages: int = 3

    def __post_init__(self):
        if self.stages < 1:
            raise ValueError(f"stages is {self.stages}; expected at least 1")

    @property
    def stride(self) -> int:
        return 2**self.stages

    def channels(self, width: int) -> int:
        return width * 2 ** (self.stages - 1)

    def maps(self, x: Float[Array, "b t h w 3"], unit: ConvolutionUnit, *, train: bool) -> Float[Array, "b t ho wo c"]:
        for i in range(self.stages):
            block = unit.copy(width=unit.width * 2**i, kernel_size=(1, 3, 3))
            x = Stage((block,), name=f"stage_{i + 1}")(x, train=train)
            x = max_pool(x, (1, 2, 2), (1, 2, 2), padded=False)
        return x


@register
@dataclasses.dataclass(frozen=True)
class ResNetTrunk(Trunk):
    """A residual network of bottlenecks (He et al. 2016, arXiv:1512.03385, table 1).

    Attributes:
        depths: number of blocks of each stage.
    """

    depths: tuple[int, int, int, int] = R50

    def __post_init__(self):
        if min(self.depths) < 1:
            raise ValueError(f"depths is {self.depths}; expected at least one block for every stage")

    @property
    def stride(self) -> int:
        return 32

    def channels(self, width: int) -> int:
        return 32 * width

    def maps(self, x: Float[Array, "b t h w 3"], unit: ConvolutionUnit, *, train: bool) -> Float[Array, "b t ho wo c"]:
        x = max_pool(create_stem(unit, unit.width, 1, "stem")(x, train=train), (1, 3, 3), (1, 2, 2))
        for i, depth in enumerate(self.depths):
            width, stride = 4 * unit.width * 2**i, (1, 2, 2) if i else (1, 1, 1)
            stage = create_stage(depth, width, unit, stride=stride, temporal_sizes=(1,), name=f"stage_{i + 1}")
            x = stage(x, train=train)
        return x


@register
class FrameCNN(StreamingCNN):
    """The average of the frames' features, classified: the average of the frames' logits, TSN's consensus.

    For TSN itself the data gives one frame of each segment: `Data(temporal="segments")`.

    Attributes:
        trunk: network that every frame passes through.
        See `VideoCNN` for inherited fields.
    """

    trunk: Trunk = PlainTrunk()

    @property
    def strides(self) -> Triple:
        """Frames, rows and columns of the video for one place of the last feature map."""
        return 1, self.trunk.stride, self.trunk.stride

    @nn.compact
    def maps(self, video: Float[Array, "b t h w 3"], *, train: bool) -> Float[Array, "b t ho wo c"]:
        """Returns the last feature maps of every frame, float32 at least."""
        return promote_to_float32(self.trunk.maps(video, self.unit.copy(width=self.width), train=train))

    def running_mean(self, batch: int, hidden: int) -> RunningMean:
        """Returns the average of features before the first frame."""
        return RunningMean.zeros(batch, hidden, jnp.promote_types(self.dtype, jnp.float32))

    def init_state(self, batch: int) -> RunningMean:
        """Returns the average of features before the first frame."""
        return self.running_mean(batch, self.trunk.channels(self.width))

    def advance(
        self, video: Float[Array, "b t h w 3"], state: RunningMean, *, train: bool
    ) -> tuple[Float[Array, "b d"], RunningMean]:
        """See `StreamingCNN.advance`."""
        state = state.add(jnp.mean(self.maps(video, train=train), axis=(2, 3)))
        return state.mean, state


@register
class LRCN(FrameCNN):
    """A recurrent cell reads the frames' features in order; the average of its outputs is classified, or the last.

    The average of the outputs, classified, is the average of the time steps' logits.

    Attributes:
        recurrence: "lstm" (Hochreiter & Schmidhuber 1997, with a forget gate) or "gru" (Cho et al. 2014), as PyTorch
            defines them.
        hidden_size: width of the cell's state.
        pooling: "mean" of the outputs of all time steps, or the "last".
        grid: (rows, columns) of parts into which every map is divided. The cell reads the averages of all parts, and so
            sees where something is; (1, 1) averages whole frames.
        See `FrameCNN` for inherited fields.
    """

    recurrence: Literal["lstm", "gru"] = "lstm"
    hidden_size: int = 256
    pooling: Literal["mean", "last"] = setting("mean", changes_function=True)
    grid: tuple[int, int] = setting((1, 1), changes_function=True)

    def __post_init__(self):
        if self.hidden_size < 1 or min(self.grid) < 1:
            raise ValueError(f"hidden_size is {self.hidden_size} and grid {self.grid}; expected at least 1")
        super().__post_init__()

    @property
    def strides(self) -> Triple:
        """Smallest (frames, rows, columns) of a clip, at which every part of the grid has a value of its own."""
        t, h, w = super().strides
        rows, columns = self.grid
        return t, rows * h, columns * w

    @property
    def cell(self) -> nn.RNNCellBase:
        """The cell that reads the features frame by frame."""
        return CELLS[self.recurrence](self.hidden_size, dtype=self.dtype, parent=None)

    def init_state(self, batch: int) -> tuple[Any, RunningMean]:
        """Returns (the cell's carry, the average of its outputs) before the first frame."""
        mean = self.running_mean(batch, self.hidden_size)
        cell = self.cell.copy(param_dtype=mean.mean.dtype, parent=None)
        carry = cell.initialize_carry(jax.random.key(0), mean.mean.shape)  # zeros, whatever the key
        return carry, mean

    def advance(
        self, video: Float[Array, "b t h w 3"], state: tuple[Any, RunningMean], *, train: bool
    ) -> tuple[Float[Array, "b d"], tuple[Any, RunningMean]]:
        """See `StreamingCNN.advance`."""
        carry, mean = state
        parts = average_grid(self.maps(video, train=train), self.grid)
        carry, outputs = self.recurrent(parts.reshape(*parts.shape[:2], -1), initial_carry=carry)
        mean = mean.add(outputs)
        return mean.mean if self.pooling == "mean" else outputs[:, -1], (carry, mean)

    def setup(self):
        super().setup()
        self.recurrent = nn.RNN(self.cell, return_carry=True)


def average_grid(x: Float[Array, "b t h w c"], grid: tuple[int, int]) -> Float[Array, "b t rows columns c"]:
    """Returns averages over equal parts of maps; the first parts are larger by one if sizes do not divide evenly."""
    for axis, num_parts in zip((2, 3), grid, strict=True):
        x = jnp.stack([jnp.mean(part, axis) for part in jnp.array_split(x, num_parts, axis)], axis)
    return x


VARIANTS: dict[str, VideoCNN] = {
    "cnn_small": FrameCNN(width=32),
    "tsn_r50": FrameCNN(trunk=ResNetTrunk(), dropout_rate=0.8, clip=(3, 224, 224)),
    **{f"lrcn_{cell}_small": LRCN(width=32, grid=(3, 3), recurrence=cell) for cell in CELLS},
    **{
        f"lrcn_{cell}_r50": LRCN(trunk=ResNetTrunk(), recurrence=cell, dropout_rate=0.5, clip=(16, 224, 224))
        for cell in CELLS
    },
}
