"""What happens inside a model while it looks at a clip: attention along any layout, and its gradients.

Nothing here changes a model: Flax's interceptors observe its modules from outside. In shapes: b batch, t h w c the
video, s sequences of one clip (its time indices, where each is encoded alone), n tokens, d size of a head.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from vitx.explain.score import Clip, Target, Variables
from vitx.layers.attention import SelfAttention
from vitx.layers.layouts import LAYOUTS, Grid

Path = tuple[str, ...]
Weights = tuple[Float[Array, "..."], ...]


@dataclasses.dataclass(frozen=True)
class AttentionCall:
    """One attention of a model, as it is called for one clip.

    Attributes:
        path: names of the modules that lead to it.
        layout: name of its layout.
        grid: (t, h, w) of the tokens that attend to one another.
        num_prefix: number of prefix tokens that take part.
        sequences: number of sequences of one clip.
        num_heads: attention heads.
        width: size of a token.
    """

    path: Path
    layout: str
    grid: Grid
    num_prefix: int
    sequences: int
    num_heads: int
    width: int

    @property
    def num_tokens(self) -> int:
        """Number of tokens of one sequence."""
        return self.num_prefix + math.prod(self.grid)

    def mix(self, weights: Weights, values: Float[Array, "s n heads d"]) -> Float[Array, "s n heads d"]:
        """Returns the output of the attention for other values; it is linear in them.

        The layout itself puts every weight in its place, so this holds for any layout, padding and prefix tokens
        included.

        Args:
            weights: attention probabilities in the order of the layout's calls, as the model sows them.
            values: values of the tokens.
        """
        layout, head_dim = LAYOUTS[self.layout], self.width // self.num_heads
        shape = {"grid": self.grid, "num_prefix": self.num_prefix}
        declared = layout.parameters(**shape, num_heads=self.num_heads, head_dim=head_dim)
        own = {name: jnp.zeros(parameter.shape) for name, parameter in declared.items()}

        def mix_part(part: Array) -> Array:
            remaining = list(weights)

            def core(q: Array, k: Array, v: Array, **_: Any) -> Array:
                return jnp.einsum("bhqk,bkhd->bqhd", remaining.pop(0), v)

            return layout(core, jnp.zeros_like(part), jnp.zeros_like(part), part, **shape, **own)

        # a layout takes queries, keys and values of one size
        size = values.shape[-1]
        padded = jnp.pad(values, ((0, 0),) * 3 + ((0, -size % head_dim),))
        parts = [mix_part(padded[..., i : i + head_dim]) for i in range(0, size, head_dim)]
        return jnp.concatenate(parts, axis=-1)[..., :size]

    def attended(self, weights: Weights, queries: Float[Array, "s n"]) -> Float[Array, "s heads n"]:
        """Returns how much of each token the queries read, for each head: queries times the attention matrix.

        Args:
            weights: see `mix`.
            queries: weight of each query.
        """
        # The matrix itself would have n x n entries for each head; its transposed product needs none of them.
        zeros = jnp.zeros((*queries.shape, self.num_heads, 1))
        cotangent = jnp.broadcast_to(queries[..., None, None], zeros.shape)
        (read,) = jax.vjp(lambda values: self.mix(weights, values), zeros)[1](cotangent)
        return jnp.moveaxis(read[..., 0], 1, 2)

    def matrix(self, weights: Weights) -> Float[Array, "s heads n n"]:
        """Returns the whole attention matrix of every head, [..., query, key]; zero where a query does not attend."""
        one_hot = jnp.eye(self.num_tokens)[None, :, None]
        values = jnp.broadcast_to(one_hot, (self.sequences, self.num_tokens, self.num_heads, self.num_tokens))
        return jnp.moveaxis(self.mix(weights, values), 1, 2)


def attention_calls(model: nn.Module, video: Clip) -> tuple[AttentionCall, ...]:
    """Returns the attentions of a model in the order in which they are computed; computes nothing.

    A model with a reducer has none that can be followed to the grid.
    """
    return () if getattr(model, "reducer", None) is not None else _trace_calls(model, tuple(video.shape))


# Tracing a large model takes seconds, and every explanation of a run asks the same.
@functools.lru_cache(maxsize=64)
def _trace_calls(model: nn.Module, shape: tuple[int, ...]) -> tuple[AttentionCall, ...]:
    calls = []

    def observe(call: Callable[..., Any], args: Any, kwargs: Any, context: Any) -> Any:
        module = context.module
        if isinstance(module, SelfAttention) and context.method_name == "attend_with_keys":
            *leading, _, width = args[0].shape
            of_module = {"path": module.path, "layout": module.layout, "num_heads": module.num_heads}
            of_call = {
                "grid": kwargs["grid"],
                "num_prefix": kwargs.get("num_prefix", 0),
                "sequences": math.prod(leading),
            }
            calls.append(AttentionCall(**of_module, **of_call, width=width))
        return call(*args, **kwargs)

    trace_model(model, shape, observe)
    return tuple(calls)


def trace_model(model: nn.Module, shape: tuple[int, ...], observe: Callable[..., Any]) -> None:
    """Traces a model on one clip of a shape, with an interceptor of Flax; computes nothing."""
    with nn.intercept_methods(observe):
        jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct((1, *shape), jnp.float32))


def record_attention(
    model: nn.Module, variables: Variables, video: Clip, calls: Sequence[AttentionCall]
) -> list[Weights]:
    """Returns the attention probabilities of each call."""
    _, sown = model.apply(variables, jnp.asarray(video)[None], train=False, mutable="intermediates")
    return [_at(sown["intermediates"], call.path) for call in calls]


def record_gradients(
    model: nn.Module,
    variables: Variables,
    video: Clip,
    calls: Sequence[AttentionCall],
    target: Target,
) -> list[tuple[Weights, Weights]]:
    """Returns (probabilities, gradients of the class's logit with respect to them) of each call.

    The probabilities of a prefix token that attends in several groups have the gradient of the token's own row.
    """
    by_path = {call.path: call for call in calls}

    def score(offsets: dict[Path, Array]) -> Any:
        values = {}

        def observe(call: Callable[..., Any], args: Any, kwargs: Any, context: Any) -> Any:
            *path, name = context.module.path or ("",)
            path = tuple(path)
            if path not in by_path or context.method_name != "__call__":
                return call(*args, **kwargs)
            if name == "out":
                return call(args[0] + offsets[path].reshape(args[0].shape), *args[1:], **kwargs)
            result = call(*args, **kwargs)
            if name == "value":
                values[path] = result
            return result

        with nn.intercept_methods(observe):
            outputs, sown = model.apply(variables, jnp.asarray(video)[None], train=False, mutable="intermediates")
        return target.pick(outputs)[0], (sown["intermediates"], values)

    dtype = getattr(model, "dtype", "float32")
    zeros = {call.path: jnp.zeros((call.sequences, call.num_tokens, call.width), dtype) for call in calls}
    gradients, (sown, values) = jax.grad(score, has_aux=True)(zeros)
    recorded = []
    for call in calls:
        shape = (call.sequences, call.num_tokens, call.num_heads, call.width // call.num_heads)
        of_output, of_values = (x[call.path].reshape(shape).astype(jnp.float32) for x in (gradients, values))
        weights = _at(sown, call.path)
        recorded.append((weights, _weight_gradients(call, weights, of_values, of_output)))
    return recorded


def _weight_gradients(call: AttentionCall, weights: Weights, values: Array, of_output: Array) -> Weights:
    (gradients,) = jax.vjp(lambda weights: call.mix(weights, values), weights)[1](of_output)
    # What a layout averages over groups has that gradient divided by their number; ones in place of values and
    # gradients leave that factor alone. It is 0 for the padding of a layout.
    ones = jnp.ones((*values.shape[:3], 1))
    (factors,) = jax.vjp(lambda weights: call.mix(weights, ones), weights)[1](ones)
    return tuple(
        jnp.where(factor > 0, gradient / jnp.where(factor > 0, factor, 1), 0)
        for gradient, factor in zip(gradients, factors, strict=True)
    )


def _at(sown: Any, path: Path) -> Weights:
    for name in path:
        sown = sown[name]
    return tuple(sown["attention"])
