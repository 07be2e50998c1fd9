"""Efficient video Transformers in JAX and Flax.

Train, or load what was trained:

    run = vitx.train(vitx.load_experiment("experiments/quickstart.py"), "runs/quickstart")
    run = vitx.load_run("runs/quickstart")

Use it:

    run.evaluate("test")           metrics of a split, and report.md
    run.metrics()                  rows of the log as a table
    run.predict("clip.mp4")        classes with their probabilities
    run.explain("clip.mp4")        what in the video speaks for a class, and when
    run.features("clip.mp4")       the vector that the head classifies
    run.stream().read(frame)       the answer after each frame, for models that carry a state
    run.forecast("clip.mp4")       the frames that follow, for forecasters

Models and weights:

    vitx.list_models("vivit_*")    vitx.create_model("vivit_b_16x2_fe", num_classes=8)
    vitx.load_pretrained(path)     vitx.save_huggingface(model, variables, directory)
    vitx.count_cost(model, (32, 224, 224, 3))

Many runs:

    vitx.ablate(vitx.Ablation(base, rows=(vitx.Row("base"), ...)), "runs/ablation")
    vitx.compare(["runs/one", "runs/other"])

Videos (paths or arrays of frames), datasets, tasks and layers are in subpackages: `help("vitx.data.sources")`.

The public surface is lazy: importing vitx imports neither JAX nor Flax, so that data workers stay light.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # for editors and type checkers, which cannot look up `_HOMES`
    from vitx.ablations.comparison import compare as compare
    from vitx.ablations.description import Ablation as Ablation
    from vitx.ablations.description import Row as Row
    from vitx.ablations.runner import ablate as ablate
    from vitx.analysis.cost import count_cost as count_cost
    from vitx.errors import UserError as UserError
    from vitx.experiment import Experiment as Experiment
    from vitx.experiment import load_experiment as load_experiment
    from vitx.interop.huggingface import save_huggingface as save_huggingface
    from vitx.models import create_model as create_model
    from vitx.models import list_models as list_models
    from vitx.pretrained import load_pretrained as load_pretrained
    from vitx.run import Run as Run
    from vitx.run import load_run as load_run
    from vitx.run import train as train

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
