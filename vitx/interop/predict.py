"""Predictions of a pretrained model for video files, through the preprocessing that came with it."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Float

from vitx.console import print_text
from vitx.data.class_names import number_duplicates
from vitx.data.decoding import VideoError, open_video
from vitx.data.file_kinds import read_video
from vitx.errors import UserError
from vitx.interop.load import Pretrained
from vitx.interop.preprocessing import Preprocessing
from vitx.models import resolve_implementation

HALF = (0.5, 0.5, 0.5)  # pixels in [-1, 1], where weights came without preprocessing


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

    Of a file that cannot be read as video it yields the error.

    Raises:
        UserError: the model has no head.
    """
    model, variables = pretrained
    if not getattr(model, "num_classes", 0):
        raise UserError("the model has no head (num_classes is 0) and so nothing to predict")
    preprocessing = pretrained.preprocessing
    if preprocessing is None:
        print_text(
            "no preprocessing came with the weights: pixels are scaled to [-1, 1], frames taken over the whole video",
            error=True,
        )
        frames, *size, _ = model.input_shape
        preprocessing = Preprocessing(HALF, HALF, tuple(size), None, frames)
    apply = jax.jit(resolve_implementation(model, jax.devices()[0]).apply)
    for file in map(str, files):
        try:
            clip = read_clip(file, preprocessing)
        except (VideoError, OSError) as error:
            yield file, error
        else:
            yield file, _best(apply(variables, clip[None]), pretrained.labels, top)


def _best(logits: Any, labels: Any, top: int) -> dict[str, dict[str, float]]:
    heads, by_head = (logits, labels or {}) if isinstance(logits, Mapping) else ({"class": logits}, {"class": labels})
    answers = {}
    for head, row in heads.items():
        names = number_duplicates(by_head.get(head) or [str(i) for i in range(row.shape[-1])])
        probabilities = np.asarray(jax.nn.softmax(row[0]))
        order = probabilities.argsort()[::-1][:top]
        answers[head] = {names[i]: float(probabilities[i]) for i in order}
    return answers
