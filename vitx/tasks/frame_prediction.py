"""Frame prediction: from the first frames of a clip to its last ones, beside what needs no model."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Bool, Float, UInt8

from vitx.configuration import register
from vitx.errors import UserError, as_user_error
from vitx.evaluation.evaluate import Predictions
from vitx.evaluation.frames import BASELINES, SMALL, SUMMED, WINDOW, cross_entropy, frame_figures, ssim
from vitx.evaluation.report import Results, Section, table
from vitx.evaluation.rollout import animation, in_colours, strip
from vitx.models.forecaster import Forecaster
from vitx.tasks.task import CLIPS, Answer, Aux, Batch, Names, Task, Variables

MEASURES = ("mse", "mae", "cross_entropy", "psnr", "ssim", "ssim_openstl")
LUMA = (0.299, 0.587, 0.114)  # of red, green and blue (ITU-R BT.601)
SHOWN = 3  # clips in the report's pictures


@register
@dataclasses.dataclass(frozen=True)
class FramePrediction(Task):
    """A weighted sum of losses between the forecast and the last frames of a clip; pixels are in [0, 1].

    The model's `horizon` says how many frames are forecast; those of the clip before them are what it sees. Colours
    become grey for a model of one channel. Figures are those of `vitx.evaluation.frames`; "mse/copy" is of the last
    frame repeated, "mse/linear" of clip(2 x_t - x_(t-1), 0, 1) iterated, "sequence_mse" of all frames together.

    Attributes:
        mse: weight of the mean squared error of a pixel.
        cross_entropy: weight of the mean binary cross-entropy of a pixel.
        ssim: weight of 1 - SSIM.
        sampling_steps: scheduled sampling (Bengio et al. 2015, arXiv:1506.03099, section 2.4): steps over which the
            probability of going on, in training, from the true frame instead of the model's own falls linearly from 1
            to 0. 0 is none: the model goes on from its own frames from the first step on.
        mean: 0, for pixels stay in [0, 1].
        std: 1, likewise.
    """

    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    mse: float = 1.0
    cross_entropy: float = 0.0
    ssim: float = 0.0
    sampling_steps: int = 0

    headline: ClassVar[Mapping[str, str]] = {"loss": "{:.4f}", "mse": "{:.2f}", "ssim": "{:.3f}"}
    best_low: ClassVar[tuple[str, ...]] = (*SMALL, *(f"sequence_{name}" for name in SUMMED))

    def __post_init__(self):
        weights = {name: getattr(self, name) for name in ("mse", "cross_entropy", "ssim")}
        if min(weights.values()) < 0 or not any(weights.values()):
            raise ValueError(f"the losses have the weights {weights}; expected one above 0 and none below")
        if self.sampling_steps < 0:
            raise ValueError(f"sampling_steps is {self.sampling_steps}; expected at least 0")
        if any(self.mean) or set(self.std) != {1.0}:
            raise ValueError("frames are predicted as pixels in [0, 1]; leave mean at 0 and std at 1")

    def outputs(self, model: nn.Module, label_names: Names) -> dict[str, tuple[str, ...]]:
        """Returns {measure: the forecast's frames}; the data's labels are not looked at."""
        if not isinstance(model, Forecaster):
            raise UserError(
                f"frame prediction wants a forecaster, and {type(model).__name__} is none; `vitx models "
                "'convlstm_forecaster_*'` lists some"
            )
        if self.sampling_steps and not model.feeds_back:
            raise UserError(
                "task.sampling_steps asks for scheduled sampling, but this forecaster goes on from its state alone, "
                "not from frames; set task.sampling_steps to 0, or model.feedback to True"
            )
        if self.cross_entropy and model.output == "linear":
            raise UserError(
                "task.cross_entropy is of pixels in [0, 1] and learns nothing where the forecaster's linear output "
                "leaves them; set model.output to sigmoid, or task.cross_entropy to 0"
            )
        frames = tuple(f"+{i + 1}" for i in range(model.horizon))
        whose = ("", *(f"/{name}" for name in BASELINES))
        return {"loss": ("mean",)} | {measure + who: frames for measure in MEASURES for who in whose}

    def init(self, model: nn.Module, key: Array, batch: Batch) -> Variables:
        frames, height, width, _ = batch["video"].shape[1:]
        if frames < model.horizon + 2:
            raise UserError(
                f"clips have {frames} frames, of which the model forecasts the last {model.horizon} (model.horizon); "
                "give it two or more to see (data.num_frames)"
            )
        if min(height, width) < WINDOW:
            raise UserError(f"frames have {height} x {width} pixels; SSIM's windows want {WINDOW} x {WINDOW}")
        seen = jnp.zeros((1, frames - model.horizon, height, width, model.channels))
        with as_user_error(CLIPS):
            return model.init(key, seen)

    def seen_and_true(
        self, model: nn.Module, video: UInt8[Array, "batch frames height width 3"]
    ) -> tuple[Float[Array, "batch seen height width channels"], Float[Array, "batch horizon height width channels"]]:
        """Returns (the frames that the model sees, those that it forecasts)."""
        frames = self.normalised(video)
        if model.channels == 1:
            frames = jnp.sum(frames * jnp.asarray(LUMA), axis=-1, keepdims=True)
        return frames[:, : -model.horizon], frames[:, -model.horizon :]

    def frame_loss(
        self,
        forecast: Float[Array, "batch horizon height width channels"],
        truth: Float[Array, "batch horizon height width channels"],
    ) -> Float[Array, "batch"]:
        """Returns the weighted sum of losses of each example."""
        axes = (1, 2, 3, 4)
        loss = self.mse * jnp.mean((forecast - truth) ** 2, axes)
        if self.cross_entropy:
            loss += self.cross_entropy * jnp.mean(cross_entropy(forecast, truth), axes)
        if self.ssim:
            loss += self.ssim * (1 - jnp.mean(ssim(forecast, truth), axis=1))
        return loss

    def loss(
        self, model: nn.Module, variables: Variables, batch: Batch, *, key: Array, step: Array, train: bool
    ) -> tuple[Float[Array, "batch"], Aux]:
        seen, truth = self.seen_and_true(model, batch["video"])
        sampled = {}
        if train and self.sampling_steps:
            sampled = {"future": truth, "given": self.given(truth.shape[:2], key, step)}
        forecast = model.apply(variables, seen, train=train, **sampled)
        mse = jnp.sum((forecast - truth) ** 2, axis=(2, 3, 4)).mean(axis=1)
        weight = batch["weight"]
        sums = {"weight": weight.sum(), "mse": (mse * weight).sum()}
        return self.frame_loss(forecast, truth), Aux(sums, {})

    def given(self, shape: tuple[int, int], key: Array, step: Array) -> Bool[Array, "batch horizon"]:
        """Returns which frames of a training batch the model goes on from in place of its own."""
        share = jnp.clip(1 - step / self.sampling_steps, 0, 1)
        return jax.random.bernoulli(key, share, shape)

    def predict(
        self, model: nn.Module, variables: Variables, video: UInt8[Array, "batch frames height width 3"]
    ) -> dict[str, Float[Array, "batch _"]]:
        """Returns every figure of every frame: the frames themselves never leave the device."""
        seen, truth = self.seen_and_true(model, video)
        forecast = model.apply(variables, seen, train=False)
        figures = {"loss": self.frame_loss(forecast, truth)[:, None], **frame_figures(forecast, truth)}
        for who, baseline in BASELINES.items():
            guess = baseline(seen, model.horizon)
            figures |= {f"{measure}/{who}": each for measure, each in frame_figures(guess, truth).items()}
        return figures

    def metrics(self, predictions: Predictions) -> dict[str, float | int]:
        """Returns figures by name: means over frames and examples, and over whole sequences those of `SUMMED`."""
        figures = {name: float(each.mean(dtype=np.float64)) for name, each in predictions.outputs.items()}
        for name, each in predictions.outputs.items():
            if name.split("/")[0] in SUMMED:
                figures[f"sequence_{name}"] = float(each.sum(axis=1).mean(dtype=np.float64))
        return figures | {"examples": len(predictions.index), "unreadable": len(predictions.unreadable)}

    def blank(self, names: Names) -> Predictions:
        outputs = {name: np.zeros((1, len(frames)), np.float32) for name, frames in names.items()}
        return Predictions(outputs=outputs, labels={}, index=np.zeros(1, np.int32), unreadable=(), views="1x1")

    def details(self, predictions: Predictions, names: Names) -> dict[str, Any]:
        """Returns {"per_frame": {figure: of every frame of the forecast, means over examples}}."""
        each = {name: output.mean(axis=0).tolist() for name, output in predictions.outputs.items() if name != "loss"}
        return {"per_frame": each}

    def sections(self, results: Results) -> Sequence[Section]:
        outputs = results.predictions.outputs
        means = [
            (measure, *(f"{outputs[measure + who].mean():.3f}" for who in ("", "/copy", "/linear")))
            for measure in MEASURES
        ]
        frames = [
            (name, *(f"{outputs[f'mse{who}'][:, i].mean():.1f}" for who in ("", "/copy", "/linear")))
            for i, name in enumerate(results.names["mse"])
        ]
        columns = ("forecast", "last frame copied", "linear extrapolation")
        lines = ["Means over frames and sequences; mse, mae and cross_entropy are summed over the pixels of a frame."]
        lines += ["", *table(("figure", *columns), means), "", "mse of each frame:", ""]
        lines += table(("frame", *columns), frames)
        clips = jnp.asarray(results.clips[:SHOWN])
        seen, truth = self.seen_and_true(results.model, clips)
        mesh = jax.tree.leaves(results.variables)[0].sharding.mesh
        everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
        forecast = jax.jit(results.model.apply, out_shardings=everywhere)
        forecasts = in_colours(np.asarray(forecast(results.variables, seen)))
        whole = in_colours(np.concatenate([seen, truth], axis=1))
        pairs = list(zip(whole, forecasts, strict=True))
        pictures = {"rollout.png": strip(pairs, seen.shape[1]), "rollout.gif": animation(pairs, seen.shape[1])}
        shown = ["Truth, forecast, and its error: too bright in red, too dark in blue.", ""]
        shown += ["![forecasts beside the truth](rollout.png)", "", "![the same, moving](rollout.gif)"]
        return [Section("Forecast against baselines", lines, {}), Section("Forecasts", shown, pictures)]

    def answers(self, outputs: Mapping[str, Float[np.ndarray, " _"]], names: Names, top: int) -> Answer:
        """Returns the figures of the forecast of one video's last frames, and of the baselines."""
        return {
            who.strip("/") or "forecast": {measure: float(outputs[measure + who].mean()) for measure in MEASURES}
            for who in ("", "/copy", "/linear")
        }

    def told(self, answer: Mapping[str, float]) -> str:
        return ", ".join(f"{name} {value:.3f}" for name, value in answer.items())
