"""The cells of an ablation, checked before anything runs: settings, names, columns, the folder."""

import contextlib
import dataclasses
import fnmatch
import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import PurePath
from typing import Any

from vitx import configuration, storage, strict_json
from vitx.ablations.description import Ablation, Row
from vitx.errors import UserError, did_you_mean
from vitx.evaluation.presentation import presenter_for
from vitx.experiment import Experiment, load_config
from vitx.interop.load import require_source
from vitx.run_folder import different_settings
from vitx.training.overview import count_cost_of

FORMAT = 1
COSTS = ("params", "gmacs", "clips_per_second", "peak_memory_mib", "seconds")
DEFAULT_COSTS = COSTS[:-1]
MAX_SLUG = 120  # characters of a row's name in its file names, which may have 255 with their endings


@dataclasses.dataclass(frozen=True)
class Cell:
    """One row and one seed: one run.

    Attributes:
        row: name of the row.
        seed: value of training.seed.
        name: name of the cell's files in the ablation's folder.
        experiment: settings of the run.
        folder: folder of the run.
    """

    row: str
    seed: int
    name: str
    experiment: Experiment
    folder: PurePath


@dataclasses.dataclass(frozen=True)
class Plan:
    """A checked ablation in its folder.

    Attributes:
        ablation: rows, seeds and columns as described.
        workdir: folder of the ablation.
        cells: the selected cells, in the order in which they run: all rows with the first seed come first.
        columns: names of the table's columns.
        costs: {row: (parameters, multiply-accumulates of one view, None where they cannot be counted)}.
    """

    ablation: Ablation
    workdir: PurePath
    cells: tuple[Cell, ...]
    columns: tuple[str, ...]
    costs: dict[str, tuple[int, int | None]]

    @property
    def reference(self) -> str:
        """Name of the row that the others are compared with."""
        return self.ablation.reference or self.ablation.rows[0].name

    def all_cells(self) -> list[Cell]:
        """Returns the cells of all rows, selected or not: with the ablation's seeds, the selected and the finished."""
        finished = (re.fullmatch(r".*_seed(\d+)\.json", name) for name in storage.names_in(self.workdir / "results"))
        others = sorted(int(match[1]) for match in finished if match)
        seeds = dict.fromkeys([*self.ablation.seeds, *(cell.seed for cell in self.cells), *others])
        return [_build_cell(self.ablation, row, seed, self.workdir) for row in self.ablation.rows for seed in seeds]


def create_plan(
    ablation: Ablation,
    workdir: str | PurePath,
    *,
    rows: Sequence[str] | None = None,
    seeds: Sequence[int] | None = None,
) -> Plan:
    """Checks an ablation and returns its cells.

    Args:
        ablation: what to run.
        workdir: folder of the ablation; need not exist.
        rows: names or patterns, such as "ViViT*", of the rows to run; None for all.
        seeds: seeds to run; None for the ablation's.

    Raises:
        UserError: anything is wrong; the message lists every problem with the name of its row.
    """
    workdir = storage.as_path(workdir)
    problems = list(_check_names(ablation, seeds))
    if problems:  # rows are identified by their names
        raise _build_error(problems)
    selected = _select_rows(ablation, rows, problems)
    problems += _check_folder(ablation.base, workdir)
    costs, metrics = {}, {}
    open_labels = _LabelNameCache()
    for row in ablation.rows:
        with _collect_problems(problems, row.name):
            experiment = ablation.base.override(row.changes)
            if "training.seed" in row.changes:
                raise UserError("found training.seed; expected it in the seeds of the ablation alone")
            if (weights := experiment.training.initialise_from) is not None:
                require_source(storage.as_path(weights))
            metrics[row.name] = _list_metrics(experiment, open_labels(experiment))
            costs[row.name] = count_cost_of(experiment)
    known = _list_fillable_columns(metrics, costs)
    columns = ablation.columns or [name for name in _choose_default_columns(ablation.base, metrics) if name in known]
    if len(metrics) == len(ablation.rows):  # otherwise a column may be that of a row that is refused
        problems += _check_columns(columns, known, metrics)
    cells = []
    for seed in dict.fromkeys(ablation.seeds if seeds is None else seeds):
        for row in (row for row in ablation.rows if row.name in costs and row.name in selected):
            with _collect_problems(problems, row.name):
                cell = _build_cell(ablation, row, seed, workdir)
                _check_cell(cell)
                cells.append(cell)
    if problems:
        raise _build_error(list(dict.fromkeys(problems)))
    return Plan(ablation, workdir, tuple(cells), tuple(columns), costs)


def claim_folder(plan: Plan) -> None:
    """Creates the ablation's folder and records its base there; of several processes one does.

    Raises:
        UserError: the folder belongs to another base.
    """
    storage.create_folder(plan.workdir)
    record = {"format": FORMAT, "base": configuration.to_dict(plan.ablation.base)}
    if not storage.create_file(plan.workdir / "ablation.json", (strict_json.dumps(record, indent=2) + "\n").encode()):
        problems = list(_check_folder(plan.ablation.base, plan.workdir))
        if problems:
            raise _build_error(problems)


def _build_error(problems: Sequence[str]) -> UserError:
    return UserError("the ablation cannot run; nothing was started:", problems)


@contextlib.contextmanager
def _collect_problems(problems: list[str], row: str) -> Iterator[None]:
    """Turns errors of one row into a problem with the row's name, so that all rows are checked."""
    try:
        yield
    except (UserError, ValueError) as error:
        problems.append(f"row {row!r}: {' '.join(str(error).split())}")


class _LabelNameCache:
    """Names of the classes of each dataset, which is opened once: most rows share a dataset."""

    def __init__(self) -> None:
        self._known: list[tuple[Any, dict[str, tuple[str, ...]]]] = []

    def __call__(self, experiment: Experiment) -> dict[str, tuple[str, ...]]:
        dataset = experiment.data.dataset
        for known, names in self._known:
            if known == dataset:
                return names
        names = {split: dict(dataset.open(split).label_names) for split in ("train", "test")}["train"]
        self._known.append((dataset, names))
        return names


def _check_names(ablation: Ablation, seeds: Sequence[int] | None) -> Iterator[str]:
    names = [row.name for row in ablation.rows]
    if not names:
        yield "there are no rows; add vitx.Row(name, {setting: value}) to the ablation"
    for name in dict.fromkeys(names):
        if names.count(name) > 1:
            yield f"row {name!r}: {names.count(name)} rows have this name; give each its own"
    folders: dict[str, str] = {}
    for name in dict.fromkeys(names):
        other = folders.setdefault(_slug(name), name)
        if other != name:
            yield f"row {name!r}: its files would have the name of those of row {other!r}; choose another name"
        if not _slug(name):
            yield f"row {name!r}: expected a name with a letter a to z or a digit"
    if ablation.reference is not None and ablation.reference not in names:
        yield f"the reference {ablation.reference!r} is not a row{did_you_mean(ablation.reference, names)}"
    if not (ablation.seeds if seeds is None else seeds):
        yield "there are no seeds; expected at least one"


def _select_rows(ablation: Ablation, patterns: Sequence[str] | None, problems: list[str]) -> set[str]:
    names = [row.name for row in ablation.rows]
    if patterns is None:
        return set(names)
    selected = set()
    for pattern in patterns:
        found = {name for name in names if name == pattern or fnmatch.fnmatchcase(name, pattern)}
        if not found:
            problems.append(f"row {pattern!r}: there is no such row{did_you_mean(pattern, names)}")
        selected |= found
    return selected


def _check_folder(base: Experiment, workdir: PurePath) -> Iterator[str]:
    if storage.is_file(workdir):
        yield f"{workdir} is a file; --workdir takes a folder"
        return
    path = workdir / "ablation.json"
    names = [name for name in storage.names_in(workdir) if not name.startswith(".")]  # one look: others may write there
    if path.name not in names:
        if names:
            yield (
                f"{workdir} holds {', '.join(names[:5])} and no ablation.json, so it is not an ablation's folder; "
                "choose another --workdir"
            )
        return
    record = storage.read_json(path)
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        yield f"{path} does not describe an ablation of format {FORMAT}; choose another --workdir"
        return
    changed = configuration.differences(configuration.from_dict(record["base"], str(path)), base)
    for setting, (old, new) in changed.items():
        if not configuration.is_mutable_on_resume(base, setting):
            yield f"{workdir} has another base: {setting} is {old!r} before, {new!r} now"


def _check_cell(cell: Cell) -> None:
    """Raises UserError where the cell's folder holds a run with other settings."""
    if not storage.exists(cell.folder / "config.json"):
        return
    stored, experiment = (part.with_absolute_paths() for part in (load_config(cell.folder), cell.experiment))
    refused = [
        f"{path} is {old!r} before, {new!r} now"
        for path, (old, new) in different_settings(stored, experiment).items()
        if not configuration.is_mutable_on_resume(experiment, path)
    ]
    if refused:
        raise UserError(f"{cell.folder} holds a run with other settings ({'; '.join(refused)}); rename the row")


def _list_metrics(experiment: Experiment, label_names: dict[str, tuple[str, ...]]) -> tuple[str, ...]:
    return experiment.task.metric_names(experiment.task.output_names(experiment.model, label_names))


def _choose_default_columns(base: Experiment, metrics: dict[str, tuple[str, ...]]) -> tuple[str, ...]:
    """Returns the metrics of a task's headline but losses, and the costs."""
    formats = presenter_for(base.task).formats
    names = dict.fromkeys(name for row in metrics.values() for name in row)
    main = [name for name in names if name.split("/")[-1] in formats and name.split("/")[-1] not in ("loss", "top5")]
    return (*(main or ["loss"]), *DEFAULT_COSTS)


def _list_fillable_columns(metrics: dict[str, tuple[str, ...]], costs: dict[str, tuple[int, int | None]]) -> list[str]:
    """Returns the columns that at least one row can fill."""
    can_count = any(macs is not None for _, macs in costs.values())
    own = dict.fromkeys(name for row in metrics.values() for name in row)
    return [*(name for name in COSTS if can_count or name != "gmacs"), *own]


def _check_columns(columns: Sequence[str], known: Sequence[str], rows: Iterable[str]) -> Iterator[str]:
    for column in columns:
        if column not in known:
            names = ", ".join(map(repr, rows))
            yield f"column {column!r}: none of the rows {names} can fill it{did_you_mean(column, known)}"


def _build_cell(ablation: Ablation, row: Row, seed: int, workdir: PurePath) -> Cell:
    experiment = ablation.base.override({**row.changes, "training.seed": seed})
    name = f"{_slug(row.name)}_seed{seed}"
    return Cell(row.name, seed, name, experiment, workdir / "runs" / name)


def _slug(name: str) -> str:
    slug = re.sub(r"[^a-z0-9.=]+", "_", name.lower()).strip("_.")
    if len(slug) <= MAX_SLUG:
        return slug
    return f"{slug[:MAX_SLUG]}_{hashlib.sha256(name.encode()).hexdigest()[:8]}"
