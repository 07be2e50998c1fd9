"""What a run is about to do: parameters by module, mesh, cost of the model and of the whole run."""

import dataclasses
from pathlib import PurePath
from typing import Any

import jax
import jax.numpy as jnp

from vitx.analysis.cost import macs_of, to_reference
from vitx.console import escape
from vitx.models.base import resize_position_tables
from vitx.models.budgets import Budget
from vitx.storage import write_text
from vitx.training.logs import log_info
from vitx.training.processes import is_first_process


def write_overview(path: PurePath, experiment: Any, variables: Any, mesh: jax.sharding.Mesh, num_examples: int) -> None:
    """Prints the overview, and keeps it in the run's folder.

    Args:
        path: path of the file.
        experiment: model, task, data and training settings.
        variables: shapes of the model's variables.
        mesh: mesh that the run trains on.
        num_examples: examples of the training split.
    """
    overview = describe_run(experiment, variables, mesh, num_examples)
    log_info(*overview.splitlines())
    if is_first_process():
        write_text(path, f"```\n{escape(overview, lines=True)}\n```\n")


def describe_run(experiment: Any, variables: Any, mesh: jax.sharding.Mesh, num_examples: int) -> str:
    """Returns the overview as text; see `write_overview` for the arguments."""
    data, settings = experiment.data, experiment.training
    counts = count_parameters(variables["params"])
    width = max(map(len, [*counts, "parameters"]))
    lines = [f"{'parameters':{width}}  {sum(counts.values()):>15,}"]
    lines += [f"{name:{width}}  {count:>15,}" for name, count in counts.items()]
    axes = ", ".join(f"{axis}={size}" for axis, size in mesh.shape.items() if size > 1) or "one device"
    lines += [f"mesh: {axes}; {mesh.size} x {mesh.devices.flat[0].device_kind}"]
    epochs = settings.steps * data.batch_size / max(num_examples * data.num_repeats, 1)
    lines += [
        f"data: {num_examples:,} training examples, batches of {data.batch_size} clips of {data.num_frames} x "
        f"{data.image_size[0]} x {data.image_size[1]}; {settings.steps:,} steps are {epochs:.1f} epochs"
    ]
    macs = [
        macs for budget in settings.budgets or (Budget(),) if (macs := _macs_of_budget(budget, experiment, variables))
    ]
    if macs:
        # The backward pass takes two products for each of the forward pass.
        mean = sum(macs) / len(macs)
        total, several = 3 * mean * data.batch_size * settings.steps, f" on average over {len(macs)} budgets"
        lines += [
            f"cost: {mean / 1e9:.3f} GMACs per clip{several if len(macs) > 1 else ''}; about {total / 1e15:.4g} PMACs "
            "for the whole run"
        ]
    return "\n".join(lines)


def count_parameters(params: Any) -> dict[str, int]:
    """Returns {top-level module: number of its parameters}."""
    return {name: sum(leaf.size for leaf in jax.tree.leaves(branch)) for name, branch in params.items()}


def _macs_of_budget(budget: Budget, experiment: Any, variables: Any) -> int | None:
    model, data = budget.fit_model(experiment.model), experiment.data
    frames, *size = budget.fit_clip(data.num_frames, data.image_size)
    data = dataclasses.replace(data, num_frames=frames, image_size=tuple(size))
    fitted = jax.eval_shape(lambda x: resize_position_tables(x, experiment.model, model), variables)
    return count_prediction_macs(model, experiment.task, fitted, data)


def count_prediction_macs(model: Any, task: Any, variables: Any, data: Any) -> int | None:
    """Returns the multiply-accumulates of one prediction, or None where a loop has no known length."""
    video = jax.ShapeDtypeStruct((1, data.num_frames, *data.image_size, data.channels), jnp.uint8)
    plain = to_reference(model)
    try:
        predict = jax.make_jaxpr(lambda variables, video: task.predict(plain, variables, video))
        return macs_of(predict(variables, video).jaxpr)
    except ValueError:
        return None


def count_cost_of(experiment: Any) -> tuple[int, int | None]:
    """Returns (parameters, multiply-accumulates of one view or None) of a model; see `count_prediction_macs`."""
    if getattr(experiment.model, "num_classes", 0) is None:  # the data, which is not opened, would give the classes
        experiment = experiment.override({"model.num_classes": 0})
    variables = jax.eval_shape(experiment.init, jax.random.key(0))
    macs = count_prediction_macs(experiment.model, experiment.task, variables, experiment.data)
    return sum(count_parameters(variables["params"]).values()), macs
