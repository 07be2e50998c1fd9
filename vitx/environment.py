"""Explains errors that come from broken or half-installed dependencies.

Asked only when a command ends unexpectedly, and imports nothing but the standard library: it must work where nothing
else does.
"""

import csv
import importlib.metadata
import os
import re
import shlex
import sys
import traceback
from collections.abc import Iterator
from importlib.metadata import Distribution, PackageNotFoundError
from pathlib import Path
from types import ModuleType

_REQUIREMENT = re.compile(r"\s*([A-Za-z0-9._-]+)\s*(?:\[[^]]*\])?\s*\(?([^;)]*)\)?\s*(;.*)?")


def explain_environment(error: BaseException) -> str | None:
    """Returns what is wrong with the installed packages and the command that repairs it.

    Args:
        error: the exception that ended a command.

    Returns:
        One sentence that names the package, or None where the packages are not to blame.
    """
    try:
        found = _duplicate(error) or _missing(error) or _outside_bounds() or _unimportable(error)
    except Exception:  # metadata may be damaged in any way, and the error itself is worth more than its explanation
        return None
    if found is None:
        return None
    problem, repair = found
    return f"{problem} ({type(error).__name__}: {_first_line(error)}); run: {repair}"


def _duplicate(error: BaseException) -> tuple[str, str] | None:
    """Finds a package of the traceback that is on the path twice: parts of both may be imported."""
    for name in _suspect_names(error):
        copies = {}
        for copy in importlib.metadata.distributions(name=name):
            copies.setdefault((_folder(copy), copy.version), copy)
        if len(copies) < 2:
            continue
        places = " and ".join(f"{name} {version} in {folder}" for folder, version in copies)
        listed = [Path(entry).resolve() for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry]
        if on_path := [folder for folder, _ in copies if folder in listed]:
            return f"found {places}; expected one", f"unset PYTHONPATH, or take {on_path[0]} off it"
        # pip uninstalls the copy that it finds first, so once for each
        removals = [_pip("uninstall", "-y", name)] * len(copies)
        return f"found {places}; expected one", " && ".join([*removals, _pip("install", _requirement_of(name))])
    return None


def _missing(error: BaseException) -> tuple[str, str] | None:
    """Finds packages that vitx needs, directly or through another package, and that are not installed."""
    if not any(isinstance(link, ImportError) for link in _chain(error)):
        return None
    missing = [name for name in _requirement_tree() if not _is_installed(name)]
    if not missing:
        return None
    return f"{', '.join(missing)} not found; vitx needs every one", _pip("install", *map(_requirement_of, missing))


def _outside_bounds() -> tuple[str, str] | None:
    """Finds a version that vitx's own requirements exclude, or a jaxlib that belongs to another jax."""
    for owner in ("vitx", "jax"):
        for name, bounds in _requirements(owner):
            if _is_installed(name) and not _satisfies(version := importlib.metadata.version(name), bounds):
                problem = f"found {name} {version}; {owner} {importlib.metadata.version(owner)} needs {name}{bounds}"
                return problem, _pip("install", f"{name}{bounds}")
    return None


def _unimportable(error: BaseException) -> tuple[str, str] | None:
    """Finds an installed package that is hidden by another file, incomplete, or cannot be imported."""
    links = [link for link in _chain(error) if isinstance(link, ImportError | AttributeError)]
    if not links:
        return None
    cause = links[-1]
    failed, is_import_error = _failed_module(cause), isinstance(cause, ImportError)
    module = sys.modules.get(failed)
    file = getattr(module, "__file__", None)
    for name in _suspect_names(error):
        for distribution in _find_distributions(name):
            is_failed = failed in _modules(distribution)
            where = f"{name} {distribution.version} in {_folder(distribution)}"
            if is_failed and file and not Path(file).resolve().is_relative_to(_folder(distribution)):
                return f"{file} hides {where}", f"mv {shlex.quote(file)} {shlex.quote(file + '.renamed')}"
            if (is_failed or is_import_error) and (lost := _lost_files(distribution)):
                return f"{where} is incomplete: {lost} of its files are missing", _reinstallation(distribution)
            if is_failed and module and not file and not is_import_error:
                return f"{where} is incomplete: it has no __init__.py", _reinstallation(distribution)
            if is_failed and is_import_error and _importer(cause) == failed:
                problem = f"{where} cannot be imported"
                if name == "av":
                    problem += "; PyAV built from source needs FFmpeg's libraries, its wheels bring them"
                return problem, _reinstallation(distribution)
    return None


def _lost_files(distribution: Distribution) -> int:
    """Counts the files that an installation lacks, but for those that small images leave out."""
    # Distribution.files leaves out what is missing, from Python 3.12 on
    rows = csv.reader((distribution.read_text("RECORD") or "").splitlines())
    files = [Path(row[0]) for row in rows if row]
    files = [file for file in files if file.suffix != ".pyc" and "tests" not in file.parts]
    return sum(not Path(distribution.locate_file(file)).exists() for file in files)


def _reinstallation(distribution: Distribution) -> str:
    version = f"{_normalise(distribution.name)}=={distribution.version}"
    # --no-cache-dir: a wheel that was built here from source would come back from the cache
    return _pip("install", "--force-reinstall", "--no-deps", "--no-cache-dir", "--only-binary", ":all:", version)


def _failed_module(error: BaseException) -> str | None:
    """Returns the top-level module that an exception is about: not found, not loaded, or without an attribute."""
    if isinstance(error, AttributeError) and isinstance(error.obj, ModuleType):
        return error.obj.__name__.split(".")[0]
    if isinstance(error, ImportError) and error.path:  # modules of Cython give their name without their package
        return _module_of(error.path)
    if isinstance(error, ImportError) and error.name:
        return error.name.split(".")[0]
    return _importer(error)


def _importer(error: BaseException) -> str | None:
    """Returns the top-level module in which an exception was raised."""
    frames = traceback.extract_tb(error.__traceback__)
    return _module_of(frames[-1].filename) if frames else None


def _suspect_names(error: BaseException) -> list[str]:
    """Returns the packages that a traceback passes through, then what those need: extensions leave no frames."""
    modules = set()
    for link in _chain(error):
        modules |= {_failed_module(link)} | {_module_of(f.filename) for f in traceback.extract_tb(link.__traceback__)}
    tree = _requirement_tree()
    names = [name for name in tree for distribution in _find_distributions(name) if modules & _modules(distribution)]
    needed = [name for owner in names for name, _ in _requirements(owner) if name in tree]
    return list(dict.fromkeys(names + needed))


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yields an exception and those that it was raised from or while handling, outermost first."""
    seen = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _module_of(file: str) -> str | None:
    """Returns the top-level module of a file below site-packages or another entry of sys.path."""
    entries = [entry for entry in sys.path if entry and Path(file).is_relative_to(entry)]
    # the longest entry: an environment often lies inside the working directory
    return Path(file).relative_to(max(entries, key=len)).parts[0].split(".")[0] if entries else None


def _modules(distribution: Distribution) -> set[str]:
    """Returns the top-level modules of a distribution, from its list of files or else its name."""
    files = [
        path for path in distribution.files or () if path.suffix in (".py", ".so", ".pyd") and ".." not in path.parts
    ]
    return {path.parts[0].split(".")[0] for path in files} or {_normalise(distribution.name).replace("-", "_")}


def _requirement_tree() -> dict[str, str]:
    """Returns bounds by name of all packages that vitx needs, directly first; those with markers are left out."""
    tree, owners = {}, ["vitx"]
    for owner in owners:  # grows while it is read
        for name, bounds in _requirements(owner):
            if name not in tree:
                tree[name] = bounds
                owners.append(name)
    return tree


def _requirements(owner: str) -> Iterator[tuple[str, str]]:
    """Yields name and bounds of what an installed package needs, without extras.

    Other markers would take a library to evaluate: those of vitx are true wherever it runs, those of others are passed
    over.
    """
    try:
        lines = importlib.metadata.requires(owner) or []
    except PackageNotFoundError:
        return
    for line in lines:
        match = _REQUIREMENT.fullmatch(line)
        if match and (not match[3] or (owner == "vitx" and "extra" not in match[3])):
            yield _normalise(match[1]), match[2].replace(" ", "")


def _requirement_of(name: str) -> str:
    return name + _requirement_tree()[name]


def _satisfies(version: str, bounds: str) -> bool:
    """Compares the numbers of a version with bounds such as ">=0.11,<=0.12"; other operators are ignored."""
    for operator, bound in re.findall(r"(>=|<=|<|>)([^,]+)", bounds):
        found, wanted = _numbers(version), _numbers(bound)
        length = max(len(found), len(wanted))
        found, wanted = ((*numbers, *[0] * (length - len(numbers))) for numbers in (found, wanted))
        if not {">=": found >= wanted, "<=": found <= wanted, "<": found < wanted, ">": found > wanted}[operator]:
            return False
    return True


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, re.match(r"[\d.]*\d|", version)[0].split("."))) if version[:1].isdigit() else ()


def _find_distributions(name: str) -> list[Distribution]:
    return list(importlib.metadata.distributions(name=name))[:1]


def _is_installed(name: str) -> bool:
    return bool(_find_distributions(name))


def _folder(distribution: Distribution) -> Path:
    return Path(distribution.locate_file("")).resolve()


def _normalise(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _pip(*words: str) -> str:
    return shlex.join([sys.executable, "-m", "pip", *words])


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), "")
