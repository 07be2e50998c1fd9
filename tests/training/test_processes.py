"""Two real processes over loopback: one run, one writer, one end."""

import os
import re
import shutil
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
from vitx.training.processes import join_processes

STEPS = 6
SETTINGS = f"--training.steps {STEPS} --training.log_every 1 --training.evaluate_every 0 --training.checkpoint_every 2"


def start(
    file: str, workdir: Path, *settings: str, processes: int = 2, second_settings: tuple[str, ...] = ()
) -> list[subprocess.Popen]:
    """The processes of one run; each has one device. The other has settings of its own besides."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "vitx.cli", "train", file, "--workdir", str(workdir), *SETTINGS.split(), *settings]
    if processes == 1:
        return [subprocess.Popen(command, stderr=subprocess.PIPE, text=True)]
    where = ["--coordinator", f"127.0.0.1:{port}", "--num_processes", "2"]
    return [
        subprocess.Popen([*command, *more, *where, "--process_id", str(i)], stderr=subprocess.PIPE, text=True)
        for i, more in enumerate(((), second_settings))
    ]


def finish(processes: list[subprocess.Popen]) -> list[str]:
    outputs = [process.communicate(timeout=300)[1] for process in processes]
    assert [process.returncode for process in processes] == [0] * len(processes), "\n".join(outputs)
    return outputs


def digests(workdir: Path) -> dict[str, str]:
    with Checkpoints(workdir / "checkpoints", read_only=True) as checkpoints:
        return checkpoints.restore(STEPS, {})[1]["digests"]


def losses(workdir: Path) -> list[float]:
    return [row["loss"] for row in read_metrics(workdir) if row["split"] == "train"]


def counts(workdir: Path) -> list[tuple[int, int]]:
    return [(row["replaced"], row["unreadable"]) for row in read_metrics(workdir) if row["split"] == "train"]


@pytest.fixture(scope="module")
def spoiled(small_file, tmp_path_factory) -> str:
    """An experiment file: the small one, and every fourth training video cannot be read; slowly, if asked."""
    path = tmp_path_factory.mktemp("experiments") / "spoiled.py"
    path.write_text(f"""
import dataclasses
import os
import time

from vitx.configuration import register
from vitx.data.sources import MovingDigits
from vitx.experiment import load_experiment


@dataclasses.dataclass(frozen=True)
class Broken:
    whole: object

    @property
    def label_names(self):
        return self.whole.label_names

    def __len__(self):
        return len(self.whole)

    def __getitem__(self, index):
        time.sleep(float(os.environ.get("SECONDS_A_VIDEO", 0)))
        return self.whole[index] | ({{}} if index % 4 else {{"video": b"no video"}})


@register
@dataclasses.dataclass(frozen=True)
class Spoiled:
    digits: MovingDigits

    def open(self, split):
        source = self.digits.open(split)
        return Broken(source) if split == "train" else source


whole = load_experiment({small_file!r})
experiment = whole.override({{"data.dataset": Spoiled(whole.data.dataset), "data.max_unreadable": 1.0}})
""")
    return str(path)


@pytest.fixture(scope="module")
def undisturbed(spoiled, tmp_path_factory) -> Path:
    workdir = tmp_path_factory.mktemp("two")
    finish(start(spoiled, workdir))
    return workdir


def test_two_processes_write_one_run_as_one_process_does(undisturbed, spoiled, tmp_path):
    finish(start(spoiled, tmp_path, processes=1))
    assert losses(undisturbed) == pytest.approx(losses(tmp_path), rel=2e-4) and len(losses(tmp_path)) == STEPS
    assert counts(undisturbed) == counts(tmp_path)
    replaced, unreadable = counts(undisturbed)[-1]
    assert replaced == unreadable > 8  # of 13, in not quite an epoch
    assert len(list(undisturbed.glob("events.out.tfevents.*"))) == 1 and (undisturbed / "report.md").is_file()
    (one,), (two,) = (
        [row for row in read_metrics(folder) if row["split"] == "test"] for folder in (tmp_path, undisturbed)
    )
    assert two["examples"] == one["examples"] == 19 and two["loss"] == pytest.approx(one["loss"], rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_killed_or_frozen_process_ends_the_other_and_the_run_resumes(victim, how, undisturbed, spoiled, tmp_path):
    processes = start(spoiled, tmp_path)
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
    finish(start(spoiled, tmp_path))
    assert digests(tmp_path) == digests(undisturbed)
    assert losses(tmp_path) == losses(undisturbed) and counts(tmp_path) == counts(undisturbed)


@pytest.mark.slow
@pytest.mark.parametrize("target", [0, 1])
def test_sigterm_to_one_process_stops_both_and_the_run_resumes(target, undisturbed, spoiled, tmp_path, monkeypatch):
    monkeypatch.setenv("SECONDS_A_VIDEO", "0.5")
    processes = start(spoiled, tmp_path, "--training.checkpoint_every", "100")
    while not read_metrics(tmp_path):
        assert processes[target].poll() is None
        time.sleep(0.01)
    processes[target].send_signal(signal.SIGTERM)
    monkeypatch.delenv("SECONDS_A_VIDEO")
    outputs = [process.communicate(timeout=120)[1] for process in processes]
    assert [process.returncode for process in processes] == [75, 75], "\n".join(outputs)
    with Checkpoints(tmp_path / "checkpoints", read_only=True) as checkpoints:
        (step,) = checkpoints.steps()
    assert 1 <= step < STEPS and any(f"stopped after step {step}" in output for output in outputs)
    finish(start(spoiled, tmp_path, "--training.checkpoint_every", "100"))
    assert digests(tmp_path) == digests(undisturbed)
    assert losses(tmp_path) == losses(undisturbed) and counts(tmp_path) == counts(undisturbed)


@pytest.mark.slow
def test_two_processes_set_a_damaged_checkpoint_aside(undisturbed, spoiled, tmp_path):
    shutil.copytree(undisturbed, tmp_path, dirs_exist_ok=True)
    files = (tmp_path / "checkpoints" / str(STEPS)).rglob("d/*")
    largest = max(files, key=lambda path: path.stat().st_size)
    data = bytearray(largest.read_bytes())
    data[len(data) // 2] ^= 4
    largest.write_bytes(data)
    outputs = finish(start(spoiled, tmp_path))
    assert f"checkpoints/{STEPS}" in outputs[0] and "set aside" in outputs[0]
    assert len(list((tmp_path / "checkpoints").glob(f"damaged_{STEPS}_*"))) == 1
    assert digests(tmp_path) == digests(undisturbed)


@pytest.mark.slow
def test_one_process_resumes_what_two_began(undisturbed, spoiled, tmp_path):
    processes = start(spoiled, tmp_path)
    while not (tmp_path / "checkpoints" / "2").exists():
        time.sleep(0.01)
    for process in processes:
        process.kill()
        process.communicate()
    (output,) = finish(start(spoiled, tmp_path, processes=1))
    assert "resuming from step" in output
    assert losses(tmp_path) == pytest.approx(losses(undisturbed), rel=2e-4)


@pytest.mark.slow
def test_user_error_in_one_process_ends_all_with_its_message(spoiled, tmp_path):
    (tmp_path / "somebody's").write_text("")
    processes = start(spoiled, tmp_path)
    outputs = [process.communicate(timeout=120)[1] for process in processes]
    assert [process.returncode for process in processes] == [2, 2]
    assert all("process 0 of 2: " in output and "somebody's" in output for output in outputs)


def test_processes_with_different_settings_end_before_they_train(small_file, tmp_path):
    processes = start(small_file, tmp_path / "run", second_settings=("--training.seed", "7", "--data.batch_size", "4"))
    outputs = [process.communicate(timeout=120)[1] for process in processes]
    assert [process.returncode for process in processes] == [2, 2], outputs
    for output in outputs:
        assert "process 1 of 2: " in output and "training.seed: 7 in process 1, 0 in process 0" in output
        assert "data.batch_size: 4 in process 1" in output
    assert not read_metrics(tmp_path / "run")


def test_port_in_use_is_reported():
    with socket.socket() as other:
        other.bind(("", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(UserError, match=rf"port {port} of --coordinator localhost:{port}"):
            join_processes(f"localhost:{port}", 0, 2, timeout=1)


def test_silent_coordinator_is_reported_with_the_time_waited():
    with pytest.raises(UserError, match=r"127\.0\.0\.1:9 .* for 1 s"):
        join_processes("127.0.0.1:9", 1, 2, timeout=1)


@pytest.mark.parametrize("environment", [False, True])
def test_missing_processes_are_reported_with_the_time_waited(environment):
    """In a process of its own: JAX would end it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    slurm = {"SLURM_JOB_ID": "7", "SLURM_STEP_NODELIST": "localhost", "SLURM_NTASKS": "2", "SLURM_PROCID": "0"}
    slurm |= {"SLURM_LOCALID": "0", "SLURM_STEP_NUM_NODES": "1"}
    given = (None, None, None) if environment else (address, 0, 2)
    code = f"""
from vitx.errors import UserError
from vitx.training.processes import join_processes
try:
    join_processes(*{given!r}, timeout=2)
except UserError as error:
    raise SystemExit(str(error))
"""
    words = [sys.executable, "-c", code]
    ended = subprocess.run(words, env=os.environ | (slurm if environment else {}), capture_output=True, text=True)
    where = r"localhost:\d+" if environment else address
    assert ended.returncode == 1 and re.search(rf"{where}.* in 2 s: ", ended.stderr), ended


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            ("127.0.0.1:9", None, 2),
            "missing: --process_id$",
        ),
        ((None, None, 2), "missing: --coordinator, --process_id$"),
        ((None, 1, 2), "missing: --coordinator$"),
        (("127.0.0.1", 0, 2), "expected HOST:PORT"),
        (("127.0.0.1:9", 2, 2), "expected 0 to 1"),
        (("127.0.0.1:99999", 0, 2), "expected a port from 1 to 65535"),
        (("127.0.0.1:9", 0, 0), "--num_processes is 0; expected at least 1"),
        (("127.0.0.1:9", 0, 2, 0), "--join_timeout is 0"),
    ],
)
def test_incomplete_addresses_are_refused(given, message):
    with pytest.raises(UserError, match=message):
        join_processes(*given)
