"""What a run writes: rows of metrics, the overview, Weights & Biases."""

import os
import subprocess
import sys

import pytest

from vitx.errors import UserError
from vitx.run import train
from vitx.training.logs import read_metrics
from vitx.training.overview import count_parameters
from vitx.training.progress import Meter


def test_training_rows_have_learning_rates_speed_and_epoch(small, tmp_path):
    changes = {"optimizer.layer_decay": 0.5, "training.log_every": 2, "training.steps": 4}
    run = train(small.override(changes), tmp_path)
    rows = [row for row in read_metrics(tmp_path) if row["split"] == "train"]
    schedule = run.experiment.optimizer.schedule.build(run.experiment.optimizer.peak_lr, 4)
    for row, updates in zip(rows, (1, 3), strict=True):
        assert row["learning_rate"] == pytest.approx(float(schedule(updates)))
        by_layer = {name: value for name, value in row.items() if name.startswith("learning_rate/layer_")}
        assert max(by_layer.values()) == row["learning_rate"] and min(by_layer.values()) < row["learning_rate"]
        assert row["epoch"] == pytest.approx(row["step"] * 8 / 52)
        assert row["clips_per_second"] == pytest.approx(8 / row["seconds_per_step"])
        assert row["gradient_norm"] > 0


@pytest.mark.smoke
def test_means_of_a_label_are_over_the_examples_that_have_it():
    meter = Meter()
    meter.add({"weight": 8.0, "loss": 2.0, "scene/kind/weight": 4.0, "scene/kind/top1": 300.0, "motion/weight": 8.0})
    meter.add({"weight": 8.0, "loss": 4.0, "scene/kind/weight": 2.0, "scene/kind/top1": 150.0, "motion/weight": 8.0})
    assert meter.means() | {"loss": 3.0, "scene/kind/top1": 75.0} == meter.means()


def test_run_keeps_an_overview_of_parameters_mesh_and_cost(small, tmp_path):
    run = train(small.override({"training.steps": 1}), tmp_path)
    overview = (tmp_path / "overview.md").read_text()
    counts = count_parameters(run.variables["params"])
    for name, count in counts.items():
        assert f"{name} " in overview and f"{count:,}" in overview
    assert f"{sum(counts.values()):,}" in overview and "GMACs per clip" in overview and "mesh: one device" in overview


def test_wandb_gets_the_rows_of_metrics(small, tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    train(small.override({"training.wandb": "vitx-tests", "training.steps": 4}), tmp_path)
    (records,) = (tmp_path / "wandb").glob("offline-run-*/run-*.wandb")
    content = records.read_bytes()
    for name in (b"train/loss", b"train/learning_rate", b"validation/motion/top1"):
        assert name in content


def test_wandb_without_the_package_names_the_extra(small, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match=r"training\.wandb is 'project'.*vitx\[wandb\]"):
        train(small.override({"training.wandb": "project"}), tmp_path)


def test_writing_events_does_not_import_pytorch(tmp_path):
    """A module of that name stands for it, since most tests run without PyTorch."""
    (tmp_path / "torch.py").write_text("raise AssertionError('PyTorch was imported')\n")
    script = "import pathlib, sys\nfrom vitx.training.logs import Events\n"
    script += "Events(pathlib.Path(sys.argv[1]), [{'step': 1, 'split': 'train', 'loss': 0.5}]).close()\n"
    script += "assert 'torch' not in sys.modules"
    (tmp_path / "run").mkdir()
    paths = os.pathsep.join([str(tmp_path), *sys.path])
    subprocess.run([sys.executable, "-c", script, tmp_path / "run"], env=os.environ | {"PYTHONPATH": paths}, check=True)
    assert len(list((tmp_path / "run").glob("events.out.tfevents.*"))) == 1
