"""One run at several token budgets: rows, table and picture beside its other evaluations."""

import json
import shutil

import numpy as np
import pytest

import vitx
from vitx.cli import main
from vitx.errors import UserError
from vitx.layers.run_length import RunLengthTokens
from vitx.layers.token_merging import TokenMerging
from vitx.models.budgets import Budget
from vitx.models.vivit import ViViT
from vitx.run import load_run, train
from vitx.training.logs import read_metrics

SHARED = (
    "num_classes",
    "num_frames",
    "image_size",
    "tubelet_size",
    "hidden_size",
    "num_layers",
    "num_heads",
    "mlp_dim",
)


@pytest.fixture(scope="module")
def trained(small, tmp_path_factory):
    """Folder of a run of 8 tokens a clip: 2 times, 2 x 2 places."""
    model = ViViT(pooling="mean", **{name: getattr(small.model, name) for name in SHARED})
    return train(small.override({"model": model, "training.steps": 1}), tmp_path_factory.mktemp("run")).workdir


@pytest.fixture
def workdir(trained, tmp_path):
    """A copy of the run's folder."""
    return shutil.copytree(trained, tmp_path / "run")


def test_every_budget_has_a_row_and_a_point_beside_the_other_evaluations(workdir, capsys):
    before = read_metrics(workdir)
    assert not main(["evaluate", str(workdir), "--budgets", "2,5", "--json"])
    rows = json.loads(capsys.readouterr().out)["budgets"]
    assert [row["num_tokens"] for row in rows] == [2, 5] and rows[0]["gmacs"] < rows[1]["gmacs"]
    changed = {"model.reducer.type": "DynamicTokens", "model.reducer.budget": 2, "model.reducer.num_groups": 1}
    assert rows[0]["settings"] == changed
    assert read_metrics(workdir) == before + rows
    assert not main(["evaluate", str(workdir), "--budgets", "5,8"])
    printed = capsys.readouterr().out
    (whole,) = (row for row in before if row["split"] == "test")
    assert f"{whole['motion/top1']:.2f} |" in printed.splitlines()[-1] and printed.count("DynamicTokens") == 2
    assert [row["num_tokens"] for row in read_metrics(workdir)[len(before) :]] == [2, 5, 8]
    table = (workdir / "budgets_test.md").read_text()
    assert [line.split("|")[3:5] for line in table.splitlines()[2:]] == [[" 1x1 ", f" {n} "] for n in (2, 5, 8)]
    assert (workdir / "budgets_test.png").read_bytes().startswith(b"\x89PNG")
    assert "<svg" in (workdir / "budgets_test.svg").read_text()


def test_a_budget_that_does_not_fit_is_refused_before_any_is_evaluated(workdir, capsys, monkeypatch):
    monkeypatch.setattr("vitx.run_budgets.predict_split", None)
    assert main(["evaluate", str(workdir), "--budgets", "4,0"]) == 2
    assert "budgets: ViViT: reducer.budget is 0; expected 1" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"budget is 9; expected .* 8"):
        load_run(workdir).evaluate_budgets([9])
    for word in ("many", "2,", "-1", ""):
        assert main(["evaluate", str(workdir), f"--budgets={word}"]) == 2
        assert "expected numbers with commas" in capsys.readouterr().err


def test_a_run_is_evaluated_on_other_clips_with_its_positions_interpolated(workdir):
    settings = {"data.image_size": (36, 36)}
    run, whole = load_run(workdir, settings=settings), load_run(workdir)
    assert run.experiment.model == whole.experiment.model.with_input_shape(None, (36, 36))
    tables = (np.asarray(x.variables["params"]["positions"]["positions"])[0] for x in (run, whole))
    found, table = (x.reshape(2, -1, x.shape[-1]) for x in tables)
    assert found.shape[1] == 9 and table.shape[1] == 4
    np.testing.assert_allclose(found[:, 4], table.mean(axis=1), rtol=1e-5, atol=1e-6)  # the place in the middle
    rows = run.evaluate_budgets((4, 18), "validation")
    assert [(row["clip"], row["num_tokens"]) for row in rows] == [("4x36x36", 4), ("4x36x36", 18)]
    (again,) = run.evaluate_budgets((18,), "validation")
    validation = [row for row in read_metrics(workdir) if row["split"] == "validation" and "num_tokens" in row]
    assert [row["num_tokens"] for row in validation] == [4, 18] and validation[1]["loss"] == again["loss"]


def test_what_a_budget_drops_is_reported_beside_the_metrics(workdir, capsys):
    """Every token of the noisy digits changes, so that 8 runs share the slots."""
    reducer = RunLengthTokens(0.0, budget=6)
    run = load_run(workdir, settings={"model.reducer": reducer})
    assert run.evaluate()["dropped_tokens"] == pytest.approx(25)
    assert "25.0 % of the tokens" in capsys.readouterr().err
    rows = run.evaluate_budgets((4, 8))
    assert [row["dropped_tokens"] for row in rows] == pytest.approx([50, 0])
    table = (workdir / "budgets_test.md").read_text().splitlines()
    column = table[0].split("|").index(" dropped tokens ")
    assert [line.split("|")[column] for line in table[2:]] == [" 50.0 % ", " 0.0 % "]


def test_models_without_tokens_or_without_a_budget_are_refused():
    with pytest.raises(UserError, match="ResNet3D has no tokens"):
        Budget(8).fit_model(vitx.create_model("r3d_18"))
    with pytest.raises(UserError, match=r"TokenMerging.*no budget.*DynamicTokens"):
        Budget(8).fit_model(vitx.create_model("vivit_b_16x2", reducer=TokenMerging(4)))
    run_length = vitx.create_model("vivit_b_16x2", reducer=RunLengthTokens(0.2, budget=1000))
    assert Budget(200).fit_model(run_length).reducer == RunLengthTokens(0.2, budget=200)
