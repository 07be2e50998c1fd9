"""Token merging (ToMe, Bolya et al. 2023, arXiv:2210.09461): similar tokens become one, without training.

Every block merges r tokens between attention and MLP. Tokens are matched in two sets by the similarity of their keys,
averages are weighted by the number of tokens that each stands for, and attention counts a token as often
(section 3). Written from the paper's text and formulas.

In shapes: b batch (and times, where every time index is encoded alone), n tokens, m tokens that are left, r merged
tokens, d width.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Num

from vitx.configuration import register
from vitx.layers.attention_kernel import Bias
from vitx.layers.layouts import Grid
from vitx.layers.reducers import BlockContext, Reducer
from vitx.layers.types import promote_to_float32


class Matching(NamedTuple):
    """Which tokens of a sequence are merged into which; see `split_sets` for the two sets.

    Attributes:
        kept: tokens of the first set that stay, in ascending order.
        merged: tokens of the first set that are merged away.
        destination: token of the second set that each merged token goes to.
    """

    kept: Int[Array, "*b _"]
    merged: Int[Array, "*b r"]
    destination: Int[Array, "*b r"]


class Merged(NamedTuple):
    """What the tokens of a sequence stand for.

    Attributes:
        sizes: number of tokens that each one stands for.
        owners: index of the token that each original token is merged into.
    """

    sizes: Float[Array, "*b m"]
    owners: Int[Array, "*b n"]


def split_sets(x: Num[Array, "n *d"], num_prefix: int) -> tuple[Array, Array, Array]:
    """Returns (prefix tokens, first set, second set): tokens alternate between the sets, prefix tokens included."""
    tokens = x[num_prefix:]
    return x[:num_prefix], tokens[num_prefix % 2 :: 2], tokens[1 - num_prefix % 2 :: 2]


def match(keys: Float[Array, "n d"], r: int, num_prefix: int) -> Matching:
    """Matches the r most similar pairs of tokens, each of one set with its most similar token of the other.

    Similarity is the cosine between keys (section 3, "Token Similarity" and "Bipartite Soft Matching").

    Args:
        keys: keys of one sequence, averaged over heads.
        r: number of tokens to merge away.
        num_prefix: number of prefix tokens, which are never merged.
    """
    keys = promote_to_float32(keys)
    lengths = jnp.linalg.norm(keys, axis=-1, keepdims=True)
    _, first, second = split_sets(keys / jnp.maximum(lengths, jnp.finfo(keys.dtype).tiny), num_prefix)
    similarity = first @ second.T
    order = jnp.argsort(-similarity.max(axis=1), stable=True)
    merged = order[:r]
    return Matching(jnp.sort(order[r:]), merged, similarity.argmax(axis=1)[merged])


def merge(
    x: Float[Array, "n d"], sizes: Float[Array, "n"], matching: Matching, num_prefix: int
) -> tuple[Float[Array, "m d"], Float[Array, "m"]]:
    """Returns (tokens, sizes) after merging: prefix tokens, kept tokens, then averages in place of the second set.

    Args:
        x: tokens of one sequence.
        sizes: number of tokens that each token stands for.
        matching: tokens to merge.
        num_prefix: number of prefix tokens.
    """

    def add(values: Array) -> Array:
        head, first, second = split_sets(values, num_prefix)
        second = second.at[matching.destination].add(first[matching.merged])
        return jnp.concatenate([head, first[matching.kept], second])

    total = add(sizes)
    # in float32 at least: sizes beyond 256 have no exact bfloat16
    return (add(promote_to_float32(x) * sizes[:, None]) / total[:, None]).astype(x.dtype), total


def find_owners(matching: Matching, num_tokens: int, num_prefix: int) -> Int[Array, "n"]:
    """Returns the index that each token of one sequence has after merging.

    Args:
        matching: tokens that were merged.
        num_tokens: number of tokens before merging.
        num_prefix: number of prefix tokens.
    """
    places, num_kept = jnp.arange(num_tokens), len(matching.kept)
    head, first, second = split_sets(places, num_prefix)
    first_owners = jnp.zeros_like(first).at[matching.kept].set(num_prefix + jnp.arange(num_kept))
    first_owners = first_owners.at[matching.merged].set(num_prefix + num_kept + matching.destination)
    owners = jnp.concatenate([head, first_owners, num_prefix + num_kept + jnp.arange(len(second))])
    return jnp.zeros_like(places).at[jnp.concatenate([head, first, second])].set(owners)


def unmerge(x: Num[Array, "*b m d"], owners: Int[Array, "*b n"]) -> Num[Array, "*b n d"]:
    """Returns a token for every token that there was before merging: the one that stands for it."""
    # Every other mode reads an index several times, to check it. XLA for CPUs (JAX 0.10) joins the chain of indices of
    # all blocks and computes each as often as it is read: of twelve blocks, in 22 GB and no end of compilation.
    return jnp.take_along_axis(x, owners[..., None], axis=-2, mode="promise_in_bounds")


@register
@dataclasses.dataclass(frozen=True)
class TokenMerging(Reducer):
    """Every block merges tokens that are alike; after the last block every token gets the value of its group.

    No parameters. The mean over all tokens after the encoder is therefore the mean over groups weighted by size.

    Attributes:
        r: number of tokens that a block merges away, from each sequence: a clip, or a frame where each is encoded
            alone. Where fewer than 2 r tokens are left, half of them are merged away.
        schedule: "constant", r in each block; "decreasing", from 2 r in the first block to 0 in the last, linearly.
        proportional_attention: whether a token is attended to as often as the tokens that it stands for (equation 1).
    """

    r: int
    schedule: Literal["constant", "decreasing"] = "constant"
    proportional_attention: bool = True

    def __post_init__(self):
        if self.r < 0:
            raise ValueError(f"r is {self.r}; expected at least 0")

    def num_scheduled(self, layer: int, num_layers: int) -> int:
        """Returns how many tokens the schedule merges away in a block, with `layer` blocks before it."""
        if self.schedule == "constant" or num_layers == 1:
            return self.r
        return 2 * self.r * (num_layers - 1 - layer) // (num_layers - 1)

    def count_tokens(self, grid: Grid, num_prefix: int, num_layers: int) -> tuple[int, ...]:
        """See `Reducer`."""
        num_tokens = math.prod(grid)
        first, half = self.num_scheduled(0, num_layers), num_tokens // 2
        if first > half:
            raise ValueError(
                f"reducer.r is {self.r}, so the first block would merge away {first} of {num_tokens} tokens; expected "
                f"at most half, {half}: set reducer.r to at most {half * self.r // first}"
            )
        counts = [num_tokens]
        for layer in range(num_layers):
            counts.append(counts[-1] - min(self.num_scheduled(layer, num_layers), counts[-1] // 2))
        return tuple(num_prefix + count for count in counts)

    def attention_bias(self, carry: Merged | None) -> Bias:
        """See `Reducer`: the logarithm of the sizes."""
        if carry is None or not self.proportional_attention:
            return None
        return jnp.log(carry.sizes)[..., None, None, :]

    def in_block(
        self, x: Float[Array, "*b n d"], carry: Merged | None, keys: Float[Array, "*b n heads _"], context: BlockContext
    ) -> tuple[Array, Merged | None]:
        """See `Reducer`."""
        num_tokens, num_prefix = x.shape[-2], context.num_prefix
        r = min(self.num_scheduled(context.layer, context.num_layers), (num_tokens - num_prefix) // 2)
        if r == 0:
            return x, carry

        def merge_sequence(x: Array, keys: Array, merged: Merged) -> tuple[Array, Merged]:
            matching = match(keys, r, num_prefix)
            x, sizes = merge(x, merged.sizes, matching, num_prefix)
            owners = unmerge(find_owners(matching, num_tokens, num_prefix)[:, None], merged.owners)[:, 0]
            return x, Merged(sizes, owners)

        if carry is None:
            places = jnp.broadcast_to(jnp.arange(num_tokens), x.shape[:-1])
            carry = Merged(jnp.ones(x.shape[:-1], promote_to_float32(x).dtype), places)
        # which tokens are alike is not differentiated, as the choice is discrete
        metric = jax.lax.stop_gradient(promote_to_float32(keys).mean(axis=-2))
        return _for_each_sequence(merge_sequence, x.ndim - 2)(x, metric, carry)

    def restore(self, x: Float[Array, "*b m d"], carry: Merged | None, context: BlockContext) -> Array:
        """See `Reducer`."""
        return x if carry is None else unmerge(x, carry.owners)


def _for_each_sequence(function: Callable[..., Any], num_axes: int) -> Callable[..., Any]:
    # Leading axes are mapped one by one, since reshaping them into one would move what a mesh shards.
    for _ in range(num_axes):
        function = jax.vmap(function)
    return function
