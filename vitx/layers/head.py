"""The last step of every model: pooled features to logits. In shapes: b batch, d width."""

from collections.abc import Iterable

from flax import linen as nn
from jaxtyping import Array, Float

NumClasses = int | tuple[tuple[str, int], ...] | None  # None takes the data's number when training starts


def classes_of(num_classes: NumClasses, heads: Iterable[str]) -> dict[str, int]:
    """Returns {head: its number of classes}; a single head gets the name of the first of `heads`."""
    return dict(num_classes) if isinstance(num_classes, tuple) else {next(iter(heads)): num_classes}


def check_classes(num_classes: NumClasses) -> None:
    """Raises ValueError if no model can have such heads."""
    if num_classes is None:
        return
    heads = num_classes if isinstance(num_classes, tuple) else (("", num_classes),)
    least = 1 if isinstance(num_classes, tuple) else 0
    if not heads or len(dict(heads)) < len(heads) or min(classes for _, classes in heads) < least:
        raise ValueError(
            f"num_classes is {num_classes}; expected 0, a number of classes, or ((name, classes), ...) of different "
            "names"
        )


class Head(nn.Module):
    """A linear classifier that starts at zero, or a classifier for each name, or none.

    Attributes:
        num_classes: an int; 0 for the features themselves; (("verb", 97), ("noun", 300)) for logits by name.
    """

    num_classes: NumClasses

    @nn.compact
    def __call__(self, features: Float[Array, "b d"]) -> Float[Array, "b classes"] | dict[str, Float[Array, "b _"]]:
        def dense(classes: int, name: str) -> Float[Array, "b classes"]:
            # float32 whatever the model's dtype: a loss over many classes needs the precision
            return nn.Dense(classes, dtype="float32", kernel_init=nn.initializers.zeros, name=name)(features)

        if self.num_classes is None:
            raise ValueError(
                "num_classes is None, which training takes from the data; expected a number of classes here"
            )
        if isinstance(self.num_classes, tuple):
            return {name: dense(classes, name) for name, classes in self.num_classes}
        return dense(self.num_classes, "logits") if self.num_classes else features
