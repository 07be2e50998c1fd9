"""Weights in: from a source of any format to a model and its variables, with a report of every tensor."""

import dataclasses
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import PurePath
from typing import Any

import jax
from flax import linen as nn

from vitx.configuration import names_marked, override, settings
from vitx.console import escape, print_text
from vitx.errors import UserError
from vitx.interop.fill import Report, Variables, WeightsSource, fill
from vitx.interop.formats import FORMATS, Request, WeightsPath, find_format
from vitx.interop.heads import Names
from vitx.interop.images import FromImage
from vitx.interop.preprocessing import Preprocessing
from vitx.interop.tensors import READERS
from vitx.interop.videomae import for_finetuning
from vitx.models import create_model
from vitx.storage import exists

HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")


class Pretrained(tuple):
    """(model, variables), with what came with them.

    Attributes:
        report: what became of every tensor.
        preprocessing: preprocessing of the pixels, where the source has it.
        labels: names of the classes, where the source has them; by head, where there are several.
    """

    report: Report
    preprocessing: Preprocessing | None
    labels: Any

    def __new__(cls, model: Any, variables: Any, report: Report, preprocessing: Any = None, labels: Any = None):
        self = super().__new__(cls, (model, variables))
        self.report, self.preprocessing = report, preprocessing
        single = isinstance(getattr(model, "num_classes", None), int)
        self.labels = next(iter(labels.values())) if labels and single else labels
        return self

    @property
    def model(self) -> nn.Module:
        """The model, its settings those of the source and of the caller."""
        return self[0]

    @property
    def variables(self) -> Variables:
        """Its parameters, and collections such as batch statistics."""
        return self[1]

    def __repr__(self) -> str:
        # a tuple's own would print every parameter
        parameters = sum(x.size for x in jax.tree.leaves(self.variables.get("params", {})))
        fresh = f", {len(self.report.fresh)} tensors fresh" if self.report.fresh else ""
        return f"<Pretrained {type(self.model).__name__}, {parameters:,} parameters{fresh}>"


def require_source(path: PurePath) -> None:
    """Raises UserError unless there is something at a path that weights could be read from."""
    if exists(path):
        return
    if HUB_NAME.fullmatch(str(path)) and path.suffix not in READERS and not exists(path.parent):
        raise UserError(
            f"there is no {path}, and vitx downloads nothing; if this is a model of the Hugging Face hub, run "
            f"`hf download {path} --local-dir {path.name}` and load the directory {path.name}"
        )
    raise UserError(f"there is no {path}")


def read_source(
    path: PurePath,
    model: nn.Module | None,
    fields: Mapping[str, Any] | None = None,
    from_image: FromImage = FromImage(),  # noqa: B008  frozen
) -> WeightsSource:
    """Returns the tensors of a source of any format, under our paths.

    Args:
        path: file or directory.
        model: model to fill; needed where the source does not carry its own.
        fields: fields of the model that the caller changed; an image model is inflated to its shape.
        from_image: how an image network is inflated.

    Raises:
        UserError: nothing is there, or it cannot be read.
    """
    require_source(path)
    source = WeightsPath(path)
    kind = find_format(source, model)
    found = kind.read(source, Request(model, fields or {}, from_image))
    if kind.carries_model or not source.unwrapped.note:
        return found
    left_over, note = source.unwrapped.left_over, source.unwrapped.note
    return dataclasses.replace(found, set_aside=(*found.set_aside, *left_over), notes=(*found.notes, note))


def read_named_source(
    path: PurePath, name: str | None, fields: Mapping[str, Any], from_image: FromImage
) -> WeightsSource:
    """Returns the tensors of a source, checked to be of the model that the caller named.

    Args:
        path: file or directory.
        name: name of a model variant, or None.
        fields: fields of the model that the caller changed, in which the source may differ from the variant.
        from_image: how an image network is inflated.

    Raises:
        UserError: nothing is there, it cannot be read, or it is of another model.
    """
    require_source(path)
    model = None if name is None else create_model(name)
    source = read_source(path, model, fields, from_image)
    source = source if model is None else for_finetuning(source, model)
    if model is not None and any(kind.carries_model and kind.matches(WeightsPath(path)) for kind in FORMATS.values()):
        promised = settings(source.model).keys() - names_marked(type(source.model), "chosen_by_user") - fields.keys()
        if lines := _list_differences(source.model, model, promised):
            raise UserError(f"{path} holds another model than {name}; leave the name out, or give its own", lines)
    return source


def load_source(
    source: WeightsSource,
    where: str,
    fields: Mapping[str, Any],
    *,
    allow_missing: Sequence[str] = (),
    allow_unexpected: Sequence[str] = (),
) -> Pretrained:
    """Returns the source's model with fields replaced, its variables, and what came with them; prints the report.

    Raises:
        UserError: the tensors do not fit.
    """
    target = override(source.model, fields)
    swap_head = "num_classes" in fields
    allowed = {"allow_missing": allow_missing, "allow_unexpected": allow_unexpected}
    variables, report = fill(source, target, where, swap_head=swap_head, **allowed)
    print_text(f"{escape(where)}: {report}", lines=True, error=True)
    preprocessing = source.preprocessing
    if preprocessing is not None:
        preprocessing = preprocessing.resize(target.input_shape[0], target.input_shape[1:3])
        if preprocessing.note:
            print_text(f"{where}: {preprocessing.note}", error=True)
    labels = source.labels if settings(target).get("num_classes") == settings(source.model).get("num_classes") else None
    return Pretrained(target, variables, report, preprocessing, labels)


def fill_model(
    path: PurePath,
    model: nn.Module,
    class_names: Names | None = None,
    init: Callable[[], Variables] | None = None,
) -> tuple[Variables, Report]:
    """Returns (variables, report) of a given model filled from any source, for training; prints the report.

    Args:
        path: file or directory.
        model: model to fill; its head is fresh where the source has other classes.
        class_names: {head: names of its classes}; rows of a head are matched by name where the source has names too.
        init: returns fresh variables of the model; by default it is initialised on its default clip.

    Raises:
        UserError: the weights are of a model that computes something else, or do not fit.
    """
    source = for_finetuning(read_source(path, model), model)
    if lines := _list_differences(source.model, model, names_marked(type(model), "changes_function")):
        raise UserError(f"{path} holds weights of another function; set the model's fields to the source's", lines)
    variables, report = fill(source, model, str(path), swap_head=True, class_names=class_names, init=init)
    print_text(f"{escape(str(path))}: {report}", lines=True, error=True)
    return variables, report


def _list_differences(source: nn.Module, model: nn.Module, fields: Collection[str]) -> list[str]:
    """Returns a line for each field in which two models differ, or one for their classes."""
    if type(source) is not type(model):
        return [f"model: {type(source).__name__} in the source, {type(model).__name__} expected"]
    found, expected = settings(source), settings(model)
    differing = [name for name in found if name in fields and found[name] != expected[name]]
    return [f"{name}: {found[name]!r} in the source, {expected[name]!r} expected" for name in differing]
