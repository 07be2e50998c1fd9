"""Masked prediction: the pixels of masked cubes from the visible ones (Tong et al. 2022, arXiv:2203.12602).

A cube is the tubelet of one token. Letters in shapes: b batch, t frames, h height, w width, c colour channels,
n tokens, p pixels of a cube.
"""

import dataclasses
import math

import flax.struct
import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int, UInt8

from vitx.configuration import register
from vitx.errors import UserError
from vitx.evaluation.evaluate import Predictions
from vitx.layers.embeddings import from_tubelets, to_tubelets
from vitx.layers.masking import complement
from vitx.models.videomae import VideoMAEPretraining
from vitx.tasks.task import COUNT_METRICS, MASK_KEY, Batch, LossOutput, Names, PerExample, Task, Variables

Video = UInt8[Array, "b t h w 3"]
Cubes = Float[Array, "b n p c"]
Keep = Int[Array, "b visible"]

MASKED_METRICS = ("loss", "psnr")
EPSILON = 1e-6  # added to a cube's standard deviation, as in the authors' code


@flax.struct.dataclass
class CubeScale:
    """Mean and standard deviation by which each cube is normalised: (pixels - mean) / std.

    Attributes:
        mean: mean of each colour channel.
        std: standard deviation of each colour channel.
    """

    mean: Float[Array, "b n 1 c"]
    std: Float[Array, "b n 1 c"]


@register
@dataclasses.dataclass(frozen=True)
class MaskedPrediction(Task):
    """Mean squared error of the pixels of masked cubes; labels of the data are ignored.

    Training draws a mask for each clip at each step. In evaluation the mask of a clip is a function of its pixels, so
    that metrics depend neither on batches nor on devices. Metrics are the "loss" and the "psnr" in dB of the masked
    pixels, which are in [0, 1].

    Attributes:
        normalise_cubes: whether the target of each cube has mean 0 and standard deviation 1 in each colour channel
            (section 3.2; He et al. 2022, arXiv:2111.06377, section 3). Predicting 0 then has a loss of 1.
        See `Task` for inherited fields.
    """

    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    normalise_cubes: bool = True

    def output_names(self, model: nn.Module, label_names: Names) -> dict[str, tuple[str, ...]]:
        if not isinstance(model, VideoMAEPretraining):
            raise UserError(
                f"found {type(model).__name__}; masked prediction needs a masked autoencoder, such as those listed by "
                "`vitx models '*_pretrain'`"
            )
        if self.normalise_cubes and math.prod(model.tubelet_size) == 1:
            raise UserError(
                "task.normalise_cubes is True with cubes of one pixel, which have no deviation; set it to False, or "
                "model.tubelet_size to larger cubes"
            )
        return {name: ("mean",) for name in MASKED_METRICS}

    def split_cubes(self, model: VideoMAEPretraining, video: Video) -> tuple[Cubes, CubeScale]:
        """Returns (target of every cube, its mean and standard deviation)."""
        cubes = to_tubelets(video.astype(jnp.float32) / 255, model.tubelet_size)
        if self.normalise_cubes:
            scale = CubeScale(cubes.mean(axis=2, keepdims=True), cubes.std(axis=2, keepdims=True, ddof=1) + EPSILON)
        else:
            scale = CubeScale(jnp.zeros_like(cubes[:, :, :1]), jnp.ones_like(cubes[:, :, :1]))
        return (cubes - scale.mean) / scale.std, scale

    def errors(
        self, model: VideoMAEPretraining, predicted: Float[Array, "b masked p"], video: Video, keep: Keep
    ) -> tuple[PerExample, PerExample]:
        """Returns (mean squared error of the target, PSNR of the pixels) of each clip, over its masked cubes."""
        target, scale = self.split_cubes(model, video)
        masked = complement(keep, target.shape[1])
        error = predicted.astype(jnp.float32).reshape(*masked.shape, *target.shape[2:]) - _take(target, masked)
        mse = jnp.mean((error * _take(scale.std, masked)) ** 2, axis=(1, 2, 3))
        return jnp.mean(error**2, axis=(1, 2, 3)), -10 * jnp.log10(jnp.maximum(mse, 1e-10))

    def loss(
        self, model: nn.Module, variables: Variables, batch: Batch, *, key: Array, step: Array, train: bool
    ) -> tuple[PerExample, LossOutput]:
        video, weight = batch["video"], batch["weight"]
        keys = jax.random.split(jax.random.fold_in(key, MASK_KEY), len(video))
        keep = jax.vmap(model.draw_mask)(keys)
        predicted, collections = self.apply(model, variables, self.normalise(video), key=key, train=train, keep=keep)
        loss, psnr = self.errors(model, predicted, video, keep)
        return loss, LossOutput({"weight": weight.sum(), "psnr": (psnr * weight).sum()}, collections)

    def predict(self, model: nn.Module, variables: Variables, video: Video) -> dict[str, Float[Array, "b 1"]]:
        """Returns the loss and PSNR of every clip; the pixels themselves stay on the device."""
        keep = self.evaluation_mask(model, video)
        predicted = model.apply(variables, self.normalise(video), train=False, keep=keep)
        errors = self.errors(model, predicted, video, keep)
        return {name: values[:, None] for name, values in zip(MASKED_METRICS, errors, strict=True)}

    def evaluation_mask(self, model: VideoMAEPretraining, video: Video) -> Keep:
        """Returns the visible tokens of every clip, a function of the clip alone."""
        seeds = video.astype(jnp.uint32).sum(axis=(1, 2, 3, 4), dtype=jnp.uint32)
        return jax.vmap(lambda seed: model.draw_mask(jax.random.fold_in(jax.random.key(0), seed)))(seeds)

    def reconstruct(
        self, model: VideoMAEPretraining, variables: Variables, video: Video
    ) -> tuple[Float[Array, "b t h w 3"], Float[Array, "b t h w 1"]]:
        """Returns (clips with masked cubes as predicted, 1 where a pixel is visible); pixels are in [0, 1].

        A prediction of normalised pixels gets the mean and standard deviation of the true cube, as in the authors'
        pictures.
        """
        keep = self.evaluation_mask(model, video)
        target, scale = self.split_cubes(model, video)
        masked, rows = complement(keep, target.shape[1]), jnp.arange(len(video))[:, None]
        predicted = model.apply(variables, self.normalise(video), train=False, keep=keep)
        cubes = target.at[rows, masked].set(predicted.astype(jnp.float32).reshape(*masked.shape, *target.shape[2:]))
        visible = jnp.zeros(target.shape[:3], jnp.float32).at[rows, keep].set(1.0)[..., None]
        frames, visible = (
            from_tubelets(x, model.grid, model.tubelet_size) for x in (cubes * scale.std + scale.mean, visible)
        )
        return jnp.clip(frames, 0, 1), visible

    def metrics(self, predictions: Predictions) -> dict[str, float | int]:
        metrics = {name: float(values.mean(dtype="float64")) for name, values in predictions.outputs.items()}
        return metrics | {"examples": len(predictions.index), "unreadable": len(predictions.unreadable)}

    def metric_names(self, output_names: Names) -> tuple[str, ...]:
        return (*output_names, *COUNT_METRICS)


def _take(cubes: Cubes, indices: Int[Array, "b m"]) -> Float[Array, "b m p c"]:
    return jnp.take_along_axis(cubes, indices[..., None, None], axis=1)
