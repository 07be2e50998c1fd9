"""Named parts that other packages can add to: registries, filled by our modules and by installed plug-ins.

A package adds a model, layout, dataset, task, optimiser or weight format without a change here: its entry point in the
group `vitx.plugins` names a module that registers its parts when it is imported.

    [project.entry-points."vitx.plugins"]
    my_models = "my_package.models"
"""

import functools
import importlib
import importlib.metadata
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

from vitx.console import print_text

GROUP = "vitx.plugins"

Part = TypeVar("Part")


class Registry(Mapping[str, Part]):
    """Parts by name. A name that is missing, or a listing, first imports the modules that may define more of them.

    Args:
        kind: what its parts are, for messages.
        parts: the first parts by name.
        modules: our modules that add parts when they are imported; one line for each file.
    """

    def __init__(self, kind: str, parts: Mapping[str, Part] | None = None, modules: tuple[str, ...] = ()):
        self._kind, self._parts, self._modules = kind, dict(parts or {}), modules

    def add(self, name: str, part: Part) -> None:
        """Adds a part; the same one may be added again, as when an experiment file is executed twice.

        Raises:
            TypeError: the name belongs to another part.
        """
        known = self._parts.setdefault(name, part)
        if _identity(known) != _identity(part):
            raise TypeError(f"two {self._kind}s are registered as {name}: {known} and {part}")
        self._parts[name] = part

    def __getitem__(self, name: str) -> Part:
        if name not in self._parts:
            self._complete()
        return self._parts[name]

    def __iter__(self) -> Iterator[str]:
        self._complete()
        return iter(tuple(self._parts))

    def __len__(self) -> int:
        self._complete()
        return len(self._parts)

    def __repr__(self) -> str:
        return f"Registry of {self._kind}s: {', '.join(self._parts)}"

    def _complete(self) -> None:
        # emptied first: a module on its way in may look up a name that is missing
        modules, self._modules = self._modules, ()
        for module in modules:
            importlib.import_module(module)
        load_plugins()


def _identity(part: Any) -> Any:
    return (part.__module__, part.__qualname__) if isinstance(part, type) else part


def load_plugins() -> None:
    """Imports the plug-ins of all installed packages, once.

    A plug-in that fails is reported on standard error and skipped: it must not break runs that do not need it.
    """
    pending = _pending()
    while pending:
        entry = pending.pop(0)  # before its import, which may look up a name and come back here
        try:
            entry.load()
        except Exception as error:
            package = f" of {entry.dist.name} {entry.dist.version}" if entry.dist else ""
            print_text(
                f"vitx: the plug-in {entry.name}{package} ({entry.value}) failed with {type(error).__name__}: {error}; "
                "its parts are missing until it is repaired or uninstalled",
                error=True,
            )


@functools.cache
def _pending() -> list[importlib.metadata.EntryPoint]:
    return sorted(importlib.metadata.entry_points(group=GROUP), key=lambda entry: entry.name)
