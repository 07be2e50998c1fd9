"""An ablation is refused before anything runs, with every problem and the names of its rows."""

import dataclasses

import pytest

from vitx.ablations import plan
from vitx.ablations.description import Row
from vitx.ablations.plan import Plan, claim_folder, create_plan
from vitx.cli import main
from vitx.errors import UserError
from vitx.experiment import save_config


def test_rows_and_seeds_are_selected_by_name_and_pattern(two_rows, tmp_path):
    cells = create_plan(two_rows, tmp_path / "a", rows=["no *"], seeds=[7, 0]).cells
    assert [(cell.row, cell.seed) for cell in cells] == [("no temporal layer", 7), ("no temporal layer", 0)]
    assert [cell.experiment.training.seed for cell in cells] == [7, 0]
    assert not (tmp_path / "a").exists()
    with pytest.raises(UserError) as refused:
        create_plan(two_rows, tmp_path / "a", rows=["no temporal layers"])
    assert "no temporal layers" in str(refused.value) and "no temporal layer?" in str(refused.value)


def test_every_problem_is_reported_at_once_with_the_name_of_its_row(two_rows, tmp_path):
    rows = (
        Row("base"),
        Row("misspelt", {"model.num_layer": 2}),
        Row("wrong type", {"model.num_layers": "two"}),
        Row("impossible", {"model.num_heads": 7}),
        Row("other classes", {"model.num_classes": (("motion", 9),)}),
        Row("own seed", {"training.seed": 3}),
        Row("no weights", {"training.initialise_from": "nowhere.safetensors"}),
    )
    with pytest.raises(UserError) as refused:
        create_plan(dataclasses.replace(two_rows, rows=rows), tmp_path)
    message = str(refused.value)
    assert "row 'base'" not in message
    found = ("num_layers?", "'two'", "7", "9 classes", "training.seed", "nowhere.safetensors")
    for row, value in zip(rows[1:], found, strict=True):
        assert any(row.name in line and value in line for line in message.splitlines()), row.name


@pytest.mark.parametrize("names", [("one", "one"), ("one row", "one_row"), ("one", "...")])
def test_two_rows_with_one_name_are_refused(two_rows, names, tmp_path):
    with pytest.raises(UserError) as refused:
        create_plan(dataclasses.replace(two_rows, rows=tuple(map(Row, names))), tmp_path)
    assert repr(names[1]) in str(refused.value)


def test_a_column_that_no_cell_can_fill_is_refused(two_rows, tmp_path):
    columns = ("motion/top1", "motion/top2", "gmac")
    with pytest.raises(UserError) as refused:
        create_plan(dataclasses.replace(two_rows, columns=columns), tmp_path)
    message = str(refused.value)
    assert "'motion/top2'" in message and "'gmac'" in message and "'motion/top1'" not in message and "'base'" in message


def test_multiply_accumulates_that_cannot_be_counted_fill_no_column(two_rows, tmp_path, monkeypatch):
    monkeypatch.setattr(plan, "count_cost_of", lambda experiment: (1, None))
    with pytest.raises(UserError) as refused:
        create_plan(two_rows, tmp_path)
    assert "'gmacs'" in str(refused.value) and "'params'" not in str(refused.value)
    assert "gmacs" not in create_plan(dataclasses.replace(two_rows, columns=()), tmp_path).columns


def test_the_default_columns_are_the_main_metrics_and_costs(two_rows, tmp_path):
    columns = create_plan(dataclasses.replace(two_rows, columns=()), tmp_path).columns
    assert columns[:2] == ("appearance/top1", "motion/top1") and "gmacs" in columns


def test_a_folder_of_another_base_is_refused(two_rows, tmp_path):
    claim_folder(create_plan(two_rows, tmp_path))
    mutable = dataclasses.replace(two_rows, base=two_rows.base.override({"training.log_every": 2}))
    create_plan(mutable, tmp_path)
    other = dataclasses.replace(two_rows, base=two_rows.base.override({"training.steps": 3}))
    with pytest.raises(UserError) as refused:
        create_plan(other, tmp_path)
    assert all(text in str(refused.value) for text in (str(tmp_path), "training.steps", "2", "3"))
    with pytest.raises(UserError, match=r"training\.steps"):
        claim_folder(Plan(other, tmp_path, cells=(), columns=(), costs={}))


def test_a_folder_that_is_no_ablations_is_refused(two_rows, tmp_path):
    (tmp_path / "notes.txt").touch()
    with pytest.raises(UserError, match=r"notes\.txt"):
        create_plan(two_rows, tmp_path)


def test_a_row_whose_settings_changed_after_it_ran_is_refused(two_rows, tmp_path):
    found = create_plan(two_rows, tmp_path)
    claim_folder(found)
    cell = found.cells[1]
    cell.folder.mkdir(parents=True)
    save_config(cell.experiment.override({"model.num_layers": 3}), cell.folder / "config.json")
    with pytest.raises(UserError) as refused:
        create_plan(two_rows, tmp_path)
    assert repr(cell.row) in str(refused.value) and "model.num_layers" in str(refused.value)


@pytest.mark.parametrize(
    ("rest", "row", "found"),
    [
        ("(Row('base'), Row('wide', {'model.width': 2}))", "'wide'", "model.width"),
        ("(Row('twice'), Row('twice', {'model.num_layers': 2}))", "'twice'", "2 rows"),
        ("(Row('base'),), columns=('motion/top2',)", "'base'", "'motion/top2'"),
        ("random_search(base, {'model.num_layers': (1, 2)}, num_rows=2, max_params=9, name='depth')", "depth", "9"),
    ],
)
def test_the_command_ends_with_status_2_and_touches_nothing(rest, row, found, small_file, tmp_path, capsys):
    file = tmp_path / "ablation.py"
    file.write_text(
        "from vitx import Ablation, Row, load_experiment\n"
        "from vitx.ablations.description import random_search\n"
        f"base = load_experiment({small_file!r})\n"
        f"ablation = Ablation(base, {rest})\n"
    )
    assert main(["ablate", str(file), "--workdir", str(tmp_path / "out")]) == 2
    message = capsys.readouterr().err
    assert row in message and found in message
    assert not (tmp_path / "out").exists()
