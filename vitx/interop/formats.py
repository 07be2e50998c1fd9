"""Formats of weights: one object for each, in one table; the first that matches a path reads it.

Two layers are open to plug-ins: containers (`tensors.READERS`: from a file to tensors by name) and the formats here
(from names and settings to a model's variables).
"""

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import Any, Protocol, runtime_checkable

from flax import linen as nn

from vitx.configuration import override
from vitx.errors import UserError
from vitx.interop import architectures, cnn, huggingface, images, names, trees, videomae
from vitx.interop.fill import WeightsSource
from vitx.interop.images import FromImage
from vitx.interop.own import is_own, read_own
from vitx.interop.preprocessing import Preprocessing
from vitx.interop.tensors import Tensors, read_tensors
from vitx.interop.wrappers import Unwrapped, unwrap
from vitx.layers.embeddings import height_and_width
from vitx.local_copies import local_copy
from vitx.models.transformer import VideoTransformer
from vitx.models.videomae import VideoMAE, VideoMAEPretraining
from vitx.plugins import Registry
from vitx.storage import is_file, is_folder, read_json


@dataclasses.dataclass(frozen=True)
class WeightsPath:
    """A file or directory of weights, local or in a bucket; its content is read when it is first needed."""

    path: PurePath

    @functools.cached_property
    def local(self) -> Path:
        """A local file with the content of the file."""
        return local_copy(self.path)

    @functools.cached_property
    def config(self) -> Any:
        """Content of a directory's config.json; None without one."""
        file = self.path / "config.json"
        return read_json(file) if is_file(file) else None

    @functools.cached_property
    def is_own(self) -> bool:
        """Whether it is a file of our format, which carries its model."""
        return not is_folder(self.path) and is_own(self.local)

    @functools.cached_property
    def unwrapped(self) -> Unwrapped:
        """Weights of a file, without prefixes and dictionaries around them; none for a directory."""
        tensors = {} if is_folder(self.path) else read_tensors(self.local)
        if trees.is_tree(tensors):
            return Unwrapped(tensors)
        return unwrap(tensors, lambda found: is_known(Candidate(self.path, found)))

    @property
    def tensors(self) -> Tensors:
        """Tensors of a file by the names that it has for them; none for a directory."""
        return self.unwrapped.tensors


@dataclasses.dataclass(frozen=True)
class Candidate(WeightsPath):
    """Some of the tensors of a file, which may be weights of a known format."""

    candidates: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def tensors(self) -> Tensors:
        return dict(self.candidates)


@dataclasses.dataclass(frozen=True)
class Request:
    """Model that a caller wants weights for.

    Attributes:
        model: model that the caller named, with its own shapes; None where the source must know its model itself.
        fields: {field of the model: value that the caller set}.
        from_image: how an image network is inflated.
    """

    model: nn.Module | None
    fields: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    from_image: FromImage = FromImage()

    @property
    def shaped(self) -> Any:
        """The model with the caller's fields, but for its head."""
        return override(self.model, {name: x for name, x in self.fields.items() if name != "num_classes"})


@runtime_checkable
class WeightFormat(Protocol):
    """A way to store weights.

    Attributes:
        description: name of the format, for messages.
        carries_model: whether the weights come with their model; other formats need the model's name.
    """

    description: str
    carries_model: bool

    def matches(self, source: WeightsPath) -> bool:
        """Returns whether a path is of this format."""

    def fills(self, model: nn.Module) -> bool:
        """Returns whether weights of this format can be those of a model; not asked where they carry their own."""

    def read(self, source: WeightsPath, request: Request) -> WeightsSource:
        """Returns the weights of a path that matches, under our paths."""


class HuggingFaceDirectory:
    """A directory that transformers wrote: config.json, weights, perhaps preprocessor_config.json."""

    description = "a Hugging Face directory (Vivit, Timesformer, VideoMAE)"
    carries_model = True

    def matches(self, source: WeightsPath) -> bool:
        return isinstance(source.config, dict) and source.config.get("model_type") in architectures.MODEL_TYPES

    def fills(self, model: nn.Module) -> bool:
        return architectures.find_architecture(model) is not None

    def read(self, source: WeightsPath, request: Request) -> WeightsSource:
        path, config, where = source.path, source.config, str(source.path / "config.json")
        architecture, model = architectures.architecture_of(config, where), huggingface.model_of(config, where)
        unwrapped = unwrap(
            huggingface.read_weights(path), lambda tensors: architectures.family_of(tensors) == architecture.model_type
        )
        tensors = architectures.rename_tensors(unwrapped.tensors, architecture.model_type)
        preprocessing, notes = None, [unwrapped.note] if unwrapped.note else []
        if is_file(file := path / "preprocessor_config.json"):
            try:
                size = height_and_width(model.image_size)
                preprocessing = Preprocessing.from_huggingface(read_json(file), model.num_frames, size)
            except (TypeError, ValueError, AttributeError, OverflowError, UserError) as error:
                # The weights are sound whatever this file holds.
                notes.append(f"{file} cannot be understood and is left out: {error}")
        labels = huggingface.labels_of(config, where)
        found = names.to_ours(tensors, architecture.rules)
        return WeightsSource(
            *found,
            model,
            set_aside=unwrapped.left_over,
            preprocessing=preprocessing,
            labels=labels and {"class": labels},
            notes=tuple(notes),
        )


class OwnFile:
    """A file that `vitx convert` wrote."""

    description = "a file that `vitx convert` wrote"
    carries_model = True

    def matches(self, source: WeightsPath) -> bool:
        return source.is_own

    def fills(self, model: nn.Module) -> bool:
        return True

    def read(self, source: WeightsPath, request: Request) -> WeightsSource:
        return read_own(source.local)


class ScenicViViT:
    """A tree of scenic's ViViT: its patch kernel has five axes, an image's has four."""

    description = "scenic's ViViT"
    carries_model = False

    def matches(self, source: WeightsPath) -> bool:
        return trees.is_tree(source.tensors) and trees.kernel_axes(source.tensors) == 5

    def fills(self, model: nn.Module) -> bool:
        return isinstance(model, VideoTransformer)

    def read(self, source: WeightsPath, request: Request) -> WeightsSource:
        found, original, state = trees.to_ours(source.tensors)
        return WeightsSource(found, original, (), request.model, set_aside=state)


@dataclasses.dataclass(frozen=True)
class HuggingFaceTensors:
    """Tensors of a video Transformer of Hugging Face, without the config.json beside them."""

    model_type: str
    carries_model = False

    @property
    def description(self) -> str:
        return f"Hugging Face's {self.model_type}"

    def matches(self, source: WeightsPath) -> bool:
        return architectures.family_of(source.tensors) == self.model_type

    def fills(self, model: nn.Module) -> bool:
        architecture = architectures.find_architecture(model)
        return architecture is not None and architecture.model_type == self.model_type

    def read(self, source: WeightsPath, request: Request) -> WeightsSource:
        tensors = architectures.rename_tensors(source.tensors, self.model_type)
        rules = architectures.architecture_for(request.model).rules
        return WeightsSource(*names.to_ours(tensors, rules), request.model)


class AuthorsVideoMAE:
    """A file of VideoMAE, VideoMAE V2 or Unmasked Teacher."""

    description = "VideoMAE's, VideoMAE V2's and Unmasked Teacher's own files"
    carries_model = False

    def matches(self, source: WeightsPath) -> bool:
        return videomae.is_authors(source.tensors)

    def fills(self, model: nn.Module) -> bool:
        return isinstance(model, VideoMAE | VideoMAEPretraining)

    def read(self, source: WeightsPath, request: Request) -> WeightsSource:
        return videomae.authors_source(source.tensors, request.model)


@dataclasses.dataclass(frozen=True)
class ImageTransformer:
    """An image ViT, inflated to the video model that the caller named."""

    kind: images.ImageFormat
    carries_model = False

    @property
    def description(self) -> str:
        return f"{self.kind.library}'s image ViT with learned positions"

    def matches(self, source: WeightsPath) -> bool:
        return self.kind.recognises(source.tensors)

    def fills(self, model: nn.Module) -> bool:
        return isinstance(model, VideoTransformer)

    def read(self, source: WeightsPath, request: Request) -> WeightsSource:
        return images.image_source(source.path, self.kind, source.tensors, request.shaped, request.from_image)


@dataclasses.dataclass(frozen=True)
class StateDict:
    """A convolutional network's state dict."""

    layout: cnn.StateDictLayout
    carries_model = False

    @property
    def description(self) -> str:
        return self.layout.description

    def matches(self, source: WeightsPath) -> bool:
        return self.layout.sign in source.tensors

    def fills(self, model: nn.Module) -> bool:
        return self.layout.fills(model)

    def read(self, source: WeightsPath, request: Request) -> WeightsSource:
        return cnn.state_dict_source(source.path, source.tensors, self.layout, request.shaped, request.from_image)


# The first format that matches reads. `vitx.pretrained` adds runs, whose reading needs experiments and checkpoints.
FORMATS: Registry[WeightFormat] = Registry(
    "weight format",
    {
        "vitx": OwnFile(),
        "huggingface": HuggingFaceDirectory(),
        "scenic": ScenicViViT(),
        "vivit": HuggingFaceTensors("vivit"),
        "timesformer": HuggingFaceTensors("timesformer"),
        "videomae": HuggingFaceTensors("videomae"),
        "videomae_authors": AuthorsVideoMAE(),
        **{f"image_{name}": ImageTransformer(kind) for name, kind in images.FORMATS.items()},
        **{layout.rules.__name__.removesuffix("_rules"): StateDict(layout) for layout in cnn.LAYOUTS},
    },
)


def is_known(source: WeightsPath) -> bool:
    """Returns whether tensors have the names of a format that does not carry its model."""
    return any(kind.matches(source) for kind in FORMATS.values() if not kind.carries_model)


def find_format(source: WeightsPath, model: nn.Module | None) -> WeightFormat:
    """Returns the format of a path.

    Args:
        source: path that exists.
        model: model that the caller named.

    Raises:
        UserError: no format matches, it needs the model's name, or cannot fill that model.
    """
    path = source.path
    found = next((kind for kind in FORMATS.values() if kind.carries_model and kind.matches(source)), None)
    if found is not None:
        return found
    if is_folder(path):
        where = path / "config.json"
        if not is_file(where):
            raise UserError(f"{path} is not a run's folder and not a Hugging Face directory: it has no config.json")
        if not isinstance(source.config, dict):
            raise UserError(f"{where} is no JSON object")
        architectures.architecture_of(source.config, str(where))  # says which types are known
    if model is None:
        raise UserError(f"{path} is a bare file of weights; give the model's name too (`vitx models` lists them)")
    readable = [kind.description for kind in FORMATS.values() if not kind.carries_model and kind.fills(model)]
    if not readable:
        raise UserError(f"{path} is a bare file of weights; {_readable_from(model, readable)}")
    found = next((kind for kind in FORMATS.values() if not kind.carries_model and kind.matches(source)), None)
    if found is not None and found.fills(model):
        return found
    listed = ", ".join(sorted(source.tensors)[:3])
    content = found.description if found else "no weights that are known here"
    raise UserError(f"{path} holds {content} (it names {listed}, ...); {_readable_from(model, readable)}")


def _readable_from(model: nn.Module, descriptions: list[str]) -> str:
    trunk = f" of a {type(model.trunk).__name__}" if hasattr(model, "trunk") else ""
    where = " or ".join(descriptions) or "runs of vitx and files that `vitx convert` wrote"
    return f"{type(model).__name__}{trunk} is read from {where}"
