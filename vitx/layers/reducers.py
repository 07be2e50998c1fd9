"""Reducers: what leaves an encoder with fewer tokens, from which block on, and how they are restored.

A reducer is a frozen dataclass of settings; a model's field `reducer` holds one. To add a reducer, subclass `Reducer`,
register it, and no other file needs to know its name: `vitx.layers.dynamic_tokens` is a short example, `codec_tokens`,
`token_learner`, `token_merging` and `run_length` are others. Its parameters, if it has any, are those of the Linen
modules that it calls; they are created in the scope of the encoder.

In shapes: b batch (and times, where every time index is encoded alone), n tokens, m tokens that are left, d width.
"""

import dataclasses
from typing import Any, ClassVar

from jaxtyping import Array, Float

from vitx.layers.attention_kernel import Bias
from vitx.layers.layouts import Grid

Carry = Any  # pytree that a reducer passes from block to block; at first the result of `observe`


@dataclasses.dataclass(frozen=True)
class BlockContext:
    """The block of an encoder in which a reducer acts, and the encoder's tokens.

    Attributes:
        layer: number of blocks before the reducer acts.
        num_layers: number of blocks of the encoder.
        grid: grid (t, h, w) of the tokens before any reduction.
        num_prefix: number of prefix tokens, which come first and stay.
        train: whether the model is trained.
    """

    layer: int
    num_layers: int
    grid: Grid
    num_prefix: int
    train: bool


@dataclasses.dataclass(frozen=True)
class Reducer:
    """A way to continue with fewer tokens. The base class keeps all: subclasses override what they need.

    A model calls `observe` with the clip. In its encoder, `before_block` is called before every block, `in_block`
    between its attention and its MLP, and `restore` after the last block. Shapes must follow from shapes alone, so that
    a model compiles once.
    """

    needs_global_layout: ClassVar[bool] = False
    """Whether layouts must let every token attend to every token, since tokens change their order."""
    needs_motion: ClassVar[bool] = False
    """Whether `observe` needs the codec's motion, a fourth channel of the clip that is not embedded in tokens."""
    parameters: ClassVar[tuple[str, ...]] = ()
    """Patterns of the paths of its parameters in an encoder; weights of a model without a reducer lack them."""
    may_drop: ClassVar[bool] = False
    """Whether a budget may leave out tokens that the reducer would keep; `fraction_dropped` then measures them."""

    def count_tokens(self, grid: Grid, num_prefix: int, num_layers: int) -> tuple[int, ...]:
        """Returns the number of tokens, prefix tokens included, that enter each block and that leave the last one.

        Args:
            grid: grid of the tokens of one sequence.
            num_prefix: number of prefix tokens.
            num_layers: number of blocks.

        Raises:
            ValueError: a setting that these tokens do not permit; the message names it as `reducer.SETTING`.
        """
        raise NotImplementedError

    def observe(self, tubelets: Float[Array, "b n p c"], grid: Grid) -> Carry:
        """Returns what to remember of a clip before the first block, given the pixels of each token, or None."""
        return None

    def fraction_dropped(self, carry: Carry) -> Float[Array, "b"]:
        """Returns the fraction of the tokens to keep that the budget has no slot for, given what `observe` returns."""
        raise NotImplementedError

    def attention_bias(self, carry: Carry) -> Bias:
        """Returns what is added to the scores of the next attention, [*b, 1, 1 or queries, keys], or None."""
        return None

    def before_block(self, x: Float[Array, "*b n d"], carry: Carry, context: BlockContext) -> tuple[Array, Carry]:
        """Returns (tokens that enter the next block, what to remember)."""
        return x, carry

    def in_block(
        self, x: Float[Array, "*b n d"], carry: Carry, keys: Float[Array, "*b n heads _"], context: BlockContext
    ) -> tuple[Array, Carry]:
        """Returns (tokens that enter the block's MLP, what to remember), given the keys of its last attention."""
        return x, carry

    def restore(self, x: Float[Array, "*b m d"], carry: Carry, context: BlockContext) -> Array:
        """Returns the tokens that leave the encoder, before its final norm."""
        return x
