"""Weights from any source, a run's folder too: load them, start from them, convert them."""

import contextlib
import dataclasses
import functools
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import PurePath
from typing import Any

import jax
import numpy as np
from flax import linen as nn

from vitx import configuration, storage
from vitx.checkpoints import abstract_state, suppress_orbax_info_logs
from vitx.errors import UserError, as_user_error
from vitx.experiment import Experiment, load_config
from vitx.interop.fill import Report, Variables, WeightsSource, check_layers, flatten_variables
from vitx.interop.formats import FORMATS, Request, WeightsPath
from vitx.interop.heads import Names
from vitx.interop.huggingface import save_huggingface
from vitx.interop.images import FromImage
from vitx.interop.load import Pretrained, fill_model, load_source, read_named_source, require_source
from vitx.interop.own import save_own
from vitx.interop.preprocessing import Preprocessing
from vitx.interop.tensors import READERS
from vitx.models import VideoModel
from vitx.run_folder import check_record, is_run, open_checkpoints
from vitx.storage import as_path, check_writable, local_path
from vitx.training.processes import is_first_process


def load_pretrained(
    path: str | PurePath,
    name: str | None = None,
    *,
    from_image: FromImage = FromImage(),  # noqa: B008  frozen
    allow_missing: Sequence[str] = (),
    allow_unexpected: Sequence[str] = (),
    **fields: Any,
) -> Pretrained:
    """Returns (model, variables), with .report, .preprocessing and .labels; the report is printed to standard error.

    Args:
        path: a vitx run (its best checkpoint), a Hugging Face directory (Vivit, Timesformer), a file that
            `vitx convert` wrote, or a bare .safetensors, .npz, .msgpack or .pth file with the names of Hugging Face,
            scenic's ViViT, an image ViT or ResNet, or torchvision's or PyTorchVideo's video networks, which needs the
            model's `name`. It may lie in a bucket (gs://, s3://). Installed plug-ins may add formats.
        name: name of the model (`vitx.list_models()`), for a bare file; elsewhere it must agree with what is found.
        from_image: how an image network is inflated.
        allow_missing: patterns of our paths that may stay fresh ("head/*").
        allow_unexpected: patterns of names in the source that may be left over ("*pooler*").
        fields: fields of the model, in place of the source's: another num_frames or image_size resizes positions,
            another num_classes swaps the head for a fresh one.

    Raises:
        UserError: a file that cannot be read, another family's weights, missing or unexpected tensors, values that
            are not finite.
    """
    allowed = {"allow_missing": allow_missing, "allow_unexpected": allow_unexpected}
    return _load(as_path(path), name, fields, from_image, **allowed)


def start_from(
    path: str | PurePath,
    model: nn.Module,
    class_names: Names | None = None,
    *,
    init: Callable[[], Variables] | None = None,
) -> tuple[Variables, Report]:
    """Returns (variables of a model, report) to start training from; the report is printed to standard error too.

    The sources and rules of `load_pretrained`, for a model that is given: the best checkpoint of a run, averaged where
    the run has an average; positions are resized; a head of another size stays fresh.

    Args:
        path: source, as in `load_pretrained`.
        model: model to fill.
        class_names: {head: names of its classes or values}. Where the source has names too, classes are matched by
            name: rows of the head are reordered, and classes that the source does not have stay fresh.
        init: returns fresh variables; by default the model is initialised on its default clip.

    Raises:
        UserError: as in `load_pretrained`; or the source's model computes something else with the same parameters.
    """
    with _quiet():
        return fill_model(as_path(path), model, class_names, init)


def convert(
    source: str | PurePath,
    destination: str | PurePath,
    name: str | None = None,
    *,
    fields: Mapping[str, Any] | None = None,
    from_image: FromImage = FromImage(),  # noqa: B008  frozen
    allow_missing: Sequence[str] = (),
    allow_unexpected: Sequence[str] = (),
) -> Pretrained:
    """Writes weights from any source in another form; returns what was read.

    Args:
        source: as in `load_pretrained`.
        destination: one .safetensors file with our names, which needs no model's name to be loaded again; or a new
            directory, which becomes a Hugging Face one.
        name: name of the model, for a bare file.
        fields: fields of the model, in place of the source's.
        from_image: how an image network is inflated.
        allow_missing: patterns of our paths that may stay fresh.
        allow_unexpected: patterns of names in the source that may be left over.

    Raises:
        UserError: as in `load_pretrained` and `save_huggingface`; or the destination exists.
    """
    destination = local_path(destination)
    own = destination.suffix == ".safetensors"
    if own and destination.exists():
        raise UserError(f"{destination} exists; choose another name")
    if not own and destination.suffix in READERS:
        raise UserError(f"{destination} ends in {destination.suffix}; expected .safetensors or a directory")
    if not destination.absolute().parent.is_dir():
        raise UserError(f"{destination.parent} is no directory; create it first")
    check_writable(destination)
    allowed = {"allow_missing": allow_missing, "allow_unexpected": allow_unexpected}
    pretrained = _load(as_path(source), name, fields or {}, from_image, **allowed)
    model, variables = pretrained
    preprocessing, labels = pretrained.preprocessing, pretrained.labels
    if own:
        by_head = {"class": labels} if isinstance(labels, tuple) else labels
        save_own(model, variables, destination, preprocessing=preprocessing, labels=by_head)
    else:
        save_huggingface(model, variables, destination, preprocessing=preprocessing, labels=labels)
    return pretrained


def build_initialiser(
    experiment: Experiment, workdir: PurePath, output_names: Mapping[str, tuple[str, ...]]
) -> Callable[[Any], Any] | None:
    """Returns the function that creates the variables of a new run, or None where the seed draws them."""
    source = experiment.training.initialise_from
    if source is None:
        return None
    with as_user_error(of="training.initialise_from"):
        require_source(storage.as_path(source))
    return functools.partial(_initial_variables, experiment, workdir, output_names)


def _initial_variables(
    experiment: Experiment, workdir: PurePath, output_names: Mapping[str, tuple[str, ...]], abstract: Mapping[str, Any]
) -> dict[str, Any]:
    """Returns the variables of `initialise_from`, on the devices; writes which were used to the run's folder."""
    source = experiment.training.initialise_from
    init = functools.partial(experiment.init, jax.random.key(experiment.training.seed))
    variables, report = start_from(source, experiment.model, output_names, init=init)
    if is_first_process():
        record = {"source": source, **dataclasses.asdict(report)}
        storage.write_json(workdir / "initialised_from.json", record)
    return jax.tree.map(lambda leaf, like: jax.device_put(leaf, like.sharding), variables, abstract)


class RunFolder:
    """A run's folder, read at its best checkpoint."""

    description = "a run of vitx"
    carries_model = True

    def matches(self, source: WeightsPath) -> bool:
        return is_run(source.path)

    def fills(self, model: nn.Module) -> bool:
        return True

    def read(self, source: WeightsPath, request: Request) -> WeightsSource:
        experiment = load_config(source.path)
        data, task, model = experiment.data, experiment.task, experiment.model
        with open_checkpoints(source.path) as checkpoints:
            record = checkpoints.newest_record()
        check_record(source.path, record)
        check_layers(model, len(record["digests"]), str(source.path / "config.json"))
        variables, record = _restore_best(
            source.path, experiment.init, averaged=experiment.training.ema_decay is not None
        )
        if "task" in record:  # as it was fitted to the training split
            task = configuration.from_dict(record["task"], str(source.path))
        names = task.output_names(model, {label: tuple(classes) for label, classes in record["label_names"].items()})
        if isinstance(model, VideoModel) and not model.needs_input_shape:
            model = model.with_input_shape(data.num_frames, data.crop_size)
        return WeightsSource(
            {path: np.asarray(x) for path, x in flatten_variables(variables).items()},
            {},
            (),
            model,
            preprocessing=Preprocessing(
                task.mean, task.std, data.crop_size, data.eval_short_side, data.num_frames, data.frame_stride
            ),
            labels=names,
        )


FORMATS.add("run", RunFolder())


def _restore_best(
    workdir: PurePath, init: Callable[..., Variables], *, averaged: bool
) -> tuple[Variables, dict[str, Any]]:
    """Returns (variables, record) of a run's best checkpoint, the last where there is no best."""
    # whole on every device: with several processes, each can then read every array
    mesh = jax.make_mesh((jax.device_count(),), ("all",), axis_types=(jax.sharding.AxisType.Auto,))
    whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    shapes = dict(jax.eval_shape(init, jax.random.key(0)))
    abstract = abstract_state(shapes, jax.tree.map(lambda _: whole, shapes))
    part = "ema" if averaged else "variables"
    with open_checkpoints(workdir) as checkpoints:
        steps = checkpoints.steps()
        record = checkpoints.newest_record()
        best = (record["best"] or {}).get("step")
        state, _ = checkpoints.restore(best if best in steps else record["step"], {part: abstract})
    return state[part], record


def _load(
    path: PurePath, name: str | None, fields: Mapping[str, Any], from_image: FromImage, **allowed: Sequence[str]
) -> Pretrained:
    if is_run(path) and name is not None:
        raise UserError(f"{path} is a run, which carries its model; leave out {name}")
    with _quiet():
        return load_source(read_named_source(path, name, fields, from_image), str(path), fields, **allowed)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps warnings and logs of other libraries, which a user can do nothing about, off the terminal."""
    with suppress_orbax_info_logs(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"(orbax|torch|safetensors|tensorstore)\b")
        yield


def report_to_dict(report: Report) -> dict[str, Any]:
    """Returns a report as plain JSON data."""
    return dataclasses.asdict(report)
