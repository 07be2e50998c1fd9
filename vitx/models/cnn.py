"""What every convolutional network here shares: its settings, and the path from video to logits.

In shapes: b batch, t h w c the video or maps, o channels out, d width of features.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from vitx.configuration import setting
from vitx.layers.convolution import ConvolutionUnit, Implementation
from vitx.layers.head import Head, NumClasses, check_classes
from vitx.layers.types import DType, Triple
from vitx.models.base import AnyShape, Logits


class Stage(nn.Module):
    """Blocks one after the other.

    Attributes:
        blocks: modules without parents, called as block(x, train=train).
    """

    blocks: tuple[nn.Module, ...]

    @nn.compact
    def __call__(self, x: Float[Array, "b t h w c"], *, train: bool) -> Float[Array, "b to ho wo o"]:
        for i, block in enumerate(self.blocks):
            x = block.copy(name=f"block_{i}")(x, train=train)
        return x


class VideoCNN(AnyShape, nn.Module):
    """Features of convolutions, head. Takes clips of any shape that its strides permit.

    Attributes:
        num_classes: an int; 0 for pooled features; (("verb", 97), ("noun", 300)) for a dictionary of logits.
        width: channels after the stem; the others follow from it.
        dropout_rate: probability of dropout of the pooled features.
        clip: default input shape, (frames, height, width); used by `vitx cost`.
        implementation: implementation of convolutions; all compute the same. Training, evaluation, prediction and
            benchmarks resolve "auto" by the platform of their devices; a plain `apply` takes it as "reference", XLA's
            own, so pass "cpu" to be fast there.
        dtype: type of the computations; parameters, statistics and pooled features are float32.
        norm_groups: number of parts of a training batch with batch statistics of their own, as in recipes for that
            many devices with statistics per device; 1 takes those of the whole batch.
    """

    num_classes: NumClasses = setting(400, chosen_by_user=True)
    width: int = 64
    dropout_rate: float = setting(0.0, chosen_by_user=True)
    clip: Triple = setting((16, 112, 112), mutable_on_resume=True)
    implementation: Implementation = setting("auto", mutable_on_resume=True)
    dtype: DType = setting("float32", chosen_by_user=True)
    norm_groups: int = setting(1, chosen_by_user=True)

    def __post_init__(self):
        check_classes(self.num_classes)
        if self.norm_groups < 1:
            raise ValueError(f"norm_groups is {self.norm_groups}; expected at least 1")
        if self.width < 1:
            raise ValueError(f"width is {self.width}; expected at least 1")
        if not 0 <= self.dropout_rate < 1:
            raise ValueError(f"dropout_rate is {self.dropout_rate}; expected a probability in [0, 1)")
        check_sizes("clip", self.clip)
        super().__post_init__()

    @property
    def strides(self) -> Triple:
        """Frames, rows and columns of the video for one place of the last feature map."""
        raise NotImplementedError

    @property
    def unit(self) -> ConvolutionUnit:
        """Settings that all convolutions share."""
        how = {"implementation": self.implementation, "dtype": self.dtype}
        return ConvolutionUnit(norm_groups=self.norm_groups, **how, parent=None)

    def features(self, video: Float[Array, "b t h w c"], *, train: bool = False) -> Float[Array, "b d"]:
        """Returns one vector for each clip, which the head classifies.

        Raises:
            ValueError: the video is not [batch, frames, height, width, 3], or smaller than the network's strides.
        """
        raise NotImplementedError

    def __call__(self, video: Float[Array, "b t h w c"], *, train: bool = False) -> Logits:
        features = self.features(video, train=train)
        return self.head(self.dropout(features, deterministic=not train))

    def check_video(self, video: Array) -> None:
        """Raises ValueError if the network cannot take the video."""
        if video.ndim != 5 or video.shape[-1] != 3:
            raise ValueError(
                f"video has shape {list(video.shape)}; expected [batch, frames, height, width, channels] "
                "= [batch, frames, height, width, 3]"
            )
        if any(size < least for size, least in zip(video.shape[1:4], self.strides, strict=True)):
            least = " x ".join(map(str, self.strides))
            raise ValueError(
                f"video has shape {list(video.shape)}; {type(self).__name__} strides over {least} (frames x height x "
                "width) and expects a clip that is at least as large"
            )

    def setup(self):
        self.dropout = nn.Dropout(self.dropout_rate)
        self.head = Head(self.num_classes)


class WindowedCNN(VideoCNN):
    """Feature maps of 3D convolutions, their averages, head.

    Attributes:
        window: (t, h, w) of the average over feature maps, cut to smaller maps. Over larger maps it slides by one and
            its averages are averaged again, which gives the middle more weight, as in the original. None averages
            whole maps.
        See `VideoCNN` for inherited fields.
    """

    window: Triple | None = setting(None, changes_function=True)

    def __post_init__(self):
        check_sizes("window", self.window or (1, 1, 1))
        super().__post_init__()

    def windows(self, video: Float[Array, "b t h w 3"], *, train: bool) -> Float[Array, "b to ho wo d"]:
        """Returns the average of the last feature maps in every window."""
        raise NotImplementedError

    def features(self, video: Float[Array, "b t h w c"], *, train: bool = False) -> Float[Array, "b d"]:
        """See `VideoCNN.features`."""
        self.check_video(video)
        return jnp.mean(self.windows(video, train=train), axis=(1, 2, 3))

    def __call__(self, video: Float[Array, "b t h w c"], *, train: bool = False) -> Logits:
        """Returns the average of the windows' logits: the originals classify every window, after its own dropout."""
        self.check_video(video)
        windows = self.windows(video, train=train)
        logits = self.head(self.dropout(windows.reshape(-1, windows.shape[-1]), deterministic=not train))
        return jax.tree.map(lambda x: jnp.mean(x.reshape(len(video), -1, x.shape[-1]), axis=1), logits)


def check_sizes(name: str, sizes: Triple) -> None:
    """Raises ValueError unless all sizes are at least 1."""
    if min(sizes) < 1:
        raise ValueError(f"{name} is {sizes}; expected (frames, height, width) of at least 1")
