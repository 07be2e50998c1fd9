"""Grad-CAM for convolutional networks and for grids of tokens.

In shapes: t h w c the video, gt gh gw the grid of a feature map or of tokens.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from vitx.errors import UserError
from vitx.explain.recording import Path, attention_calls, trace_model
from vitx.explain.score import Clip, Target, Variables, reference_model


@dataclasses.dataclass(frozen=True)
class FeatureMap:
    """A feature map inside a model.

    Attributes:
        path: names of the modules that lead to the one that has it.
        side: whether it is the "input" or the "output" of that module.
        grid: its (t, h, w).
        num_prefix: number of tokens of each sequence that come before the grid; 0 for a convolution.
        sequences: number of equal parts of the grid, along time, that the module handles one by one, as the spatial
            encoder of ViViT's model 2 does with time indices.
    """

    path: Path
    side: Literal["input", "output"]
    grid: tuple[int, int, int]
    num_prefix: int = 0
    sequences: int = 1


def find_feature_map(model: nn.Module, video: Clip, layer: str | None = None) -> FeatureMap | None:
    """Returns the feature map that Grad-CAM weighs, or None if the model has none with more than one place.

    Args:
        model: the model.
        video: one clip.
        layer: path of a convolutional module, such as "stage_3"; None takes the last feature map of a convolutional
            network, and the tokens that the last block over space reads of a Transformer.
    """
    calls = [call for call in attention_calls(model, video) if math.prod(call.grid[1:]) > 1]
    if calls and layer is None:
        *_, last = calls
        num_prefix = max(call.num_prefix for call in calls if call.path[:-1] == last.path[:-1])
        t, h, w = last.grid
        return FeatureMap(last.path[:-1], "input", (last.sequences * t, h, w), num_prefix, last.sequences)
    maps = _trace_maps(model, tuple(video.shape))
    if layer is not None:
        named = [found for found in maps if "/".join(found.path) == layer]
        if not named:
            known = ", ".join(dict.fromkeys("/".join(found.path) for found in maps))
            raise UserError(f"layer is {layer}; expected a module with feature maps: {known or 'the model has none'}")
        maps = tuple(named)
    return maps[-1] if maps else None


@functools.lru_cache(maxsize=64)
def _trace_maps(model: nn.Module, shape: tuple[int, ...]) -> tuple[FeatureMap, ...]:
    maps = []

    def observe(call: Callable[..., Any], args: Any, kwargs: Any, context: Any) -> Any:
        result = call(*args, **kwargs)
        path, shape = context.module.path, getattr(result, "shape", ())
        if path and context.method_name == "__call__" and len(shape) == 5 and shape[0] == 1 and shape[2] * shape[3] > 1:
            maps.append(FeatureMap(path, "output", tuple(shape[1:4])))
        return result

    trace_model(model, shape, observe)
    return tuple(maps)


def grad_cam(
    model: nn.Module,
    variables: Variables,
    video: Clip,
    target: Target,
    *,
    layer: str | None = None,
) -> Float[Array, "gt gh gw"]:
    """Returns Grad-CAM (Selvaraju et al. 2017, arXiv:1610.02391, equations 1 and 2) on the grid of a feature map.

    Each sequence of the map has channel weights of its own: what comes after may read a channel with one sign early and
    with the other late, as it must to tell a motion from its reverse, and a mean over all times would cancel both.

    Args:
        model: a convolutional network or a video Transformer.
        variables: its variables.
        video: one clip, normalised.
        target: what is explained.
        layer: see `find_feature_map`.

    Raises:
        UserError: the model has no feature map with more than one place.
    """
    model = reference_model(model)
    found = find_feature_map(model, video, layer)
    if found is None:
        raise UserError(
            f"{type(model).__name__} has no feature map with more than one place; occlusion, integrated_gradients, "
            "kernel_shap and lime need none"
        )

    return _weigh(variables, jnp.asarray(video), target, model=model, found=found)


@functools.partial(jax.jit, static_argnames=("model", "found"))
def _weigh(
    variables: Variables, video: Clip, target: Target, *, model: nn.Module, found: FeatureMap
) -> Float[Array, "gt gh gw"]:
    def score(offset: Array) -> Any:
        kept = []

        def observe(call: Callable[..., Any], args: Any, kwargs: Any, context: Any) -> Any:
            if context.module.path != found.path or context.method_name != "__call__":
                return call(*args, **kwargs)
            if found.side == "input":
                kept.append(args[0] + offset.astype(args[0].dtype))
                return call(kept[-1], *args[1:], **kwargs)
            result = call(*args, **kwargs)
            kept.append(result + offset.astype(result.dtype))
            return kept[-1]

        with nn.intercept_methods(observe):
            outputs = model.apply(variables, video[None], train=False)
        return target.pick(outputs)[0], kept[-1]

    shape = jax.eval_shape(score, jax.ShapeDtypeStruct((), jnp.float32))[1].shape
    gradient, features = jax.grad(score, has_aux=True)(jnp.zeros(shape))
    gradient, features = _on_grid(gradient, found), _on_grid(features, found)
    weights = gradient.mean(axis=(1, 2, 3), keepdims=True)
    return jax.nn.relu(jnp.sum(weights * features.astype(jnp.float32), axis=-1)).reshape(found.grid)


def _on_grid(x: Float[Array, "..."], found: FeatureMap) -> Float[Array, "sequences t gh gw c"]:
    tokens = x if found.side == "output" else x[..., found.num_prefix :, :]
    return tokens.reshape(found.sequences, -1, *found.grid[1:], x.shape[-1])
