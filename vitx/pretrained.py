"""Weights from anywhere, a run's folder too: load them, and convert them."""

from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

import numpy as np

from vitx.errors import UserError
from vitx.interop.fill import Source, VideoModel, flattened
from vitx.interop.huggingface import save_huggingface
from vitx.interop.images import FromImage
from vitx.interop.load import Pretrained, load_source, read_source
from vitx.interop.own import save_own
from vitx.interop.preprocessing import Preprocessing
from vitx.interop.tensors import READERS
from vitx.local_copies import local_copy
from vitx.run import load_run
from vitx.run_folder import is_run
from vitx.storage import as_path, local_path


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
        path: a vitx run, a Hugging Face directory (Vivit, Timesformer), a file that `vitx convert` wrote, or a bare
            .safetensors, .npz, .msgpack or .pth file with the names of Hugging Face, scenic's ViViT, an image ViT or
            ResNet, or torchvision's or PyTorchVideo's video networks, which needs the model's `name`.
        name: of the model (`vitx.list_models()`), for a bare file; elsewhere it must agree with what is found.
        from_image: how an image network is inflated.
        allow_missing: patterns of our paths that may stay fresh ("head/*").
        allow_unexpected: patterns of their names that may be left over ("*pooler*").
        fields: of the model, in place of the source's: another num_frames or image_size resizes positions, another
            num_classes swaps the head for a fresh one.

    Raises:
        UserError: a file that cannot be read, another family's weights, missing or unexpected tensors, values that
            are not finite.
    """
    allowed = {"allow_missing": allow_missing, "allow_unexpected": allow_unexpected}
    return _load(as_path(path), name, fields, from_image, **allowed)


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
    """Writes weights from anywhere in another form; returns what was read.

    Args:
        source: as `load_pretrained`.
        destination: one .safetensors file with our names, which needs no model's name to be loaded again; or a new
            directory, which becomes a Hugging Face one.
        name: of the model, for a bare file.
        fields: of the model, in place of the source's.
        from_image: how an image network is inflated.
        allow_missing: patterns of our paths that may stay fresh.
        allow_unexpected: patterns of their names that may be left over.

    Raises:
        UserError: as `load_pretrained` and `save_huggingface`; or the destination is there already.
    """
    destination = local_path(destination)
    own = destination.suffix == ".safetensors"
    if own and destination.exists():
        raise UserError(f"{destination} is there already; choose another name")
    if not own and destination.suffix in READERS:
        raise UserError(f"{destination} ends in {destination.suffix}; what is written is .safetensors or a directory")
    if not destination.absolute().parent.is_dir():
        raise UserError(f"{destination.parent} is no directory; make it first")
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


def _load(
    path: PurePath, name: str | None, fields: Mapping[str, Any], from_image: FromImage, **allowed: Sequence[str]
) -> Pretrained:
    if is_run(path) and name is not None:
        raise UserError(f"{path} is a run, which says itself which model it is of; leave out {name}")
    source = _source_of_run(path) if is_run(path) else read_source(local_copy(path), name, fields, from_image)
    return load_source(source, str(path), fields, **allowed)


def _source_of_run(path: PurePath) -> Source:
    run = load_run(path)
    experiment = run.experiment
    data, task, model = experiment.data, experiment.task, experiment.model
    if not isinstance(model, VideoModel):
        raise UserError(
            f"{path} is a run of {type(model).__name__}; load_pretrained and convert give away models of vitx that "
            "classify, neither forecasters nor your own. `vitx predict` and `vitx evaluate` take the run itself"
        )
    if not model.needs_input_shape:
        model = model.with_input_shape(data.num_frames, data.image_size)
    tensors = {key: np.asarray(x) for key, x in flattened(run.variables).items()}
    preprocessing = Preprocessing(task.mean, task.std, data.image_size, None, data.num_frames, data.frame_stride)
    return Source(tensors, {}, (), model, preprocessing=preprocessing, labels=run.outputs)
