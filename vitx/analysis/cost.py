"""Cost of a model: parameters, multiply-accumulates, XLA's operations and activation memory; no array is allocated.

Multiply-accumulates (MACs) are what the literature prints as "FLOPs" or "GFLOPs". They are counted over the matrix
products and convolutions of one view: batch 1, evaluation mode, reference implementation.
"""

import dataclasses
import functools
import math
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.extend.core import ClosedJaxpr, Jaxpr

Shape = tuple[int, int, int, int]  # frames, height, width, channels
LOOPS_OF_UNKNOWN_LENGTH = ("while", "cond")


@dataclasses.dataclass(frozen=True)
class Cost:
    """Cost of one view.

    Attributes:
        params: number of parameters.
        macs: multiply-accumulates of matrix products and convolutions, a count (not giga).
        model: the model.
        clip: shape of the view, (frames, height, width, channels).
    """

    params: int
    macs: int
    model: nn.Module = dataclasses.field(repr=False)
    clip: Shape

    def counts(self) -> dict[str, int | None]:
        """Returns all counts with the shape of the view."""
        frames, height, width, _ = self.clip
        return {
            "frames": frames,
            "height": height,
            "width": width,
            "params": self.params,
            "macs": self.macs,
            "flops_xla": self.flops_xla,
            "activation_bytes": self.activation_bytes,
        }

    @functools.cached_property
    def flops_xla(self) -> int | None:
        """Operations as XLA counts them before optimisation: two for a MAC, and all elementwise ones.

        None for a recurrent model, since XLA counts the body of a loop once.
        """
        plain = to_reference(self.model)
        if _has_scan(jax.make_jaxpr(_create_forward(plain))(*abstract_inputs(plain, self.clip)).jaxpr):
            return None
        lowered = jax.jit(_create_forward(plain)).lower(*abstract_inputs(plain, self.clip))
        return int(lowered.cost_analysis()["flops"])

    @functools.cached_property
    def activation_bytes(self) -> int:
        """Bytes of residuals between forward and backward pass of one clip, without parameters and dropout.

        They depend on `remat_policy`, `scan_layers` and `dtype` of the model (copies of parameters that these cause
        are counted), and are those before XLA's own optimisations.
        """
        variables, video = abstract_inputs(self.model, self.clip)
        forward = _create_forward(self.model)
        sizes = []

        def record_residuals(variables: Any, video: Any) -> None:
            _, backward = jax.vjp(forward, variables, video)
            # The backward function is a pytree that holds the residuals; some are the inputs themselves.
            inputs = {id(leaf) for leaf in jax.tree.leaves((variables, video))}
            leaves = {id(leaf): leaf for leaf in jax.tree.leaves(backward) if id(leaf) not in inputs}
            sizes.extend(leaf.size * leaf.dtype.itemsize for leaf in leaves.values())

        jax.eval_shape(record_residuals, variables, video)
        return sum(sizes)


def count_cost(model: nn.Module, clip: Shape) -> Cost:
    """Counts the cost of one view.

    Args:
        model: a model of any family.
        clip: input shape of the model, (frames, height, width, channels).

    Raises:
        ValueError: the model does not accept such a clip, or has a loop of unknown length (`while`, `cond`).
    """
    plain = to_reference(model)
    variables, video = abstract_inputs(plain, clip)
    jaxpr = jax.make_jaxpr(_create_forward(plain))(variables, video)
    params = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    return Cost(params, macs_of(jaxpr.jaxpr), model, clip)


def macs_of(jaxpr: Jaxpr) -> int:
    """Counts the multiply-accumulates of all matrix products and convolutions, inner functions included."""
    total = 0
    for equation in jaxpr.eqns:
        name = equation.primitive.name
        if name in LOOPS_OF_UNKNOWN_LENGTH:
            raise ValueError(
                f"the cost of the primitive {name} cannot be counted, since the number of its iterations is unknown"
            )
        if name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            left = equation.invars[0].aval.shape
            total += math.prod(equation.outvars[0].aval.shape) * math.prod(left[axis] for axis in contracted)
        elif name == "conv_general_dilated":
            kernel, numbers = equation.invars[1].aval.shape, equation.params["dimension_numbers"]
            # the kernel's input channels are already those of one group
            per_output = math.prod(kernel) // kernel[numbers.rhs_spec[0]]
            total += math.prod(equation.outvars[0].aval.shape) * per_output
        else:
            inner = sum(map(macs_of, _inner_jaxprs(equation.params)))
            total += inner * (equation.params["length"] if name == "scan" else 1)
    return total


def to_reference(model: nn.Module) -> nn.Module:
    """Returns a model of the same function, unscanned, without rematerialisation and special kernels."""
    plain = {"scan_layers": False, "remat_policy": None, "implementation": "reference"}
    return model.copy(**{name: value for name, value in plain.items() if hasattr(model, name)})


def _has_scan(jaxpr: Jaxpr) -> bool:
    return any(eqn.primitive.name == "scan" or any(map(_has_scan, _inner_jaxprs(eqn.params))) for eqn in jaxpr.eqns)


def _inner_jaxprs(params: dict[str, Any]) -> Iterator[Jaxpr]:
    for value in params.values():
        for item in value if isinstance(value, tuple | list) else (value,):
            if isinstance(item, ClosedJaxpr):
                yield item.jaxpr
            elif isinstance(item, Jaxpr):
                yield item


def _create_forward(model: nn.Module) -> Any:
    return lambda variables, video: model.apply(variables, video, train=False)


def abstract_inputs(model: nn.Module, clip: Shape) -> tuple[Any, jax.ShapeDtypeStruct]:
    """Returns the shapes and types of a model's variables and of one clip.

    Raises:
        ValueError: the model does not accept such a clip.
    """
    video = jax.ShapeDtypeStruct((1, *clip), jnp.float32)
    return jax.eval_shape(model.init, jax.random.key(0), video), video
