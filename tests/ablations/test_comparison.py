"""Runs side by side."""

import json

import numpy as np
import pytest

import vitx
from vitx.cli import main
from vitx.errors import UserError
from vitx.evaluation.examples import is_correct, load_predictions


@pytest.fixture(scope="module")
def runs(done):
    """Two short runs that differ in depth and seed."""
    return done[0] / "runs" / "base_seed0", done[0] / "runs" / "no_temporal_layer_seed1"


@pytest.fixture(scope="module")
def comparison(runs, tmp_path_factory):
    output = tmp_path_factory.mktemp("comparison")
    return vitx.compare(runs, output), output


def test_runs_in_memory_compare_as_their_folders_do(comparison, runs):
    assert str(vitx.compare([vitx.load_run(runs[0]), runs[1]])) == str(comparison[0])
    assert comparison[0]._repr_markdown_() == str(comparison[0])


def test_settings_that_differ_are_listed_with_the_values_of_all_runs(comparison):
    assert comparison[0].settings == {
        "model.num_temporal_layers": {"base_seed0": 1, "no_temporal_layer_seed1": 0},
        "training.seed": {"base_seed0": 0, "no_temporal_layer_seed1": 1},
    }


def test_metrics_stand_beside_each_other_with_intervals(comparison, runs):
    for run in runs:
        logged = next(row for row in vitx.load_run(run).metrics() if row["split"] == "test")
        value, (low, high) = comparison[0].metrics["motion/top1"][run.name]
        assert value == logged["motion/top1"] and low <= value <= high and low < high
        assert comparison[0].metrics["motion/macro_f1"][run.name] == (logged["motion/macro_f1"], None)
    (difference,) = (d for d in comparison[0].differences if d.column == "motion/top1")
    values = [comparison[0].metrics["motion/top1"][run.name][0] for run in runs]
    assert difference.mean == pytest.approx(values[1] - values[0]) and difference.reference == "base_seed0"


def test_clips_that_one_run_gets_right_and_the_other_wrong_are_all_named(comparison, runs, tiny):
    source = tiny.data.dataset.open("test")
    correct = {}
    for run in runs:
        _, predictions = load_predictions(run / "predictions_test.npz")
        correct[run.name] = is_correct(tiny.task, predictions, "appearance")
    for found in comparison[0].disagreements:
        if found.label == "appearance":
            expected = np.flatnonzero(correct[found.correct] & ~correct[found.wrong])
            assert found.indices == tuple(expected)
            for index, (true, predicted) in zip(found.indices, found.captions, strict=True):
                assert true == source.label_names["appearance"][source[index]["labels"]["appearance"]] != predicted
    assert sum(len(found.indices) for found in comparison[0].disagreements) > 0


def test_the_folder_has_the_text_the_numbers_and_one_picture_of_all_curves(comparison):
    found, output = comparison
    text = (output / "comparison.md").read_text()
    assert str(found) in text and "num_temporal_layers" in text and "(curves.png)" in text
    data = json.loads((output / "comparison.json").read_text())
    assert data["settings"]["training.seed"] == {"base_seed0": 0, "no_temporal_layer_seed1": 1}
    pictures = {path.name for path in output.glob("*.png")}
    assert {"curves.png", "clips_0.png"} <= pictures and (output / "curves.svg").exists()


def test_a_run_without_kept_predictions_is_evaluated_and_left_as_it_is(runs, comparison):
    run = runs[0]
    moved = (run / "predictions_test.npz").rename(run.parent / "kept.npz")
    before = {path.name for path in run.iterdir()}
    try:
        assert vitx.compare(runs) == comparison[0]
        assert {path.name for path in run.iterdir()} == before
    finally:
        moved.rename(run / "predictions_test.npz")


def test_the_command_prints_the_comparison(runs, comparison, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["compare", *map(str, runs), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads((comparison[1] / "comparison.json").read_text())
    assert (tmp_path / "comparison" / "comparison.md").exists()


def test_one_run_or_a_run_twice_or_another_folder_is_refused(runs, tmp_path):
    for wrong in ([runs[0]], [runs[0], runs[0]], [runs[0], tmp_path]):
        with pytest.raises(UserError, match=str(wrong[-1])):
            vitx.compare(wrong)
