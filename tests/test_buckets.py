"""A whole run in a bucket of each store: trained, killed, resumed, evaluated, used."""

import json
import os
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from vitx import storage
from vitx.checkpoints import Checkpoints
from vitx.cli import main
from vitx.data.encoding import encode_video
from vitx.data.prepared import Prepared
from vitx.errors import UserError
from vitx.run import load_run, train
from vitx.storage import as_path
from vitx.training.logs import read_metrics

CLOCK = {"clips_per_second", "seconds_per_step", "input_wait_percent", "decode_core_percent", "goodput_percent", "mfu"}


def digests_of(workdir):
    with Checkpoints(workdir / "checkpoints", read_only=True) as checkpoints:
        step = checkpoints.steps()[-1]
        return step, checkpoints.restore(step, {})[1]["digests"]


def metrics_without_times(workdir):
    return [{name: value for name, value in row.items() if name not in CLOCK} for row in read_metrics(workdir)]


SHORT = {"training.steps": 4, "training.log_every": 1}


@pytest.fixture(scope="module")
def undisturbed(small, tmp_path_factory):
    """The same run on a local disk."""
    workdir = tmp_path_factory.mktemp("undisturbed")
    train(small.override(SHORT), workdir)
    return workdir


def test_a_run_in_a_bucket_is_killed_resumed_and_used(bucket, small_file, undisturbed, tmp_path, capsys):
    workdir = as_path(bucket) / "runs" / "one"
    settings = [f"--{name}={value}" for name, value in SHORT.items()]
    command = [sys.executable, "-m", "vitx", "train", small_file, "--workdir", str(workdir), *settings]
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as process:
        while not any(map(str.isdecimal, storage.names_in(workdir / "checkpoints"))):
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    done = subprocess.run(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 0, done.stderr

    assert digests_of(workdir) == digests_of(undisturbed)
    assert metrics_without_times(workdir) == metrics_without_times(undisturbed)
    names = storage.names_in(workdir)
    assert {"config.json", "metrics.jsonl", "report.md", "curves.png", "checkpoints"} <= set(names)
    assert any(name.startswith("events.out.tfevents") for name in names)
    assert "metrics" not in names
    assert os.listdir(tmp_path) == []  # no local folder named "gs:"

    clip = tmp_path / "clip.mp4"
    clip.write_bytes(encode_video(np.random.default_rng(0).integers(0, 255, (9, 50, 70, 3), np.uint8)))
    capsys.readouterr()
    assert main(["evaluate", str(workdir), "--json"]) == 0
    tested = json.loads(capsys.readouterr().out)
    assert main(["predict", str(workdir), str(clip), "--json"]) == 0
    answers = json.loads(capsys.readouterr().out)
    local, remote = load_run(undisturbed), load_run(str(workdir))
    jax.tree.map(np.testing.assert_array_equal, local.variables, remote.variables)
    assert tested == json.loads(json.dumps(local.evaluate("test")))
    assert answers == json.loads(json.dumps(local.predict([clip])))


def test_a_run_starts_from_one_in_a_bucket(new_bucket, undisturbed, small, tmp_path):
    copy = as_path(new_bucket("s3")) / "run"
    for path in (path for path in undisturbed.rglob("*") if path.is_file() and path.name != ".lock"):
        storage.upload_file(path, copy / path.relative_to(undisturbed).as_posix())
    for step in storage.names_in(copy / "checkpoints"):
        storage.write_bytes(copy / "checkpoints" / step / storage.COMMITTED, b"")
    settings = {"training.steps": 2, "training.initialise_from": str(copy)}
    from_bucket = train(small.override(settings), tmp_path / "there")
    from_disk = train(small.override(settings | {"training.initialise_from": str(undisturbed)}), tmp_path / "here")
    jax.tree.map(np.testing.assert_array_equal, from_disk.variables, from_bucket.variables)


def test_a_bucket_that_cannot_be_written_ends_training_with_status_2(new_bucket, small_file, tmp_path, capfd):
    new_bucket("gs"), new_bucket("s3")
    for kind in ("gs", "s3"):
        assert main(["train", small_file, "--workdir", f"{kind}://no-such-bucket-anywhere/run"]) == 2
        assert f"{kind}://no-such-bucket-anywhere" in capfd.readouterr().err


@pytest.mark.parametrize("workdir", ["az://bucket/run", "gs:/bucket/run", "webhdfs://host/run"])
def test_a_scheme_that_cannot_be_opened_is_refused_with_status_2(workdir, small_file, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["train", small_file, "--workdir", workdir]) == 2
    message = capsys.readouterr().err
    assert workdir in message and "Traceback" not in message
    assert os.listdir(tmp_path) == []


def test_videos_are_prepared_into_a_bucket_and_trained_from_there(bucket, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("VITX_CACHE", str(tmp_path / "cache"))
    for split in ("train", "validation", "test"):
        for label in ("a", "b"):
            folder = tmp_path / "videos" / split / label
            folder.mkdir(parents=True)
            video = np.random.default_rng(100 * len(split) + ord(label)).integers(0, 255, (6, 32, 32, 3), np.uint8)
            (folder / "x.mp4").write_bytes(encode_video(video))
    remote, local = as_path(bucket) / "prepared", tmp_path / "prepared"
    for destination in (remote, local):
        assert main(["data", "prepare", str(tmp_path / "videos"), str(destination), "--shard_size", "1"]) == 0
    assert storage.names_in(remote) == [".lock", *sorted(os.listdir(local))[1:]]
    assert storage.read_json(remote / "manifest.json") == storage.read_json(local / "manifest.json")
    assert main(["data", "prepare", str(tmp_path / "videos"), str(remote), "--shard_size", "1"]) == 0
    capsys.readouterr()
    assert main(["data", "check", str(remote), "--json"]) == 1  # too few videos of test and validation, nothing broken
    assert json.loads(capsys.readouterr().out)["broken"] == []
    sources = [Prepared(str(path)).open("train") for path in (remote, local)]
    assert len(sources[0]) == 2
    for index in range(2):
        assert sources[0][index] == sources[1][index]
    with pytest.raises(UserError, match=r"manifest\.json"):
        Prepared(bucket).open("train")
