"""Budgets: one model at several costs, by fewer tokens, fewer frames or smaller ones (FluxViT, arXiv:2503.14237).

In shapes: b batch, t h w c the video.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, UInt8

from vitx.configuration import override, register
from vitx.errors import UserError, as_user_error
from vitx.layers.dynamic_tokens import DynamicTokens
from vitx.layers.embeddings import Size, height_and_width, sample_uniformly
from vitx.layers.reducers import Reducer
from vitx.models.base import VideoModel


@register
@dataclasses.dataclass(frozen=True)
class Budget:
    """Limits of what a model reads of a clip; None sets no limit.

    Attributes:
        num_tokens: tokens of a clip that the encoder reads, class tokens not counted: the budget of the model's
            reducer; a model without one gets `DynamicTokens`.
        num_frames: frames of a clip, evenly spaced, that are read.
        image_size: size that frames are reduced to; an int, or (height, width).
    """

    num_tokens: int | None = None
    num_frames: int | None = None
    image_size: Size | None = None

    def fit_model(self, model: nn.Module) -> nn.Module:
        """Returns the model for clips and tokens of this budget; `resize_position_tables` fits its variables.

        Raises:
            UserError: the model cannot have this budget.
        """
        fields = {} if self.num_tokens is None else {"reducer": _reducer_with_budget(model, self.num_tokens)}
        if self.num_frames is None and self.image_size is None:
            return override(model, fields) if fields else model
        if not isinstance(model, VideoModel) or (model.needs_input_shape and not model.position_tables()):
            raise UserError(
                f"{type(model).__name__} has positions for one shape of clips, or none that can be resized; expected "
                "learned positions, or num_frames and image_size None"
            )
        size = None if self.image_size is None else height_and_width(self.image_size)
        return model.with_input_shape(self.num_frames, size, **fields)

    def fit_clip(self, num_frames: int, image_size: tuple[int, int]) -> tuple[int, int, int]:
        """Returns the (frames, height, width) that are read of a clip of this shape."""
        return self.num_frames or num_frames, *height_and_width(self.image_size or image_size)

    def fit_video(self, video: UInt8[Array, "b t h w c"]) -> UInt8[Array, "b frames height width c"]:
        """Returns evenly spaced frames of clips, reduced in size."""
        frames, *size = self.fit_clip(video.shape[1], video.shape[2:4])
        video = sample_uniformly(video, frames)
        shape = (*video.shape[:2], *size, video.shape[4])
        if video.shape == shape:
            return video
        return jnp.round(jax.image.resize(video.astype(jnp.float32), shape, "linear")).astype(video.dtype)


def check_budgets(experiment: Any) -> None:
    """Raises UserError unless the model of an experiment can have each of `training.budgets`, on clips of its data."""
    whole = experiment.data.num_frames, *experiment.data.image_size
    for number, budget in enumerate(experiment.training.budgets):
        with as_user_error(of=f"training.budgets[{number}]"):
            budget.fit_model(experiment.model)
            clip = budget.fit_clip(whole[0], whole[1:])
            if any(part > most for part, most in zip(clip, whole, strict=True)):
                raise ValueError(f"found clips of {clip} (frames, height, width); expected at most the data's {whole}")


def _reducer_with_budget(model: nn.Module, num_tokens: int) -> Reducer:
    if not hasattr(model, "reducer"):
        raise UserError(
            f"{type(model).__name__} has no tokens, and a budget counts them; expected a Transformer, such as ViViT"
        )
    reducer = DynamicTokens(num_tokens) if model.reducer is None else model.reducer
    if not hasattr(reducer, "budget"):
        raise UserError(
            f"reducer is {reducer}, which has no budget; expected None or one that has, such as DynamicTokens: set "
            "model.reducer to None"
        )
    return dataclasses.replace(reducer, budget=num_tokens)
