"""What losses do about classes of unequal size: weights, priors, focus. Resampling is the pipeline's."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from vitx.data.sources import Source, label_columns

Counts = tuple[tuple[str, tuple[int, ...]], ...]  # (label, examples of each class) of each


def class_counts(source: Source) -> Counts:
    """Returns how many examples each class has, of every label that is one class; nothing is decoded."""
    return tuple(
        (name, tuple(np.bincount(column[column >= 0], minlength=len(source.label_names[name])).tolist()))
        for name, column in label_columns(source).items()
        if column.ndim == 1
    )


def balanced_weights(counts: Sequence[int], beta: float) -> Float[np.ndarray, " classes"]:
    """Returns the weight of every class, 1 on average: the inverse of its effective number of examples.

    Cui et al. 2019, equation 4: (1 - beta) / (1 - beta**n). 0 weighs all alike, 1 by the inverse of their numbers. A
    class without examples weighs as one with one.
    """
    numbers = np.maximum(np.asarray(counts, np.float64), 1)
    weights = 1 / numbers if beta == 1 else (1 - beta) / -np.expm1(numbers * np.log(beta)) if beta else numbers**0
    return (weights / weights.mean()).astype(np.float32)


def log_priors(counts: Sequence[int]) -> Float[np.ndarray, " classes"]:
    """Returns the logarithm of every class's share of the examples; a class without examples counts as one with one."""
    numbers = np.maximum(np.asarray(counts, np.float64), 1)
    return np.log(numbers / numbers.sum()).astype(np.float32)


def focal_cross_entropy(
    logits: Float[Array, "batch classes"], target: Float[Array, "batch classes"], focus: float
) -> Float[Array, "batch"]:
    """Returns -sum target (1 - p)**focus log p, in nats (Lin et al. 2017, equation 4, over classes).

    Args:
        logits: whose softmax is p.
        target: shares of the classes; they may be weighted.
        focus: gamma; 0 is cross-entropy.
    """
    logarithms = jax.nn.log_softmax(logits)
    if focus:
        target = target * jnp.maximum(-jnp.expm1(logarithms), 1e-12) ** focus
    return -(target * logarithms).sum(axis=-1)
