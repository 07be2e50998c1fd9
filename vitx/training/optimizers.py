"""Optimisers as typed settings; Optax does the work."""

import dataclasses
import inspect
import math
import operator
import re
from typing import Any, Literal

import jax
import optax
import optax.contrib

from vitx.configuration import register
from vitx.errors import UserError, did_you_mean
from vitx.parameters import is_block_matrix, kernel_mask, layer_numbers, matches_any, path_name
from vitx.training.gradients import GradientFn, accumulate_gradients, compute_gradient, perturb_parameters, skip_frozen
from vitx.training.schedules import Cosine, Schedule


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """What all optimisers share.

    Attributes:
        peak_lr: learning rate after the warm-up.
        schedule: how the learning rate changes over the run.
        weight_decay: decoupled weight decay; applied to kernels only, never to biases, norms, positions and class
            tokens.
        clip_norm: largest global norm of the gradient; None does not clip.
        layer_decay: factor on the learning rate from each layer to the one before it, for fine-tuning (Clark et al.
            2020; 0.75 is usual); None for the same rate everywhere.
        freeze: regular expressions; parameters whose path begins with a match of one ("embedding/",
            "spatial_encoder/block_[0-3]/") keep their values and have no optimiser state. Batch statistics still
            follow the data.
        sam_rho: radius rho of sharpness-aware minimisation: the gradient is computed at params + rho g / norm(g), g
            being that at params (Foret et al. 2021; 0.05 is usual), for twice the work; None is off.
        state_dtype: type of the first moments, the means of gradients. Second moments stay float32: bfloat16 has 8
            significant bits, and a mean that moves by a thousandth of its distance would never move.
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
                raise ValueError(f"{name} is {getattr(self, name)}; expected a number from 0")
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

    def build(self, steps: int) -> optax.GradientTransformation:
        """Returns the Optax transformation for a run of that many steps.

        Its `init` raises UserError where a pattern of `freeze` matches no parameter.
        """
        clip = [] if self.clip_norm is None else [optax.clip_by_global_norm(self.clip_norm)]
        decay = [optax.add_decayed_weights(self.weight_decay, mask=kernel_mask)] if self.weight_decay else []
        layers = [] if self.layer_decay is None else [_scale_by_layer(self.layer_decay)]
        rate = self.schedule.build(self.peak_lr, steps)
        trained = [*clip, *self.build_transformations(decay, rate)]
        if self.freeze:
            transformations = {"frozen": optax.set_to_zero(), "trained": optax.chain(*trained)}
            trained = [optax.partition(transformations, self._label_parameters)]
        return optax.chain(*trained, *layers)

    def compute_learning_rates(self, params: Any, steps: int, num_updates: int) -> dict[str, float]:
        """Returns {"learning_rate": ...} after some updates, and the rate of each layer where layers differ.

        Args:
            params: parameters, or their shapes.
            steps: steps of the run.
            num_updates: number of updates so far; the next one takes these rates.
        """
        rate = float(self.schedule.build(self.peak_lr, steps)(num_updates))
        if self.layer_decay is None:
            return {"learning_rate": rate}
        layers = sorted(set(jax.tree.leaves(layer_numbers(params))))
        by_layer = {f"learning_rate/layer_{i}": rate * self.layer_decay ** (layers[-1] - i) for i in layers}
        return {"learning_rate": rate} | by_layer

    def build_gradient_fn(self, num_parts: int) -> GradientFn:
        """Returns the function that computes the gradient of a batch, in `num_parts` micro-batches."""
        gradient_fn = skip_frozen(compute_gradient, self.find_frozen) if self.freeze else compute_gradient
        gradient_fn = accumulate_gradients(gradient_fn, num_parts) if num_parts > 1 else gradient_fn
        return gradient_fn if self.sam_rho is None else perturb_parameters(gradient_fn, self.sam_rho)

    def scale_gradients(self, decay: list[optax.GradientTransformation]) -> list[optax.GradientTransformation]:
        """Returns the transformations from a gradient to a step of unit learning rate, `decay` among them."""
        raise NotImplementedError

    def build_transformations(
        self, decay: list[optax.GradientTransformation], rate: optax.Schedule
    ) -> list[optax.GradientTransformation]:
        """Returns the transformations from a gradient to an update."""
        return [*self.scale_gradients(decay), optax.scale_by_learning_rate(rate)]

    def find_frozen(self, params: Any) -> Any:
        """Returns True for each parameter that is frozen, in the structure of the parameters.

        Raises:
            UserError: a pattern of `freeze` matches no parameter, or all patterns together match every one.
        """
        names = [path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
        for pattern in self.freeze:
            if not any(re.match(pattern, name) for name in names):
                parts = dict.fromkeys(name[: slash.end()] for name in names for slash in re.finditer("/|$", name))
                raise UserError(
                    f"optimizer.freeze has {pattern!r}, and no parameter's path begins "
                    f"so{did_you_mean(pattern, parts)} "
                    f"Paths begin with {', '.join(dict.fromkeys(name.split('/')[0] + '/' for name in names))}"
                )
        frozen = jax.tree_util.tree_map_with_path(lambda path, _: matches_any(path, self.freeze), params)
        if all(jax.tree.leaves(frozen)):
            raise UserError(f"optimizer.freeze is {self.freeze}, which leaves no parameter to train; name fewer")
        return frozen

    def _label_parameters(self, params: Any) -> Any:
        return jax.tree.map(lambda frozen: "frozen" if frozen else "trained", self.find_frozen(params))


@register
@dataclasses.dataclass(frozen=True)
class Optax(Optimizer):
    """Any optimiser or transformation of Optax, by its name.

    Optax(name="adabelief", arguments=(("eps", 1e-14),), peak_lr=3e-4)

    Attributes:
        name: name inside `optax`, such as "adabelief", "contrib.prodigy" or "scale_by_rms".
        arguments: its arguments by name; the learning rate comes from `peak_lr` and `schedule`.
        See `Optimizer` for inherited fields.
    """

    name: str = "adam"
    arguments: tuple[tuple[str, float | int | bool | str | None], ...] = ()

    def __post_init__(self):
        super().__post_init__()
        if self.state_dtype != "float32":
            raise ValueError(
                f"state_dtype is {self.state_dtype}; optax.{self.name} takes its own, such as mu_dtype, in arguments"
            )
        factory = self._factory()
        known = inspect.signature(factory).parameters
        if self.weight_decay and "learning_rate" in known:
            raise ValueError(f"weight_decay is {self.weight_decay}; optax.{self.name} takes its own, in arguments")
        for argument, _ in self.arguments:
            if argument == "learning_rate":
                raise ValueError("arguments has learning_rate; set peak_lr and schedule instead")
            if argument not in known:
                raise ValueError(f"optax.{self.name} has no argument {argument!r}{did_you_mean(argument, known)}")

    def _factory(self) -> Any:
        try:
            return operator.attrgetter(self.name)(optax)
        except AttributeError:
            raise ValueError(f"optax has no {self.name!r}{did_you_mean(self.name, dir(optax))}") from None

    def build_transformations(
        self, decay: list[optax.GradientTransformation], rate: optax.Schedule
    ) -> list[optax.GradientTransformation]:
        factory, arguments = self._factory(), dict(self.arguments)
        if "learning_rate" in inspect.signature(factory).parameters:  # a whole optimiser
            return [factory(learning_rate=rate, **arguments)]
        return [factory(**arguments), *decay, optax.scale_by_learning_rate(rate)]


@register
@dataclasses.dataclass(frozen=True)
class AdamW(Optimizer):
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019).

    Attributes:
        b1: decay of the mean of gradients.
        b2: decay of the mean of squared gradients.
        eps: added to the root of the mean of squared gradients.
        See `Optimizer` for inherited fields.
    """

    weight_decay: float = 0.05
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8

    def scale_gradients(self, decay: list[optax.GradientTransformation]) -> list[optax.GradientTransformation]:
        return [optax.scale_by_adam(self.b1, self.b2, self.eps, mu_dtype=self.state_dtype), *decay]


@register
@dataclasses.dataclass(frozen=True)
class LAMB(Optimizer):
    """Adam with each array's step rescaled to the norm of its parameter (You et al. 2020), for large batches.

    Attributes:
        b1: decay of the mean of gradients.
        b2: decay of the mean of squared gradients.
        eps: added to the root of the mean of squared gradients.
        See `Optimizer` for inherited fields.
    """

    weight_decay: float = 0.01
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-6

    def scale_gradients(self, decay: list[optax.GradientTransformation]) -> list[optax.GradientTransformation]:
        adam = optax.scale_by_adam(self.b1, self.b2, self.eps, mu_dtype=self.state_dtype)
        return [adam, *decay, optax.scale_by_trust_ratio()]


@register
@dataclasses.dataclass(frozen=True)
class SGD(Optimizer):
    """Stochastic gradient descent with momentum.

    Attributes:
        momentum: decay of the sum of past gradients.
        nesterov: whether the gradient is taken after the momentum step (Nesterov 1983).
        coupled_decay: whether weight decay is added to the gradient before the momentum, as PyTorch's SGD does. At a
            momentum of 0.9 the same number is ten times as strong as the decoupled decay of the other optimisers.
        See `Optimizer` for inherited fields.
    """

    peak_lr: float = 0.1
    momentum: float = 0.9
    nesterov: bool = False
    coupled_decay: bool = False

    def scale_gradients(self, decay: list[optax.GradientTransformation]) -> list[optax.GradientTransformation]:
        trace = optax.trace(self.momentum, self.nesterov, self.state_dtype)
        return [*decay, trace] if self.coupled_decay else [trace, *decay]


@register
@dataclasses.dataclass(frozen=True)
class Lion(Optimizer):
    """The sign of a mean of gradients (Chen et al. 2023).

    Its learning rate is 3 to 10 times smaller than AdamW's, and its weight decay as many times larger.

    Attributes:
        b1: weight of the mean against the current gradient, where the sign is taken.
        b2: decay of the mean of gradients.
        See `Optimizer` for inherited fields.
    """

    peak_lr: float = 1e-4
    weight_decay: float = 0.5
    b1: float = 0.9
    b2: float = 0.99

    def scale_gradients(self, decay: list[optax.GradientTransformation]) -> list[optax.GradientTransformation]:
        return [optax.scale_by_lion(self.b1, self.b2, mu_dtype=self.state_dtype), *decay]


@register
@dataclasses.dataclass(frozen=True)
class Adafactor(Optimizer):
    """Adafactor: second moments as means of rows and columns, no first moment by default (Shazeer and Stern 2018).

    Attributes:
        decay_rate: the mean of squared gradients decays by 1 - step ** -decay_rate at each step, from 1.
        min_dim_size_to_factor: arrays of which two axes have at least this size are kept as rows and columns.
        clipping_threshold: largest root mean square of an array's step before the learning rate.
        multiply_by_parameter_scale: whether a step is scaled by the root mean square of its array, at least 0.001.
        momentum: decay of the mean of steps, which `state_dtype` applies to; None keeps none.
        See `Optimizer` for inherited fields.
    """

    peak_lr: float = 1e-2
    clip_norm: float | None = None
    decay_rate: float = 0.8
    min_dim_size_to_factor: int = 128
    clipping_threshold: float = 1.0
    multiply_by_parameter_scale: bool = True
    momentum: float | None = None

    def scale_gradients(self, decay: list[optax.GradientTransformation]) -> list[optax.GradientTransformation]:
        factored = optax.scale_by_factored_rms(
            decay_rate=self.decay_rate, min_dim_size_to_factor=self.min_dim_size_to_factor
        )
        scale = [optax.scale_by_param_block_rms()] if self.multiply_by_parameter_scale else []
        mean = [] if self.momentum is None else [optax.ema(self.momentum, False, self.state_dtype)]
        return [factored, optax.clip_by_block_rms(self.clipping_threshold), *scale, *mean, *decay]


@register
@dataclasses.dataclass(frozen=True)
class Muon(Optimizer):
    """Orthogonalised momentum for the blocks' matrices, Adam for the rest (Jordan 2024), both with Nesterov momentum.

    Steps of matrices are scaled to Adam's usual size (0.2 of root mean square, Liu et al. 2025), so that one learning
    rate serves both.

    Attributes:
        momentum: decay of the mean of the matrices' gradients.
        newton_schulz_steps: iterations of the orthogonalisation.
        b1: Adam's decay of the mean of gradients.
        b2: Adam's decay of the mean of squared gradients.
        See `Optimizer` for inherited fields.
    """

    weight_decay: float = 0.05
    momentum: float = 0.95
    newton_schulz_steps: int = 5
    b1: float = 0.9
    b2: float = 0.999

    def scale_gradients(self, decay: list[optax.GradientTransformation]) -> list[optax.GradientTransformation]:
        muon = optax.contrib.muon(
            -1.0,  # muon multiplies by its negative; the sign that is left is flipped by scale_by_learning_rate
            ns_steps=self.newton_schulz_steps,
            beta=self.momentum,
            mu_dtype=self.state_dtype,
            adam_b1=self.b1,
            adam_b2=self.b2,
            consistent_rms=0.2,
            muon_weight_dimension_numbers=_block_matrices,
        )
        return [muon, *decay]


def _scale_by_layer(decay: float) -> optax.GradientTransformation:
    def scale(updates: Any, _: Any) -> Any:
        layers = layer_numbers(updates)
        last = max(jax.tree.leaves(layers))
        return jax.tree.map(lambda update, layer: update * decay ** (last - layer), updates, layers)

    return optax.stateless(scale)


def _block_matrices(params: Any) -> Any:
    def numbers(path: Any, leaf: Any) -> optax.contrib.MuonDimensionNumbers | None:
        return optax.contrib.MuonDimensionNumbers(0, 1) if is_block_matrix(path, leaf) else None

    return jax.tree_util.tree_map_with_path(numbers, params)
