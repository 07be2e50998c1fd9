"""vitx: efficient video Transformers in JAX and Flax.

The public surface is lazy: importing vitx imports neither JAX nor Flax, so that data workers stay light.
"""

import importlib

__version__ = "0.1.0"

_HOMES = {
    "create_model": "vitx.models",
    "list_models": "vitx.models",
    "load_pretrained": "vitx.pretrained",
    "save_huggingface": "vitx.interop.huggingface",
    "count_cost": "vitx.analysis.cost",
    "train": "vitx.run",
    "load_run": "vitx.run",
    "Run": "vitx.run",
    "Experiment": "vitx.experiment",
    "load_experiment": "vitx.experiment",
    "ablate": "vitx.ablations.runner",
    "Ablation": "vitx.ablations.description",
    "compare": "vitx.ablations.comparison",
    "Row": "vitx.ablations.description",
    "UserError": "vitx.errors",
}
__all__ = ["__version__", *_HOMES]


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module 'vitx' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
