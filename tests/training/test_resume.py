"""Resuming: a run that was interrupted, killed or damaged ends bit for bit as if nothing had happened."""

import re
import shutil
import signal
import subprocess
import time

import numpy as np
import pytest

from vitx.checkpoints import Checkpoints
from vitx.errors import Preempted
from vitx.run import load_run, train
from vitx.training import trainer, validation
from vitx.training.logs import read_metrics


@pytest.mark.parametrize("moment", [1, 3, 8])
def test_interrupted_run_resumes_bit_identically(
    moment, small, undisturbed, tmp_path, monkeypatch, capsys, final_digests, metrics_without_times
):
    """The loop dies when batch `moment` is asked for; the same command again ends as if nothing had happened."""
    place, asked = trainer.to_devices, 0

    def interrupt(batch, sharding):
        nonlocal asked
        asked += 1
        if asked == moment:
            raise KeyboardInterrupt
        return place(batch, sharding)

    experiment = small.override({"training.ema_decay": 0.9})
    with monkeypatch.context() as patch:
        patch.setattr(trainer, "to_devices", interrupt)
        with pytest.raises(KeyboardInterrupt):
            train(experiment, tmp_path)
    train(experiment.override({"data.num_workers": 2 if moment == 8 else 0}), tmp_path)
    assert final_digests(tmp_path) == final_digests(undisturbed)
    assert metrics_without_times(tmp_path) == metrics_without_times(undisturbed)
    printed = capsys.readouterr().err
    assert "is damaged" not in printed and ("resuming from step" in printed) == (moment > 1)


@pytest.mark.parametrize("damage", ["flip", "truncate", "delete"])
def test_run_resumes_from_the_checkpoint_before_a_damaged_one(
    damage, small, undisturbed, tmp_path, capsys, final_digests, metrics_without_times
):
    shutil.copytree(undisturbed, tmp_path, dirs_exist_ok=True)
    files = [
        path for path in (tmp_path / "checkpoints" / "12").rglob("*") if path.is_file() and path.parent.name == "d"
    ]
    largest = max(files, key=lambda path: path.stat().st_size)
    data = bytearray(largest.read_bytes())
    if damage == "flip":
        data[len(data) // 2] ^= 4
        largest.write_bytes(data)
    elif damage == "truncate":
        largest.write_bytes(data[: len(data) // 2])
    else:
        shutil.rmtree(tmp_path / "checkpoints" / "12")
    capsys.readouterr()
    train(small.override({"training.ema_decay": 0.9}), tmp_path)
    printed = capsys.readouterr().err
    assert "resuming from step 10" in printed
    assert damage == "delete" or "checkpoints/12" in printed
    assert final_digests(tmp_path) == final_digests(undisturbed)
    assert sorted(map(str, metrics_without_times(tmp_path))) == sorted(map(str, metrics_without_times(undisturbed)))


def kill_during_a_save(command, workdir):
    """Runs a command that trains until it saves for the first time, and kills it."""
    with subprocess.Popen(command, stderr=subprocess.PIPE) as process:
        while not list(workdir.glob("checkpoints/*.orbax-checkpoint-tmp*")):
            assert process.poll() is None, process.stderr.read().decode()
            time.sleep(0.0005)
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL


def test_resume_is_bit_identical_after_sigkill_during_a_save(undisturbed, tmp_path, train_command, final_digests):
    command = train_command(tmp_path, "--training.ema_decay", "0.9")
    kill_during_a_save(command, tmp_path)
    subprocess.run(command, check=True)
    assert final_digests(tmp_path) == final_digests(undisturbed)


@pytest.mark.slow  # two whole runs in processes of their own, each of which compiles two programs
def test_a_run_with_budgets_resumes_bit_identically_after_sigkill(
    small_file, tmp_path, train_command, final_digests, metrics_without_times
):
    """Which budget a step trains follows from seed and step."""
    file = tmp_path / "budgets.py"
    file.write_text(
        "from vitx.experiment import load_experiment\n"
        "from vitx.models.budgets import Budget\n"
        f"small = load_experiment({small_file!r})\n"
        "experiment = small.override({'training.budgets': (Budget(), Budget(num_frames=2))})\n"
    )

    def train_file(name):
        return [str(file) if word == small_file else word for word in train_command(tmp_path / name)]

    subprocess.run(train_file("undisturbed"), check=True)
    kill_during_a_save(train_file("killed"), tmp_path / "killed")
    subprocess.run(train_file("killed"), check=True)
    assert final_digests(tmp_path / "killed") == final_digests(tmp_path / "undisturbed")
    assert metrics_without_times(tmp_path / "killed") == metrics_without_times(tmp_path / "undisturbed")


def test_sigterm_saves_exits_with_75_and_resumes_bit_identically(
    undisturbed, tmp_path, train_command, final_digests, metrics_without_times
):
    """A real process and a real SIGTERM; what follows is traced."""
    words = train_command(tmp_path, "--training.ema_decay", "0.9", "--training.checkpoint_every", "100")
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True) as process:
        while not read_metrics(tmp_path):
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.0005)
        process.send_signal(signal.SIGTERM)
        _, printed = process.communicate()
    assert process.returncode == 75 and re.search(r"stopped after step \d+", printed)
    with Checkpoints(tmp_path / "checkpoints", read_only=True) as checkpoints:
        (step,) = checkpoints.steps()
    assert 4 <= step < 12
    words += ["--training.profile_steps", "11", "12"]
    printed = subprocess.run(words, check=True, stderr=subprocess.PIPE, text=True).stderr
    assert f"resuming from step {step}" in printed
    assert final_digests(tmp_path) == final_digests(undisturbed)
    assert metrics_without_times(tmp_path) == metrics_without_times(undisturbed)
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))


def test_run_stopped_during_evaluation_evaluates_when_it_resumes(
    small, undisturbed, tmp_path, monkeypatch, interruptible, final_digests, metrics_without_times
):
    """Ctrl-C in step 5, then SIGTERM and Ctrl-C in evaluations after steps 8 and 12, of which nothing is known yet."""
    to_devices, evaluate = trainer.to_devices, validation.evaluate
    experiment = small.override({"training.ema_decay": 0.9, "training.checkpoint_every": 100})

    def stop_at(name, moment, number):
        calls, (module, real) = 0, {"to_devices": (trainer, to_devices), "evaluate": (validation, evaluate)}[name]

        def disturbed(*arguments, **options):
            nonlocal calls
            calls += 1
            if calls == moment:
                signal.raise_signal(number)
            return real(*arguments, **options)

        with monkeypatch.context() as patch:
            patch.setattr(module, name, disturbed)
            with pytest.raises(Preempted, match="stopped after step"):
                train(experiment, tmp_path)

    handler = signal.getsignal(signal.SIGTERM)
    stop_at("to_devices", 5, signal.SIGINT)
    stop_at("evaluate", 1, signal.SIGTERM)
    assert [row["step"] for row in read_metrics(tmp_path) if row["split"] == "validation"] == [4]
    stop_at("evaluate", 2, signal.SIGINT)
    with Checkpoints(tmp_path / "checkpoints", read_only=True) as checkpoints:
        assert checkpoints.steps()[-1] == 12
    train(experiment, tmp_path)
    assert signal.getsignal(signal.SIGTERM) == handler
    assert final_digests(tmp_path) == final_digests(undisturbed)
    assert metrics_without_times(tmp_path) == metrics_without_times(undisturbed)
    assert load_run(tmp_path).step == load_run(undisturbed).step


@pytest.fixture(scope="module")
def seconds(tmp_path_factory, train_command) -> float:
    """How long the command takes when nothing disturbs it, on this machine and now, compiled before."""
    for name in ("compiles", "timed"):
        began = time.monotonic()
        workdir = tmp_path_factory.mktemp(name)
        subprocess.run(train_command(workdir, "--training.ema_decay", "0.9"), check=True)
    return time.monotonic() - began


@pytest.mark.slow
@pytest.mark.parametrize("trial", range(50))
def test_resume_is_bit_identical_after_sigkill_at_random_moments(
    trial, undisturbed, seconds, tmp_path, train_command, final_digests
):
    """Kills the run at random moments, again and again, until it gets through.

    One that got through before the first, for the machine is faster now than it was, starts again and killed sooner.
    """
    rng, kills, workdir = np.random.default_rng(trial), 0, tmp_path / "0"
    while True:
        process = subprocess.Popen(train_command(workdir, "--training.ema_decay", "0.9"))
        try:
            assert process.wait(timeout=rng.uniform(0.2, 0.85 + 0.3 * kills) * seconds) == 0
            if kills:
                break
            seconds, workdir = seconds / 2, tmp_path / str(seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            kills += 1
    print(f"killed {kills} times")
    assert final_digests(workdir) == final_digests(undisturbed)
