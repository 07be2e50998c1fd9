"""Attention for CPUs: of long sequences one head and one block of queries at a time, of short ones all heads at once.

XLA's CPU backend computes a batch of small matrix products far below the speed of single ones, and writes every score
several times. Here a block of scores stays in the cache, softmax divides after the product with the values (the
narrower array), and the backward pass computes the scores again from their log-sum-exp (Dao et al. 2022, algorithm 4,
without its tiles of keys), so that no whole matrix of scores is ever in memory. Where gradients of short sequences are
needed, their weights are kept.

In shapes: r rows (a head of a clip), n queries, m keys, c queries of a block, d size of a head, e of its values.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vitx.layers.types import promote_to_float32

# Queries of a block. With 3,137 keys its scores take 6 MB: larger blocks leave the cache, smaller ones add calls.
BLOCK = 512
# Scores of a head from which blocks are faster than all heads at once (experiments/benchmarks/attention.md).
# With fewer, the loop over heads costs more than it saves, and so does computing scores again in the backward pass.
MIN_SCORES = 96 * 96
MIN_SCORES_WITH_GRADIENTS = 320 * 320
# Scores of a head from which the gradients of `attend_at_once` are faster than derived ones.
MIN_SCORES_AT_ONCE = 64 * 64


def attend_on_cpu(
    q: Float[Array, "b n heads d"], k: Float[Array, "b m heads d"], v: Float[Array, "b m heads e"]
) -> Float[Array, "b n heads e"]:
    """Computes softmax(q kᵀ / sqrt(d)) v by the form that suits the number of scores, in float32 at least."""
    if q.shape[1] * k.shape[1] >= MIN_SCORES_WITH_GRADIENTS:
        return attend_in_blocks(q, k, v)
    return attend_at_once(*map(promote_to_float32, (q, k, v))).astype(v.dtype)


@jax.custom_vjp
def attend_in_blocks(
    q: Float[Array, "b n heads d"], k: Float[Array, "b m heads d"], v: Float[Array, "b m heads e"]
) -> Float[Array, "b n heads e"]:
    """Computes softmax(q kᵀ / sqrt(d)) v with memory linear in the number of tokens."""
    return _forward(q, k, v)[0]


@jax.custom_vjp
def attend_at_once(
    q: Float[Array, "b n heads d"], k: Float[Array, "b m heads d"], v: Float[Array, "b m heads e"]
) -> Float[Array, "b n heads e"]:
    """Computes what `attend_in_blocks` does, and keeps the weights where gradients are needed.

    Queries, keys and values have one type, in which all is summed. Inside `jax.shard_map` all vary over the same axes
    of the mesh.
    """
    if q.shape[1] * k.shape[1] >= MIN_SCORES:
        return attend_in_blocks(q, k, v)
    return _forward_at_once(q, k, v)[0]


def _forward_at_once(q: Array, k: Array, v: Array) -> tuple[Array, tuple[Array, ...]]:
    q, k, v = (x.swapaxes(1, 2) for x in (q, k, v))
    q = q * q.shape[-1] ** -0.5  # not the scores, for which XLA would pass over them once more
    weights = jax.nn.softmax(jnp.einsum("bhqd,bhkd->bhqk", q, k))
    out = jnp.einsum("bhqk,bhkd->bhqd", weights, v)
    return out.swapaxes(1, 2), (q, k, v, out, weights)


def _backward_at_once(saved: tuple[Array, ...], out_gradient: Array) -> tuple[Array, Array, Array]:
    q, k, v, out, weights = saved
    out_gradient = out_gradient.swapaxes(1, 2)
    v_gradient = jnp.einsum("bhqk,bhqd->bhkd", weights, out_gradient)
    weight_gradient = jnp.einsum("bhqd,bhkd->bhqk", out_gradient, v)
    score_gradient = weights * (weight_gradient - _mean_gradient(out, out_gradient))
    q_gradient = jnp.einsum("bhqk,bhkd->bhqd", score_gradient, k) * q.shape[-1] ** -0.5
    k_gradient = jnp.einsum("bhqk,bhqd->bhkd", score_gradient, q)
    return tuple(x.swapaxes(1, 2) for x in (q_gradient, k_gradient, v_gradient))


attend_at_once.defvjp(_forward_at_once, _backward_at_once)


def _mean_gradient(out: Float[Array, "*r n e"], out_gradient: Float[Array, "*r n e"]) -> Float[Array, "*r n 1"]:
    """Returns the sum over keys of weight x its gradient: the product of out and its gradient."""
    return jnp.sum(out_gradient.astype(out.dtype) * out, axis=-1, keepdims=True)


def append_bias(
    q: Float[Array, "b n heads d"], k: Float[Array, "b m heads d"], bias: Float[Array, "_ 1 1 m"]
) -> tuple[Array, Array]:
    """Returns queries and keys one larger, whose scores are those of `q` and `k` with a bias for each key added.

    Where a bias hides all keys, queries attend as they would without it.
    """
    size = q.shape[-1]
    # The same number less for all keys changes no softmax. Beside numbers as large as those that hide keys, sums of
    # exponentials would round away, and gradients with them.
    bias = bias - jax.lax.stop_gradient(bias.max(axis=-1, keepdims=True))
    ones = jnp.ones((*q.shape[:-1], 1), q.dtype)
    # The smallest float32, with which tokens are hidden, would overflow; its weights are zero with this number, too.
    column = jnp.maximum(bias, -1e9)[:, 0, 0, :, None, None] * (size + 1) ** 0.5
    column = jnp.broadcast_to(column, (*k.shape[:-1], 1)).astype(k.dtype)
    return jnp.concatenate([q * (1 + 1 / size) ** 0.5, ones], axis=-1), jnp.concatenate([k, column], axis=-1)


def _forward(q: Array, k: Array, v: Array) -> tuple[Array, tuple[Array, ...]]:
    rows = [_to_rows(x) for x in (q, k, v)]
    out, log_sum = jax.lax.map(lambda row: _forward_row(*row), tuple(rows))
    out = _from_rows(out, (*q.shape[:3], v.shape[3]))
    # The backward pass gets `out` in float32: it subtracts numbers of the same size, where rounding would show.
    return out.astype(v.dtype), (q, k, v, out, log_sum)


def _backward(saved: tuple[Array, ...], out_gradient: Array) -> tuple[Array, Array, Array]:
    q, k, v, out, log_sum = saved
    rows = [_to_rows(x) for x in (q, k, v, out, out_gradient)]
    gradients = jax.lax.map(lambda row: _backward_row(*row), (*rows, log_sum))
    return tuple(_from_rows(gradient, x.shape) for gradient, x in zip(gradients, (q, k, v), strict=True))


attend_in_blocks.defvjp(_forward, _backward)


def _forward_row(q: Float[Array, "n d"], k: Float[Array, "m d"], v: Float[Array, "m e"]) -> tuple[Array, Array]:
    """Returns the outputs of one head, and the log-sum-exp of each query's scores."""

    def attend_block(q: Float[Array, "c d"]) -> tuple[Array, Array]:
        scores = _product("cd,md->cm", q, k) * q.shape[-1] ** -0.5
        largest = scores.max(axis=-1, keepdims=True)
        weights = jnp.exp(scores - largest)
        total = weights.sum(axis=-1, keepdims=True)
        out = _product("cm,md->cd", weights.astype(v.dtype), v) / total
        return out, (largest + jnp.log(total))[:, 0]

    if len(q) <= BLOCK:
        return attend_block(q)
    out, log_sum = jax.lax.map(attend_block, _to_blocks(q))
    return _from_blocks(out, len(q)), _from_blocks(log_sum, len(q))


def _backward_row(q: Array, k: Array, v: Array, out: Array, out_gradient: Array, log_sum: Array) -> tuple[Array, ...]:
    """Returns the gradients of one head's queries, keys and values."""
    scale = q.shape[-1] ** -0.5

    def add_block(sums: tuple[Array, Array], block: tuple[Array, ...]) -> tuple[tuple[Array, Array], Array]:
        q, out, out_gradient, log_sum = block
        weights = jnp.exp(_product("cd,md->cm", q, k) * scale - log_sum[:, None])
        v_sum = sums[1] + _product("cm,cd->md", weights.astype(v.dtype), out_gradient)
        mean = _mean_gradient(out, out_gradient)
        score_gradient = (weights * (_product("cd,md->cm", out_gradient, v) - mean) * scale).astype(q.dtype)
        k_sum = sums[0] + _product("cm,cd->md", score_gradient, q)
        return (k_sum, v_sum), _product("cm,md->cd", score_gradient, k).astype(q.dtype)

    # inside a shard_map the sums vary over devices as the keys do, which constants would not
    zeros = tuple(x.astype(_accumulator(x)) * 0 for x in (k, v))
    along_queries = (q, out, out_gradient, log_sum)
    if len(q) <= BLOCK:
        (k_gradient, v_gradient), q_gradient = add_block(zeros, along_queries)
    else:
        # padded queries have an output gradient of zero and so contribute nothing
        sums, q_gradients = jax.lax.scan(add_block, zeros, tuple(_to_blocks(x) for x in along_queries))
        (k_gradient, v_gradient), q_gradient = sums, _from_blocks(q_gradients, len(q))
    return q_gradient, k_gradient.astype(k.dtype), v_gradient.astype(v.dtype)


def _accumulator(x: Array) -> jnp.dtype:
    """Returns the type in which products are summed: float32 at least."""
    return jnp.promote_types(x.dtype, jnp.float32)


def _product(formula: str, a: Array, b: Array) -> Array:
    return jnp.einsum(formula, a, b, preferred_element_type=_accumulator(a))


def _to_rows(x: Float[Array, "b n heads d"]) -> Float[Array, "r n d"]:
    return x.swapaxes(1, 2).reshape(-1, x.shape[1], x.shape[3])


def _from_rows(x: Float[Array, "r n d"], shape: tuple[int, ...]) -> Float[Array, "b n heads d"]:
    batch, tokens, heads, size = shape
    return x.reshape(batch, heads, tokens, size).swapaxes(1, 2)


def _to_blocks(x: Float[Array, "n *_"]) -> Float[Array, "blocks c *_"]:
    """Divides queries into blocks of equal sizes, the last one padded with zeros."""
    num_blocks = -(-len(x) // BLOCK)
    size = -(-len(x) // num_blocks)  # at most BLOCK, and less padding than with blocks of that size
    padded = jnp.pad(x, ((0, num_blocks * size - len(x)), *((0, 0),) * (x.ndim - 1)))
    return padded.reshape(num_blocks, size, *x.shape[1:])


def _from_blocks(x: Float[Array, "blocks c *_"], num_queries: int) -> Float[Array, "n *_"]:
    return x.reshape(-1, *x.shape[2:])[:num_queries]
