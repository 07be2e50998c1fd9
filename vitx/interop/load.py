"""Weights in: Hugging Face directories, our own files, and bare files of other people's names."""

import sys
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from flax import linen as nn

from vitx.configuration import names_marked, override, settings
from vitx.errors import UserError
from vitx.interop import cnn, huggingface, images, names, trees
from vitx.interop.fill import Report, Source, VideoModel, fill
from vitx.interop.images import FromImage
from vitx.interop.own import is_own, read_own
from vitx.interop.preprocessing import Preprocessing
from vitx.interop.tensors import read_tensors
from vitx.layers.embeddings import height_and_width
from vitx.models import create_model
from vitx.models.cnn import VideoCNN
from vitx.models.transformer import VideoTransformer
from vitx.storage import read_json


class Pretrained(tuple):
    """(model, variables), with what came along.

    Attributes:
        report: what became of every tensor.
        preprocessing: of the pixels, where the source says.
        labels: names of the classes, where the source says; by head, where there are several.
    """

    report: Report
    preprocessing: Preprocessing | None
    labels: Any

    def __new__(cls, model: Any, variables: Any, report: Report, preprocessing: Any = None, labels: Any = None):
        self = super().__new__(cls, (model, variables))
        self.report, self.preprocessing = report, preprocessing
        self.labels = next(iter(labels.values())) if labels and isinstance(model.num_classes, int) else labels
        return self


def read_source(
    path: Path,
    name: str | None,
    fields: Mapping[str, Any],
    from_image: FromImage = FromImage(),  # noqa: B008  frozen
) -> Source:
    """Returns the tensors of anything but a run's folder.

    Args:
        name: of the model, for a bare file; elsewhere it must agree with what is found.
        fields: of the model that is wanted; an image model is inflated to its shape.

    Raises:
        UserError: nothing there that can be read, or something else than `name`.
    """
    if not path.exists():
        raise UserError(f"there is no {path}")
    if path.is_dir() or is_own(path):
        source = _huggingface(path) if path.is_dir() else read_own(path)
        if name is not None:
            promised = (
                settings(source.model).keys() - names_marked(type(source.model), "chosen_by_user") - fields.keys()
            )
            if lines := _differing(source.model, create_model(name), promised):
                raise UserError(f"{path} holds another model than {name}; leave the name out, or give its own{lines}")
        return source
    if name is None:
        raise UserError(f"{path} is a bare file of weights; say the model's name too (`vitx models` lists them)")
    return _bare(path, create_model(name), fields, from_image)


def load_source(
    source: Source,
    where: str,
    fields: Mapping[str, Any],
    *,
    allow_missing: Sequence[str] = (),
    allow_unexpected: Sequence[str] = (),
) -> Pretrained:
    """Returns the source's model with fields replaced, its variables, and what came along; prints the report.

    Raises:
        UserError: the tensors do not fit.
    """
    target = override(source.model, fields)
    swap_head = "num_classes" in fields
    allowed = {"allow_missing": allow_missing, "allow_unexpected": allow_unexpected}
    variables, report = fill(source, target, where, swap_head=swap_head, **allowed)
    print(f"{where}: {report}", file=sys.stderr)
    preprocessing = source.preprocessing
    if preprocessing is not None:
        preprocessing = preprocessing.resized(target.input_shape[0], target.input_shape[1:3])
        if preprocessing.note:
            print(f"{where}: {preprocessing.note}", file=sys.stderr)
    labels = source.labels if target.num_classes == source.model.num_classes else None
    return Pretrained(target, variables, report, preprocessing, labels)


def initialise(path: str | Path, model: nn.Module) -> dict[str, Any]:
    """Returns the variables of a given model from any weights that fit it, for training: its head may be fresh.

    Raises:
        UserError: the weights are of a model that computes something else, or do not fit.
    """
    if not isinstance(model, VideoModel):
        raise UserError(f"{type(model).__name__} starts from a run of vitx; {path} is none")
    path = Path(path)
    bare = path.is_file() and not is_own(path)
    source = _bare(path, model, {}, FromImage()) if bare else read_source(path, None, {})
    if lines := _differing(source.model, model, names_marked(type(model), "changes_function")):
        raise UserError(f"{path} holds weights of another function; set the model's fields to its own{lines}")
    variables, report = fill(source, model, str(path), swap_head=True)
    print(f"{path}: {report}", file=sys.stderr)
    return variables


def _differing(there: VideoModel, here: VideoModel, fields: Collection[str]) -> str:
    """Returns a line for each of the fields in which two models differ, or one for their classes."""
    if type(there) is not type(here):
        return f"\n  model: {type(there).__name__} there, {type(here).__name__} here"
    found, expected = settings(there), settings(here)
    differing = [name for name in found if name in fields and found[name] != expected[name]]
    return "".join(f"\n  {name}: {found[name]!r} there, {expected[name]!r} here" for name in differing)


def _huggingface(path: Path) -> Source:
    if not (path / "config.json").is_file():
        raise UserError(f"{path} is not a run's folder and not a Hugging Face directory: it has no config.json")
    where, config = str(path / "config.json"), read_json(path / "config.json")
    if not isinstance(config, dict):
        raise UserError(f"{where} is no JSON object")
    architecture, model = huggingface.architecture_of(config, where), huggingface.model_of(config, where)
    tensors = huggingface.renamed(huggingface.read_weights(path), architecture.model_type)
    preprocessing, file = None, path / "preprocessor_config.json"
    if file.is_file():
        try:
            size = height_and_width(model.image_size)
            preprocessing = Preprocessing.from_huggingface(read_json(file), model.num_frames, size)
        except (TypeError, ValueError, AttributeError, OverflowError) as error:
            raise UserError(f"{file} cannot be understood: {error}") from error
    labels = huggingface.labels_of(config, where)
    found = names.to_ours(tensors, architecture.rules)
    return Source(*found, model, preprocessing=preprocessing, labels=labels and {"class": labels})


def _bare(path: Path, model: VideoModel, fields: Mapping[str, Any], how: FromImage) -> Source:
    if not isinstance(model, VideoTransformer | VideoCNN):
        raise UserError(
            f"{path} is a bare file of weights; {type(model).__name__} is read from runs of vitx and files that "
            "`vitx convert` wrote alone"
        )
    tensors = read_tensors(path)
    shaped = override(model, {name: x for name, x in fields.items() if name != "num_classes"})
    if isinstance(model, VideoCNN):
        return cnn.state_dict_source(path, tensors, shaped, how)
    if trees.is_tree(tensors):
        found, theirs, state = trees.to_ours(tensors)
        if found.get("embedding/kernel", np.empty(0)).ndim == 5:  # scenic's ViViT; that of an image has four axes
            return Source(found, theirs, (), model, set_aside=state)
        if found.get("embedding/kernel", np.empty(0)).ndim == 4:
            found["embedding/kernel"] = found["embedding/kernel"][None]
        kind, unknown = images.JAX, ()
    elif family := huggingface.family_of(tensors):
        architecture = huggingface.architecture_for(model)
        if architecture.model_type != family:
            raise UserError(f"{path} holds a {family}, and the model asked for is {type(model).__name__}")
        return Source(*names.to_ours(huggingface.renamed(tensors, family), architecture.rules), model)
    else:
        kind = next((kind for kind in (images.HUGGINGFACE, images.TIMM) if kind.recognises(tensors)), images.TIMM)
        found, theirs, unknown = names.to_ours(kind.renamed(tensors), kind.rules)
    lacking = [name for name in ("embedding/kernel", "embedding/bias", "positions/positions") if name not in found]
    if lacking:
        raise UserError(
            f"{path} holds no weights that are known here (Vivit's, Timesformer's, scenic's, or an image ViT's with "
            f"learned positions): found {', '.join(sorted(tensors)[:3])}, ..., missing {', '.join(lacking)}"
        )
    # positions are those of the shape asked for already, and the image's function is the video model's
    model = override(shaped, kind.function)
    inflated, sources = images.inflated(found, model, how)
    used = {sources[path] for path in inflated if path in sources}
    return Source(
        inflated,
        {path: theirs[image] for path, image in sources.items() if image in theirs},
        tuple(name for name in unknown if not kind.leaves(name)),
        model,
        may_miss=("head/*", "temporal_*", "*_dense/*", "*/class_token", "positions/time_positions"),
        set_aside=(
            *(name for image, name in theirs.items() if image not in used),
            *(name for name in unknown if kind.leaves(name)),
        ),
        inflation=how.inflation,
    )
