"""From a clip, as files and arrays come, to its explanation. In shapes: t h w the clip, n frames."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import UInt8

from vitx.data.decoding import VideoError
from vitx.data.file_kinds import read_video
from vitx.data.pipeline import Data
from vitx.errors import UserError, did_you_mean
from vitx.explain.explanation import Explanation
from vitx.explain.methods import relevance
from vitx.explain.score import Target, Variables, compute_outputs
from vitx.interop.preprocessing import Preprocessing

Answers = Mapping[str, Mapping[str, float]]


def read_clip(video: str | Path | np.ndarray, data: Data) -> UInt8[np.ndarray, "t h w c"]:
    """Returns one clip of a video as a model sees it: of a file the view of evaluation in the middle.

    Args:
        video: path of a file, or RGB frames [n, height, width, 3], 0 to 255. An array of as many frames as a clip is
            the clip; of a longer one the middle is taken, `data.frame_stride` apart. With `data.motion` an array is a
            clip that `data.read_views` has returned.
        data: settings of decoding and views.

    Raises:
        UserError: the file cannot be read as video, or the array is no video of at least as many frames as a clip.
    """
    if not isinstance(video, np.ndarray):
        try:
            views = data.read_views({"video": read_video(str(video))})
        except (VideoError, OSError) as error:
            raise UserError(f"{error}" if str(video) in str(error) else f"{video}: {error}") from error
        views = views.reshape(-1, data.eval_crops, *views.shape[1:])
        return views[len(views) // 2, data.eval_crops // 2]
    if data.motion:
        expected = (data.num_frames, *data.crop_size, 4)
        if video.shape != expected or video.dtype != np.uint8:
            raise UserError(
                f"found an array {list(video.shape)} of {video.dtype} and a model that needs the codec's motion; "
                f"expected the path of a file, or a clip {list(expected)} of uint8 as `data.read_views` returns it"
            )
        return video
    if video.ndim != 4 or video.shape[-1] != 3 or video.dtype != np.uint8:
        raise UserError(
            f"found an array {list(video.shape)} of {video.dtype}; expected [frames, height, width, 3] of uint8"
        )
    if len(video) < data.num_frames:
        raise UserError(
            f"found a clip of {len(video)} frames; expected at least {data.num_frames}, which the model needs: take a "
            "longer clip, or repeat its last frame"
        )
    stride = min(data.frame_stride, max((len(video) - 1) // max(data.num_frames - 1, 1), 1))
    shape = Preprocessing((0.5,) * 3, (0.5,) * 3, data.crop_size, None, data.num_frames, stride)
    return shape.fit(video[shape.indices(len(video))])


def explain_clip(
    model: nn.Module,
    variables: Variables,
    frames: UInt8[np.ndarray, "t h w c"],
    *,
    normalise: Callable[[Any], Any],
    names: Mapping[str, tuple[str, ...]],
    answer: Callable[[Mapping[str, np.ndarray]], Answers],
    method: str | None = None,
    label: str | None = None,
    class_name: str | None = None,
    **options: Any,
) -> Explanation:
    """Explains what a model predicts for one clip.

    Args:
        model: a model that classifies.
        variables: its variables.
        frames: the clip, RGB, 0 to 255.
        normalise: called with the clip; returns what the model takes.
        names: {label: names of its classes}.
        answer: called with {label: logits}; returns {label: {class: probability}}, the most probable first.
        method: name in `vitx.explain.methods.METHODS`; None takes the first that works.
        label: the label to explain; None takes the first.
        class_name: the class to explain; None takes the most probable one.
        options: further arguments of the method.

    Raises:
        UserError: an unknown label, class or method, or a method that does not work for the model.
    """
    label = next(iter(names)) if label is None else label
    if label not in names:
        raise UserError(f"label is {label!r}; expected one of {', '.join(names)}{did_you_mean(label, names)}")
    head = label if isinstance(model.num_classes, tuple) else None
    video = jnp.asarray(normalise(frames))
    outputs = compute_outputs(variables, video[None], model=model)
    logits = outputs if head is None else outputs[head]
    answers = answer({label: np.asarray(logits[0], np.float32)})[label]
    class_name = next(iter(answers)) if class_name is None else class_name
    if class_name not in names[label]:
        known = ", ".join(names[label][:20])
        raise UserError(f"class is {class_name!r}; {label} has {known}{did_you_mean(class_name, names[label])}")
    target = Target(names[label].index(class_name), head)
    method, values = relevance(model, variables, video, target, method, **options)
    return Explanation(
        frames[..., :3], np.asarray(values, np.float32), method, label, class_name, answers.get(class_name)
    )
