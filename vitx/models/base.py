"""What every video model offers: the protocol that training, weights, cost and the command line rely on.

A model is a Linen module, which is its own frozen and hashable config: a setting is a field, and
`vitx.configuration.setting` marks beside it what other modules must know. In shapes: b batch, t h w c the video,
n tokens, d width.
"""

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import jax
from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array, Float, Int

from vitx.configuration import override
from vitx.layers.embeddings import resize_positions
from vitx.layers.layouts import Grid
from vitx.models.parameter_table import ShowsParameters
from vitx.parameters import to_32_bits

InputShape = tuple[int, int, int, int]  # (frames, height, width, channels)
Logits = Float[Array, "b classes"] | dict[str, Float[Array, "b _"]]


@runtime_checkable
class VideoModel(Protocol):
    """A video model of any family; subclasses of `VideoTransformer` and `VideoCNN` have all of it.

    A model may offer more methods and properties, which are found by name:

        num_classes                                     it classifies: int, 0 for features, or ((head, classes), ...)
        features(video, *, train) -> [b, d]             one vector per clip, which the head classifies
        tokens, encode                                  see `TokenModel`
        init_state(batch), step(frame, state)           see `vitx.models.streaming.StreamingModel`
        divisible                                       what a mesh may divide (`vitx.layers.partition.Divisible`);
                                                        by default the batch alone
        implementation                                  see `resolve_implementation`
        norm_groups                                     parts of a training batch with statistics of their own
    """

    @property
    def input_shape(self) -> InputShape:
        """The (frames, height, width, channels) of the videos that the model takes, or that its cost is counted on."""

    @property
    def needs_input_shape(self) -> bool:
        """Whether videos must have `input_shape`; False if it is a default only."""

    def with_input_shape(
        self, frames: int | None = None, size: tuple[int, int] | None = None, **fields: Any
    ) -> "VideoModel":
        """Returns the model for videos of another shape, whatever its settings for it are called.

        Args:
            frames: number of frames; None keeps them.
            size: (height, width) in pixels; None keeps it.
            fields: other settings to replace at the same time.

        Raises:
            UserError: the model cannot take this shape.
        """

    def position_tables(self) -> Mapping[str, tuple[int, Grid]]:
        """Returns {path of a table of learned positions: (number of prefix tokens, grid)}, for resizing them."""

    def __call__(self, video: Float[Array, "b t h w c"], *, train: bool = False) -> Any:
        """Returns logits, or what else the model predicts of a clip."""


@runtime_checkable
class TokenModel(VideoModel, Protocol):
    """A video model that gives access to its tokens before and after the encoder, for masked models and dense heads."""

    def tokens(
        self, video: Float[Array, "b t h w c"], *, train: bool = False, keep: Int[Array, "b visible"] | None = None
    ) -> Float[Array, "b n d"]:
        """Returns the encoder's input: prefix tokens, then the grid, time-major, positions added.

        Args:
            video: the clips.
            train: whether dropout applies.
            keep: indices of the grid's tokens to keep; None keeps all.
        """

    def encode(self, tokens: Float[Array, "b n d"], *, train: bool = False) -> Float[Array, "b n d"]:
        """Returns all tokens after the encoder, in the order of `tokens`."""


class AnyShape(ShowsParameters):
    """Mixin for models that take videos of any shape; the field `clip` is their default (frames, height, width)."""

    @property
    def input_shape(self) -> InputShape:
        """The default (frames, height, width, channels): what cost is counted on."""
        return *self.clip, getattr(self, "channels", 3)

    @property
    def needs_input_shape(self) -> bool:
        """Whether videos must have `input_shape`."""
        return False

    def with_input_shape(
        self, frames: int | None = None, size: tuple[int, int] | None = None, **fields: Any
    ) -> "AnyShape":
        """See `VideoModel`."""
        model = override(self, fields)
        return override(model, {"clip": (model.clip[0] if frames is None else frames, *(size or model.clip[1:]))})

    def position_tables(self) -> dict[str, tuple[int, Grid]]:
        """Returns {}: convolutions need no positions for another shape."""
        return {}


def resize_position_tables(variables: Mapping[str, Any], old: nn.Module, new: nn.Module) -> Mapping[str, Any]:
    """Returns the variables of one model with its learned positions interpolated for another shape of clips.

    Args:
        variables: variables of `old`.
        old: the model.
        new: the same model for other clips, as `with_input_shape` returns it.
    """
    before, after = (model.position_tables() if isinstance(model, VideoModel) else {} for model in (old, new))
    if before == after:
        return variables
    params = flatten_dict(variables["params"], sep="/")
    for path, (num_prefix, grid) in after.items():
        params[path] = resize_positions(params[path], num_prefix, before[path][1], grid)
    return {**variables, "params": unflatten_dict(params, sep="/")}


def init_variables(model: nn.Module, key: Array, video: Float[Array, "b t h w c"]) -> dict[str, Any]:
    """Returns the initial variables of a model, of the same types with and without JAX_ENABLE_X64."""
    return to_32_bits(model.init(key, video))


def resolve_implementation(model: nn.Module, device: jax.Device) -> nn.Module:
    """Returns the model with `implementation` "auto" replaced by what suits the device that it will run on.

    Args:
        model: any model; one without that field is returned as it is. A model may choose by a method
            `implementation_for(device)`; by default "auto" becomes "cpu" on a CPU and "reference" elsewhere.
        device: a device of the mesh; this process may compile for another platform than its own.

    Raises:
        UserError: the device cannot run the implementation that the model is set to.
    """
    if hasattr(model, "implementation_for"):
        return model.copy(implementation=model.implementation_for(device))
    if getattr(model, "implementation", None) != "auto":
        return model
    return model.copy(implementation="cpu" if device.platform == "cpu" else "reference")
