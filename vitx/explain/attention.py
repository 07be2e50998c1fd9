"""Explanations from attention: maps of single heads, rollout, and attention weighted by its gradients.

All three follow attention backwards from what is pooled (the class token, or the mean of all tokens) to the tokens of
the grid. Where every time index is encoded alone, relevance of a time index is handed on to its tokens. In shapes:
t h w c the video, s sequences of one clip, n tokens, gt gh gw the grid of tokens.
"""

import functools
import itertools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from vitx.errors import UserError
from vitx.explain.recording import AttentionCall, Weights, attention_calls, record_attention, record_gradients
from vitx.explain.score import Clip, Target, Variables, reference_model

Step = Callable[[AttentionCall, Weights, Array], Array]
POOLINGS = ("class", "mean")  # of these it is known which tokens are read; a probe's pooling has weights of its own


def has_attention(model: nn.Module, video: Clip) -> bool:
    """Returns whether attention methods work for a model: it attends, and pools a class token or a mean."""
    return _pooling(model) in POOLINGS and bool(attention_calls(reference_model(model), video))


def attention_maps(
    model: nn.Module, variables: Variables, video: Clip, *, layer: int = -1
) -> Float[Array, "heads gt gh gw"]:
    """Returns how much each head of one attention reads of every token, seen from what is pooled.

    Args:
        model: a model with attention of any layout.
        variables: its variables.
        video: one clip, normalised.
        layer: number of the attention in the order of computation: a block of divided attention has two; the spatial
            encoder of a factorised encoder comes before the temporal one, whose grid is (t, 1, 1).

    Returns:
        Maps that sum to 1 over the grid and prefix tokens together. Where each time index is encoded alone, each has
        an equal part.

    Raises:
        UserError: the model has no attention, or not so many.
    """
    model = reference_model(model)
    calls = _require_calls(model, video)
    if not -len(calls) <= layer < len(calls):
        raise UserError(f"layer is {layer}; the model has {len(calls)} attentions: expected 0 to {len(calls) - 1}")
    return _head_maps(variables, jnp.asarray(video), model=model, call=calls[layer])


def last_attention(
    model: nn.Module, variables: Variables, video: Clip, target: Target | None = None
) -> Float[Array, "gt gh gw"]:
    """Returns what the last block of every encoder attends to, averaged over heads; the same for all classes."""
    model = reference_model(model)
    calls = _require_calls(model, video)
    encoders = [list(encoder) for _, encoder in itertools.groupby(calls, _encoder_of)]
    last = tuple(call for encoder in encoders for call in _last_block(encoder))
    return _attended(variables, jnp.asarray(video), model=model, calls=last, residual=False)


def attention_rollout(
    model: nn.Module, variables: Variables, video: Clip, target: Target | None = None
) -> Float[Array, "gt gh gw"]:
    """Returns attention rollout (Abnar & Zuidema 2020, arXiv:2005.00928, section 3); the same for all classes.

    Every attention counts half, and the residual connection around it the other half.
    """
    model = reference_model(model)
    calls = _require_calls(model, video)
    return _attended(variables, jnp.asarray(video), model=model, calls=calls, residual=True)


def gradient_attention(model: nn.Module, variables: Variables, video: Clip, target: Target) -> Float[Array, "gt gh gw"]:
    """Returns attention weighted by its gradients (Chefer et al. 2021, arXiv:2103.15679, equations 5 and 6).

    An attention matrix counts where both it and the gradient of the class's logit are positive, averaged over heads;
    its product with the relevance so far is added to that.
    """
    model = reference_model(model)
    calls = _require_calls(model, video)
    return _weighted(variables, jnp.asarray(video), target, model=model, calls=calls)


@functools.partial(jax.jit, static_argnames=("model", "call"))
def _head_maps(
    variables: Variables, video: Clip, *, model: nn.Module, call: AttentionCall
) -> Float[Array, "heads gt gh gw"]:
    (weights,) = record_attention(model, variables, video, [call])
    reads_prefix = model.pooling == "class" and call.num_prefix > 0
    queries = _pooled(call.sequences, call.num_tokens, reads_prefix) / call.sequences
    maps = call.attended(weights, queries)[..., call.num_prefix :]
    t, h, w = call.grid
    return jnp.moveaxis(maps, 0, 1).reshape(call.num_heads, call.sequences * t, h, w)


@functools.partial(jax.jit, static_argnames=("model", "calls", "residual"))
def _attended(
    variables: Variables, video: Clip, *, model: nn.Module, calls: tuple[AttentionCall, ...], residual: bool
) -> Float[Array, "gt gh gw"]:
    def step(call: AttentionCall, weights: Weights, relevance: Array) -> Array:
        read = _read(call, weights, relevance)
        return (relevance + read) / 2 if residual else read

    return _follow(model, calls, record_attention(model, variables, video, calls), step)


@functools.partial(jax.jit, static_argnames=("model", "calls"))
def _weighted(
    variables: Variables, video: Clip, target: Target, *, model: nn.Module, calls: tuple[AttentionCall, ...]
) -> Float[Array, "gt gh gw"]:
    recorded = record_gradients(model, variables, video, calls, target)
    weights = [
        tuple(jax.nn.relu(gradient * weight) for weight, gradient in zip(*of_call, strict=True)) for of_call in recorded
    ]

    def step(call: AttentionCall, weights: Weights, relevance: Array) -> Array:
        return relevance + _read(call, weights, relevance)

    # what is pooled without any attention is the same for all tokens of a mean, and shows nothing
    return _follow(model, calls, weights, step, subtract_pooled=True)


def _require_calls(model: nn.Module, video: Clip) -> tuple[AttentionCall, ...]:
    calls = attention_calls(model, video)
    if not calls or _pooling(model) not in POOLINGS:
        lacks = f"pooling {_pooling(model)}" if calls else "no attention over all tokens"
        raise UserError(
            f"{type(model).__name__} has {lacks}; expected a video Transformer with pooling class or mean and "
            "without a reducer. "
            "grad_cam, occlusion, integrated_gradients, kernel_shap and lime need none"
        )
    return calls


def _pooling(model: nn.Module) -> str | None:
    return getattr(model, "pooling", None)


def _encoder_of(call: AttentionCall) -> tuple[str, ...]:
    return call.path[:-2]


def _last_block(calls: Sequence[AttentionCall]) -> list[AttentionCall]:
    return [call for call in calls if call.path[:-1] == calls[-1].path[:-1]]


def _read(call: AttentionCall, weights: Weights, queries: Float[Array, "s n"]) -> Float[Array, "s n"]:
    return call.attended(weights, queries).mean(axis=1)


def _pooled(sequences: int, num_tokens: int, reads_prefix: bool) -> Float[Array, "s n"]:
    """Returns the weights by which pooling reads the tokens of each sequence."""
    if reads_prefix:
        return jnp.zeros((sequences, num_tokens)).at[:, 0].set(1.0)
    return jnp.full((sequences, num_tokens), 1 / num_tokens)


def _follow(
    model: nn.Module,
    calls: Sequence[AttentionCall],
    weights: Sequence[Weights],
    step: Step,
    *,
    subtract_pooled: bool = False,
) -> Float[Array, "gt gh gw"]:
    """Follows relevance from what is pooled to the tokens of the first encoder.

    Args:
        model: the model.
        calls: attentions in the order of computation.
        weights: weights of each attention.
        step: called as step(call, weights, relevance of outputs); returns the relevance of the inputs.
        subtract_pooled: leave out the relevance that tokens have before any attention, by pooling alone.
    """
    pairs = zip(calls, weights, strict=True)
    encoders = [list(group) for _, group in itertools.groupby(pairs, lambda pair: _encoder_of(pair[0]))]
    of_sequences = None
    for encoder in reversed(encoders):
        num_prefix = max(call.num_prefix for call, _ in encoder)
        (t, h, w), sequences = encoder[0][0].grid, encoder[0][0].sequences
        # time indices that no temporal encoder weighs are averaged by the model
        time_weights = jnp.full(sequences, 1 / sequences) if of_sequences is None else of_sequences
        relevance = pooled = time_weights[:, None] * _pooled(
            sequences, num_prefix + t * h * w, model.pooling == "class"
        )
        for call, of_call in reversed(encoder):
            skipped = num_prefix - call.num_prefix  # prefix tokens that this attention leaves out
            read = step(call, of_call, relevance[:, skipped:])
            relevance = jnp.concatenate([relevance[:, :skipped], read], axis=1)
        relevance = relevance - pooled if subtract_pooled else relevance
        of_sequences = relevance[:, num_prefix:].reshape(-1)
    return of_sequences.reshape(sequences * t, h, w)
