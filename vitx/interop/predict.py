"""Predictions of a pretrained model for video files, through the preprocessing that came with it."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import linen as nn
from jaxtyping import Float

from vitx.console import print_text
from vitx.data.class_names import number_duplicates
from vitx.data.decoding import VideoError, open_video
from vitx.data.file_kinds import read_video
from vitx.errors import UserError
from vitx.interop.load import Pretrained
from vitx.interop.preprocessing import Preprocessing
from vitx.models import resolve_implementation

HALF = (0.5, 0.5, 0.5)  # mean and std for pixels in [-1, 1], where weights came without preprocessing


def read_clip(file: str, preprocessing: Preprocessing) -> Float[np.ndarray, "t h w 3"]:
    """Returns one clip of a video, ready for the model.

    Raises:
        VideoError: the file cannot be read as video.
    """
    with open_video(read_video(file)) as video:
        (frames,) = video.read(preprocessing.indices(len(video.times)))
    return preprocessing.normalise(preprocessing.fit(frames))


def predict_each(
    pretrained: Pretrained, files: Sequence[str | Path], *, top: int = 5
) -> Iterator[tuple[str, dict[str, dict[str, float]] | VideoError | OSError]]:
    """Yields (file, {head: {class: probability}}) of the `top` classes, most probable first.

    For a file that cannot be read as video it yields (file, error).

    Raises:
        UserError: the model has no head.
    """
    preprocessing, apply = check_head(pretrained), jax.jit(for_first_device(pretrained.model).apply)
    variables = pretrained.variables
    for file in map(str, files):
        try:
            clip = read_clip(file, preprocessing)
        except (VideoError, OSError) as error:
            yield file, error
        else:
            yield file, _select_best(apply(variables, clip[None]), pretrained, top)


def check_head(pretrained: Pretrained) -> Preprocessing:
    """Returns the preprocessing of a model that predicts classes; prints a default where none came with the weights.

    Raises:
        UserError: the model has no head, or needs more than pixels.
    """
    model, _ = pretrained
    if not getattr(model, "num_classes", 0):
        raise UserError("the model has no head (num_classes is 0) and so nothing to predict")
    if model.input_shape[3] == 4:
        raise UserError(
            f"found reducer {model.reducer}, which needs the codec's motion; expected a model of pixels alone, since "
            "motion comes with `data.motion` of a run: choose another reducer, or evaluate a run"
        )
    if pretrained.preprocessing is not None:
        return pretrained.preprocessing
    print_text(
        "no preprocessing came with the weights: pixels are scaled to [-1, 1], frames taken over the whole video",
        error=True,
    )
    frames, *size, _ = model.input_shape
    return Preprocessing(HALF, HALF, tuple(size), None, frames)


def for_first_device(model: nn.Module) -> nn.Module:
    """Returns the model with the implementation for the first device."""
    return resolve_implementation(model, jax.devices()[0])


def class_names(pretrained: Pretrained, heads: Mapping[str, int]) -> dict[str, tuple[str, ...]]:
    """Returns {head: names of its classes}, numbers where the weights came without names.

    Args:
        pretrained: a model with what came with its weights.
        heads: {head: number of its classes}; a single unnamed head is called "class".
    """
    labels = pretrained.labels if isinstance(pretrained.labels, Mapping) else {"class": pretrained.labels}
    return {
        head: tuple(number_duplicates(labels.get(head) or [str(i) for i in range(count)]))
        for head, count in heads.items()
    }


def _select_best(logits: Any, pretrained: Pretrained, top: int) -> dict[str, dict[str, float]]:
    heads = dict(logits) if isinstance(logits, Mapping) else {"class": logits}
    names = class_names(pretrained, {head: row.shape[-1] for head, row in heads.items()})
    answers = {}
    for head, row in heads.items():
        probabilities = np.asarray(jax.nn.softmax(row[0]))
        order = probabilities.argsort()[::-1][:top]
        answers[head] = {names[head][i]: float(probabilities[i]) for i in order}
    return answers
