"""Mixup and cutmix inside the jitted step: each clip with another of its batch, and their targets alike."""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from vitx.configuration import register


@register
@dataclasses.dataclass(frozen=True)
class Mixing:
    """Mixup (Zhang et al. 2018), cutmix (Yun et al. 2019) or either of them; nothing by default.

    One share is drawn for a batch, from Beta(alpha, alpha), and clip i meets clip -i: timm's conventions, in which
    video recipes are written.

    Attributes:
        mixup: alpha of mixup, which blends all pixels; 0 is none.
        cutmix: alpha of cutmix, which pastes one box of the other clip into all frames; 0 is none.
        switch: probability that a batch is cut where both are given.
        probability: that a batch is mixed at all.
    """

    mixup: float = 0.0
    cutmix: float = 0.0
    switch: float = 0.5
    probability: float = 1.0

    def __post_init__(self):
        if min(self.mixup, self.cutmix) < 0 or not (0 <= self.switch <= 1 and 0 <= self.probability <= 1):
            raise ValueError(
                f"mixup is {self.mixup}, cutmix {self.cutmix}, switch {self.switch} and probability "
                f"{self.probability}; expected the first two at least 0 and the others 0 to 1"
            )

    def __bool__(self) -> bool:
        return (self.mixup > 0 or self.cutmix > 0) and self.probability > 0

    def __call__(
        self,
        key: Array,
        video: Float[Array, "batch frames height width channels"],
        may_mix: Bool[Array, "batch"],
    ) -> tuple[Float[Array, "batch frames height width channels"], Float[Array, "batch"]]:
        """Returns the clips, mixed, and what share of each is its own; the rest is of `other(video)`.

        Args:
            key: of the step.
            video: normalised.
            may_mix: clips that may give and take; a pair is mixed where both may.
        """
        keys = dict(zip(("mix", "cut", "mixup", "cutmix", "box"), jax.random.split(key, 5), strict=True))
        cut = self.cutmix > 0 and (self.mixup == 0 or jax.random.bernoulli(keys["cut"], self.switch))
        blend = jnp.full(video.shape[2:4], 1 - _share(keys["mixup"], self.mixup))
        box = _box(keys["box"], video.shape[2:4], _share(keys["cutmix"], self.cutmix))
        theirs = jnp.where(cut, box, blend)
        mixes = may_mix & other(may_mix) & jax.random.bernoulli(keys["mix"], self.probability)
        theirs = jnp.where(mixes[:, None, None], theirs, 0)
        weight = theirs[:, None, :, :, None]
        return (1 - weight) * video + weight * other(video), 1 - theirs.mean(axis=(1, 2))


def other(rows: Array) -> Array:
    """Returns, for each row of a batch, the one that it is mixed with."""
    return rows[::-1]


def _share(key: Array, alpha: float) -> Float[Array, ""]:
    return jax.random.beta(key, alpha, alpha) if alpha else jnp.ones(())


def _box(key: Array, size: tuple[int, int], share: Float[Array, ""]) -> Float[Array, "height width"]:
    """Returns 1 inside a box and 0 elsewhere: it has the frame's shape, an area of 1 - share before it is clipped at
    the edges, and its centre anywhere."""
    sides = [
        jnp.abs(jnp.arange(side) + 0.5 - jax.random.randint(each, (), 0, side)) * 2
        < jnp.floor(side * jnp.sqrt(1 - share))
        for each, side in zip(jax.random.split(key), size, strict=True)
    ]
    return (sides[0][:, None] & sides[1][None]).astype(jnp.float32)
