"""Runs side by side: settings that differ, metrics with intervals, curves, and clips that only one gets right."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

import numpy as np

from vitx import configuration, storage, strict_json
from vitx.ablations.pictures import learning_curves
from vitx.ablations.statistics import Difference, bootstrap_interval, compare_clips, correct_for_rows
from vitx.ablations.tables import format_differences, has_same_clips, pair_examples
from vitx.console import escape
from vitx.data.aligned import open_split
from vitx.data.sources import Source, check_split, example_name
from vitx.errors import UserError
from vitx.evaluation.evaluate import Predictions
from vitx.evaluation.examples import accuracy_interval, example_metric, is_correct, load_predictions, predictions_path
from vitx.evaluation.figures import save_figure
from vitx.evaluation.presentation import presenter_for
from vitx.evaluation.report import clip_strip, encode_png
from vitx.evaluation.report import table as markdown_table
from vitx.experiment import Experiment, load_config
from vitx.run import Run, load_run, predict_split
from vitx.run_folder import read_newest_record
from vitx.run_parts import learnt_classes
from vitx.tasks.task import COUNT_METRICS
from vitx.training.logs import read_metrics

MAX_LISTED = 20  # clips in a Markdown list; the JSON lists all
MAX_CLIPS = 8  # clips in a picture


@dataclasses.dataclass(frozen=True)
class Disagreement:
    """Clips of which one run predicts the class of a label and another does not.

    Attributes:
        label: name of the label.
        correct: name of the run that is correct.
        wrong: name of the run that is wrong.
        indices: indices of the clips in the split.
        clips: names of the clips.
        captions: (true class, class predicted by the run that is wrong) of each clip.
    """

    label: str
    correct: str
    wrong: str
    indices: tuple[int, ...]
    clips: tuple[str, ...]
    captions: tuple[tuple[str, str], ...]


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Runs side by side; the first is the one that the others are compared with.

    Attributes:
        split: name of the split.
        runs: {name: folder}.
        tested: {name: views, clips and step of the predictions}.
        settings: {dotted path: {name: value}} of the settings that differ.
        metrics: {metric: {name: (value, bounds of its 95 % interval or None)}}.
        differences: paired tests of the metrics that are means over clips.
        disagreements: clips that one run gets right and the other wrong.
    """

    split: str
    runs: Mapping[str, str]
    tested: Mapping[str, str]
    settings: Mapping[str, Mapping[str, Any]]
    metrics: Mapping[str, Mapping[str, tuple[float | int, tuple[float, float] | None]]]
    differences: tuple[Difference, ...]
    disagreements: tuple[Disagreement, ...]

    def __str__(self) -> str:
        return to_markdown(self)

    def _repr_markdown_(self) -> str:  # how a notebook shows it
        return to_markdown(self)


@dataclasses.dataclass(frozen=True)
class _EvaluatedRun:
    """A run with its predictions."""

    name: str
    workdir: PurePath
    experiment: Experiment
    step: int
    predictions: Predictions


def compare(
    runs: Sequence[str | PurePath | Run], output: str | PurePath | None = None, *, split: str = "test"
) -> Comparison:
    """Compares runs on a split; changes nothing in their folders.

    Predictions that a run keeps are read; a run without them is evaluated.

    Args:
        runs: two or more runs, or their folders.
        output: folder for comparison.md, comparison.json, curves and clips; None writes nothing.
        split: split of the metrics.

    Raises:
        UserError: fewer than two runs, one twice, or a folder that is not a run's.
    """
    check_split(split)
    folders = [run.workdir if isinstance(run, Run) else storage.as_path(run) for run in runs]
    if len(folders) < 2 or len(set(map(storage.absolute, folders))) < len(folders):
        raise UserError(f"found {len(folders)} runs ({', '.join(map(str, folders))}); expected two or more, each once")
    short = [storage.absolute(folder).name for folder in folders]
    names = short if len(set(short)) == len(short) else [str(folder) for folder in folders]
    configs = [load_config(folder) for folder in folders]  # all folders are checked before the first run is evaluated
    for folder in folders if output is not None else ():  # a damaged row is reported now, since curves are drawn last
        read_metrics(folder)
    tested = [_load_or_predict(*parts, split) for parts in zip(names, folders, configs, strict=True)]
    differences, disagreements = [], []
    # Predictions are numbered as the run has learnt its classes, whatever their order in the data is now.
    learnt = learnt_classes(configs[0], read_newest_record(folders[0]))
    source = open_split(configs[0].data.dataset, split, learnt, str(folders[0]))
    for other in tested[1:]:
        if has_same_clips(other.predictions, tested[0].predictions):
            differences += _test_differences(other, tested[0])
            disagreements += _find_disagreements(tested[0], other, source)
    comparison = Comparison(
        split=split,
        runs={run.name: str(run.workdir) for run in tested},
        tested={run.name: f"{run.predictions.coverage}, step {run.step}" for run in tested},
        settings=compare_settings({run.name: run.experiment for run in tested}),
        metrics=_collect_metrics(tested),
        differences=tuple(correct_for_rows(differences)),
        disagreements=tuple(disagreements),
    )
    if output is not None:
        _write_comparison(comparison, tested, source, storage.as_path(output))
    return comparison


def compare_settings(experiments: Mapping[str, Experiment]) -> dict[str, dict[str, Any]]:
    """Returns {dotted path: {name: value}} of each setting in which some of the named experiments differ."""
    (first, reference), *others = experiments.items()
    changes = {name: configuration.differences(reference, experiment) for name, experiment in others}
    found: dict[str, dict[str, Any]] = {}
    for path, value in ((path, pair[0]) for changed in changes.values() for path, pair in changed.items()):
        values = {name: changed[path][1] if path in changed else value for name, changed in changes.items()}
        found[path] = {first: value, **values}
    return found


def to_markdown(comparison: Comparison) -> str:
    """Returns a comparison as Markdown."""
    names = list(comparison.runs)
    lines = [f"- {name}: {comparison.runs[name]} ({comparison.tested[name]})" for name in names]
    lines += ["", f"Metrics of the {comparison.split} split, with 95 % intervals where they are means over clips:", ""]
    rows = [
        (metric, *(_format_with_interval(values.get(name)) for name in names))
        for metric, values in comparison.metrics.items()
    ]
    lines += markdown_table(("metric", *names), rows)
    if comparison.differences:
        head = ("run", "metric", "difference", "interval", "p", "verdict")
        lines += [
            "",
            f"Differences from {names[0]!r} (t-tests paired by clip, p-values with Holm's correction):",
            "",
        ]
        lines += markdown_table(head, format_differences(comparison.differences))
        lines += [
            "",
            "The tests cover the choice of clips, not chance in training: two seeds of one experiment differ, too.",
        ]
    lines += ["", "Settings that differ:", ""]
    settings = [(path, *(str(values[name]) for name in names)) for path, values in comparison.settings.items()]
    lines += markdown_table(("setting", *names), settings) if settings else ["none"]
    for found in comparison.disagreements:
        lines += [
            "",
            f"{found.label}: {len(found.clips)} clips that {found.correct} gets right and {found.wrong} wrong",
        ]
        listed = list(zip(found.clips, found.captions, strict=True))[:MAX_LISTED]
        lines += ["", *(f"- {clip}: {true}, not {predicted}" for clip, (true, predicted) in listed)] if listed else []
        if len(found.clips) > MAX_LISTED:
            lines.append(f"- and {len(found.clips) - MAX_LISTED} more, in comparison.json")
    return "\n".join(map(escape, lines)) + "\n"


def to_json(comparison: Comparison) -> str:
    """Returns a comparison as one JSON object."""
    data = dataclasses.asdict(comparison)
    data["settings"] = {
        path: {name: configuration.to_dict(value) for name, value in values.items()}
        for path, values in comparison.settings.items()
    }
    data["differences"] = [dataclasses.asdict(d) | {"verdict": d.verdict} for d in comparison.differences]
    return strict_json.dumps(data, indent=2) + "\n"


def _load_or_predict(name: str, workdir: PurePath, experiment: Experiment, split: str) -> _EvaluatedRun:
    path = predictions_path(workdir, split)
    if storage.exists(path):
        return _EvaluatedRun(name, workdir, experiment, *load_predictions(path))
    run = load_run(workdir)
    return _EvaluatedRun(name, workdir, run.experiment, run.step, predict_split(run, split))


def _collect_metrics(tested: Sequence[_EvaluatedRun]) -> dict[str, dict[str, Any]]:
    metrics: dict[str, dict[str, Any]] = {}
    for run in tested:
        task = run.experiment.task
        for metric, value in task.metrics(run.predictions).items():
            if metric in COUNT_METRICS:
                continue
            values = example_metric(task, run.predictions, metric)
            bounds = None if values is None else accuracy_interval(metric, values) or bootstrap_interval(values[None])
            metrics.setdefault(metric, {})[run.name] = (value, bounds)
    return metrics


def _test_differences(run: _EvaluatedRun, reference: _EvaluatedRun) -> list[Difference]:
    tasks, predictions = zip(
        *((tested.experiment.task, [tested.predictions]) for tested in (run, reference)), strict=True
    )
    found = []
    for metric in run.experiment.task.metrics(run.predictions):
        pair = None if metric in COUNT_METRICS else pair_examples(tasks, predictions, metric)
        if pair is not None:
            found.append(compare_clips(run.name, reference.name, metric, *pair))
    return found


def _find_disagreements(first: _EvaluatedRun, other: _EvaluatedRun, source: Source) -> list[Disagreement]:
    common = np.intersect1d(first.predictions.index, other.predictions.index)
    found = []
    for label in first.predictions.outputs:
        correct = [is_correct(run.experiment.task, run.predictions, label) for run in (first, other)]
        if any(values is None for values in correct):
            continue
        places = [np.searchsorted(run.predictions.index, common) for run in (first, other)]
        first_correct, other_correct = (values[rows] for values, rows in zip(correct, places, strict=True))
        has_label = first.experiment.task.has_label(first.predictions.labels[label][places[0]])
        masks = first_correct & ~other_correct, other_correct & ~first_correct
        for better, wrong, mask in ((first, other, masks[0]), (other, first, masks[1])):
            indices = common[mask & has_label]
            captions = tuple(_describe_mistake(wrong.predictions, source, label, int(index)) for index in indices)
            clips = tuple(example_name(source, int(index)) for index in indices)
            found.append(Disagreement(label, better.name, wrong.name, tuple(indices.tolist()), clips, captions))
    return found


def _describe_mistake(predictions: Predictions, source: Source, label: str, index: int) -> tuple[str, str]:
    row, names = np.searchsorted(predictions.index, index), source.label_names[label]
    return names[int(predictions.labels[label][row])], names[int(predictions.outputs[label][row].argmax())]


def _format_with_interval(value: tuple[float | int, tuple[float, float] | None] | None) -> str:
    if value is None:
        return "-"
    number, bounds = value
    shown = f"{number:.2f}" if isinstance(number, float) else str(number)
    return shown if bounds is None else f"{shown} ({bounds[0]:.2f} to {bounds[1]:.2f})"


def _write_comparison(
    comparison: Comparison, tested: Sequence[_EvaluatedRun], source: Source, output: PurePath
) -> None:
    """Writes a comparison and its pictures into a folder."""
    storage.create_folder(output)
    curves = presenter_for(tested[0].experiment.task).curves
    drawn = [m for m in comparison.metrics if m.split("/")[-1] in curves and not m.endswith("/loss")]
    runs = {run.name: [read_metrics(run.workdir)] for run in tested}
    save_figure(learning_curves(runs, drawn, curves), output / "curves")
    pictures = ["![learning curves](curves.png)"]
    data = tested[0].experiment.data
    for number, found in enumerate(disagreement for disagreement in comparison.disagreements if disagreement.indices):
        indices = found.indices[:MAX_CLIPS]
        clips = np.stack([data.read_views(source[index])[0].copy() for index in indices])
        captions = [
            [(f"{found.correct}: {true}", True), (f"{found.wrong}: {predicted}", False)]
            for true, predicted in found.captions[:MAX_CLIPS]
        ]
        storage.write_bytes(output / f"clips_{number}.png", encode_png(clip_strip(clips, captions)))
        caption = f"{found.label}: clips that {found.correct} gets right and {found.wrong} wrong"
        pictures += [f"{escape(caption)}:", f"![{escape(caption)}](clips_{number}.png)"]
    text = "# Comparison\n\n" + to_markdown(comparison) + "\n" + "\n\n".join(pictures) + "\n"
    storage.write_text(output / "comparison.md", escape(text, lines=True))
    storage.write_text(output / "comparison.json", to_json(comparison))
