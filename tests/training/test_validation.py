"""Several validation sets, each with its own cadence."""

import re

import pytest

from vitx.errors import Preempted, UserError
from vitx.run import train
from vitx.training import validation
from vitx.training.logs import read_metrics
from vitx.training.validation import ValidationSet


def test_each_validation_set_is_evaluated_at_its_own_cadence(small, digits, tmp_path, capsys):
    sets = (ValidationSet("seen", split="train", every=6), ValidationSet("other", dataset=digits))
    train(small.override({"training.validation_sets": sets}), tmp_path)
    steps = {name: [] for name in ("validation", "seen", "other")}
    for row in read_metrics(tmp_path):
        if row["split"] in steps:
            steps[row["split"]].append((row["step"], row["examples"]))
    assert steps == {
        "validation": [(4, 21), (8, 21), (12, 21)],
        "seen": [(6, 52), (12, 52)],
        "other": [(12, 19)],
    }
    lines = [line for line in capsys.readouterr().err.splitlines() if ": other (" in line]
    assert len(lines) == 1 and re.search(r"motion/top1 [\d.]+ % \([\d.]+ to [\d.]+\)", lines[0])


def test_a_stop_before_the_last_evaluation_of_another_set_leaves_it_to_the_resume(small, digits, tmp_path, monkeypatch):
    changes = {"optimizer.peak_lr": 0.0, "training.patience": 1, "training.evaluate_every": 2}
    patient = small.override({**changes, "training.validation_sets": (ValidationSet("other", dataset=digits),)})
    evaluate = validation.Evaluator.__call__

    def stop(self, name, step, variables):
        if name == "other":
            raise Preempted
        return evaluate(self, name, step, variables)

    with monkeypatch.context() as patch, pytest.raises(Preempted):
        patch.setattr(validation.Evaluator, "__call__", stop)
        train(patient, tmp_path)
    train(patient, tmp_path)
    evaluated = [
        (row["step"], row["split"]) for row in read_metrics(tmp_path) if row["split"] in ("validation", "other")
    ]
    assert evaluated == [(2, "validation"), (4, "validation"), (4, "other")]


@pytest.mark.parametrize("names", [("test",), ("same", "same"), ("",)])
def test_names_that_are_taken_are_refused(names, small):
    with pytest.raises((ValueError, UserError)):
        small.override({"training.validation_sets": tuple(map(ValidationSet, names))})
