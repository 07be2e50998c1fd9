"""Mixup and cutmix inside the jitted step: each clip is mixed with its partner in the batch, and so are the targets.

Letters in shapes: b batch, t frames, h height, w width, c colour channels.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from vitx.configuration import register


@register
@dataclasses.dataclass(frozen=True)
class Mixing:
    """Mixup (Zhang et al. 2018), cutmix (Yun et al. 2019) or a random choice of both; off by default.

    One mixing ratio is drawn for the whole batch from Beta(alpha, alpha), and the partner of clip i is clip -1 - i.
    These are the conventions of timm, for which video recipes are written.

    Attributes:
        mixup: alpha of mixup, which blends all pixels; 0 is off.
        cutmix: alpha of cutmix, which pastes one box of the partner into all frames; 0 is off.
        switch: probability of cutmix for a batch, where both are on.
        probability: probability that a batch is mixed at all.
    """

    mixup: float = 0.0
    cutmix: float = 0.0
    switch: float = 0.5
    probability: float = 1.0

    def __post_init__(self):
        for name in ("mixup", "cutmix"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}; expected at least 0")
        for name in ("switch", "probability"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected 0 to 1")

    def __bool__(self) -> bool:
        return (self.mixup > 0 or self.cutmix > 0) and self.probability > 0

    def __call__(
        self, key: Array, video: Float[Array, "b t h w c"], may_mix: Bool[Array, "b"]
    ) -> tuple[Float[Array, "b t h w c"], Float[Array, "b"]]:
        """Mixes the clips of a batch.

        Args:
            key: PRNG key of the step.
            video: normalised clips.
            may_mix: mask of clips that may be mixed; a pair is mixed where both may.

        Returns:
            (mixed clips, fraction of each that is its own). The rest comes from `partner(video)`.
        """
        keys = dict(zip(("mix", "cut", "mixup", "cutmix", "box"), jax.random.split(key, 5), strict=True))
        use_cutmix = self.cutmix > 0 and (self.mixup == 0 or jax.random.bernoulli(keys["cut"], self.switch))
        blend = jnp.full(video.shape[2:4], 1 - _draw_ratio(keys["mixup"], self.mixup))
        box = _draw_box(keys["box"], video.shape[2:4], _draw_ratio(keys["cutmix"], self.cutmix))
        # weight of the partner: [h, w], then [b, h, w]
        weight = jnp.where(use_cutmix, box, blend)
        mixed = may_mix & partner(may_mix) & jax.random.bernoulli(keys["mix"], self.probability)
        weight = jnp.where(mixed[:, None, None], weight, 0)
        own = 1 - weight.mean(axis=(1, 2))
        weight = weight[:, None, :, :, None]
        return (1 - weight) * video + weight * partner(video), own


def partner(rows: Array) -> Array:
    """Returns, for each row of a batch, the row that it is mixed with."""
    return rows[::-1]


def _draw_ratio(key: Array, alpha: float) -> Float[Array, ""]:
    return jax.random.beta(key, alpha, alpha) if alpha else jnp.ones(())


def _draw_box(key: Array, size: tuple[int, int], own: Float[Array, ""]) -> Float[Array, "h w"]:
    """Draws a box with the aspect ratio of the frame; returns 1 inside and 0 outside.

    Its area is 1 - own before the edges of the frame clip it, and its centre is uniform.
    """
    inside = [
        jnp.abs(jnp.arange(side) + 0.5 - jax.random.randint(key, (), 0, side)) * 2 < jnp.floor(side * jnp.sqrt(1 - own))
        for key, side in zip(jax.random.split(key), size, strict=True)
    ]
    return (inside[0][:, None] & inside[1][None]).astype(jnp.float32)
