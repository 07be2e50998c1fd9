"""Typed settings: every part of an experiment is a frozen dataclass (Linen modules are), read and written alike.

One mechanism serves experiment files, the command line, ablation rows and `config.json`: a dotted path names a field,
the field's annotation checks the value, and a mistyped name is answered with the nearest one.
"""

import ast
import dataclasses
import functools
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import typeguard

from vitx.errors import UserError, closest
from vitx.plugins import Registry

Part = TypeVar("Part")

# a file that defines parts is one line here; imported when config.json names a part that is not imported yet
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
        "vitx.models",
        "vitx.tasks.classification",
        "vitx.tasks.frame_prediction",
        "vitx.tasks.multilabel",
        "vitx.tasks.regression",
        "vitx.training.optimizers",
    ),
)


def register(cls: type[Part]) -> type[Part]:
    """Class decorator: lets `config.json` name this dataclass, by its class name."""
    _PARTS.add(cls.__name__, cls)
    return cls


def settings(part: Any) -> dict[str, Any]:
    """Returns the part's own fields and values; a Linen module's `parent` and `name` are not settings."""
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
    texts = words if single is None or annotation != tuple[str, ...] else _names(single)
    values = tuple(_literal(text) for text in texts)
    # one word may be a whole tuple, "(4, 8)", a number, or the only element: --layouts joint
    candidates = [values[0], values] if len(values) == 1 else [values]
    for value in candidates:
        try:
            return _checked(annotation, value, where)
        except UserError:
            continue
    return _checked(annotation, candidates[0], where)  # reports what was expected


def override(part: Part, changes: Mapping[str, Any]) -> Part:
    """Returns the part with settings replaced.

    Args:
        part: a frozen dataclass, with parts as fields.
        changes: {"optimizer.peak_lr": 0.05}: values by dotted path, each of its field's type; or the `Words` of a
            command line.

    Raises:
        UserError: there is no such setting, or the value is not of its type.
    """
    tree: dict[str, Any] = {}
    for path, value in changes.items():
        *parents, key = path.split(".")
        branch = tree
        for parent in parents:
            branch = branch.setdefault(parent, {})
            if isinstance(branch, _Leaf):
                raise UserError(f"{branch.path} and {path} are both given; give one of them")
        if key in branch:
            raise UserError(f"{path} is given, and so are settings inside it; give one of them")
        branch[key] = _Leaf(value=value, path=path)
    return _replace(part, tree, part, "")


def to_dict(part: Any) -> Any:
    """Returns plain JSON data; every part becomes {"type": its class name, ...its settings}."""
    if dataclasses.is_dataclass(part):
        return {"type": type(part).__name__} | {name: to_dict(value) for name, value in settings(part).items()}
    if isinstance(part, tuple | list):
        return [to_dict(value) for value in part]
    if part is None or isinstance(part, str | bool | int | float):
        return part
    raise TypeError(f"{part!r} of type {type(part).__name__} cannot be written to config.json")


def from_dict(data: Any, where: str = "config.json") -> Any:
    """Inverse of `to_dict`: creates parts of registered types only, and checks every setting.

    Raises:
        UserError: an unknown type or setting, or a value of the wrong type.
    """
    if isinstance(data, list):
        return tuple(from_dict(value, where) for value in data)
    if not isinstance(data, dict):
        return data
    name = data.get("type")
    if name not in _PARTS:
        raise UserError(
            f"{where}: no part of type {name!r} is registered{closest(str(name), _PARTS)} "
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
            raise UserError(f"{where}: {name} has no setting {key!r}{closest(key, annotations)}")
        values[key] = _checked(annotations[key], from_dict(value, where), f"{where}: {name}.{key}")
    return _create(functools.partial(cls, **values), f"{where}: {name}")


def differences(ours: Any, theirs: Any) -> dict[str, tuple[Any, Any]]:
    """Returns {dotted path: (ours, theirs)} of the settings that differ between two parts."""
    mine, other = _flat(to_dict(ours)), _flat(to_dict(theirs))
    missing = "(none)"  # of a part of another type
    return {
        path: (mine.get(path, missing), other.get(path, missing))
        for path in (mine | other)
        if mine.get(path, missing) != other.get(path, missing)
    }


def is_mutable_on_resume(part: Any, path: str) -> bool:
    """Returns whether a setting, or the part that it belongs to, may change when a run resumes."""
    for key in path.split("."):
        if not dataclasses.is_dataclass(part) or key not in _annotations(type(part)):
            return False
        if _is_marked(type(part), key, "mutable_on_resume"):
            return True
        part = getattr(part, key)
    return False


def setting(
    default: Any, *, mutable_on_resume: bool = False, changes_function: bool = False, chosen_by_user: bool = False
) -> Any:
    """Returns a dataclass field that carries what other modules must know of it.

    A subclass that only gives the field another default keeps its marks.

    Args:
        default: value of the field.
        mutable_on_resume: the field may change when a run resumes, since it does not change what is computed.
        changes_function: the same parameters compute something else under another value (number of heads, activation),
            so weights are refused where it differs. Unmarked fields show in the parameters' names and shapes.
        chosen_by_user: the name of a model variant does not promise the value (number of classes, clip, dropout), so
            weights under that name may have another.

    Example:
        num_heads: int = setting(12, changes_function=True)
    """
    marks = {
        "mutable_on_resume": mutable_on_resume,
        "changes_function": changes_function,
        # what may change between two parts of one run is no property of a named variant either
        "chosen_by_user": chosen_by_user or mutable_on_resume,
    }
    return dataclasses.field(default=default, metadata=marks)


def mutable_on_resume(default: Any) -> Any:
    """Returns a dataclass field that may change when a run resumes, since it does not change what is computed."""
    return setting(default, mutable_on_resume=True)


def names_marked(cls: type, mark: str) -> frozenset[str]:
    """Returns the names of a part's settings that `setting` marked.

    Args:
        cls: type of the part.
        mark: "mutable_on_resume", "changes_function" or "chosen_by_user".
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


def _flat(data: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(data, dict):
        return {prefix.removesuffix("."): data}
    return {path: value for key, branch in data.items() for path, value in _flat(branch, f"{prefix}{key}.").items()}


@dataclasses.dataclass(frozen=True)
class _Leaf:
    path: str
    value: Any


def _replace(part: Any, tree: dict[str, Any], root: Any, prefix: str) -> Any:
    # all changes of one part are applied at once, so that only their combination has to be valid
    annotations = _annotations(type(part)) if dataclasses.is_dataclass(part) else {}
    changed = settings(part) if annotations else {}
    if hasattr(part, "scope"):  # a Linen module that overrides itself in a method would become its own submodule
        changed["parent"] = None
    for key, branch in tree.items():
        path = prefix + key
        if key not in annotations:
            asked = _first_leaf(branch).path
            raise UserError(f"there is no setting {asked}{_nearest(asked, [known for known, _ in paths(root)])}")
        if isinstance(branch, _Leaf):
            read = read_words if isinstance(branch.value, Words) else _checked
            changed[key] = read(annotations[key], branch.value, path)
        else:
            changed[key] = _replace(changed[key], branch, root, path + ".")
    return _create(functools.partial(type(part), **changed), prefix.rstrip(".") or type(part).__name__)


def _first_leaf(branch: Any) -> _Leaf:
    return branch if isinstance(branch, _Leaf) else _first_leaf(next(iter(branch.values())))


def _nearest(path: str, known: Sequence[str]) -> str:
    """Ends a sentence with the setting that was probably meant: `lr` of a part is its `peak_lr`, `seed` training's."""
    parent, _, key = path.rpartition(".")
    words = set(key.split("_"))
    ends = [name for name in known if name.rpartition(".")[2] == key]
    siblings = [
        name for name in known if name.rpartition(".")[0] == parent and words <= set(name.split(".")[-1].split("_"))
    ]
    return closest(path, ends or siblings or known, cutoff=0.0 if ends or siblings else 0.5)


def _create(create: Callable[[], Any], where: str) -> Any:
    try:
        return create()
    except (TypeError, ValueError) as error:
        raise UserError(f"{where}: {error}") from error


def _names(text: str) -> tuple[str, ...]:
    """Returns names without quotes: time, or (time, space)."""
    return tuple(word.strip().strip("'\"") for word in text.strip("()").split(",") if word.strip())


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _checked(annotation: Any, value: Any, where: str) -> Any:
    if isinstance(value, list):
        value = tuple(value)
    wants_float = annotation is float or float in typing.get_args(annotation)
    if wants_float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    wrong_bool = isinstance(value, bool) and not _accepts_bool(annotation)
    if wrong_bool or not _accepts(annotation, value):
        raise UserError(f"{where} is {value!r}; expected {_described(annotation)}")
    return value


def _accepts(annotation: Any, value: Any) -> bool:
    try:
        typeguard.check_type(value, annotation, collection_check_strategy=typeguard.CollectionCheckStrategy.ALL_ITEMS)
    except typeguard.TypeCheckError:
        return False
    return True


def _accepts_bool(annotation: Any) -> bool:
    return annotation in (bool, Any) or bool in typing.get_args(annotation)


def _described(annotation: Any) -> str:
    if typing.get_origin(annotation) is typing.Literal:
        return "one of " + ", ".join(map(repr, typing.get_args(annotation)))
    if typing.get_origin(annotation) in (types.UnionType, typing.Union):
        return " or ".join(_described(choice) for choice in typing.get_args(annotation))
    if annotation is types.NoneType:
        return "None"
    if isinstance(annotation, type) and dataclasses.is_dataclass(annotation):
        kinds = [name for name, cls in _PARTS.items() if issubclass(cls, annotation) and cls is not annotation]
        return f"a part ({', '.join(kinds) or annotation.__name__}), set by override in an experiment file"
    if isinstance(annotation, type) and not isinstance(annotation, types.GenericAlias):
        return annotation.__name__
    return str(annotation).replace("typing.", "")
