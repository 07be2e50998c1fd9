"""The runs that a board shows: folders given on the command line, and those inside them."""

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePath

from vitx import storage
from vitx.errors import UserError
from vitx.run_folder import is_run

MAX_RUNS = 1000
MAX_DEPTH = 4  # folders below a given one: an ablation's own are DIR/runs/CELL, and DIR may be one of several
SKIPPED = ("checkpoints", "leases", "results", "metrics")  # folders of vitx that hold no run


@dataclasses.dataclass(frozen=True)
class ListedRun:
    """A run that the board lists.

    Attributes:
        name: the shortest path that no other run has, relative to the folder that was given.
        path: path of the folder.
    """

    name: str
    path: PurePath


def find_runs(paths: Sequence[str | PurePath]) -> list[ListedRun]:
    """Returns the runs among folders and inside them, each once, in the order of the folders and then of names.

    Args:
        paths: folders of runs, of ablations, or folders that hold such.

    Raises:
        UserError: a folder is missing, or holds no run.
    """
    found: dict[PurePath, ListedRun] = {}
    for root in map(storage.as_path, paths):
        if not storage.is_folder(root):
            raise UserError(f"there is no folder {root}; expected a run, an ablation or a folder that holds runs")
        inside = list(_runs_in(root, MAX_DEPTH))
        if not inside:
            raise UserError(
                f"{root} holds no run; expected a folder that `vitx train` or `vitx ablate` filled, or one that holds "
                "such folders"
            )
        for path in inside:
            found.setdefault(same_folder(path), ListedRun(_short_name(root, path), path))
    runs = list(found.values())
    if len(runs) > MAX_RUNS:
        raise UserError(f"found {len(runs)} runs; expected at most {MAX_RUNS}: name fewer folders")
    names = [run.name for run in runs]
    # Two folders may hold runs of one name; their paths tell them apart.
    return [run if names.count(run.name) == 1 else dataclasses.replace(run, name=str(run.path)) for run in runs]


def same_folder(path: PurePath) -> PurePath:
    """Returns what is equal for the same folder: links, and one that leads back to its own folder, are resolved."""
    return path.resolve() if isinstance(path, Path) else path


def _runs_in(folder: PurePath, depth: int) -> Iterator[PurePath]:
    try:
        is_one = is_run(folder)
    except UserError:  # a damaged config.json: the board shows the message
        is_one = True
    except OSError:  # a folder that this user may not read
        return
    if is_one:
        yield folder
        return
    try:
        names = storage.names_in(folder) if depth else []
    except (UserError, OSError):
        return
    for name in names:
        if not name.startswith(".") and name not in SKIPPED and storage.is_folder(folder / name):
            yield from _runs_in(folder / name, depth - 1)


def _short_name(root: PurePath, path: PurePath) -> str:
    if path == root:
        return storage.absolute(root).name
    parts = path.parts[len(root.parts) :]
    return "/".join(part for part in parts if part != "runs") or path.name
