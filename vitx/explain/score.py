"""The number that is explained: the logit of one class for one clip. In shapes: b batch, t h w c the video."""

import functools
from collections.abc import Mapping
from typing import Any

import flax.struct
import jax
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float

Clip = Float[Array | np.ndarray, "t h w c"]
Variables = Mapping[str, Any]


@flax.struct.dataclass
class Target:
    """The output of a model that is explained: one class of one head.

    Attributes:
        index: place of the class, or of the value, in the head's output. One compiled program serves all classes.
        head: name of the head, for a model with a dictionary of outputs.
    """

    index: Any
    head: str | None = flax.struct.field(pytree_node=False, default=None)

    def of_head(self, outputs: Any) -> Float[Array, "b _"]:
        """Returns the logits of all classes of the head."""
        return outputs if self.head is None else outputs[self.head]

    def pick(self, outputs: Any) -> Float[Array, "b"]:
        """Returns the logit of the class for each clip."""
        return self.of_head(outputs)[:, self.index]


def class_score(
    model: nn.Module, variables: Variables, video: Float[Array, "b t h w c"], target: Target
) -> Float[Array, "b"]:
    """Returns the logit of a class for each clip, in evaluation mode."""
    return target.pick(model.apply(variables, video, train=False))


@functools.partial(jax.jit, static_argnames="model")
def compute_outputs(variables: Variables, clips: Float[Array, "b t h w c"], *, model: nn.Module) -> Any:
    """Returns the outputs of clips in evaluation mode, by a program that is compiled once for each model and shape."""
    return model.apply(variables, clips, train=False)


def reference_model(model: nn.Module) -> nn.Module:
    """Returns the model with the plain implementation of everything: blocks one by one, nothing computed again.

    It computes the same, and each of its layers can be observed.
    """
    plain = {"implementation": "reference", "scan_layers": False, "remat_policy": None}
    return model.copy(**{name: value for name, value in plain.items() if hasattr(model, name)})
