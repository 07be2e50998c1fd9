"""The methods of explanation by name.

To add one, write a function of (model, variables, video, target) and add it to the registry:

    METHODS.add("my_method", Method(my_method))
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float

from vitx.errors import UserError, did_you_mean
from vitx.explain.attention import attention_rollout, gradient_attention, has_attention, last_attention
from vitx.explain.grad_cam import find_feature_map, grad_cam
from vitx.explain.options import check_options, option_defaults
from vitx.explain.perturbation import integrated_gradients, occlusion
from vitx.explain.score import Clip, Target, Variables, reference_model
from vitx.explain.surrogates import kernel_shap, lime
from vitx.plugins import Registry


def works_always(model: nn.Module, video: Clip) -> bool:
    """Returns True."""
    return True


def has_feature_map(model: nn.Module, video: Clip) -> bool:
    """Returns whether Grad-CAM works for a model."""
    return find_feature_map(reference_model(model), video) is not None


@dataclasses.dataclass(frozen=True)
class Method:
    """A method of explanation.

    Attributes:
        explain: called as explain(model, variables, video, target, **options) with one normalised clip [t, h, w, c];
            returns its relevance on any grid over time, height and width. Its keyword-only arguments are the options.
        works_for: called as works_for(model, video); whether the method can explain the model.
    """

    explain: Callable[..., Any]
    works_for: Callable[..., bool] = works_always


METHODS: Registry[Method] = Registry(
    "explanation method",
    {
        "gradient_attention": Method(gradient_attention, has_attention),
        "grad_cam": Method(grad_cam, has_feature_map),
        "occlusion": Method(occlusion),
        "integrated_gradients": Method(integrated_gradients),
        "kernel_shap": Method(kernel_shap),
        "lime": Method(lime),
        "attention_rollout": Method(attention_rollout, has_attention),
        "attention": Method(last_attention, has_attention),
    },
)
"""The first that works for a model is its default."""


def methods_for(model: nn.Module, video: Clip) -> list[str]:
    """Returns the names of the methods that can explain a model, the default one first."""
    return [name for name, method in METHODS.items() if method.works_for(model, video)]


def list_options() -> list[str]:
    """Returns the names of the options of all methods, each once."""
    return list(dict.fromkeys(name for method in METHODS.values() for name in option_defaults(method.explain)))


def relevance(
    model: nn.Module,
    variables: Variables,
    video: Clip,
    target: Target,
    method: str | None = None,
    **options: Any,
) -> tuple[str, Float[Array, "t h w"]]:
    """Returns (name of the method, relevance of every pixel).

    Args:
        model: any model.
        variables: its variables.
        video: one clip, normalised.
        target: what is explained.
        method: name in `METHODS`; None takes the first that works.
        options: further arguments of the method, such as the `tubelet` of occlusion.

    Raises:
        UserError: the method is unknown or does not work for the model, with those that do; it lacks an option; or
            its result is not finite.
    """
    if method is None:
        method = next(name for name, known in METHODS.items() if known.works_for(model, video))
    elif method not in METHODS:
        works = ", ".join(methods_for(model, video))
        raise UserError(f"method is {method!r}; expected one of {works}{did_you_mean(method, METHODS)}")
    elif not METHODS[method].works_for(model, video):
        raise UserError(
            f"{method} does not work for {type(model).__name__}, which lacks what it needs; expected one of "
            f"{', '.join(methods_for(model, video))}"
        )
    options = {name: value.item() if isinstance(value, np.generic) else value for name, value in options.items()}
    check_options(method, METHODS[method].explain, options)
    on_grid = METHODS[method].explain(model, variables, video, target, **options)
    if not np.isfinite(np.asarray(on_grid)).all():
        raise UserError(
            f"{method} found values that are not finite; expected numbers: the parameters or the options, such as a "
            "baseline, are out of range"
        )
    return method, spread(on_grid, video.shape[:3])


def spread(on_grid: Float[Array | np.ndarray, "gt gh gw"], shape: tuple[int, int, int]) -> Float[Array, "t h w"]:
    """Returns the value of every pixel: that of the place of the grid which the pixel is in."""
    places = (jnp.arange(size) * cells // size for cells, size in zip(on_grid.shape, shape, strict=True))
    return jnp.asarray(on_grid)[jnp.ix_(*places)]
