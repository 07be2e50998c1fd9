"""Optimisers and schedules as typed settings; Optax does the work."""

import dataclasses
import re
from typing import Any

import jax
import optax
import optax.contrib

from vitx.configuration import register


@register
@dataclasses.dataclass(frozen=True)
class Schedule:
    """Linear warm-up, then a cosine to `end_factor` of the peak.

    Attributes:
        warmup: share of all steps that the warm-up takes, in [0, 1].
        end_factor: last learning rate as a share of the peak.
    """

    warmup: float = 0.1
    end_factor: float = 0.0

    def make(self, peak: float, steps: int) -> optax.Schedule:
        """Returns the learning rate as a function of the step."""
        warmup = round(self.warmup * steps)
        return optax.join_schedules(
            [
                optax.linear_schedule(peak / max(warmup, 1), peak, max(warmup - 1, 1)),
                optax.cosine_decay_schedule(peak, max(steps - warmup, 1), self.end_factor),
            ],
            [warmup],
        )


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
    """

    peak_lr: float = 1e-3
    schedule: Schedule = Schedule()
    weight_decay: float = 0.0
    clip_norm: float | None = 1.0
    layer_decay: float | None = None

    def make(self, steps: int) -> optax.GradientTransformation:
        """Returns the Optax transformation for a run of that many steps."""
        clip = [] if self.clip_norm is None else [optax.clip_by_global_norm(self.clip_norm)]
        decay = [optax.add_decayed_weights(self.weight_decay, mask=decayed)] if self.weight_decay else []
        layers = [] if self.layer_decay is None else [_scale_by_layer(self.layer_decay)]
        rate = self.schedule.make(self.peak_lr, steps)
        return optax.chain(*clip, *self.direction(decay), *layers, optax.scale_by_learning_rate(rate))

    def direction(self, decay: list[optax.GradientTransformation]) -> list[optax.GradientTransformation]:
        """Returns what turns a gradient into a step of unit learning rate, `decay` in its place among it."""
        raise NotImplementedError


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
        return [optax.scale_by_adam(self.b1, self.b2, self.eps), *decay]


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
        return [optax.scale_by_adam(self.b1, self.b2, self.eps), *decay, optax.scale_by_trust_ratio()]


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
        return [optax.trace(self.momentum, self.nesterov), *decay]


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
