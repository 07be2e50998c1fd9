"""Typed settings: every part of an experiment is a frozen dataclass (Linen modules are), read and written alike.

One mechanism serves experiment files, the command line, ablation rows and `config.json`: a dotted path names a field,
the field's annotation checks the value, and a mistyped name is answered with the nearest one.
"""

import ast
import dataclasses
import functools
import math
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import typeguard

from vitx.errors import UserError, did_you_mean
from vitx.plugins import Registry

Part = TypeVar("Part")

MAX_DEPTH = 32  # levels of nested parts and tuples in settings
NOT_FINITE = ("inf", "-inf", "nan")  # floats that JSON lacks, as config.json writes them

# Modules that define parts, one a line; they are imported when config.json names a part that is not registered yet.
_PARTS: Registry[type] = Registry(
    "part",
    modules=(
        "vitx.data.files",
        "vitx.data.mixture",
        "vitx.data.moving_mnist",
        "vitx.data.prepared",
        "vitx.data.sources",
        "vitx.data.tfds_videos",
        "vitx.experiment",
        "vitx.interop.preprocessing",
        "vitx.layers.codec_tokens",
        "vitx.layers.dynamic_tokens",
        "vitx.layers.run_length",
        "vitx.layers.token_learner",
        "vitx.layers.token_merging",
        "vitx.models",
        "vitx.tasks.classification",
        "vitx.tasks.frame_prediction",
        "vitx.tasks.masked_prediction",
        "vitx.tasks.multilabel",
        "vitx.tasks.regression",
        "vitx.training.optimizers",
    ),
)


def register(cls: type[Part]) -> type[Part]:
    """Class decorator: lets `config.json` name this dataclass, by its class name."""
    _PARTS.add(cls.__name__, cls)
    return cls


def part_names(base: type) -> list[str]:
    """Returns the names of the registered classes that derive from a class."""
    return [name for name, cls in _PARTS.items() if issubclass(cls, base)]


def settings(part: Any) -> dict[str, Any]:
    """Returns the part's fields and values; a Linen module's `parent` and `name` are not settings."""
    return {name: getattr(part, name) for name in _annotations(type(part))}


def paths(part: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields (dotted path, value) of every setting that is not itself a part."""
    for name, value in settings(part).items():
        if dataclasses.is_dataclass(value):
            yield from paths(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def tuples_of_parts(part: Any, prefix: str = "") -> Iterator[str]:
    """Yields the dotted path of every setting that holds any number of parts; these are set in files alone."""
    for name, annotation in _annotations(type(part)).items():
        value = getattr(part, name)
        if dataclasses.is_dataclass(value):
            yield from tuples_of_parts(value, f"{prefix}{name}.")
        elif typing.get_origin(annotation) is tuple and any(map(dataclasses.is_dataclass, typing.get_args(annotation))):
            yield prefix + name


class Words(tuple):
    """Words of a command line, to be read as the type of the setting that they are given for."""

    __slots__ = ()


def read_words(annotation: Any, words: Words, where: str) -> Any:
    """Returns a command line's words as a value of a type; several words are a tuple.

    Args:
        annotation: type of the value.
        words: words of the command line.
        where: name of the setting, for messages.

    Raises:
        UserError: the words cannot be read as that type.
    """
    single = words[0] if len(words) == 1 else None
    if single == "None" and _accepts(annotation, None):
        return None
    if single is not None and _accepts(annotation, single):
        return single
    texts = words if single is None or annotation != tuple[str, ...] else _split_names(single)
    values = tuple(_parse_literal(text) for text in texts)
    # one word may be a whole tuple, "(4, 8)", a number, or the only element: --layouts joint
    candidates = [values[0], values] if len(values) == 1 else [values]
    for value in candidates:
        try:
            return _check_value(annotation, value, where)
        except UserError:
            continue
    return _check_value(annotation, candidates[0], where)  # reports what was expected


def override(part: Part, changes: Mapping[str, Any]) -> Part:
    """Returns the part with settings replaced.

    Args:
        part: a frozen dataclass, with parts as fields.
        changes: {"optimizer.peak_lr": 0.05}: values by dotted path, each of its field's type; or the `Words` of a
            command line. The name of a registered class stands for a new part of it, {"optimizer": "Lion"}: settings
            that both classes inherit keep their values, and settings inside it may be given beside it.

    Raises:
        UserError: there is no such setting, or the value is not of its type.
    """
    root = _Change()
    for path, value in changes.items():
        change = root
        for key in path.split("."):
            change = change.inside.setdefault(key, _Change())
        change.path, change.value = path, value
    return _replace(part, root, part, "")


def to_dict(part: Any) -> Any:
    """Returns plain JSON data; every part becomes {"type": its class name, ...its settings}."""
    if dataclasses.is_dataclass(part):
        return {"type": type(part).__name__} | {name: to_dict(value) for name, value in settings(part).items()}
    if isinstance(part, tuple | list):
        return [to_dict(value) for value in part]
    if isinstance(part, float) and not math.isfinite(part):
        return str(part)  # JSON has no such numbers
    if part is None or isinstance(part, str | bool | int | float):
        return part
    raise TypeError(f"{part!r} of type {type(part).__name__} cannot be written to config.json")


def from_dict(data: Any, where: str = "config.json") -> Any:
    """Inverse of `to_dict`: creates parts of registered types only, and checks every setting.

    Raises:
        UserError: an unknown type or setting, or a value of the wrong type.
    """
    _check_depth(data, where)
    return _from_dict(data, where)


def _check_depth(data: Any, where: str) -> None:
    """Raises UserError where data is nested deeper than any settings: reading it would end Python's stack."""
    layer = [data]
    for _ in range(MAX_DEPTH):
        parts = [x.values() if isinstance(x, dict) else x for x in layer if isinstance(x, dict | list)]
        layer = [value for part in parts for value in part]
    if layer:
        raise UserError(f"{where} is nested deeper than {MAX_DEPTH} levels; expected the settings of an experiment")


def _from_dict(data: Any, where: str) -> Any:
    if isinstance(data, list):
        return tuple(_from_dict(value, where) for value in data)
    if not isinstance(data, dict):
        return data
    name = data.get("type")
    if not isinstance(name, str):
        raise UserError(f'{where}: found an object whose "type" is {str(name)[:80]!r}; expected the name of a part')
    if name not in _PARTS:
        raise UserError(
            f"{where}: no part of type {name!r} is registered{did_you_mean(str(name), _PARTS)} "
            "If it is your own (@vitx.configuration.register), name the file that defines it with --experiment, "
            "import it first, or install it with an entry point in the group vitx.plugins."
        )
    cls = _PARTS[name]
    annotations = _annotations(cls)
    values = {}
    for key, value in data.items():
        if key == "type":
            continue
        if key not in annotations:
            raise UserError(f"{where}: {name} has no setting {key!r}{did_you_mean(key, annotations)}")
        values[key] = _check_value(annotations[key], _from_dict(value, where), f"{where}: {name}.{key}")
    return _create(functools.partial(cls, **values), f"{where}: {name}")


def differences(ours: Any, theirs: Any) -> dict[str, tuple[Any, Any]]:
    """Returns {dotted path: (ours, theirs)} of the settings that differ between two parts."""
    mine, other = _flatten(to_dict(ours)), _flatten(to_dict(theirs))
    missing = "(none)"  # the other side has a part of another type
    # Where one side has a part and the other None, only the settings of the part are listed, not the part itself.
    parents = {path.rpartition(".")[0] for path in mine | other}
    return {
        path: (mine.get(path, missing), other.get(path, missing))
        for path in (mine | other)
        if path not in parents and mine.get(path, missing) != other.get(path, missing)
    }


def is_mutable_on_resume(part: Any, path: str) -> bool:
    """Returns whether a setting, or the part that it belongs to, may change when a run resumes."""
    return _has_mark(part, path, "mutable_on_resume")


def is_path(part: Any, path: str) -> bool:
    """Returns whether a setting is the path of a file or folder."""
    return _has_mark(part, path, "is_path")


def _has_mark(part: Any, path: str, mark: str) -> bool:
    for key in path.split("."):
        if not dataclasses.is_dataclass(part) or key not in _annotations(type(part)):
            return False
        if _is_marked(type(part), key, mark):
            return True
        part = getattr(part, key)
    return False


def resolve_paths(part: Part, resolve: Callable[[str], str]) -> Part:
    """Returns the part with every setting that is a path replaced, in parts inside it too."""
    if isinstance(part, tuple):
        return tuple(resolve_paths(value, resolve) for value in part)
    if not dataclasses.is_dataclass(part):
        return part
    changed = {name: resolve_paths(value, resolve) for name, value in settings(part).items()}
    for name in names_marked(type(part), "is_path"):
        changed[name] = None if changed[name] is None else resolve(changed[name])
    if changed == settings(part):
        return part  # a Linen module among others: copied needlessly, it would lose its name
    return type(part)(**changed)


def setting(
    default: Any = dataclasses.MISSING,
    *,
    mutable_on_resume: bool = False,
    changes_function: bool = False,
    chosen_by_user: bool = False,
    is_path: bool = False,
    training_only: bool = False,
    mutable_in_evaluation: bool = False,
) -> Any:
    """Returns a dataclass field with marks that other modules read.

    A subclass that only gives the field another default keeps its marks.

    Args:
        default: value of the field.
        mutable_on_resume: the field may change when a run resumes, since it does not change what is computed.
        changes_function: the same parameters compute something else under another value (number of heads, activation),
            so weights are refused where it differs. Unmarked fields show in the parameters' names and shapes.
        chosen_by_user: the name of a model variant does not promise the value (number of classes, clip, dropout), so
            weights under that name may have another.
        is_path: the field is a path of a file or folder; a run stores it such that it resolves from anywhere.
        training_only: the field has no effect on an evaluation, which may change the fields beside it.
        mutable_in_evaluation: an evaluation of trained weights may change the field of a model, as long as parameters
            keep their names and shapes.

    Example:
        num_heads: int = setting(12, changes_function=True)
    """
    marks = {
        "mutable_on_resume": mutable_on_resume,
        "changes_function": changes_function,
        # A setting that may change when a run resumes is no property of a named variant either.
        "chosen_by_user": chosen_by_user or mutable_on_resume,
        "is_path": is_path,
        "training_only": training_only,
        "mutable_in_evaluation": mutable_in_evaluation,
    }
    return dataclasses.field(default=default, metadata=marks)


def mutable_on_resume(default: Any) -> Any:
    """Returns a dataclass field that may change when a run resumes, since it does not change what is computed."""
    return setting(default, mutable_on_resume=True)


def names_marked(cls: type, mark: str) -> frozenset[str]:
    """Returns the names of a part's settings that `setting` marked.

    Args:
        cls: type of the part.
        mark: one of the arguments of `setting`.
    """
    return frozenset(name for name in _annotations(cls) if _is_marked(cls, name, mark))


def _is_marked(cls: type, name: str, mark: str) -> bool:
    # the most derived class that says anything: `num_frames: int = 8` in a subclass is a default without marks
    fields = (vars(base).get("__dataclass_fields__", {}).get(name) for base in cls.__mro__)
    return next((field.metadata[mark] for field in fields if field is not None and mark in field.metadata), False)


@functools.cache
def _annotations(cls: type) -> dict[str, Any]:
    hints = typing.get_type_hints(cls)
    linen = {"parent", "name"} if hasattr(cls, "scope") else set()
    return {field.name: hints[field.name] for field in dataclasses.fields(cls) if field.name not in linen}


def _flatten(data: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(data, dict):
        return {prefix.removesuffix("."): data}
    return {path: value for key, branch in data.items() for path, value in _flatten(branch, f"{prefix}{key}.").items()}


@dataclasses.dataclass
class _Change:
    """Change of one setting: a new value, changes of the settings inside it, or both.

    Attributes:
        inside: {name of a setting inside: its change}.
        path: dotted path under which the value was given, or None where none was.
        value: the value that was given.
    """

    inside: "dict[str, _Change]" = dataclasses.field(default_factory=dict)
    path: str | None = None
    value: Any = None

    def first_path(self) -> str:
        return self.path or next(iter(self.inside.values())).first_path()


def _replace(part: Any, change: _Change, root: Any, prefix: str) -> Any:
    # all changes of one part are applied at once, so that only their combination has to be valid
    annotations = _annotations(type(part)) if dataclasses.is_dataclass(part) else {}
    changed = settings(part) if annotations else {}
    if hasattr(part, "scope"):  # a Linen module that overrides itself in a method would become its own submodule
        changed["parent"] = None
    for key, inner in change.inside.items():
        if key not in annotations:
            asked = inner.first_path()
            raise UserError(
                f"there is no setting {asked}{_suggest_setting(asked, [known for known, _ in paths(root)])}"
            )
        changed[key] = _change_setting(annotations[key], changed[key], inner, root, prefix + key)
    return _create(functools.partial(type(part), **changed), prefix.rstrip(".") or type(part).__name__)


def _change_setting(annotation: Any, value: Any, change: _Change, root: Any, path: str) -> Any:
    """Returns the new value of one setting."""
    if change.path is not None:
        cls = _named_part(annotation, change.value)
        if cls is not None:
            return _switch(value, cls, change, root, path)
        read = read_words if isinstance(change.value, Words) else _check_value
        value = read(annotation, change.value, path)
        if change.inside and not dataclasses.is_dataclass(value):
            raise UserError(f"{path} and {change.inside.popitem()[1].first_path()} are both given; give one of them")
    return _replace(value, change, root, path + ".") if change.inside else value


def _named_part(annotation: Any, value: Any) -> type | None:
    """Returns the registered class that a value names where a setting takes such parts, or None."""
    name = value[0] if isinstance(value, Words) and len(value) == 1 else value
    return _kinds(annotation).get(name) if isinstance(name, str) and not _accepts(annotation, name) else None


def _switch(old: Any, cls: type, change: _Change, root: Any, path: str) -> Any:
    """Returns a new part of a class, with the changes inside it; settings that both classes inherit are kept."""
    annotations = _annotations(cls)
    shared = [base for base in cls.__mro__ if dataclasses.is_dataclass(base) and isinstance(old, base)]
    kept = {name for base in shared for name in _annotations(base)}
    values = {name: value for name, value in settings(old).items() if name in kept} if shared else {}
    for key, inner in change.inside.items():
        if key not in annotations:
            raise UserError(f"there is no setting {path}.{key}; {cls.__name__} has {', '.join(annotations)}")
        values[key] = _change_setting(annotations[key], values.get(key), inner, root, f"{path}.{key}")
    fields = {field.name: field for field in dataclasses.fields(cls)}
    required = [
        name for name in annotations if dataclasses.MISSING is fields[name].default is fields[name].default_factory
    ]
    if missing := [f"--{path}.{name}" for name in required if name not in values]:
        raise UserError(f"{path} is {cls.__name__}, which needs {' and '.join(missing)}")
    return _create(functools.partial(cls, **values), path)


def _kinds(annotation: Any) -> dict[str, type]:
    """Returns the registered classes whose parts a setting takes, by name."""
    bases = tuple(base for base in typing.get_args(annotation) or (annotation,) if isinstance(base, type))
    bases = tuple(base for base in bases if base.__module__ != "builtins")
    return {name: cls for name, cls in _PARTS.items() if issubclass(cls, bases)} if bases else {}


def _suggest_setting(path: str, known: Sequence[str]) -> str:
    """Ends a sentence with the setting that was probably meant: `lr` of a part is its `peak_lr`, `seed` training's."""
    parent, _, key = path.rpartition(".")
    words = _key_words(key)
    meant = [name for name in known if words <= _key_words(name.rpartition(".")[2])]
    siblings = [name for name in meant if name.rpartition(".")[0] == parent]
    ends = [name for name in known if name.rpartition(".")[2] == key]
    # nearest first: in the part that was named, of that very name, of more words than were given
    found = siblings or ends or meant
    return did_you_mean(path, found or known, cutoff=0.0 if found else 0.5)


def _key_words(key: str) -> frozenset[str]:
    return frozenset(key.replace("lr", "learning_rate").split("_"))


def _create(create: Callable[[], Any], where: str) -> Any:
    try:
        return create()
    except (TypeError, ValueError) as error:
        raise UserError(f"{where}: {error}") from error


def _split_names(text: str) -> tuple[str, ...]:
    """Returns names without quotes: time, or (time, space)."""
    return tuple(word.strip().strip("'\"") for word in text.strip("()").split(",") if word.strip())


def _parse_literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, RecursionError, MemoryError):  # the last two where it is nested deeply
        return text


def _check_value(annotation: Any, value: Any, where: str) -> Any:
    if isinstance(value, list):
        value = tuple(value)
    wants_float = annotation is float or float in typing.get_args(annotation)
    if wants_float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if wants_float and value in NOT_FINITE:
        value = float(value)
    wrong_bool = isinstance(value, bool) and not _accepts_bool(annotation)
    if wrong_bool or not _accepts(annotation, value):
        kinds = _kinds(annotation)
        meant = did_you_mean(value, kinds).rstrip(".") if kinds and isinstance(value, str) else ""
        raise UserError(f"{where} is {value!r}{meant or ';'} expected {_describe(annotation)}")
    return value


def _accepts(annotation: Any, value: Any) -> bool:
    try:
        typeguard.check_type(value, annotation, collection_check_strategy=typeguard.CollectionCheckStrategy.ALL_ITEMS)
    except typeguard.TypeCheckError:
        return False
    return True


def _accepts_bool(annotation: Any) -> bool:
    return annotation in (bool, Any) or bool in typing.get_args(annotation)


def _describe(annotation: Any) -> str:
    if typing.get_origin(annotation) is typing.Literal:
        return "one of " + ", ".join(map(repr, typing.get_args(annotation)))
    if typing.get_origin(annotation) in (types.UnionType, typing.Union):
        return " or ".join(_describe(choice) for choice in typing.get_args(annotation))
    if annotation is types.NoneType:
        return "None"
    if kinds := [name for name, cls in _kinds(annotation).items() if cls is not annotation]:
        return f"{annotation.__name__}: {', '.join(kinds)}"
    if isinstance(annotation, type) and not isinstance(annotation, types.GenericAlias):
        return annotation.__name__
    return str(annotation).replace("typing.", "")
