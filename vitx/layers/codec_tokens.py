"""Codec tokens: as many tokens as a budget allows, those that move most by the motion vectors of the video's codec.

The vectors come with the decoded frames (`vitx.data.motion`), as a fourth channel of the clip.

In shapes: b batch, n tokens, k tokens that are kept, p pixels of a tubelet, c channels.
"""

import dataclasses
from typing import ClassVar

from jaxtyping import Array, Float, Int

from vitx.configuration import register
from vitx.layers.dynamic_tokens import DynamicTokens, select_highest
from vitx.layers.layouts import Grid
from vitx.layers.types import promote_to_float32


@register
@dataclasses.dataclass(frozen=True)
class CodecTokens(DynamicTokens):
    """The encoder reads the tokens of a clip that move most, and returns them alone.

    A token's motion is the mean over its pixels of the clip's fourth channel. Of equal ones, the earlier token is kept.
    See `DynamicTokens` for inherited fields.
    """

    needs_motion: ClassVar[bool] = True

    def observe(self, tubelets: Float[Array, "b n p c"], grid: Grid) -> Int[Array, "b k"]:
        """See `Reducer`."""
        motion = promote_to_float32(tubelets[..., 3]).mean(axis=2)
        return select_highest(motion, self.budget, self.num_groups)
