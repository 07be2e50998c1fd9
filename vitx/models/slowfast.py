"""SlowFast (Feichtenhofer et al. 2019, arXiv:1812.03982), as PyTorchVideo has it."""

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float

from vitx.configuration import register, setting
from vitx.layers.convolution import average_windows, max_pool
from vitx.layers.types import Triple
from vitx.models.bottleneck import R50, R101, create_stage, create_stem
from vitx.models.cnn import WindowedCNN


@register
class SlowFast(WindowedCNN):
    """A slow pathway of few frames and many channels, and a fast one of all frames, joined to it before each stage.

    Attributes:
        depths: blocks of each stage, of both pathways.
        alpha: frames of the clip for one of the slow pathway (section 3.2).
        beta: channels of the slow pathway for one of the fast.
        fusion_size: frames that the lateral convolutions extend over.
        window: window of the average over the slow pathway's maps; the fast pathway's has alpha times the frames.
        See `WindowedCNN` for inherited fields; width is the slow pathway's.
    """

    depths: tuple[int, int, int, int] = R50
    alpha: int = setting(4, changes_function=True)
    beta: int = 8
    fusion_size: int = 7

    def __post_init__(self):
        if self.width % self.beta:
            raise ValueError(
                f"width is {self.width}; expected a multiple of beta, {self.beta}, for the width of the fast pathway"
            )
        super().__post_init__()

    @property
    def strides(self) -> Triple:
        """Frames, rows and columns of the clip for one of the slow pathway's last feature map."""
        return self.alpha, 32, 32

    def check_video(self, video: Array) -> None:
        """Raises ValueError if the network cannot take the video."""
        super().check_video(video)
        if video.shape[1] % self.alpha:
            raise ValueError(
                f"video has shape {list(video.shape)}; expected frames, here {video.shape[1]}, to be a multiple of "
                f"{self.alpha}, since the slow pathway takes one in {self.alpha}"
            )

    @nn.compact
    def windows(self, video: Float[Array, "b t h w 3"], *, train: bool) -> Float[Array, "b 1 1 1 d"]:
        """Returns the averages of both pathways' last feature maps, the slow one's first: one for each clip."""
        slow = create_stem(self.unit, self.width, 1, "slow_stem")(slow_frames(video, self.alpha), train=train)
        fast = create_stem(self.unit, self.width // self.beta, 5, "fast_stem")(video, train=train)
        slow, fast = (max_pool(x, (1, 3, 3), (1, 2, 2)) for x in (slow, fast))
        for i, depth in enumerate(self.depths):
            lateral = self.unit.copy(
                width=2 * fast.shape[-1],
                kernel_size=(self.fusion_size, 1, 1),
                stride=(self.alpha, 1, 1),
                name=f"fusion_{i}",
            )
            slow = jnp.concatenate([slow, lateral(fast, train=train)], axis=-1)
            width, stride = 4 * self.width * 2**i, (1, 2, 2) if i else (1, 1, 1)
            sizes = (3,) if i > 1 else (1,)
            slow_stage = create_stage(
                depth, width, self.unit, stride=stride, temporal_sizes=sizes, name=f"slow_stage_{i + 1}"
            )
            fast_stage = create_stage(
                depth, width // self.beta, self.unit, stride=stride, temporal_sizes=(3,), name=f"fast_stage_{i + 1}"
            )
            slow, fast = slow_stage(slow, train=train), fast_stage(fast, train=train)
        t, h, w = self.window or slow.shape[1:4]
        averages = average_windows(slow, (t, h, w)), average_windows(fast, (t * self.alpha, h, w))
        return jnp.concatenate([jnp.mean(x, axis=(1, 2, 3), keepdims=True) for x in averages], axis=-1)


def slow_frames(video: Float[Array, "b t h w c"], alpha: int) -> Float[Array, "b slow h w c"]:
    """Returns one frame in `alpha`, spread evenly from the first to the last, as the original does."""
    frames = video.shape[1]
    number = frames // alpha
    return video[:, np.arange(number) * (frames - 1) // max(number - 1, 1)]


VARIANTS: dict[str, WindowedCNN] = {
    "slowfast_r50_4x16": SlowFast(alpha=8, fusion_size=5, window=(4, 7, 7), dropout_rate=0.5, clip=(32, 256, 256)),
    "slowfast_r50_8x8": SlowFast(window=(8, 7, 7), dropout_rate=0.5, clip=(32, 256, 256)),
    "slowfast_r101_8x8": SlowFast(depths=R101, fusion_size=5, window=(8, 7, 7), dropout_rate=0.5, clip=(32, 256, 256)),
}
