"""What an ablation is: a base experiment, named rows of changes, seeds and columns; read from a Python file."""

import dataclasses
import itertools
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from vitx import configuration
from vitx.errors import UserError
from vitx.experiment import Experiment, load_object
from vitx.training.overview import count_cost_of

TRIES_PER_ROW = 50  # combinations that a random search tries for each row before it gives up


@dataclasses.dataclass(frozen=True)
class Row:
    """One row of an ablation.

    Attributes:
        name: name in the table.
        changes: settings that differ from the base, by dotted path, as in `Experiment.override`.
    """

    name: str
    changes: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Ablation:
    """Rows x seeds of one experiment. A file that `vitx ablate` reads defines `ablation = Ablation(...)`.

    Attributes:
        base: experiment that every row changes.
        rows: rows of the table, in its order.
        seeds: values of training.seed; each trains every row once.
        columns: columns of the table: metrics of the test split, such as "motion/top1", and `COSTS` of
            `vitx.ablations.plan`. Empty for the main metrics of the task and the costs.
        reference: name of the row that the others are compared with; None for the first.
    """

    base: Experiment
    rows: tuple[Row, ...]
    seeds: tuple[int, ...] = (0, 1, 2)
    columns: tuple[str, ...] = ()
    reference: str | None = None


def load_ablation(path: str | Path) -> Ablation:
    """Returns the `ablation` that a Python file defines.

    Args:
        path: path of the file; in an experiment or ablation file, relative to that file.

    Raises:
        UserError: no such file, the file raises, or it defines no ablation.
    """
    return load_object(path, "ablation", Ablation)


def grid(choices: Mapping[str, Sequence[Any]]) -> tuple[Row, ...]:
    """Returns a row for every combination of values.

    Args:
        choices: {dotted path: its values}.

    Example:
        grid({"model.num_layers": (2, 4), "model.hidden_size": (48, 96)})  # "num_layers=2, hidden_size=48", ...
    """
    return tuple(
        _name_row(choices, dict(zip(choices, values, strict=True))) for values in itertools.product(*choices.values())
    )


def cumulative(additions: Mapping[str, Mapping[str, Any]]) -> tuple[Row, ...]:
    """Returns rows that add changes one after the other: each row has its own changes and those of all rows before it.

    Args:
        additions: {name of the row: changes that it adds}.

    Example:
        cumulative({"none": {}, "+ mixup": {"task.mixing.mixup": 0.1}, "+ smoothing": {"task.label_smoothing": 0.1}})
    """
    changes = itertools.accumulate(additions.values(), lambda before, addition: {**before, **addition})
    return tuple(Row(name, dict(change)) for name, change in zip(additions, changes, strict=True))


def random_search(
    base: Experiment,
    choices: Mapping[str, Sequence[Any]],
    *,
    num_rows: int,
    max_gmacs: float | int = math.inf,
    max_params: float | int = math.inf,
    seed: int = 0,
    name: str = "search",
) -> tuple[Row, ...]:
    """Returns random combinations of values whose model keeps a budget, such as width, depth, heads and tubelet.

    Args:
        base: experiment that the combinations change.
        choices: {dotted path: its values}. A value may be a whole part: {"model": (ViViT(...), TimeSformer(...))}.
        num_rows: greatest number of rows; fewer are returned where the space has no more.
        max_gmacs: greatest number of multiply-accumulates (10^9) of one view.
        max_params: greatest number of parameters.
        seed: seed of the order in which combinations are tried.
        name: name of the search in messages.

    Raises:
        UserError: no combination keeps the budget.
    """
    rows, costs, refused = [], [], ""
    for changes in itertools.islice(_shuffle(choices, seed), TRIES_PER_ROW * num_rows):
        try:
            params, macs = count_cost_of(base.override(changes))
        except (UserError, ValueError) as error:
            refused = str(error)  # such as a width that the heads do not divide
            continue
        if macs is None:
            refused = f"the multiply-accumulates of {_name_row(choices, changes).name} cannot be counted"
            continue
        if macs <= 1e9 * max_gmacs and params <= max_params:
            rows.append(_name_row(choices, changes))
            if len(rows) == num_rows:
                break
        costs.append((params, macs))
    if not rows:
        found = f"none could be created: {refused}"
        if costs:
            params, macs = map(min, zip(*costs, strict=True))
            found = f"they begin at {macs / 1e9:.4g} GMACs and at {params:,} parameters"
        raise UserError(
            f"{name}: no model of the search space keeps max_gmacs {max_gmacs:g} and max_params {max_params:g} "
            f"({found}); raise the budget, or add smaller values"
        )
    return tuple(rows)


def _shuffle(choices: Mapping[str, Sequence[Any]], seed: int) -> Iterator[dict[str, Any]]:
    """Yields all combinations in random order, without listing them: spaces are large."""
    sizes, generator, seen = [len(values) for values in choices.values()], random.Random(seed), set()
    while len(seen) < math.prod(sizes):
        places = tuple(generator.randrange(size) for size in sizes)
        if places not in seen:
            seen.add(places)
            yield {path: values[place] for (path, values), place in zip(choices.items(), places, strict=True)}


def _name_row(choices: Mapping[str, Sequence[Any]], changes: Mapping[str, Any]) -> Row:
    """Returns a row that is named by its changes; values that look the same get their place among the choices."""
    words = []
    for path, value in changes.items():
        texts, text = [_format_short(choice) for choice in choices[path]], _format_short(value)
        place = f" {list(choices[path]).index(value) + 1}" if texts.count(text) > 1 else ""
        words.append(f"{path.split('.')[-1]}={text}{place}")
    return Row(", ".join(words), changes)


def _format_short(value: Any) -> str:
    if dataclasses.is_dataclass(value):
        return type(value).__name__
    if isinstance(value, tuple) and all(isinstance(item, int) for item in value):
        return "x".join(map(str, value))
    return configuration.to_dict(value) if isinstance(value, str) else str(value)
