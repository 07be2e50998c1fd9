"""Optimisers as typed settings; Optax does the work."""

import dataclasses
import math
import re
from typing import Any, Literal

import jax
import optax
import optax.contrib

from vitx.configuration import register
from vitx.errors import UserError, closest
from vitx.training.gradients import Gradients, accumulated, past_frozen, plain, sharpness_aware
from vitx.training.schedules import Cosine, Schedule


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """What all optimisers share.

    Attributes:
        peak_lr: learning rate after the warm-up.
        schedule: how the learning rate changes over the run.
        weight_decay: decoupled; applied to kernels only, never to biases, norms, positions and class tokens.
        clip_norm: largest global norm of the gradient; None does not clip.
        layer_decay: factor on the learning rate from each layer to the one before it, for fine-tuning (Clark et al.
            2020; 0.75 is usual); None for the same rate everywhere.
        freeze: regular expressions; parameters whose path begins with a match of one ("embedding/",
            "spatial_encoder/block_[0-3]/") stay as they are, and have no optimiser state. Batch statistics still
            follow the data.
        sam_rho: distance up the gradient at which sharpness-aware minimisation takes the gradient to go down by
            (Foret et al. 2021; 0.05 is usual), for twice the work; None takes it where the parameters are.
        state_dtype: of the first moments, the means of gradients. Second moments stay float32: bfloat16 has 8 bits, and
            a mean that moves by a thousandth of its distance would never move.
    """

    peak_lr: float = 1e-3
    schedule: Schedule = Cosine()
    weight_decay: float = 0.0
    clip_norm: float | None = 1.0
    layer_decay: float | None = None
    freeze: tuple[str, ...] = ()
    sam_rho: float | None = None
    state_dtype: Literal["float32", "bfloat16"] = "float32"

    def __post_init__(self):
        for name in ("peak_lr", "weight_decay"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} is {getattr(self, name)}; expected a number, none below 0")
        for name in ("clip_norm", "sam_rho"):
            if getattr(self, name) is not None and not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)}; expected a length above 0, or None for none")
        if self.layer_decay is not None and not 0 < self.layer_decay <= 1:
            raise ValueError(f"layer_decay is {self.layer_decay}; expected a factor above 0 and at most 1, or None")
        for pattern in self.freeze:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"freeze has {pattern!r}, which is no regular expression: {error}") from error

    def make(self, steps: int) -> optax.GradientTransformation:
        """Returns the Optax transformation for a run of that many steps.

        Its `init` raises UserError where a pattern of `freeze` matches no parameter.
        """
        clip = [] if self.clip_norm is None else [optax.clip_by_global_norm(self.clip_norm)]
        decay = [optax.add_decayed_weights(self.weight_decay, mask=decayed)] if self.weight_decay else []
        layers = [] if self.layer_decay is None else [_scale_by_layer(self.layer_decay)]
        rate = self.schedule.make(self.peak_lr, steps)
        moving = [*clip, *self.direction(decay)]
        if self.freeze:
            kinds = {"frozen": optax.set_to_zero(), "moving": optax.chain(*moving)}
            moving = [optax.partition(kinds, self._kinds)]
        return optax.chain(*moving, *layers, optax.scale_by_learning_rate(rate))

    def gradients(self, parts: int) -> Gradients:
        """Returns how gradients are taken, in that many micro-batches."""
        gradients = past_frozen(plain, self.frozen) if self.freeze else plain
        gradients = accumulated(gradients, parts) if parts > 1 else gradients
        return gradients if self.sam_rho is None else sharpness_aware(gradients, self.sam_rho)

    def direction(self, decay: list[optax.GradientTransformation]) -> list[optax.GradientTransformation]:
        """Returns what turns a gradient into a step of unit learning rate, `decay` in its place among it."""
        raise NotImplementedError

    def frozen(self, params: Any) -> Any:
        """Returns which parameters stay as they are.

        Raises:
            UserError: a pattern of `freeze` matches no parameter, or together they match all.
        """
        names = [_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
        for pattern in self.freeze:
            if not any(re.match(pattern, name) for name in names):
                parts = dict.fromkeys(name[: slash.end()] for name in names for slash in re.finditer("/|$", name))
                raise UserError(
                    f"optimizer.freeze has {pattern!r}, with which no parameter's path begins{closest(pattern, parts)} "
                    f"Paths begin with {', '.join(dict.fromkeys(name.split('/')[0] + '/' for name in names))}"
                )
        frozen = jax.tree_util.tree_map_with_path(
            lambda path, _: any(re.match(pattern, _name(path)) for pattern in self.freeze), params
        )
        if all(jax.tree.leaves(frozen)):
            raise UserError(f"optimizer.freeze is {self.freeze}, which leaves no parameter to learn; name fewer")
        return frozen

    def _kinds(self, params: Any) -> Any:
        return jax.tree.map(lambda frozen: "frozen" if frozen else "moving", self.frozen(params))


@register
@dataclasses.dataclass(frozen=True)
class AdamW(Optimizer):
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019).

    Attributes:
        b1: decay of the mean of gradients.
        b2: decay of the mean of squared gradients.
        eps: added to the root of the latter.
        Others: as `Optimizer`.
    """

    weight_decay: float = 0.05
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8

    def direction(self, decay: list[optax.GradientTransformation]) -> list[optax.GradientTransformation]:
        return [optax.scale_by_adam(self.b1, self.b2, self.eps, mu_dtype=self.state_dtype), *decay]


@register
@dataclasses.dataclass(frozen=True)
class LAMB(Optimizer):
    """Adam whose step is as long as the parameter, array by array (You et al. 2020), for large batches.

    Attributes:
        b1: decay of the mean of gradients.
        b2: decay of the mean of squared gradients.
        eps: added to the root of the latter.
        Others: as `Optimizer`.
    """

    weight_decay: float = 0.01
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-6

    def direction(self, decay: list[optax.GradientTransformation]) -> list[optax.GradientTransformation]:
        adam = optax.scale_by_adam(self.b1, self.b2, self.eps, mu_dtype=self.state_dtype)
        return [adam, *decay, optax.scale_by_trust_ratio()]


@register
@dataclasses.dataclass(frozen=True)
class SGD(Optimizer):
    """Stochastic gradient descent with momentum; its weight decay too is decoupled.

    Attributes:
        momentum: decay of the trace of gradients.
        nesterov: whether to look ahead.
        Others: as `Optimizer`.
    """

    peak_lr: float = 0.1
    momentum: float = 0.9
    nesterov: bool = False

    def direction(self, decay: list[optax.GradientTransformation]) -> list[optax.GradientTransformation]:
        return [optax.trace(self.momentum, self.nesterov, self.state_dtype), *decay]


@register
@dataclasses.dataclass(frozen=True)
class Lion(Optimizer):
    """The sign of a mean of gradients (Chen et al. 2023): its learning rate is 3 to 10 times smaller than AdamW's, and
    its weight decay as many times larger.

    Attributes:
        b1: share of the mean of gradients in what the sign is taken of.
        b2: decay of the mean of gradients.
        Others: as `Optimizer`.
    """

    peak_lr: float = 1e-4
    weight_decay: float = 0.5
    b1: float = 0.9
    b2: float = 0.99

    def direction(self, decay: list[optax.GradientTransformation]) -> list[optax.GradientTransformation]:
        return [optax.scale_by_lion(self.b1, self.b2, mu_dtype=self.state_dtype), *decay]


@register
@dataclasses.dataclass(frozen=True)
class Adafactor(Optimizer):
    """Adam's second moment in rows and columns, and no first moment unless asked (Shazeer and Stern 2018).

    Attributes:
        decay_exponent: the mean of squared gradients decays by 1 - step ** -decay_exponent at each step, from 1.
        factored_from: arrays of which two axes have at least this size are kept as rows and columns.
        clip_rms: largest root mean square of an array's step before the learning rate.
        relative: whether a step is scaled by the root mean square of its array, at least 0.001.
        momentum: decay of the mean of steps; None keeps none. It is what `state_dtype` is about.
        Others: as `Optimizer`.
    """

    peak_lr: float = 1e-2
    clip_norm: float | None = None
    decay_exponent: float = 0.8
    factored_from: int = 128
    clip_rms: float = 1.0
    relative: bool = True
    momentum: float | None = None

    def direction(self, decay: list[optax.GradientTransformation]) -> list[optax.GradientTransformation]:
        factored = optax.scale_by_factored_rms(
            decay_rate=self.decay_exponent, min_dim_size_to_factor=self.factored_from
        )
        relative = [optax.scale_by_param_block_rms()] if self.relative else []
        mean = [] if self.momentum is None else [optax.ema(self.momentum, False, self.state_dtype)]
        return [factored, optax.clip_by_block_rms(self.clip_rms), *relative, *mean, *decay]


@register
@dataclasses.dataclass(frozen=True)
class Muon(Optimizer):
    """Momentum made orthogonal for the blocks' matrices, Adam for all else (Jordan 2024); both Nesterov's.

    Steps of matrices are scaled to Adam's usual size (0.2 of root mean square, Liu et al. 2025), so that one learning
    rate serves both.

    Attributes:
        momentum: decay of the mean of the matrices' gradients.
        newton_schulz_steps: iterations that make it orthogonal.
        b1: Adam's decay of the mean of gradients.
        b2: Adam's decay of the mean of squared gradients.
        Others: as `Optimizer`.
    """

    weight_decay: float = 0.05
    momentum: float = 0.95
    newton_schulz_steps: int = 5
    b1: float = 0.9
    b2: float = 0.999

    def direction(self, decay: list[optax.GradientTransformation]) -> list[optax.GradientTransformation]:
        muon = optax.contrib.muon(
            -1.0,  # Optax's Muon goes down; here the learning rate comes last, and turns the sign
            ns_steps=self.newton_schulz_steps,
            beta=self.momentum,
            mu_dtype=self.state_dtype,
            adam_b1=self.b1,
            adam_b2=self.b2,
            consistent_rms=0.2,
            muon_weight_dimension_numbers=_matrices_of_blocks,
        )
        return [muon, *decay]


def decayed(params: Any) -> Any:
    """Returns which parameters weight decay applies to: kernels."""
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == "kernel", params)


def layer_numbers(params: Any) -> Any:
    """Returns the layer of every parameter: 0 for embedding, stem and positions, then the blocks, then all behind them.

    The blocks of several encoders are counted on, in the order of the encoders' names; positions of a later encoder
    belong to the block before it, and so does the norm of an earlier one.
    """
    leaves = {_name(path): path for path, _ in jax.tree_util.tree_leaves_with_path(params)}
    blocks = sorted({(found[1], int(found[2])) for name in leaves if (found := BLOCK.match(name))})
    number = {block: i for i, block in enumerate(blocks, 1)}

    def layer(path: Any, _: Any) -> int:
        name = _name(path)
        if found := BLOCK.match(name):
            return number[found[1], int(found[2])]
        if found := NORM.match(name):
            last = max((layer for (encoder, _), layer in number.items() if encoder == found[1]), default=len(blocks))
            return last if last < len(blocks) else last + 1
        if found := EMBEDDING.match(name):
            return number.get((f"{found[1] or ''}encoder", 0), 1) - 1
        return len(blocks) + 1

    return jax.tree_util.tree_map_with_path(layer, params)


BLOCK = re.compile(r"(.*)/block_(\d+)/")
NORM = re.compile(r"(\w*encoder)/norm/")
EMBEDDING = re.compile(r"(?:embedding|stem\w*|(\w+_)?positions)/")


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _scale_by_layer(decay: float) -> optax.GradientTransformation:
    def scaled(updates: Any, _: Any) -> Any:
        layers = layer_numbers(updates)
        last = max(jax.tree.leaves(layers))
        return jax.tree.map(lambda update, layer: update * decay ** (last - layer), updates, layers)

    return optax.stateless(scaled)


def _matrices_of_blocks(params: Any) -> Any:
    def numbers(path: Any, leaf: Any) -> optax.contrib.MuonDimensionNumbers | None:
        matrix = leaf.ndim == 2 and path[-1].key == "kernel" and BLOCK.match(_name(path))
        return optax.contrib.MuonDimensionNumbers(0, 1) if matrix else None

    return jax.tree_util.tree_map_with_path(numbers, params)
