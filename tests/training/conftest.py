"""What tests of training share: an undisturbed small run, what it ends with, and the command that trains it."""

import shutil
import sys
from pathlib import Path

import filelock
import pytest

from vitx.checkpoints import Checkpoints
from vitx.experiment import load_config
from vitx.run import train
from vitx.training.logs import read_metrics

CLOCK_METRICS = {"clips_per_second", "seconds_per_step", "input_wait_percent", "decode_core_percent", "goodput_percent"}


@pytest.fixture(scope="session")
def undisturbed(small, drawing, common_folder) -> Path:
    """A small run with a moving average, trained once for all test processes; nobody writes into it."""
    shared = common_folder / "undisturbed"
    with filelock.FileLock(f"{shared}.lock"):
        if not (shared / "report.md").exists():
            with drawing():
                train(small.override({"training.ema_decay": 0.9}), shared)
    return shared


@pytest.fixture
def finished(undisturbed, tmp_path) -> Path:
    """A copy of the undisturbed run that a test may change."""
    return Path(shutil.copytree(undisturbed, tmp_path / "finished"))


@pytest.fixture(scope="session")
def final_digests():
    """Returns a function: what a finished run's last checkpoint holds, bit for bit."""

    def digests(workdir: Path) -> dict[str, str]:
        with Checkpoints(workdir / "checkpoints", read_only=True) as checkpoints:
            _, record = checkpoints.restore(checkpoints.steps()[-1], {})
        assert record["step"] == load_config(workdir).training.steps
        return record["digests"]

    return digests


@pytest.fixture(scope="session")
def metrics_without_times():
    """Returns a function: the rows of metrics.jsonl without the metrics that depend on the clock."""

    def rows(workdir: Path) -> list[dict]:
        return [
            {name: value for name, value in row.items() if name not in CLOCK_METRICS} for row in read_metrics(workdir)
        ]

    return rows


@pytest.fixture(scope="session")
def train_command(small_file):
    """Returns a function: the command that trains the small experiment in a process of its own."""

    def command(workdir: Path, *settings: str) -> list[str]:
        return [sys.executable, "-m", "vitx.cli", "train", small_file, "--workdir", str(workdir), *settings]

    return command
