"""Table of a model's parameters, counted by module, for notebooks; no array is allocated."""

import html
from typing import Any

import jax
import jax.numpy as jnp

from vitx.parameters import path_name


class ShowsParameters:
    """Mixin for models, which a notebook then shows as a table of their parameters that unfolds."""

    def _repr_html_(self) -> str:
        return parameter_table(self)


def parameter_table(model: Any) -> str:
    """Returns the parameters of a model as HTML: modules with their number of parameters, in each a table of shapes.

    Args:
        model: a `VideoModel`.
    """
    video = jax.ShapeDtypeStruct((1, *model.input_shape), jnp.float32)
    params = jax.eval_shape(model.init, jax.random.key(0), video)["params"]
    leaves = {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params)}
    modules: dict[str, dict[str, Any]] = {}
    for name, leaf in leaves.items():
        modules.setdefault(name.split("/")[0], {})[name] = leaf
    shape = " x ".join(map(str, model.input_shape))
    head = f"<b>{type(model).__name__}</b>: {_count(leaves):,} parameters; a clip is {shape}"
    return "".join([head, *(_module(name, own) for name, own in modules.items())])


def _module(name: str, leaves: dict[str, Any]) -> str:
    rows = "".join(
        f"<tr><td>{html.escape(path)}</td><td>{' x '.join(map(str, leaf.shape))}</td><td>{leaf.size:,}</td></tr>"
        for path, leaf in leaves.items()
    )
    table = (
        f"<table><thead><tr><th>parameter</th><th>shape</th><th>number</th></tr></thead><tbody>{rows}</tbody></table>"
    )
    return f"<details><summary>{html.escape(name)}: {_count(leaves):,}</summary>{table}</details>"


def _count(leaves: dict[str, Any]) -> int:
    return sum(leaf.size for leaf in leaves.values())
