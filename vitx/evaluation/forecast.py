"""Forecast: the frames that a model predicts after the first frames of a clip, beside the true ones."""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float, UInt8
from matplotlib.figure import Figure

from vitx.evaluation.report import encode_png
from vitx.evaluation.rollout import Clip, animation, strip, to_rgb
from vitx.storage import check_ending, write_bytes
from vitx.tasks.frame_prediction import FramePrediction


@dataclasses.dataclass(frozen=True, repr=False)
class Forecast:
    """The frames that a model predicts after the first frames of a clip; RGB, 0 to 1.

    Attributes:
        context: the frames that the model reads.
        truth: the frames after them.
        predicted: what the model predicts in their place.
    """

    context: Clip
    truth: Clip
    predicted: Clip

    def __repr__(self) -> str:
        return f"Forecast({len(self.predicted)} frames after {len(self.context)})"

    def figure(self) -> Figure:
        """Returns truth, forecast and error as one picture: red where too bright, blue where too dark."""
        return strip([self._pair()], len(self.context))

    def save(self, path: str | Path) -> None:
        """Writes the forecast: a strip of frames (.png), or an animation beside the truth (.gif).

        Raises:
            UserError: another ending.
        """
        path = Path(path)
        write_bytes(path, WRITERS[check_ending(path, WRITERS)](self))

    def _pair(self) -> tuple[Clip, Clip]:
        return np.concatenate([self.context, self.truth]), self.predicted

    def _repr_png_(self) -> bytes:  # how a notebook shows it
        return _to_png(self)


def _to_png(forecast: Forecast) -> bytes:
    return encode_png(forecast.figure(), dpi=150)


def _to_gif(forecast: Forecast) -> bytes:
    # Small frames are enlarged to about 200 pixels.
    scale = max(200 // forecast.context.shape[1], 1)
    return animation([forecast._pair()], len(forecast.context), scale=scale)


WRITERS: dict[str, Callable[[Forecast], bytes]] = {".png": _to_png, ".gif": _to_gif}


def forecast_clip(
    task: FramePrediction, model: nn.Module, variables: Any, frames: UInt8[np.ndarray, "t h w 3"]
) -> Forecast:
    """Returns what a forecaster predicts of the last `model.horizon` frames of a clip from those before them."""
    context, truth = task.split_clip(model, jnp.asarray(frames)[None])
    predicted = _predict(variables, context, model=model)
    return Forecast(*(to_rgb(np.asarray(clip[0])) for clip in (context, truth, predicted)))


@functools.partial(jax.jit, static_argnames="model")
def _predict(variables: Any, context: Float[Array, "b t h w c"], *, model: nn.Module) -> Float[Array, "b _ h w c"]:
    return model.apply(variables, context, train=False)
