"""Evaluation of a run: its predictions for a split, its report, its rows of metrics.jsonl.

The argument `run` of these functions is a `vitx.run.Run`, whose module imports this one.
"""

from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

import jax
import numpy as np

from vitx import storage
from vitx.data.aligned import open_split
from vitx.data.sources import Source
from vitx.evaluation import report
from vitx.evaluation.calibration import calibration_of_split, calibration_sections
from vitx.evaluation.dropped_tokens import dropped_tokens
from vitx.evaluation.evaluate import Predictions, evaluate
from vitx.evaluation.examples import accuracy_intervals, predictions_path, save_predictions
from vitx.evaluation.presentation import presenter_for
from vitx.models import resolve_implementation
from vitx.tasks.task import Supervised
from vitx.training.logs import MetricsLog, log_info, read_metrics
from vitx.training.processes import is_first_process
from vitx.training.stopwatch import Stopwatch

MAX_CLIPS = 8  # clips in the report's pictures


def evaluate_and_report(run: Any, split: str, clock: Stopwatch) -> dict[str, Any]:
    """Evaluates a run, writes its report and adds a row to its log; see `Run.evaluate`. The caller holds the lock."""
    task, data = run.experiment.task, run.experiment.data
    rows = read_metrics(run.workdir) if is_first_process() else []  # a damaged row is reported before the work
    calibration = run.calibration  # a damaged file is reported before the work, too
    model = resolve_implementation(run.experiment.model, run.sharding.mesh.devices.flat[0])
    with clock("evaluate"):
        source = open_run_split(run, split)
        predictions = predict_split(run, split, source)
        metrics = task.metrics(predictions)
        intervals = accuracy_intervals(task, predictions, metrics)
    if predictions.unreadable:
        log_info(*predictions.describe_errors())
    presenter = presenter_for(task)
    log_info(f"step {run.step}: {split} split ({predictions.coverage}) {presenter.headline(metrics, intervals)}")
    with clock("report"):
        shown = np.linspace(0, len(predictions.index) - 1, min(MAX_CLIPS, len(predictions.index))).astype(int)
        # The views that evaluation has read, since a video may be damaged elsewhere. Copied, to free the other views.
        clips = np.stack([data.read_views(source[int(index)])[0].copy() for index in predictions.index[shown]])
        results = report.Results(model, run.variables, split, predictions, run.output_names, clips, shown)
        changed = {path: new for path, (_, new) in run.changed.items()}
        dropped = dropped_tokens(model, task, data, source, predictions)
        if dropped:
            log_info(f"{dropped['dropped_tokens']:.1f} % of the tokens to keep had no slot in model.reducer.budget")
        row = {"views": predictions.views, **({"settings": changed} if changed else {}), **metrics, **dropped}
        sections = presenter.sections(results)  # in every process: pictures may need the devices
        sections = [*sections, *calibration_sections(task, results, calibration)]
        if is_first_process():
            path = report.write_report(
                run.workdir,
                title=storage.absolute(run.workdir).name,
                facts=_list_facts(run, rows),
                checkpoint=f"step {run.step} of {run.experiment.training.steps}",
                changed=run.changed,
                metrics=metrics,
                intervals=intervals,
                rows=[*rows, {"step": run.step, "split": split, **row}],
                curves=presenter.curves,
                results=results,
                sections=sections,
            )
            log_info(f"see {path}")
            if not changed:  # other commands read this file as predictions for the run's own data and settings
                save_predictions(predictions_path(run.workdir, split), run.step, predictions)
        # The row is written last: where it exists, the report is complete.
        record_evaluation(run.workdir, {"step": run.step, "split": split, **row})
    tables = presenter.tables(predictions, run.output_names)
    if calibration:
        tables |= {"calibration": calibration_of_split(task, predictions, calibration)}
    return {"step": run.step, **row, "intervals": {name: list(bounds) for name, bounds in intervals.items()}, **tables}


def record_evaluation(workdir: PurePath, row: Mapping[str, Any]) -> None:
    """Adds a row to metrics.jsonl, in place of an earlier one of the same evaluation; training has rows of "train"."""

    def key(row: Mapping[str, Any]) -> tuple[Any, ...]:
        # a budget may be the model's own, without a changed setting
        return row["step"], row["split"], row.get("settings", {}), row.get("num_tokens")

    if row["split"] != "train":
        about = {name: value for name, value in row.items() if name not in ("step", "split")}
        with MetricsLog(workdir, lambda other: key(other) != key(row)) as log:
            log.write(row["step"], row["split"], about)


def open_run_split(run: Any, split: str) -> Source:
    """Returns the examples of a split of a run's dataset, with classes in the order that the run has learnt.

    Raises:
        UserError: the split cannot be opened, or has other classes than the run.
    """
    # A forecaster's outputs are no labels of the data.
    learnt = run.output_names if isinstance(run.experiment.task, Supervised) else {}
    return open_split(run.experiment.data.dataset, split, learnt, str(run.workdir))


def predict_split(run: Any, split: str, source: Source | None = None) -> Predictions:
    """Returns the predictions of a run for every example of a split; opens the split unless its source is given."""
    data = run.experiment.data.for_devices(run.sharding.mesh.size)
    source = open_run_split(run, split) if source is None else source
    return evaluate(run.experiment.model, run.experiment.task, run.variables, data, source, run.sharding, split=split)


def _list_facts(run: Any, rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Returns the lines of the report about the run as a whole."""
    data, training = run.experiment.data, run.experiment.training
    trained = next((row for row in reversed(rows) if row["split"] == "train"), {})
    parameters = sum(leaf.size for leaf in jax.tree.leaves(run.variables["params"]))
    height, width = data.image_size
    return [
        f"Model: {type(run.experiment.model).__name__}, {parameters:,} parameters, clips of {data.num_frames} frames "
        f"of {height}x{width} pixels",
        f"Seed: {training.seed}",
        f"Devices: {run.sharding.mesh.size} x {jax.devices()[0].device_kind}; jax {jax.__version__}",
        f"Training: {trained.get('replaced', 0)} clips of {trained.get('unreadable', 0)} unreadable videos were "
        f"replaced; {trained.get('skipped', 0)} steps were skipped",
        "Settings: [config.json](config.json); metrics: [metrics.jsonl](metrics.jsonl)",
    ]
