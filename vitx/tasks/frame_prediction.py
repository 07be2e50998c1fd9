"""Frame prediction: the last frames of a clip from its first ones, compared with two baselines without a model.

Letters in shapes: b batch, t frames, h height, w width, c colour channels.
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Bool, Float, UInt8

from vitx.configuration import register
from vitx.errors import UserError, as_user_error
from vitx.evaluation.evaluate import Predictions
from vitx.evaluation.frames import (
    BASELINES,
    FRAME_METRICS,
    LOWER_IS_BETTER,
    SUMMED,
    WINDOW,
    cross_entropy,
    frame_metrics,
    ssim,
)
from vitx.models.base import init_variables
from vitx.models.forecaster import Forecaster
from vitx.tasks.task import CLIP_SHAPE_HINT, COUNT_METRICS, Batch, LossOutput, Names, PerExample, Task, Variables

LUMA = (0.299, 0.587, 0.114)  # weights of red, green and blue (ITU-R BT.601)
SOURCES = ("", *(f"/{name}" for name in BASELINES))  # suffixes of metrics: the model, then the baselines
Frames = Float[Array, "b t h w c"]


@register
@dataclasses.dataclass(frozen=True)
class FramePrediction(Task):
    """A weighted sum of losses between predicted and true frames; pixels are in [0, 1].

    The last `horizon` frames of a clip (a field of the model) are predicted from the frames before them, the context.
    Colours are converted to grey for a model with one channel. Metrics are those of `vitx.evaluation.frames`:
    "mse/copy" and "mse/linear" belong to its baselines, and "sequence_mse" sums over all predicted frames.

    Attributes:
        mse: weight of the mean squared error of a pixel.
        cross_entropy: weight of the mean binary cross-entropy of a pixel.
        ssim: weight of 1 - SSIM.
        sampling_steps: scheduled sampling (Bengio et al. 2015, arXiv:1506.03099, section 2.4): number of steps over
            which the probability of teacher forcing (feeding back the true frame in place of the predicted one) falls
            linearly from 1 to 0. 0 never uses teacher forcing.
        mean: must be 0, since pixels stay in [0, 1].
        std: must be 1, likewise.
    """

    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    mse: float = 1.0
    cross_entropy: float = 0.0
    ssim: float = 0.0
    sampling_steps: int = 0

    lower_is_better: ClassVar[tuple[str, ...]] = (*LOWER_IS_BETTER, *(f"sequence_{name}" for name in SUMMED))

    def __post_init__(self):
        weights = {name: getattr(self, name) for name in ("mse", "cross_entropy", "ssim")}
        if min(weights.values()) < 0 or not any(weights.values()):
            raise ValueError(f"the losses have the weights {weights}; expected one above 0 and none below")
        if self.sampling_steps < 0:
            raise ValueError(f"sampling_steps is {self.sampling_steps}; expected at least 0")
        if any(self.mean) or set(self.std) != {1.0}:
            raise ValueError(
                f"mean is {self.mean} and std {self.std}; expected 0 and 1, since frames are predicted in [0, 1]"
            )

    def output_names(self, model: nn.Module, label_names: Names) -> dict[str, tuple[str, ...]]:
        """Returns {metric: names of the predicted frames}; labels of the data are ignored."""
        if not isinstance(model, Forecaster):
            raise UserError(
                f"found {type(model).__name__}; frame prediction needs a forecaster, such as those listed by "
                "`vitx models 'convlstm_forecaster_*'`"
            )
        if self.sampling_steps and not model.feeds_back:
            raise UserError(
                f"task.sampling_steps is {self.sampling_steps} (scheduled sampling), but this forecaster does not feed "
                "frames back; set task.sampling_steps to 0, or model.feedback to True"
            )
        if self.cross_entropy and model.output == "linear":
            raise UserError(
                f"task.cross_entropy is {self.cross_entropy}, which is defined for pixels in [0, 1], but the "
                "forecaster's linear output leaves that range; set model.output to sigmoid, or task.cross_entropy to 0"
            )
        frames = tuple(f"+{i + 1}" for i in range(model.horizon))
        return {"loss": ("mean",)} | {metric + source: frames for metric in FRAME_METRICS for source in SOURCES}

    def init(self, model: nn.Module, key: Array, batch: Batch) -> Variables:
        frames, height, width, _ = batch["video"].shape[1:]
        if frames < model.horizon + 2:
            raise UserError(
                f"clips have {frames} frames, of which the model predicts the last {model.horizon} (model.horizon); "
                "at least two must remain as context (data.num_frames)"
            )
        if min(height, width) < WINDOW:
            raise UserError(
                f"frames have {height} x {width} pixels (data.image_size); SSIM needs at least {WINDOW} x {WINDOW}"
            )
        context = jnp.zeros((1, frames - model.horizon, height, width, model.channels))
        with as_user_error(CLIP_SHAPE_HINT):
            return init_variables(model, key, context)

    def split_clip(self, model: nn.Module, video: UInt8[Array, "b t h w 3"]) -> tuple[Array, Array]:
        """Returns (context frames, true frames to predict), [b, frames, h, w, model.channels]."""
        frames = self.normalise(video)
        if model.channels == 1:
            frames = jnp.sum(frames * jnp.asarray(LUMA, jnp.float32), axis=-1, keepdims=True)
        return frames[:, : -model.horizon], frames[:, -model.horizon :]

    def frame_loss(self, predicted: Frames, truth: Frames) -> PerExample:
        """Returns the weighted sum of losses of each example."""
        axes = (1, 2, 3, 4)
        loss = self.mse * jnp.mean((predicted - truth) ** 2, axes)
        if self.cross_entropy:
            loss += self.cross_entropy * jnp.mean(cross_entropy(predicted, truth), axes)
        if self.ssim:
            loss += self.ssim * (1 - jnp.mean(ssim(predicted, truth), axis=1))
        return loss

    def loss(
        self, model: nn.Module, variables: Variables, batch: Batch, *, key: Array, step: Array, train: bool
    ) -> tuple[PerExample, LossOutput]:
        context, truth = self.split_clip(model, batch["video"])
        feedback = {}
        if train and self.sampling_steps:
            feedback = {"future": truth, "teacher_forcing": self.teacher_forcing(truth.shape[:2], key, step)}
        predicted = model.apply(variables, context, train=train, **feedback)
        mse = jnp.sum((predicted - truth) ** 2, axis=(2, 3, 4)).mean(axis=1)
        weight = batch["weight"]
        sums = {"weight": weight.sum(), "mse": (mse * weight).sum()}
        return self.frame_loss(predicted, truth), LossOutput(sums, {})

    def teacher_forcing(self, shape: tuple[int, int], key: Array, step: Array) -> Bool[Array, "b t"]:
        """Draws the mask of frames whose true version is fed back in place of the predicted one."""
        probability = jnp.clip(1 - step / self.sampling_steps, 0, 1)
        return jax.random.bernoulli(key, probability, shape)

    def predict(
        self, model: nn.Module, variables: Variables, video: UInt8[Array, "b t h w 3"]
    ) -> dict[str, Float[Array, "b _"]]:
        """Returns every metric of every predicted frame; the frames themselves stay on the device."""
        context, truth = self.split_clip(model, video)
        predicted = model.apply(variables, context, train=False)
        metrics = {"loss": self.frame_loss(predicted, truth)[:, None], **frame_metrics(predicted, truth)}
        for name, baseline in BASELINES.items():
            per_frame = frame_metrics(baseline(context, model.horizon), truth)
            metrics |= {f"{metric}/{name}": values for metric, values in per_frame.items()}
        return metrics

    def metrics(self, predictions: Predictions) -> dict[str, float | int]:
        """Returns means over frames and examples, and for `SUMMED` metrics also those of whole sequences."""
        metrics = {name: float(values.mean(dtype=np.float64)) for name, values in predictions.outputs.items()}
        for name, values in predictions.outputs.items():
            if name.split("/")[0] in SUMMED:
                metrics[f"sequence_{name}"] = float(values.sum(axis=1).mean(dtype=np.float64))
        return metrics | {"examples": len(predictions.index), "unreadable": len(predictions.unreadable)}

    def metric_names(self, output_names: Names) -> tuple[str, ...]:
        sequences = [f"sequence_{name}" for name in output_names if name.split("/")[0] in SUMMED]
        return (*output_names, *sequences, *COUNT_METRICS)
