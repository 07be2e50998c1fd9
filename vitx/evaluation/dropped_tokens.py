"""What a budget of tokens costs: how much of what changes in the clips of a split has no slot."""

from typing import Any

import jax
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float, UInt8

from vitx.data.pipeline import Data
from vitx.data.sources import Source
from vitx.evaluation.evaluate import Predictions

MAX_CLIPS = 64  # enough for a mean; a clip is observed without the model's blocks
BATCH_SIZE = 8


def dropped_tokens(
    model: nn.Module, task: Any, data: Data, source: Source, predictions: Predictions
) -> dict[str, float]:
    """Returns {"dropped_tokens": mean percentage of the tokens to keep that a reducer's budget has no slot for}.

    It is measured on the first views of at most `MAX_CLIPS` evaluated videos, evenly spaced. {} for a model whose
    reducer drops nothing that it would keep.

    Args:
        model: the model.
        task: the task that it has learnt.
        data: settings of decoding and views.
        source: the examples that were evaluated.
        predictions: what was predicted for them.
    """
    reducer = getattr(model, "reducer", None)
    if reducer is None or not reducer.may_drop:
        return {}

    @jax.jit
    def observe(video: UInt8[Array, "b t h w c"]) -> Float[Array, "r"]:
        return reducer.fraction_dropped(model.apply({}, task.normalise(video), method="observe"))

    count = min(MAX_CLIPS, len(predictions.index))
    chosen = predictions.index[np.linspace(0, len(predictions.index) - 1, count).astype(int)]
    fractions = []
    for start in range(0, count, BATCH_SIZE):
        clips = [data.read_views(source[int(index)])[0] for index in chosen[start : start + BATCH_SIZE]]
        fractions.append(np.asarray(observe(np.stack(clips))))
    return {"dropped_tokens": 100 * float(np.concatenate(fractions).mean())}
