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


@pytest.mark.parametrize(
    ("patience", "stopped", "expected"),
    [
        (1, ("other", 4), [(2, "validation"), (4, "validation"), (4, "other")]),
        (3, ("validation", 6), [(2, "validation"), (4, "validation"), (6, "validation"), (6, "other")]),
    ],
)
def test_a_run_that_was_stopped_before_an_evaluation_resumes_with_it(
    patience, stopped, expected, small, digits, tmp_path, monkeypatch
):
    """Also where the run resumes with less patience, which earlier evaluations have exhausted."""
    changes = {"optimizer.peak_lr": 0.0, "training.patience": patience, "training.evaluate_every": 2}
    patient = small.override({**changes, "training.validation_sets": (ValidationSet("other", dataset=digits),)})
    evaluate = validation.Evaluator.__call__

    def stop(self, name, step, variables):
        if (name, step) == stopped:
            raise Preempted
        return evaluate(self, name, step, variables)

    with monkeypatch.context() as patch, pytest.raises(Preempted):
        patch.setattr(validation.Evaluator, "__call__", stop)
        train(patient, tmp_path)
    train(patient.override({"training.patience": 1}), tmp_path)
    evaluated = [
        (row["step"], row["split"]) for row in read_metrics(tmp_path) if row["split"] in ("validation", "other")
    ]
    assert evaluated == expected


@pytest.mark.parametrize("names", [("test",), ("same", "same"), ("",)])
def test_names_that_are_taken_are_refused(names, small):
    with pytest.raises((ValueError, UserError)):
        small.override({"training.validation_sets": tuple(map(ValidationSet, names))})
