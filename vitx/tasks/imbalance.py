"""Losses for imbalanced classes: class weights, class priors and focal loss. The pipeline does the resampling.

Letters in shapes: b batch, k classes.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from vitx.data.sources import Source, label_columns

Counts = tuple[tuple[str, tuple[int, ...]], ...]  # (label, examples of each class) of each label


def class_counts(source: Source) -> Counts:
    """Counts the examples of each class, for every single-label label; no video is decoded."""
    return tuple(
        (name, tuple(np.bincount(column[column >= 0], minlength=len(source.label_names[name])).tolist()))
        for name, column in label_columns(source).items()
        if column.ndim == 1
    )


def balanced_weights(counts: Sequence[int], beta: float) -> Float[np.ndarray, "k"]:
    """Returns class weights with mean 1, inverse to the effective number of examples.

    Cui et al. 2019, equation 4: (1 - beta) / (1 - beta**n). Beta 0 weights all classes equally, beta 1 by inverse
    frequency. A class without examples gets the weight of a class with one.
    """
    numbers = np.maximum(np.asarray(counts, np.float64), 1)
    if beta == 0:
        weights = np.ones_like(numbers)
    elif beta == 1:
        weights = 1 / numbers
    else:
        # expm1 keeps the digits of 1 - beta**n, which cancel where beta is close to 1
        weights = (1 - beta) / -np.expm1(numbers * np.log(beta))
    return (weights / weights.mean()).astype(np.float32)


def log_priors(counts: Sequence[int]) -> Float[np.ndarray, "k"]:
    """Returns the log frequency of every class; a class without examples counts as one with one."""
    numbers = np.maximum(np.asarray(counts, np.float64), 1)
    return np.log(numbers / numbers.sum()).astype(np.float32)


def focal_cross_entropy(
    logits: Float[Array, "b k"], target: Float[Array, "b k"], focal_gamma: float
) -> Float[Array, "b"]:
    """Returns -sum target (1 - p)**focal_gamma log p in nats, with p the softmax (Lin et al. 2017, equation 4).

    Args:
        logits: unnormalised log probabilities.
        target: probabilities of the classes, optionally times class weights.
        focal_gamma: focusing exponent; 0 is cross-entropy.
    """
    log_p = jax.nn.log_softmax(logits)
    if focal_gamma:
        # The gradient of x**gamma is infinite at 0 for gamma below 1, so 1 - p stays above it.
        target = target * jnp.maximum(-jnp.expm1(log_p), 1e-12) ** focal_gamma
    return -(target * log_p).sum(axis=-1)
