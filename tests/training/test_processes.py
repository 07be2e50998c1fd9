"""Two real processes over loopback: one run, one writer, one end."""

import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from vitx.checkpoints import Checkpoints
from vitx.errors import UserError
from vitx.training.logs import read_metrics
from vitx.training.processes import join

STEPS = 6
SETTINGS = f"--training.steps {STEPS} --training.log_every 1 --training.evaluate_every 0 --training.checkpoint_every 2"


def start(file: str, workdir: Path, *settings: str, processes: int = 2) -> list[subprocess.Popen]:
    """The processes of one run; each has one device."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "vitx.cli", "train", file, "--workdir", str(workdir), *SETTINGS.split(), *settings]
    if processes == 1:
        return [subprocess.Popen(command, stderr=subprocess.PIPE, text=True)]
    where = ["--coordinator", f"127.0.0.1:{port}", "--num_processes", str(processes)]
    return [
        subprocess.Popen([*command, *where, "--process_id", str(i)], stderr=subprocess.PIPE, text=True)
        for i in range(processes)
    ]


def finish(processes: list[subprocess.Popen]) -> list[str]:
    said = [process.communicate(timeout=300)[1] for process in processes]
    assert [process.returncode for process in processes] == [0] * len(processes), "\n".join(said)
    return said


def digests(workdir: Path) -> dict[str, str]:
    with Checkpoints(workdir / "checkpoints", read_only=True) as checkpoints:
        return checkpoints.restore(STEPS, {})[1]["digests"]


def losses(workdir: Path) -> list[float]:
    return [row["loss"] for row in read_metrics(workdir) if row["split"] == "train"]


@pytest.fixture(scope="module")
def undisturbed(small_file, tmp_path_factory) -> Path:
    workdir = tmp_path_factory.mktemp("two")
    finish(start(small_file, workdir))
    return workdir


def test_two_processes_fill_one_folder_as_one_process_does(undisturbed, small_file, tmp_path):
    finish(start(small_file, tmp_path, processes=1))
    assert losses(undisturbed) == pytest.approx(losses(tmp_path), rel=2e-4) and len(losses(tmp_path)) == STEPS
    assert len(list(undisturbed.glob("events.out.tfevents.*"))) == 1 and (undisturbed / "report.md").is_file()
    (one,), (two,) = ([row for row in read_metrics(each) if row["split"] == "test"] for each in (tmp_path, undisturbed))
    assert two["examples"] == one["examples"] == 19 and two["loss"] == pytest.approx(one["loss"], rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_a_dead_or_hung_process_ends_the_other_and_both_go_on(victim, how, undisturbed, small_file, tmp_path):
    processes = start(small_file, tmp_path)
    while not (tmp_path / "checkpoints" / "2").exists():
        assert processes[victim].poll() is None
        time.sleep(0.01)
    processes[victim].send_signal(how)
    try:
        assert processes[1 - victim].wait(timeout=120)
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    finish(start(small_file, tmp_path))
    assert digests(tmp_path) == digests(undisturbed)
    assert losses(tmp_path) == losses(undisturbed)


@pytest.mark.slow
def test_what_two_processes_began_one_goes_on_with(undisturbed, small_file, tmp_path):
    processes = start(small_file, tmp_path)
    while not (tmp_path / "checkpoints" / "2").exists():
        time.sleep(0.01)
    for process in processes:
        process.kill()
        process.communicate()
    (said,) = finish(start(small_file, tmp_path, processes=1))
    assert "going on from step" in said
    assert losses(tmp_path) == pytest.approx(losses(undisturbed), rel=2e-4)


@pytest.mark.slow
def test_a_mistake_that_one_process_meets_ends_all_with_its_message(small_file, tmp_path):
    (tmp_path / "somebody's").write_text("")
    processes = start(small_file, tmp_path)
    said = [process.communicate(timeout=120)[1] for process in processes]
    assert [process.returncode for process in processes] == [2, 2]
    assert all("process 0 of 2: " in each and "is not empty and no run's folder" in each for each in said)


def test_a_coordinator_that_does_not_answer_is_told_with_the_time_waited():
    with pytest.raises(UserError, match=r"the coordinator 127\.0\.0\.1:9 cannot be reached: .* for 1 s; check that"):
        join("127.0.0.1:9", 1, 2, timeout=1)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("127.0.0.1:9", None, 2), "--coordinator needs --process_id too"),
        (("127.0.0.1", 0, 2), "expected HOST:PORT"),
        (("127.0.0.1:9", 2, 2), "expected 0 to 1"),
    ],
)
def test_half_an_address_is_told(given, message):
    with pytest.raises(UserError, match=message):
        join(*given)
