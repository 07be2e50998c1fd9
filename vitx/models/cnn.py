"""What every convolutional network here shares: its settings, and the path from video to logits."""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from vitx.configuration import mutable_on_resume, setting
from vitx.layers.convolution import ConvolutionUnit, DType, Implementation, Triple
from vitx.layers.head import Head, NumClasses, check_classes


class Stage(nn.Module):
    """Blocks one after the other.

    Attributes:
        blocks: modules called as block(x, train=train), without parents.
    """

    blocks: tuple[nn.Module, ...]

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch frames height width_px channels"], *, train: bool
    ) -> Float[Array, "batch frames_out height_out width_px_out width"]:
        for i, block in enumerate(self.blocks):
            x = block.copy(name=f"block_{i}")(x, train=train)
        return x


class VideoCNN(nn.Module):
    """Features of convolutions, head. Takes clips of any shape that its strides allow.

    Attributes:
        num_classes: an int; 0 for pooled features; (("verb", 97), ("noun", 300)) for a dictionary of logits.
        width: channels after the stem; the others follow from it.
        dropout_rate: of the pooled features.
        clip: (frames, height, width) that the original was made for: what cost is counted of.
        implementation: of convolutions; all compute the same. Training, evaluation, prediction and benchmarks settle
            "auto" by the platform of their devices; a plain `apply` takes it as "reference", XLA's own, so pass "cpu"
            to have it fast there.
        dtype: computations' type; parameters, statistics and pooled features are float32.
        norm_groups: parts of a training batch that batch normalisation takes statistics of apart, as recipes of that
            many devices with statistics per device have it; 1 takes those of the whole batch.
    """

    num_classes: NumClasses = setting(400, chosen_by_user=True)
    width: int = 64
    dropout_rate: float = setting(0.0, chosen_by_user=True)
    clip: Triple = mutable_on_resume((16, 112, 112))
    implementation: Implementation = mutable_on_resume("auto")
    dtype: DType = setting("float32", chosen_by_user=True)
    norm_groups: int = setting(1, chosen_by_user=True)

    def __post_init__(self):
        check_classes(self.num_classes)
        if self.norm_groups < 1:
            raise ValueError(f"norm_groups is {self.norm_groups}; expected at least 1")
        if self.width < 1:
            raise ValueError(f"width is {self.width}; expected at least 1")
        if not 0 <= self.dropout_rate < 1:
            raise ValueError(f"dropout_rate is {self.dropout_rate}; expected a share from 0 to less than 1")
        check_sizes("clip", self.clip)
        super().__post_init__()

    @property
    def strides(self) -> Triple:
        """Frames, rows and columns of the clip for one of the last feature map."""
        raise NotImplementedError

    @property
    def unit(self) -> ConvolutionUnit:
        """What all convolutions share."""
        how = {"implementation": self.implementation, "dtype": self.dtype}
        return ConvolutionUnit(norm_groups=self.norm_groups, **how, parent=None)

    def position_tables(self) -> dict:
        """Returns {}: a convolution needs no positions, and takes other shapes as it is."""
        return {}

    def features(
        self, video: Float[Array, "batch frames height width channels"], *, train: bool = False
    ) -> Float[Array, "batch hidden"]:
        """Returns one vector for each clip: what the head classifies.

        Raises:
            ValueError: the video is no [batch, frames, height, width, 3], or smaller than the network's strides.
        """
        raise NotImplementedError

    def __call__(
        self, video: Float[Array, "batch frames height width channels"], *, train: bool = False
    ) -> Float[Array, "batch outputs"] | dict[str, Float[Array, "batch _"]]:
        features = self.features(video, train=train)
        return self.head(self.dropout(features, deterministic=not train))

    def check_video(self, video: Array) -> None:
        """Raises ValueError unless the network can take the video."""
        if video.ndim != 5 or video.shape[-1] != 3:
            raise ValueError(
                f"video has shape {list(video.shape)}; expected [batch, frames, height, width, channels] "
                "= [batch, frames, height, width, 3]"
            )
        if any(size < least for size, least in zip(video.shape[1:4], self.strides, strict=True)):
            least = " x ".join(map(str, self.strides))
            raise ValueError(
                f"video has shape {list(video.shape)}; {type(self).__name__} strides over {least} (frames x height x "
                "width), and a clip must be as large at least"
            )

    def setup(self):
        self.dropout = nn.Dropout(self.dropout_rate)
        self.head = Head(self.num_classes)


class WindowedCNN(VideoCNN):
    """Feature maps of 3D convolutions, their averages, head.

    Attributes:
        window: (t, h, w) of the average over feature maps, cut to maps that are smaller; it slides by one over larger
            ones and its averages are averaged again, which weighs the middle more, as the original does. None averages
            over all alike.
        Others: as `VideoCNN`.
    """

    window: Triple | None = setting(None, changes_function=True)

    def __post_init__(self):
        check_sizes("window", self.window or (1, 1, 1))
        super().__post_init__()

    def windows(
        self, video: Float[Array, "batch frames height width 3"], *, train: bool
    ) -> Float[Array, "batch t h w hidden"]:
        """Returns the average of the last feature maps in every window."""
        raise NotImplementedError

    def features(
        self, video: Float[Array, "batch frames height width channels"], *, train: bool = False
    ) -> Float[Array, "batch hidden"]:
        """As `VideoCNN.features`."""
        self.check_video(video)
        return jnp.mean(self.windows(video, train=train), axis=(1, 2, 3))

    def __call__(
        self, video: Float[Array, "batch frames height width channels"], *, train: bool = False
    ) -> Float[Array, "batch outputs"] | dict[str, Float[Array, "batch _"]]:
        """Returns the average of the windows' logits: the originals classify each window, after dropout of each."""
        self.check_video(video)
        windows = self.windows(video, train=train)
        logits = self.head(self.dropout(windows.reshape(-1, windows.shape[-1]), deterministic=not train))
        return jax.tree.map(lambda x: jnp.mean(x.reshape(len(video), -1, x.shape[-1]), axis=1), logits)


def check_sizes(name: str, sizes: Triple) -> None:
    """Raises ValueError unless all are at least 1."""
    if min(sizes) < 1:
        raise ValueError(f"{name} is {sizes}; expected (frames, height, width) of at least 1")
