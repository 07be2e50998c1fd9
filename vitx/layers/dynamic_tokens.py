"""Dynamic tokens: as many tokens as a budget allows, those that change most (Wang et al. 2025, arXiv:2503.14237).

The clip's pixels decide, before the first block. Weights that were trained on all tokens can be used with any budget.

In shapes: b batch, n tokens, k tokens that are kept, t times, p pixels of a tubelet, c colours, d width.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from vitx.configuration import register
from vitx.layers.embeddings import gather_tokens
from vitx.layers.layouts import Grid
from vitx.layers.reducers import BlockContext, Reducer
from vitx.layers.types import promote_to_float32


def find_dynamic(
    tubelets: Float[Array, "b n p c"], grid: Grid, budget: int, *, num_groups: int = 1
) -> Int[Array, "b k"]:
    """Finds the tubelets that differ most from the one before, and returns their indices in ascending order.

    The difference is the mean over pixels and colours of the absolute difference; tubelets of the first time are
    compared with those that follow. Of equal differences the earlier tubelet is kept.

    Args:
        tubelets: pixels of each token.
        grid: (t, h, w) of the tokens.
        budget: number of tubelets.
        num_groups: number of equal spans of time, each of which gets an equal part of the budget.
    """
    x = promote_to_float32(tubelets).reshape(len(tubelets), grid[0], grid[1] * grid[2], -1)
    change = jnp.abs(x[:, 1:] - x[:, :-1]).mean(axis=-1)
    return select_highest(jnp.concatenate([change[:, :1], change], axis=1).reshape(len(x), -1), budget, num_groups)


def select_highest(scores: Float[Array, "b n"], budget: int, num_groups: int) -> Int[Array, "b k"]:
    """Returns the indices of the tokens with the highest scores, in ascending order; see `find_dynamic`."""
    spans = scores.reshape(len(scores), num_groups, -1)
    parts = [budget * (i + 1) // num_groups - budget * i // num_groups for i in range(num_groups)]
    chosen = [jnp.sort(jax.lax.top_k(spans[:, i], part)[1]) + i * spans.shape[2] for i, part in enumerate(parts)]
    return jnp.concatenate(chosen, axis=1)


@register
@dataclasses.dataclass(frozen=True)
class DynamicTokens(Reducer):
    """The encoder reads the tokens of a clip that change most, and returns them alone; see `find_dynamic`.

    Attributes:
        budget: tokens of a clip, class tokens not counted.
        num_groups: equal spans of time, each of which gets an equal part of the budget, so that a sudden change does
            not take all of it.
    """

    budget: int
    num_groups: int = 1

    def count_tokens(self, grid: Grid, num_prefix: int, num_layers: int) -> tuple[int, ...]:
        """See `Reducer`."""
        num_tokens = math.prod(grid)
        if grid[0] == 1:
            raise ValueError(
                f"reducer is {type(self).__name__} and the encoder reads every time index alone; expected several in "
                "one sequence, as in the layout joint: set reducer to None"
            )
        if self.num_groups < 1 or grid[0] % self.num_groups:
            raise ValueError(
                f"reducer.num_groups is {self.num_groups}; expected a divisor of the {grid[0]} time indices of the "
                "tokens"
            )
        if not self.num_groups <= self.budget <= num_tokens:
            raise ValueError(
                f"reducer.budget is {self.budget}; expected {self.num_groups}, one token for each of "
                f"reducer.num_groups, to {num_tokens}, the tokens of a clip"
            )
        return (num_prefix + self.budget,) * (num_layers + 1)

    def observe(self, tubelets: Float[Array, "b n p c"], grid: Grid) -> Int[Array, "b k"]:
        """See `Reducer`."""
        return find_dynamic(tubelets, grid, self.budget, num_groups=self.num_groups)

    def before_block(
        self, x: Float[Array, "b n d"], carry: Int[Array, "b k"] | None, context: BlockContext
    ) -> tuple[Array, Int[Array, "b k"]]:
        """See `Reducer`: before the first block, the other tokens are left out.

        Raises:
            ValueError: the clip was not observed.
        """
        if carry is None:
            name = type(self).__name__
            raise ValueError(f"found carry None in {name}; expected the result of `observe(video)`")
        return (gather_tokens(x, carry, context.num_prefix) if context.layer == 0 else x), carry
