"""Run: one training run, in memory and on disk. Train or resume it, evaluate it, predict with it."""

import dataclasses
import functools
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any, Literal

import jax
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float, UInt8

from vitx import configuration, storage
from vitx.checkpoints import Checkpoints, abstract_state
from vitx.data.aligned import align_classes, open_split
from vitx.data.decoding import VideoError
from vitx.data.file_kinds import read_video
from vitx.data.labels import check_labels
from vitx.data.same_files import fingerprint
from vitx.data.sources import Source
from vitx.errors import UserError
from vitx.evaluation import report
from vitx.evaluation.evaluate import Predictions, evaluate, predict
from vitx.evaluation.examples import accuracy_intervals, predictions_path, save_predictions
from vitx.evaluation.forecast import Forecast, forecast_clip
from vitx.evaluation.metrics_table import MetricsTable
from vitx.evaluation.presentation import presenter_for
from vitx.evaluation.stream import Stream
from vitx.experiment import Experiment, load_config, save_config
from vitx.explain.clips import explain_clip, read_clip
from vitx.explain.explanation import Explanation
from vitx.interop.fill import check_layers, check_values
from vitx.layers.partition import batch_sharding
from vitx.models import resolve_implementation
from vitx.pretrained import starting_weights
from vitx.run_folder import (
    check_may_train,
    check_record,
    check_same_data,
    lock_run,
    open_checkpoints,
    read_newest_record,
)
from vitx.tasks.frame_prediction import FramePrediction
from vitx.tasks.task import Supervised
from vitx.training import loop
from vitx.training.faults import PreemptionGuard
from vitx.training.logs import MetricsLog, Stopwatch, log_info, read_metrics
from vitx.training.processes import check_same_settings, first_process_first, is_first_process
from vitx.training.progress import check_monitor
from vitx.training.sharding import Mesh, state_shardings

Which = Literal["best", "last"]
Video = str | Path | np.ndarray
MAX_CLIPS = 8  # clips in the report's pictures


@dataclasses.dataclass(frozen=True, repr=False)
class Run:
    """One training run.

    Attributes:
        experiment: the settings; the task is fitted to the training split.
        workdir: the run's folder.
        step: checkpoint that the variables come from.
        variables: the model's variables, on the devices; averaged ones where the run keeps an average.
        outputs: {label: names of its classes or values} of what the model predicts.
        sharding: sharding of a batch.
        changed: {dotted path: (value in training, value here)} of settings that differ from those of the training.
    """

    experiment: Experiment
    workdir: PurePath
    step: int
    variables: Mapping[str, Any]
    outputs: Mapping[str, tuple[str, ...]]
    sharding: jax.sharding.NamedSharding
    changed: Mapping[str, tuple[Any, Any]] = dataclasses.field(default_factory=dict)

    def __repr__(self) -> str:
        steps, model = self.experiment.training.steps, type(self.experiment.model).__name__
        return f"Run({str(self.workdir)!r}, {model}, step {self.step} of {steps})"

    def metrics(self) -> MetricsTable:
        """Returns the rows of metrics.jsonl: step, split, and metrics by name; a notebook shows them as a table."""
        return MetricsTable(read_metrics(self.workdir))

    def _repr_png_(self) -> bytes:  # how a notebook shows a run: its learning curves
        return report.encode_png(report.learning_curves(self.metrics(), presenter_for(self.experiment.task).curves))

    def evaluate(self, split: str = "test") -> dict[str, Any]:
        """Evaluates the run on a split, adds the metrics to metrics.jsonl and writes the report.

        Args:
            split: "train", "validation" or "test". Metrics of "train" are not added: the log has those of training.

        Returns:
            {"step": checkpoint, "views": clips x crops, metrics by name (accuracies in percent), "intervals":
            95 % intervals of the accuracies}, and tables of the task, such as "per_class" and "confusion".
        """
        with lock_run(self.workdir):
            return evaluate_and_report(self, split, Stopwatch())

    def predict(self, videos: Video | Sequence[str | Path], *, top: int = 5) -> dict[str, Any]:
        """Returns {label: {class: probability}} of the `top` classes, most probable first, of a video.

        Args:
            videos: path of a video, or RGB frames [frames, height, width, 3], 0 to 255; or several paths, which give
                {file: {label: {class: probability}}}.
            top: classes of each label.

        Raises:
            UserError: files cannot be read as video; the message names all of them.
        """
        if isinstance(videos, np.ndarray):
            return self._answer(read_clip(videos, self.experiment.data)[None], top)
        single = isinstance(videos, str | Path)
        answers = dict(self.predict_each([videos] if single else videos, top=top))
        if unreadable := [str(error) for error in answers.values() if isinstance(error, Exception)]:
            raise UserError("these files cannot be read as video:", unreadable)
        return answers[str(videos)] if single else answers

    def predict_each(
        self, videos: Sequence[str | Path], *, top: int = 5
    ) -> Iterator[tuple[str, dict[str, dict[str, float]] | VideoError | OSError]]:
        """Yields (file, answer) as `predict` returns them, one by one; of a file that cannot be read, its error."""
        for file in map(str, videos):
            try:
                views = self.experiment.data.read_views({"video": read_video(file)})
            except (VideoError, OSError) as error:
                yield file, error
                continue
            yield file, self._answer(views, top)

    def _answer(self, views: UInt8[np.ndarray, "v t h w 3"], top: int) -> dict[str, dict[str, float]]:
        task = self.experiment.task
        model = self._model_outside_mesh()
        batch = jax.device_put((views[None], np.array([len(views)], np.int32)))
        logits = predict(self.variables, *batch, model=model, task=task)
        outputs = {label: np.asarray(row[0]) for label, row in task.outputs_by_label(logits, self.outputs).items()}
        return presenter_for(task).answer(outputs, self.outputs, top)

    def _model_outside_mesh(self) -> nn.Module:
        """Returns the model for one clip: on a mesh of several TPUs the one that needs no `jax.shard_map`.

        XLA cannot divide a Pallas kernel by itself, and one clip cannot be divided by the batch.
        """
        mesh, model = self.sharding.mesh, self.experiment.model
        resolved = resolve_implementation(model, mesh.devices.flat[0])
        return model if mesh.size > 1 and getattr(resolved, "implementation", None) == "tpu" else resolved

    def features(self, video: Video) -> Float[np.ndarray, "d"]:
        """Returns the vector that the head classifies, of the first view of a video; for probes and searches.

        Args:
            video: path of a file, or RGB frames [frames, height, width, 3], 0 to 255.

        Raises:
            UserError: the video cannot be read or is too short; or the model has no such vector.
        """
        model = self._model_outside_mesh()
        if not hasattr(model, "features"):
            raise UserError(f"{type(model).__name__} has no features; expected a model that classifies")
        clip = self.experiment.task.normalise(read_clip(video, self.experiment.data))
        return np.asarray(_features(self.variables, clip[None], model=model)[0], np.float32)

    def explain(
        self,
        video: Video,
        *,
        method: str | None = None,
        label: str | None = None,
        class_name: str | None = None,
        **options: Any,
    ) -> Explanation:
        """Explains which parts of a video speak for a class: pictures, numbers, and the importance of frames.

        Args:
            video: path of a file, or RGB frames [frames, height, width, 3], 0 to 255.
            method: a name in `vitx.explain.methods.METHODS`; None takes the first that works for the model.
            label: the label to explain; None takes the first.
            class_name: the class to explain; None takes the most probable one.
            options: further arguments of the method, such as `tubelet=(4, 8, 8)` of occlusion.

        Raises:
            UserError: the video cannot be read or is too short; an unknown label, class or method; a method that does
                not work for the model, with those that do.
        """
        task, model = self.experiment.task, self.experiment.model
        if not isinstance(task, Supervised):
            raise UserError(f"{type(task).__name__} predicts no classes; expected a run that classifies")
        presenter, frames = presenter_for(task), read_clip(video, self.experiment.data)
        return explain_clip(
            model,
            self.variables,
            frames,
            normalise=task.normalise,
            names=self.outputs,
            answer=lambda logits: presenter.answer(logits, self.outputs, max(map(len, self.outputs.values()))),
            method=method,
            label=label,
            class_name=class_name,
            **options,
        )

    def forecast(self, video: Video) -> Forecast:
        """Predicts the last frames of a clip from those before them; a notebook shows the frames beside the truth.

        Args:
            video: path of a file, or RGB frames [frames, height, width, 3], 0 to 255.

        Raises:
            UserError: the video cannot be read or is too short; or the run predicts no frames.
        """
        task = self.experiment.task
        if not isinstance(task, FramePrediction):
            raise UserError(f"{type(task).__name__} predicts no frames; expected a run of FramePrediction")
        clip = read_clip(video, self.experiment.data)
        return forecast_clip(task, self._model_outside_mesh(), self.variables, clip)

    def stream(self) -> Stream:
        """Starts a stream: `read(frame)` answers after every frame, from a state that the model carries.

        Raises:
            UserError: the run does not classify, or its model reads whole clips.
        """
        task = self.experiment.task
        if not isinstance(task, Supervised):
            raise UserError(f"{type(task).__name__} predicts no classes; expected a run that classifies")
        size = self.experiment.data.image_size
        return Stream(self._model_outside_mesh(), self.variables, task=task, names=self.outputs, image_size=size)


@functools.partial(jax.jit, static_argnames="model")
def _features(variables: Any, video: Float[Array, "b t h w 3"], *, model: nn.Module) -> Float[Array, "b d"]:
    return model.apply(variables, video, train=False, method="features")


def train(experiment: Experiment, workdir: str | PurePath, *, extend: bool = False) -> Run:
    """Trains an experiment in a folder, or resumes it there; then tests it and writes the report.

    Args:
        experiment: model, data, task, optimizer and training settings.
        workdir: the run's folder; created if it is missing. One that holds another experiment is refused.
        extend: whether a run may get more `training.steps` than it began with.

    Returns:
        The run, with the variables of its best checkpoint.

    Raises:
        UserError: a mistake in the settings, or a folder that belongs to another experiment.
        RunError: too many losses are not finite, or too many videos cannot be read.
        Preempted: the process was asked to stop; the state is saved.
    """
    workdir, clock, experiment = storage.as_path(workdir), Stopwatch(), experiment.with_absolute_paths()
    if (cache := experiment.training.compilation_cache) is not None:
        jax.config.update("jax_compilation_cache_dir", os.path.expanduser(cache))
    with PreemptionGuard() as guard:
        # Settings are checked before datasets are built, which can take minutes.
        check_same_settings(experiment, workdir)
        experiment.training.mesh.build(experiment.data.batch_size, experiment.model)
        if is_first_process():
            check_may_train(workdir, experiment, extend=extend)
            read_metrics(workdir)  # a row that is none is reported before the work whose report needs it
        newest = read_newest_record(workdir)
        learnt = _learnt_classes(experiment, workdir, newest)
        with clock("build"), first_process_first("build"):
            sources = open_sources(experiment, learnt, str(workdir))
        if experiment != (with_classes := experiment.for_labels(sources["train"].label_names)):
            experiment = with_classes
            if is_first_process():  # checked again: other data must not change the number of classes of a run
                check_may_train(workdir, experiment, extend=extend)
        fitted = dataclasses.replace(experiment, task=experiment.task.fit(sources["train"]))
        label_names = dict(sources["train"].label_names)
        outputs = fitted.task.outputs(fitted.model, label_names)
        check_monitor(experiment.training.monitor, fitted.task.metric_names(outputs))
        videos = check_same_data(workdir, newest, experiment, fingerprint(sources["train"]))
        with lock_run(workdir) as hold:
            start = starting_weights(fitted, workdir, outputs)
            if is_first_process():
                save_config(experiment, workdir / "config.json", videos)
            record = {
                "config": configuration.to_dict(experiment),
                "task": configuration.to_dict(fitted.task),
                "label_names": label_names,
                "videos": videos,
            }
            trained = loop.train(
                fitted, sources, workdir, hold=hold, guard=guard, clock=clock, record=record, initialise=start
            )
            run = _best_run(fitted, workdir, outputs, trained)
            if not _is_tested(run, trained):
                evaluate_and_report(run, "test", clock)
    if trained.time_fractions:
        log_info(
            "after its first steps training waited for input {input_wait_percent:.1f} % of the time; "
            "decoding took {decode_core_percent:.0f} % of the cores".format(**trained.time_fractions)
        )
    log_info(f"time: {clock}")
    return run


def load_run(workdir: str | PurePath, which: Which = "best", settings: Mapping[str, Any] | None = None) -> Run:
    """Returns a run from its folder, on the mesh of its training where that fits the devices here.

    Args:
        workdir: the run's folder.
        which: the best checkpoint by the monitored metric, or the last one.
        settings: settings of the evaluation to replace, {"data.dataset.path": "test_videos", "data.eval_clips": 4}.

    Raises:
        UserError: not a run's folder, or no checkpoint in it that can be read.
    """
    workdir = storage.as_path(workdir)
    trained = load_config(workdir)
    experiment = trained.for_evaluation(settings or {})
    changed = configuration.differences(trained, experiment) if settings else {}
    mesh = _fitting_mesh(experiment)
    with open_checkpoints(workdir) as checkpoints:
        steps = checkpoints.steps()
        _, record = checkpoints.restore(steps[-1], {})
        check_record(workdir, record)
        check_layers(experiment.model, len(record["digests"]), str(workdir / "config.json"))
        best = (record["best"] or {}).get("step")
        step = best if which == "best" and best in steps else steps[-1]
        variables = restore_variables(checkpoints, step, experiment, mesh)
    if "task" in record:
        task = configuration.from_dict(record["task"], str(workdir))
        experiment = dataclasses.replace(experiment, task=task)
    label_names = {label: tuple(names) for label, names in record["label_names"].items()}
    outputs = experiment.task.outputs(experiment.model, label_names)
    return Run(experiment, workdir, step, variables, outputs, batch_sharding(mesh), changed)


def open_sources(
    experiment: Experiment, learnt: Mapping[str, tuple[str, ...]] | None = None, model: str = ""
) -> dict[str, Source]:
    """Returns {split: its examples} of all that training reads; opening a dataset may build it.

    Args:
        experiment: the settings.
        learnt: {label: names of its classes} of a run that is resumed: classes of the data get its order.
        model: name of that run in messages.

    Raises:
        UserError: a dataset cannot be opened, or has other classes than the run that is resumed.
    """
    data, settings = experiment.data, experiment.training
    sources = {split: open_split(data.dataset, split, learnt, model) for split in ("train", "validation")}
    notes = dict.fromkeys(note for source in sources.values() for note in getattr(source, "notes", ()))
    for note in notes:
        log_info(f"dataset: {note}")
    # Classes have one order in all sets, that of the run or of the training split.
    expected = learnt if learnt is not None else _predicted(experiment, sources["train"].label_names)
    for extra in settings.validation_sets:
        source = extra.open(data.dataset)
        check_labels(source, f"the set {extra.name}")
        sources[extra.name] = align_classes(source, expected, f"the set {extra.name}", model or "the train split")
    return sources


def _learnt_classes(
    experiment: Experiment, workdir: PurePath, record: Mapping[str, Any]
) -> dict[str, tuple[str, ...]] | None:
    """Returns {label: names of its classes} that a run which is resumed predicts, or None for a new run."""
    check_record(workdir, record)
    if "label_names" not in record:
        return None
    return _predicted(experiment, {label: tuple(names) for label, names in record["label_names"].items()})


def _predicted(experiment: Experiment, label_names: Mapping[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
    """Returns those names of classes that the experiment's model predicts; a forecaster predicts none."""
    outputs = experiment.task.outputs(experiment.for_labels(label_names).model, label_names)
    return {label: names for label, names in outputs.items() if label in label_names}


def restore_variables(
    checkpoints: Checkpoints, step: int, experiment: Experiment, mesh: jax.sharding.Mesh
) -> dict[str, Any]:
    """Returns the variables of one checkpoint, averaged ones where the run keeps an average."""
    shapes = jax.eval_shape(experiment.init, jax.random.key(0))
    part = "ema" if experiment.training.ema_decay is not None else "variables"
    state, _ = checkpoints.restore(step, {part: abstract_state(shapes, state_shardings(shapes, mesh))})
    check_values(state[part], f"checkpoint {checkpoints.directory / str(step)}")
    return state[part]


def evaluate_and_report(run: Run, split: str, clock: Stopwatch) -> dict[str, Any]:
    """Evaluates a run, writes its report and adds a row to its log; see `Run.evaluate`. The caller holds the lock."""
    task, data = run.experiment.task, run.experiment.data
    rows = read_metrics(run.workdir) if is_first_process() else []  # a row that is none is reported before the work
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
        # Views that evaluation has read: others may lie where a video is damaged. Copies, not whole videos.
        clips = np.stack([data.read_views(source[int(index)])[0].copy() for index in predictions.index[shown]])
        results = report.Results(model, run.variables, split, predictions, run.outputs, clips, shown)
        changed = {path: new for path, (_, new) in run.changed.items()}
        row = {"views": predictions.views, **({"settings": changed} if changed else {}), **metrics}
        sections = presenter.sections(results)  # in every process: pictures may need the devices
        if is_first_process():
            path = report.write_report(
                run.workdir,
                title=storage.absolute(run.workdir).name,
                facts=_facts(run, rows),
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
        if split != "train":
            key = run.step, split, changed

            def is_other(row: Mapping[str, Any]) -> bool:  # an earlier evaluation of the same is replaced
                return (row["step"], row["split"], row.get("settings", {})) != key

            with MetricsLog(run.workdir, is_other) as log:
                log.write(run.step, split, row)
    tables = presenter.tables(predictions, run.outputs)
    return {"step": run.step, **row, "intervals": {name: list(bounds) for name, bounds in intervals.items()}, **tables}


def open_run_split(run: Run, split: str) -> Source:
    """Returns the examples of a split of a run's dataset, with classes in the order that the run has learnt.

    Raises:
        UserError: the split cannot be opened, or has other classes than the run.
    """
    # What a forecaster predicts is no label of the data.
    learnt = run.outputs if isinstance(run.experiment.task, Supervised) else {}
    return open_split(run.experiment.data.dataset, split, learnt, str(run.workdir))


def predict_split(run: Run, split: str, source: Source | None = None) -> Predictions:
    """Returns the predictions of a run for every example of a split; opens the split unless its source is given."""
    data = run.experiment.data.for_devices(run.sharding.mesh.size)
    source = open_run_split(run, split) if source is None else source
    return evaluate(run.experiment.model, run.experiment.task, run.variables, data, source, run.sharding, split=split)


def _facts(run: Run, rows: Sequence[Mapping[str, Any]]) -> list[str]:
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


def _best_run(experiment: Experiment, workdir: PurePath, outputs: Mapping[str, Any], trained: loop.Trained) -> Run:
    """Returns the run at its best checkpoint; reads it from disk unless training ended with it."""
    step, variables, mesh = int(trained.state.step), trained.state.averaged, trained.sharding.mesh
    if trained.best_step not in (None, step):
        step = trained.best_step
        with open_checkpoints(workdir) as checkpoints:
            variables = restore_variables(checkpoints, step, experiment, mesh)
    return Run(experiment, workdir, step, variables, outputs, trained.sharding)


def _is_tested(run: Run, trained: loop.Trained) -> bool:
    """Returns whether a run that took no step now was tested before; reports that it is finished."""
    done, steps = int(trained.state.step), run.experiment.training.steps
    if trained.resumed_at != done:
        return False
    reason = "patience ended it; a higher --training.patience resumes it"
    if done == steps:
        reason = f"all {done} steps are done; --training.steps N --extend resumes it"
    log_info(f"{run.workdir} is finished: {reason}")
    tests = [row for row in run.metrics() if (row["step"], row["split"]) == (run.step, "test")]
    return any("settings" not in row for row in tests)


def _fitting_mesh(experiment: Experiment) -> jax.sharding.Mesh:
    """Returns the mesh of the training where it fits the devices here.

    Otherwise the devices here divide the batch, and the parameters too if the training divided them.
    """
    mesh, batch = experiment.training.mesh, jax.device_count()  # as a batch size, it divides over any mesh
    try:
        return mesh.build(batch, experiment.model)
    except UserError:
        return (Mesh() if mesh.fsdp == 1 else Mesh(data=1, fsdp=-1)).build(batch)
