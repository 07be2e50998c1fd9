"""Run: one training run, in memory and on disk. Train or resume it, evaluate it, predict with it."""

import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any, Literal, get_args

import jax
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float, UInt8

from vitx import configuration, storage
from vitx.checkpoints import Checkpoints
from vitx.compiled_programs import keep_programs
from vitx.console import progress_bar
from vitx.data.decoding import VideoError
from vitx.data.file_kinds import read_video
from vitx.data.same_files import fingerprint
from vitx.data.sources import label_arrays
from vitx.data.windows import Duration, SlidingWindows
from vitx.errors import UserError
from vitx.evaluation import report
from vitx.evaluation.calibration import FILE as CALIBRATION
from vitx.evaluation.calibration import Calibration, fit_calibration, load_calibration, save_calibration, scale_logits
from vitx.evaluation.evaluate import predict
from vitx.evaluation.forecast import Forecast, forecast_clip
from vitx.evaluation.metrics_table import MetricsTable
from vitx.evaluation.prediction import Prediction
from vitx.evaluation.prediction_table import PredictionTable
from vitx.evaluation.predictor import BATCH_SIZE, Predictor, predict_videos, predict_views, trained_predictor
from vitx.evaluation.presentation import presenter_for
from vitx.evaluation.stream import Stream
from vitx.experiment import Experiment, load_config, save_config
from vitx.explain.clips import explain_clip, read_clip
from vitx.explain.explanation import Explanation
from vitx.explain.methods import methods_for
from vitx.interop.fill import check_layers
from vitx.layers.partition import batch_sharding
from vitx.models import resolve_implementation
from vitx.models.base import resize_position_tables
from vitx.models.budgets import check_budgets
from vitx.pretrained import build_initialiser
from vitx.run_budgets import evaluate_budgets
from vitx.run_evaluation import evaluate_and_report, predict_split
from vitx.run_folder import check_may_train, check_record, check_same_data, lock_run, open_checkpoints
from vitx.run_parts import choose_mesh, fit_to_record, learnt_classes, open_sources, restore_variables
from vitx.tasks.frame_prediction import FramePrediction
from vitx.tasks.task import Supervised
from vitx.training import loop
from vitx.training.faults import PreemptionGuard
from vitx.training.logs import log_info, read_metrics
from vitx.training.processes import check_same_settings, first_process_first, is_first_process
from vitx.training.progress import check_monitor
from vitx.training.stopwatch import Stopwatch

Which = Literal["best", "last"]
Video = str | Path | np.ndarray


@dataclasses.dataclass(frozen=True, repr=False)
class Run:
    """One training run.

    Attributes:
        experiment: the settings; the task is fitted to the training split.
        workdir: the run's folder.
        step: checkpoint that the variables come from.
        variables: the model's variables, on the devices; averaged ones where the run keeps an average.
        output_names: {label: names of its classes or values} of what the model predicts.
        sharding: sharding of a batch.
        changed: {dotted path: (value in training, value in this evaluation)} of the settings that differ.
    """

    experiment: Experiment
    workdir: PurePath
    step: int
    variables: Mapping[str, Any]
    output_names: Mapping[str, tuple[str, ...]]
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

    def evaluate_budgets(self, budgets: Sequence[int], split: str = "test") -> MetricsTable:
        """Evaluates the run with fewer tokens: its metrics against GMACs; one checkpoint serves all budgets.

        The model's reducer gets each budget; a model without one gets `DynamicTokens`. The rows are added to
        metrics.jsonl beside the others, and budgets_SPLIT.md, .png and .svg in the run's folder show them together with
        those of earlier calls.

        Args:
            budgets: tokens of a clip that the encoder reads, class tokens not counted.
            split: "train", "validation" or "test".

        Returns:
            A row for each budget: "num_tokens", "gmacs" of one view, "clip", "views" and metrics by name.

        Raises:
            UserError: the model has no tokens or a reducer without a budget, or a budget does not fit its clips.
        """
        with lock_run(self.workdir):
            return MetricsTable(evaluate_budgets(self, budgets, split))

    def calibrate(self) -> Calibration:
        """Fits a temperature for each label on the validation split, and writes them to calibration.json in the folder.

        `predict`, `stream`, `explain`, `vitx predict` and the report of `evaluate` use them from then on. Accuracies
        stay as they are.

        Raises:
            UserError: the task predicts no probabilities, or no video of the validation split has a label.
        """
        with lock_run(self.workdir):
            changed = {path: new for path, (_, new) in self.changed.items()}
            predictions = predict_split(self, "validation")
            found = fit_calibration(self.experiment.task, predictions, self.step, changed)
            if is_first_process():
                path = save_calibration(self.workdir, found)
                log_info(*found.describe(), f"see {path}")
        self.__dict__["calibration"] = found  # replaces what `calibration` has cached
        return found

    @functools.cached_property
    def calibration(self) -> Calibration | None:
        """Temperatures by which logits are divided; None where this checkpoint has none. The first access logs them.

        Raises:
            UserError: calibration.json is damaged.
        """
        found = load_calibration(self.workdir)
        if found is None:
            return None
        if found.step != self.step:
            log_info(
                f"{self.workdir / CALIBRATION} is of step {found.step} and not used for step {self.step}; "
                f"vitx evaluate {self.workdir} --calibrate fits it again"
            )
            return None
        temperatures = ", ".join(f"{label} {value:.3g}" for label, value in found.temperatures.items())
        log_info(
            f"probabilities are calibrated on the validation split ({found.views} views): temperature {temperatures}"
        )
        return found

    def predict(self, videos: Video | Sequence[str | Path], *, top: int = 5) -> Prediction | dict[str, Prediction]:
        """Returns {label: {class: probability}} of the `top` classes, most probable first, of a video.

        A notebook shows it with the clip.

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
    ) -> Iterator[tuple[str, Prediction | VideoError | OSError]]:
        """Yields (file, answer) as `predict` returns them, one by one; of an unreadable file, its error."""
        for file in map(str, videos):
            try:
                views = self.experiment.data.read_views({"video": read_video(file)})
            except (VideoError, OSError) as error:
                yield file, error
                continue
            yield file, self._answer(views, top)

    def predict_table(
        self,
        videos: Video | Sequence[str | Path],
        *,
        windows: Duration | None = None,
        stride: Duration | None = None,
        top: int | None = None,
        batch_size: int = BATCH_SIZE,
    ) -> PredictionTable:
        """Predicts videos in batches, and returns rows that `save` writes and a notebook shows as a table.

        Args:
            videos: path of a video, several paths, or RGB frames [frames, height, width, 3], 0 to 255. A file that
                cannot be read is a row with its error.
            windows: length of sliding windows, each of which gets rows: "4s" or 4 in seconds, "32f" in frames.
            stride: distance from one window to the next; None is half a window.
            top: classes in the rows' "scores"; None is all of them.
            batch_size: videos or windows that are computed at once.

        Raises:
            UserError: frames that are no video, or windows of an invalid length or stride.
        """
        predictor = self.predictor()
        if isinstance(videos, np.ndarray):
            if windows is not None:
                raise UserError("found windows of an array; expected the path of a video, whose frames have times")
            found = [predict_views(predictor, "array", read_clip(videos, self.experiment.data)[None])]
        else:
            files = [str(file) for file in ([videos] if isinstance(videos, str | Path) else videos)]
            spec = None if windows is None else SlidingWindows.parse(windows, stride)
            predicted = predict_videos(predictor, files, spec, batch_size=batch_size)
            found = list(progress_bar(predicted, total=len(files), unit=" videos", leave=False))
        return PredictionTable(found, predictor, top)

    def predictor(self) -> Predictor:
        """Returns a predictor of many videos, which reads them as this run's evaluation does."""
        return trained_predictor(
            self.experiment.model,
            self.variables,
            task=self.experiment.task,
            data=self.experiment.data,
            names=self.output_names,
            sharding=self.sharding,
            temperatures=self._temperatures,
        )

    def _answer(self, views: UInt8[np.ndarray, "v t h w c"], top: int) -> Prediction:
        task = self.experiment.task
        model = self._model_outside_mesh()
        batch = jax.device_put((views[None], np.array([len(views)], np.int32)))
        logits = predict(self.variables, *batch, model=model, task=task)
        outputs = {label: np.asarray(row[0]) for label, row in task.outputs_by_label(logits, self.output_names).items()}
        presenter = presenter_for(task)
        answer = presenter.answer(scale_logits(outputs, self._temperatures), self.output_names, top)
        return Prediction(answer, views[0], presenter.format_answer)

    @property
    def _temperatures(self) -> Mapping[str, float]:
        return self.calibration.temperatures if self.calibration else {}

    def _model_outside_mesh(self) -> nn.Module:
        """Returns the model for one clip: on a mesh of several TPUs the one that needs no `jax.shard_map`.

        XLA cannot divide a Pallas kernel by itself, and one clip cannot be divided by the batch.
        """
        mesh, model = self.sharding.mesh, self.experiment.model
        resolved = resolve_implementation(model, mesh.devices.flat[0])
        return model if mesh.size > 1 and getattr(resolved, "implementation", None) == "tpu" else resolved

    def features(self, video: Video) -> Float[np.ndarray, "d"]:
        """Returns the vector that the head classifies, of the middle view of a video; for probes and searches.

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
        task = self._supervised_task()
        presenter, frames = presenter_for(task), read_clip(video, self.experiment.data)
        top = max(map(len, self.output_names.values()))
        found = explain_clip(
            self._model_outside_mesh(),
            self.variables,
            frames,
            normalise=task.normalise,
            names=self.output_names,
            answer=lambda logits: presenter.answer(scale_logits(logits, self._temperatures), self.output_names, top),
            method=method,
            label=label,
            class_name=class_name,
            **options,
        )
        return found if presenter.predicts_probabilities else dataclasses.replace(found, probability=None)

    def explanation_methods(self) -> list[str]:
        """Returns the names of the methods that can explain the model, the default one first."""
        data = self.experiment.data
        clip = np.zeros((data.num_frames, *data.crop_size, data.channels), np.uint8)
        return methods_for(self.experiment.model, self._supervised_task().normalise(clip))

    def _supervised_task(self) -> Supervised:
        task = self.experiment.task
        if not isinstance(task, Supervised):
            raise UserError(f"{type(task).__name__} predicts no classes; expected a run that classifies")
        return task

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
        return Stream(
            self._model_outside_mesh(),
            self.variables,
            task=task,
            names=self.output_names,
            image_size=self.experiment.data.image_size,
            temperatures=self._temperatures,
        )


@functools.partial(jax.jit, static_argnames="model")
def _features(variables: Any, video: Float[Array, "b t h w c"], *, model: nn.Module) -> Float[Array, "b d"]:
    return model.apply(variables, video, train=False, method="features")


def train(
    experiment: Experiment, workdir: str | PurePath, *, extend: bool = False, clock: Stopwatch | None = None
) -> Run:
    """Trains an experiment in a folder, or resumes it there; then tests it and writes the report.

    Args:
        experiment: model, data, task, optimizer and training settings.
        workdir: the run's folder; created if it is missing. One that holds another experiment is refused.
        extend: whether a run may get more `training.steps` than it began with.
        clock: gets the time of each phase; None for one of its own.

    Returns:
        The run, with the variables of its best checkpoint.

    Raises:
        UserError: a mistake in the settings, or a folder that belongs to another experiment.
        RunError: too many losses are not finite, or too many videos cannot be read.
        Preempted: the process was asked to stop; the state is saved.
    """
    workdir, clock, experiment = storage.as_path(workdir), clock or Stopwatch(), experiment.with_absolute_paths()
    if (cache := experiment.training.compilation_cache) is not None:
        keep_programs(cache)
    with PreemptionGuard() as guard:
        # Settings are checked before datasets are built, which can take minutes.
        check_same_settings(experiment, workdir)
        experiment.training.mesh.build(experiment.data.batch_size, experiment.model)
        check_budgets(experiment)
        newest = check_may_train(workdir, experiment, extend=extend)
        learnt = learnt_classes(experiment, newest)
        with clock("build"), first_process_first("build"):
            sources = open_sources(experiment, learnt, str(workdir))
        experiment = experiment.for_labels(sources["train"].label_names)
        fitted = dataclasses.replace(experiment, task=experiment.task.fit(sources["train"]))
        label_names = dict(sources["train"].label_names)
        output_names = fitted.task.output_names(fitted.model, label_names)
        fitted.task.check_label_kinds(output_names, label_arrays(sources["train"][0]))
        check_monitor(experiment.training.monitor, fitted.task.metric_names(output_names))
        videos = check_same_data(workdir, newest, experiment, fingerprint(sources["train"]), extend=extend)
        with lock_run(workdir) as lock:
            # A run that was killed in its first save has no record, and starts again.
            initialise = None if newest else build_initialiser(fitted, workdir, output_names)
            if is_first_process():
                save_config(experiment, workdir / "config.json", videos)
            record = {
                "config": configuration.to_dict(experiment),
                "task": configuration.to_dict(fitted.task),
                "label_names": label_names,
                "videos": videos,
            }
            trained = loop.train(
                fitted, sources, workdir, lock=lock, guard=guard, clock=clock, record=record, initialise=initialise
            )
            run = _best_run(fitted, workdir, output_names, trained)
            is_finished = trained.resumed_at == int(trained.state.step)  # no step was left to take
            if is_finished:
                _log_finished(run, trained)
            if not is_finished or not _has_test_row(run):
                evaluate_and_report(run, "test", clock)
    if trained.time_percentages:
        log_info(
            "after its first steps training waited for input {input_wait_percent:.1f} % of the time; "
            "decoding took {decode_core_percent:.0f} % of the cores".format(**trained.time_percentages)
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
    if which not in get_args(Which):
        raise UserError(f"found which={which!r}; expected {' or '.join(map(repr, get_args(Which)))}")
    workdir = storage.as_path(workdir)
    trained = load_config(workdir)
    experiment = trained.for_evaluation(settings or {})
    changed = configuration.differences(trained, experiment) if settings else {}
    mesh = choose_mesh(experiment)
    with open_checkpoints(workdir) as checkpoints:
        steps = checkpoints.steps()
        record = checkpoints.newest_record()
        check_record(workdir, record)
        check_layers(experiment.model, len(record["digests"]), str(workdir / "config.json"))
        step = steps[-1]
        if which == "best":
            if record["step"] != step:
                log_info(f"checkpoint {step} in {workdir} cannot be read; the best one of those before it is taken")
            best = (record["best"] or {}).get("step")
            step = best if best in steps else record["step"]
        variables = restore_variables(checkpoints, step, trained, mesh)
    if experiment.model != trained.model:
        variables = resize_position_tables(variables, trained.model, experiment.model)
    experiment, output_names = fit_to_record(experiment, record, workdir)
    return Run(experiment, workdir, step, variables, output_names, batch_sharding(mesh), changed)


def _best_run(
    experiment: Experiment, workdir: PurePath, output_names: Mapping[str, Any], trained: loop.TrainingResult
) -> Run:
    """Returns the run at its best checkpoint; reads it from disk unless training ended with it."""
    step, variables, mesh = int(trained.state.step), trained.state.eval_variables, trained.sharding.mesh
    if trained.best_step not in (None, step):
        step = trained.best_step
        with Checkpoints(workdir / "checkpoints", read_only=True) as checkpoints:
            variables = restore_variables(checkpoints, step, experiment, mesh)
    return Run(experiment, workdir, step, variables, output_names, trained.sharding)


def _log_finished(run: Run, trained: loop.TrainingResult) -> None:
    """Logs that a run has no steps left, and how it can resume."""
    done, steps = int(trained.state.step), run.experiment.training.steps
    reason = "patience ended it; a higher --training.patience resumes it"
    if done == steps:
        reason = f"all {done} steps are done; --training.steps N --extend resumes it"
    log_info(f"{run.workdir} is finished: {reason}")


def _has_test_row(run: Run) -> bool:
    """Returns whether metrics.jsonl has the test of this checkpoint under the settings of the training."""
    tests = [row for row in run.metrics() if (row["step"], row["split"]) == (run.step, "test")]
    return any("settings" not in row for row in tests)
