"""Ablation files, grids and random searches."""

import pytest

from vitx.ablations.description import Row, cumulative, grid, load_ablation, random_search
from vitx.errors import UserError
from vitx.models import VARIANTS
from vitx.training.overview import count_cost_of

SPACE = {"model.num_layers": (1, 2), "model.hidden_size": (16, 24), "model.tubelet_size": ((1, 12, 12), (2, 8, 8))}


def test_a_grid_has_a_row_for_every_combination():
    rows = grid({"model.num_layers": (2, 4), "model.tubelet_size": ((1, 8, 8), (2, 8, 8))})
    assert [row.name for row in rows][:2] == ["num_layers=2, tubelet_size=1x8x8", "num_layers=2, tubelet_size=2x8x8"]
    assert len(rows) == 4 and rows[3].changes == {"model.num_layers": 4, "model.tubelet_size": (2, 8, 8)}


def test_whole_parts_of_one_type_are_told_apart_by_their_place():
    models = (VARIANTS["vivit_b_16x2"], VARIANTS["vivit_l_16x2"], VARIANTS["cnn_small"])
    kinds = [type(model).__name__ for model in models]
    expected = [f"model={kinds[0]} 1", f"model={kinds[1]} 2", f"model={kinds[2]}"]
    assert [row.name for row in grid({"model": models})] == expected


def test_a_random_search_keeps_its_budget_and_is_the_same_for_the_same_seed(small):
    params = {row.name: count_cost_of(small.override(row.changes))[0] for row in grid(SPACE)}
    max_params = sorted(params.values())[4]
    rows = random_search(small, SPACE, num_rows=20, max_params=max_params, seed=3)
    assert len(rows) == len({row.name for row in rows}) == 5
    assert all(params[row.name] <= max_params for row in rows)
    assert random_search(small, SPACE, num_rows=2, max_params=max_params, seed=3) == rows[:2]


def test_cumulative_rows_keep_the_changes_of_those_before():
    rows = cumulative({"none": {}, "+ a": {"a": 1}, "+ b": {"b": 2, "a": 3}})
    assert rows == (Row("none"), Row("+ a", {"a": 1}), Row("+ b", {"a": 3, "b": 2}))


def test_a_random_search_skips_combinations_that_cannot_be_created(small):
    rows = random_search(small, {"model.num_heads": (2, 7)}, num_rows=2)
    assert [row.changes for row in rows] == [{"model.num_heads": 2}]


def test_a_space_without_a_model_under_the_budget_is_refused_with_its_name_and_smallest_model(small):
    smallest = min(count_cost_of(small.override(row.changes))[0] for row in grid(SPACE))
    with pytest.raises(UserError) as refused:
        random_search(small, SPACE, num_rows=2, max_params=1000, name="width and depth")
    assert all(text in str(refused.value) for text in ("width and depth", "1000", f"{smallest:,}"))


def test_an_ablation_file_loads_experiments_beside_it(small_file, tmp_path):
    (tmp_path / "base.py").write_text(
        f"from vitx import load_experiment\nexperiment = load_experiment({small_file!r})\n"
    )
    path = tmp_path / "ablation.py"
    path.write_text(
        "from vitx import Ablation, Row, load_experiment\n"
        "ablation = Ablation(load_experiment('base.py'), (Row('a'), Row('b', {'model.num_layers': 2})))\n"
    )
    found = load_ablation(path)
    assert found.rows == (Row("a"), Row("b", {"model.num_layers": 2})) and found.seeds == (0, 1, 2)
    with pytest.raises(UserError, match="base"):
        load_ablation(tmp_path / "base.py")
