"""What one does with a run's folder: train in it, evaluate what it learnt, predict with it."""

import contextlib
import dataclasses
import functools
import statistics
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import filelock
import jax
import numpy as np
from flax import linen as nn

from vitx import configuration
from vitx.checkpoints import Checkpoints, abstract_state
from vitx.data.decoding import VideoError
from vitx.data.sources import Source
from vitx.errors import UserError
from vitx.evaluation import report
from vitx.evaluation.evaluate import evaluate, predict
from vitx.evaluation.presentation import presenter_for
from vitx.experiment import Experiment, load_config, save_config
from vitx.interop.load import initialise
from vitx.layers.partition import batch_sharding
from vitx.models import on_device
from vitx.storage import read_json
from vitx.training.faults import Notices
from vitx.training.logs import MetricsLog, Stopwatch, read_metrics, say
from vitx.training.loop import train
from vitx.training.processes import check_same, first, one_ahead, together
from vitx.training.progress import check_monitor
from vitx.training.sharding import Mesh, state_shardings
from vitx.training.step import init_state, train_step

Which = Literal["best", "last"]


@dataclasses.dataclass(frozen=True)
class Run:
    """What a run learnt.

    Attributes:
        experiment: its settings.
        variables: of its model, on the devices; averaged parameters where the run has an average.
        step: the checkpoint that they come from.
        names: {label: names of its classes or values} of what the model predicts.
        sharding: of a batch.
    """

    experiment: Experiment
    variables: dict[str, Any]
    step: int
    names: dict[str, tuple[str, ...]]
    sharding: jax.sharding.NamedSharding


def train_run(experiment: Experiment, workdir: str | Path, *, extend: bool = False) -> None:
    """Trains an experiment in a folder, or goes on where it stopped; then tests it and writes the report.

    Args:
        workdir: the run's folder; made if need be. One of another experiment is refused.
        extend: whether a run may be given more `training.steps` than it began with.

    Raises:
        UserError: a mistake in the settings, or a folder that belongs to another experiment.
        RunError: too many losses are not finite.
        Preempted: a notice to stop came, and what was learnt is saved.
    """
    if experiment.training.compilation_cache is not None:
        jax.config.update("jax_compilation_cache_dir", str(Path(experiment.training.compilation_cache).expanduser()))
    with Notices() as notices:
        _train_run(experiment, Path(workdir), extend, notices)


def _train_run(experiment: Experiment, workdir: Path, extend: bool, notices: Notices) -> None:
    clock = Stopwatch()
    check_same(experiment, workdir)
    experiment.training.mesh.make(experiment.data.batch_size, experiment.model)
    if first():
        _refuse_foreign(workdir, experiment, extend)
    with clock("build"), one_ahead("build"):  # opening a dataset may build it
        sources = {split: experiment.data.dataset.open(split) for split in ("train", "validation")}
    label_names = dict(sources["train"].label_names)
    task = experiment.task.fit(sources["train"])
    check_monitor(experiment.training.monitor, task.metric_names(task.outputs(experiment.model, label_names)))
    start = experiment.training.initialise_from
    if start is not None and not any(workdir.glob("checkpoints/*")) and not Path(start).exists():
        raise UserError(f"there is no {start} to initialise from (training.initialise_from)")
    with _locked(workdir):
        if first():
            save_config(experiment, workdir / "config.json")
        trained = train(
            model=experiment.model,
            task=task,
            data=experiment.data,
            optimizer=experiment.optimizer,
            settings=experiment.training,
            sources=sources,
            workdir=workdir,
            clock=clock,
            notices=notices,
            record={
                "config": configuration.to_dict(experiment),
                "task": configuration.to_dict(task),
                "label_names": label_names,
            },
            initialise=None if start is None else functools.partial(_variables_of, Path(start), experiment.model),
        )
        if trained.resumed_at == (done := int(trained.state.step)):
            early = "no better for long; a higher --training.patience goes on"
            whole = f"all {done} steps are done; --training.steps N --extend goes on"
            say(f"{workdir} is finished: {whole if done == experiment.training.steps else early}")
            if any((row["step"], row["split"]) == (trained.best_step, "test") for row in read_metrics(workdir)):
                return
        _evaluate(workdir, "test", "best", clock)
    if trained.figures:
        say(
            "after its first steps training waited for input {input_wait_percent:.1f} % of the time; "
            "decoding took {decode_core_percent:.0f} % of the cores".format(**trained.figures)
        )
    say(f"time: {clock}")
    say(f"see {workdir / 'report.md'}")


def evaluate_run(workdir: str | Path, *, split: str = "test", which: Which = "best") -> dict[str, Any]:
    """Evaluates a run on a split, adds the figures to metrics.jsonl and writes the report.

    Args:
        split: "train", "validation" or "test". Figures of "train" are not added: the log has those of training.
        which: the best checkpoint by the run's monitored figure, or the last.

    Returns:
        {"step": of the checkpoint, "views": ..., figures by name (accuracies in percent), "per_class": {label:
        {class: {figure: value}}}, "confusion": {label: counts [true class][predicted class]}}.
    """
    load_config(workdir)
    with _locked(Path(workdir)):
        figures = _evaluate(Path(workdir), split, which, Stopwatch())
    say(f"see {Path(workdir) / 'report.md'}")
    return figures


def predict_files(
    workdir: str | Path, files: Sequence[str | Path], *, which: Which = "best", top: int = 5
) -> dict[str, dict[str, dict[str, float]]]:
    """Returns {file: {label: {class: probability}}} of the `top` classes, most probable first.

    Raises:
        UserError: a file cannot be read as video; the message names each.
    """
    run = load_run(workdir, which)
    experiment, data = run.experiment, run.experiment.data
    model = on_device(experiment.model, run.sharding.mesh.devices.flat[0])
    answers, broken = {}, []
    for file in map(str, files):
        try:
            video = data.read_views({"video": file})
        except (VideoError, OSError) as error:
            broken.append(str(error))
            continue
        views = jax.device_put((video[None], np.array([len(video)], np.int32)))
        logits = predict(run.variables, *views, model=model, task=experiment.task)
        rows = {label: np.asarray(row[0]) for label, row in experiment.task.named(logits, run.names).items()}
        answers[file] = presenter_for(experiment.task).answer(rows, run.names, top)
    if broken:
        raise UserError("these files cannot be read as video:\n" + "\n".join(broken))
    return answers


def step_seconds(experiment: Experiment, source: Source, *, steps: int = 5) -> float:
    """Returns the median time of a training step on one device, compiled, with a batch that is there already."""
    task = experiment.task.fit(source)
    model, optimizer = (
        on_device(experiment.model, jax.devices()[0]),
        experiment.optimizer.make(experiment.training.steps),
    )
    parts = {"model": model, "task": task, "optimizer": optimizer}
    with_ema, seed = experiment.training.ema_decay is not None, experiment.training.seed
    batches = experiment.data.train_batches(source, seed, range(1))
    with contextlib.closing(batches):
        batch = {name: x for name, x in next(batches).items() if name != "decode_seconds"}
    batch = jax.device_put(batch)
    state = jax.jit(lambda: init_state(*parts.values(), batch, seed, with_ema=with_ema))()
    step = functools.partial(train_step, **parts, seed=seed, ema_decay=experiment.training.ema_decay)
    step, seconds = jax.jit(step, donate_argnums=0), []
    for _ in range(steps + 1):
        began = time.perf_counter()
        state, _ = jax.block_until_ready(step(state, batch))
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds[1:])  # the first compiles


def is_run(path: Path) -> bool:
    """Whether a folder is a run's: its config.json has our format, not Hugging Face's."""
    if not (path / "config.json").is_file():
        return False
    config = read_json(path / "config.json")
    return isinstance(config, dict) and {"format", "experiment"} <= config.keys()


def load_run(workdir: str | Path, which: Which = "best") -> Run:
    """Returns what a run learnt, on the mesh of its training where that fits the devices that are here.

    Raises:
        UserError: not a run's folder, or no checkpoint in it that can be read.
    """
    workdir = Path(workdir)
    experiment = load_config(workdir)
    mesh = _mesh_here(experiment)
    experiment = dataclasses.replace(experiment, data=experiment.data.for_devices(mesh.size))
    averaged = experiment.training.ema_decay is not None
    abstract = _abstract_variables(experiment, mesh)
    with _checkpoints_of(workdir) as checkpoints:
        steps = checkpoints.steps()
        _, record = checkpoints.restore(steps[-1], {})
        best = (record["best"] or {}).get("step")
        step = best if which == "best" and best in steps else steps[-1]
        variables = _restore_variables(checkpoints, step, abstract, averaged)
    if "task" in record:
        experiment = dataclasses.replace(experiment, task=configuration.from_dict(record["task"], str(workdir)))
    label_names = {label: tuple(names) for label, names in record["label_names"].items()}
    names = experiment.task.outputs(experiment.model, label_names)
    return Run(experiment, variables, step, names, batch_sharding(mesh))


def _evaluate(workdir: Path, split: str, which: Which, clock: Stopwatch) -> dict[str, Any]:
    with clock("evaluate"):
        run = load_run(workdir, which)
        experiment, data = run.experiment, run.experiment.data
        presenter = presenter_for(experiment.task)
        source = data.dataset.open(split)
        predictions = evaluate(
            experiment.model, experiment.task, run.variables, data, source, run.sharding, split=split
        )
        figures = experiment.task.metrics(predictions)
    if predictions.unreadable:
        say(predictions.complaint())
    say(f"step {run.step}: {split} split ({predictions.over}) {presenter.headline(figures)}")
    with clock("report"):
        name = "val" if split == "validation" else split
        row = {"step": run.step, "split": name, **figures}
        rows = read_metrics(workdir)
        training = next((each for each in reversed(rows) if each["split"] == "train"), {})
        shown = np.linspace(0, len(predictions.index) - 1, min(8, len(predictions.index))).astype(int)
        # views that were read already: others may be where a video is damaged; copies of them, not whole videos
        clips = np.stack([data.read_views(source[int(index)])[0].copy() for index in predictions.index[shown]])
        settled = on_device(experiment.model, run.sharding.mesh.devices.flat[0])
        results = report.Results(settled, run.variables, split, predictions, run.names, clips, shown)
        parameters = sum(leaf.size for leaf in jax.tree.leaves(run.variables["params"]))
        model = type(experiment.model).__name__
        sections = presenter.sections(results)
        if first():
            report.write(
                workdir,
                title=workdir.absolute().name,
                facts=[
                    f"Model: {model}, {parameters:,} parameters, clips of {data.num_frames} frames of "
                    f"{data.image_size[0]}x{data.image_size[1]} pixels",
                    f"Checkpoint: step {run.step} of {experiment.training.steps}, the {which}; "
                    f"seed {experiment.training.seed}",
                    f"Devices: {run.sharding.mesh.size} x {jax.devices()[0].device_kind}; jax {jax.__version__}",
                    f"Training: {training.get('replaced', 0)} clips were replaced by others, of "
                    f"{training.get('unreadable', 0)} videos that cannot be read; "
                    f"{training.get('skipped', 0)} steps were skipped",
                    "Settings: [config.json](config.json); figures: [metrics.jsonl](metrics.jsonl)",
                ],
                figures=figures,
                rows=[*rows, row],
                curves=presenter.curves,
                results=results,
                problems=predictions.problems(),
                sections=sections,
            )
        # last, so that the row says that the report is there
        if split != "train":
            with MetricsLog(workdir, lambda row: (row["step"], row["split"]) != (run.step, name)) as log:
                log.write(run.step, name, {"views": predictions.views, **figures})
    details = presenter.tables(predictions, run.names)
    return {"step": run.step, "views": predictions.views, **figures, **details}


def _refuse_foreign(workdir: Path, experiment: Experiment, extend: bool) -> None:
    """Raises UserError unless the folder is new, or a run that differs in free settings alone."""
    if workdir.exists() and not workdir.is_dir():
        raise UserError(f"{workdir} is a file; --workdir takes a folder")
    if not (workdir / "config.json").exists():
        strangers = sorted(path.name for path in workdir.glob("[!.]*")) if workdir.exists() else []
        if strangers:
            raise UserError(
                f"{workdir} is not empty and no run's folder: it has {', '.join(strangers[:5])} and no config.json; "
                "choose another --workdir"
            )
        return
    changed = configuration.differences(load_config(workdir), experiment)
    refused = {
        path: values for path, values in changed.items() if not configuration.is_mutable_on_resume(experiment, path)
    }
    if "training.steps" in refused and extend:
        old, new = refused.pop("training.steps")
        if new < old:
            raise UserError(f"training.steps is {new}, fewer than the {old} that {workdir} began with")
    if refused and any(workdir.glob("checkpoints/[0-9]*")):
        hint = " --extend lets training.steps grow." if set(refused) == {"training.steps"} else ""
        lines = "".join(f"\n  {path}: {old!r} there, {new!r} here" for path, (old, new) in refused.items())
        raise UserError(
            f"{workdir} holds a run with other settings; give this one a --workdir of its own, or the same settings."
            f"{hint}{lines}"
        )


@contextlib.contextmanager
def _locked(workdir: Path) -> Iterator[None]:
    """Makes the folder if need be and holds it: two processes must not write one run."""
    if not first():  # the first process holds it for all
        together("locked")
        yield
        return
    lock = filelock.FileLock(workdir / ".lock")
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except filelock.Timeout:
        raise UserError(f"{workdir} is in use by another vitx process; wait until it ends") from None
    except OSError as error:
        raise UserError(f"{workdir} cannot be written: {error.strerror or error}; choose another --workdir") from error
    together("locked")
    try:
        yield
    finally:
        lock.release()


def _checkpoints_of(workdir: Path) -> Checkpoints:
    folder = workdir / "checkpoints"
    if not folder.is_dir():
        raise UserError(f"{workdir} has no checkpoints yet")
    checkpoints = Checkpoints(folder, read_only=True)
    if not checkpoints.steps():
        raise UserError(f"{folder} holds no complete checkpoint yet")
    return checkpoints


def _mesh_here(experiment: Experiment) -> jax.sharding.Mesh:
    """The mesh of the training where it fits the devices that are here.

    Otherwise these share the batch, and the parameters if those of the training did.
    """
    mesh, batch = experiment.training.mesh, jax.device_count()  # a batch that divides over any of them
    try:
        return mesh.make(batch, experiment.model)
    except UserError:
        return (Mesh() if mesh.fsdp == 1 else Mesh(data=1, fsdp=-1)).make(batch)


def _abstract_variables(experiment: Experiment, mesh: jax.sharding.Mesh) -> dict[str, Any]:
    video = jax.ShapeDtypeStruct((1, experiment.data.num_frames, *experiment.data.image_size, 3), np.uint8)
    init = functools.partial(experiment.task.init, experiment.model, batch={"video": video})
    shapes = dict(jax.eval_shape(init, jax.random.key(0)))
    return abstract_state(shapes, state_shardings(shapes, mesh))


def _restore_variables(checkpoints: Checkpoints, step: int, abstract: dict[str, Any], averaged: bool) -> dict[str, Any]:
    part = "ema" if averaged else "variables"
    state, _ = checkpoints.restore(step, {part: abstract})
    return state[part]


def _variables_of(path: Path, model: nn.Module, abstract: dict[str, Any]) -> dict[str, Any]:
    """Returns the parameters of another run, or of weights from elsewhere, for a new run to start from."""
    if not is_run(path):
        variables = initialise(path, model)
        return jax.tree.map(lambda leaf, like: jax.device_put(leaf, like.sharding), variables, abstract)
    averaged = load_config(path).training.ema_decay is not None
    with _checkpoints_of(path) as checkpoints:
        return _restore_variables(checkpoints, checkpoints.steps()[-1], abstract, averaged)
