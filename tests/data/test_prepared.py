"""Prepared videos: nothing is lost, a killed preparation resumes bit for bit, damage is found."""

import contextlib
import hashlib
import json
import os
import pickle
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from vitx.cli import main
from vitx.configuration import from_dict, to_dict
from vitx.data import preparation
from vitx.data.decoding import VideoError, decode_frames, probe
from vitx.data.encoding import encode_video
from vitx.data.files import Folder, Table
from vitx.data.pipeline import Data, decode_error
from vitx.data.prepared import Prepared
from vitx.errors import UserError


def encode_noise(seed: int, frames: int = 12, height: int = 64, width: int = 96, **how) -> bytes:
    slow = np.random.default_rng(seed).uniform(0, 215, (1, 8, 8, 1)) + np.linspace(0, 40, frames)[:, None, None, None]
    pixels = slow.astype(np.uint8).repeat(-(-height // 8), 1).repeat(-(-width // 8), 2).repeat(3, 3)
    return encode_video(pixels[:, :height, :width], **how)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("videos")
    for number, name in enumerate(("fall", "walk")):
        (root / name).mkdir()
        for i in range(10):
            (root / name / f"{i}.mp4").write_bytes(encode_noise(10 * number + i))
    (root / "walk" / "3.mp4").write_bytes(b"no video")
    return root


def prepare(source, destination, *words) -> list[str]:
    return ["data", "prepare", str(source), str(destination), "--shard_size", "3", "--short_side", "32", *words]


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def records(folder):
    """Returns {split: [(name, digest of the video), ...]}."""
    splits = Prepared(str(folder)).splits()
    return {
        name: [(source.name(i), hashlib.sha256(source[i]["video"]).hexdigest()) for i in range(len(source))]
        for name, source in splits.items()
    }


@pytest.fixture(scope="module")
def ready(folder, tmp_path_factory):
    destination = tmp_path_factory.mktemp("prepared") / "deep" / "inside"
    assert main(prepare(folder, destination)) == 0
    return destination


@pytest.mark.smoke
def test_every_readable_video_is_prepared_with_its_label(folder, ready, capsys):
    manifest = json.loads((ready / "manifest.json").read_text())
    assert [video["path"] for video in manifest["broken"]] == [str(folder / "walk" / "3.mp4")]
    before, after, seen = Folder(str(folder)).splits(), Prepared(str(ready)).splits(), 0
    for split in before:
        assert after[split].label_names == before[split].label_names
        labels = {before[split].name(i): before[split][i]["labels"] for i in range(len(before[split]))}
        for i in range(len(after[split])):
            name, example = after[split].name(i), after[split][i]
            assert {k: int(v) for k, v in example["labels"].items()} == labels.pop(name)
            assert (probe(example["video"]).height, probe(example["video"]).width) == (32, 48)
            theirs = decode_frames(name, [0, 7, 11], size=(32, 48))
            ours = decode_frames(example["video"], [0, 7, 11])
            assert np.abs(ours.astype(int) - theirs).mean() < 4
            seen += 1
        assert set(labels) <= {str(folder / "walk" / "3.mp4")}
    assert seen == 19
    assert main(["data", "check", str(ready), "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert len(report["problems"]) == 2  # few videos of validation and of the test, and nothing else
    assert report["videos"] == 19 and report["broken"] == [] and report["sizes"] == {"32x48": 19}
    assert main(prepare(folder, ready, "--json")) == 0  # again: it is finished
    assert json.loads(capsys.readouterr().out)["broken"] == manifest["broken"]


def test_a_killed_preparation_resumes_bit_for_bit(folder, ready, tmp_path):
    """And with one worker as with two."""
    words = [sys.executable, "-m", "vitx.cli", *prepare(folder, tmp_path / "out")]
    kills = 0
    for shards in (1, 3):
        process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while process.poll() is None and len(list((tmp_path / "out").glob("[tv]*-*.json"))) < shards:
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
        kills += process.wait() == -signal.SIGKILL
    assert kills and not (tmp_path / "out" / "manifest.json").exists()
    with pytest.raises(UserError, match="did not finish; run it again"):
        Prepared(str(tmp_path / "out")).open("train")
    whole = [path.with_suffix(".array_record") for path in (tmp_path / "out").glob("[tv]*-*.json")]
    times = {path: path.stat().st_mtime_ns for path in whole}
    assert times and main(prepare(folder, tmp_path / "out", "--workers", "1")) == 0
    assert {path: path.stat().st_mtime_ns for path in times} == times  # complete shards are not written again
    assert contents(tmp_path / "out") == contents(ready)


def test_a_destination_with_other_content_is_refused(folder, ready, tmp_path, capsys):
    def refused(words, *messages):
        assert main(words) == 2
        err = capsys.readouterr().err
        assert all(message in err for message in messages), err

    before = contents(ready)
    refused(prepare(folder, ready, "--crf", "21"), "other settings", "crf: 20 before, 21 now")
    (tmp_path / "few" / "walk").mkdir(parents=True)
    (tmp_path / "few" / "walk" / "1.mp4").write_bytes(b"no video")
    refused(prepare(tmp_path / "few", ready), "other videos")
    refused(prepare(tmp_path / "few", tmp_path / "few"), "is not empty: it has walk")
    refused(prepare(tmp_path / "few", tmp_path / "new"), "none of the 1 videos of train can be read")
    refused(prepare(folder, tmp_path / "other", "--codec", "libx2644"), "did you mean libx264?")
    refused(prepare(folder, tmp_path / "other", "--keyint", "0"), "keyint is 0; expected at least 1")
    assert contents(ready) == before and not (tmp_path / "other").exists()
    with pytest.raises(UserError, match="Prepared"):
        Folder(str(ready)).open("train")
    with pytest.raises(UserError, match="has no manifest"):
        Prepared(str(tmp_path)).open("train")


def test_damaged_and_missing_shards_are_found(ready, tmp_path, capsys):
    copy = tmp_path / "copy"
    copy.mkdir()
    for name, data in contents(ready).items():
        (copy / name).write_bytes(data)
    shard = copy / "train-00001.array_record"
    data = bytearray(shard.read_bytes())
    place = data.find(b"ftyp")
    data[place + 40 : place + 900] = bytes(860)
    shard.write_bytes(data)
    assert main(["data", "check", str(copy), "--json"]) == 1
    broken = json.loads(capsys.readouterr().out)["broken"]
    assert {"path": str(shard), "problem": f"{shard}: its SHA-256 is not the manifest's"} in broken
    source = Prepared(str(copy)).open("train")
    with pytest.raises(VideoError, match="its record is damaged"):
        [source[i] for i in range(3, 6)]
    settings = Data(Prepared(str(copy)), num_frames=2, frame_stride=1, image_size=(16, 16), eval_batch_size=len(source))
    (batch,) = settings.eval_batches(source)
    assert 0 < batch["weight"].sum() < len(source)
    shard.write_bytes(data[:-1])
    with pytest.raises(UserError, match=r"train-00001\.array_record has .* bytes, not"):
        Prepared(str(copy)).open("train")
    shard.unlink()
    with pytest.raises(UserError, match="is missing"):
        Prepared(str(copy)).open("train")
    (copy / "manifest.json").write_text("[]")
    with pytest.raises(UserError, match="is no manifest"):
        Prepared(str(copy)).open("train")


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")
def test_a_preparation_resumes_after_a_full_disk(folder, ready, tmp_path, capsys):
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", str(tmp_path)]).returncode:
        pytest.skip("this machine does not let us mount a small disk")
    try:
        assert main(prepare(folder, tmp_path / "out")) == 2
        err = capsys.readouterr().err
        assert "disk is full" in err and str(tmp_path / "out") in err
        subprocess.run(["mount", "-o", "remount,size=10m", str(tmp_path)], check=True)
        assert main(prepare(folder, tmp_path / "out")) == 0
        assert records(tmp_path / "out") == records(ready)  # says more than bytes where they differ
        assert contents(tmp_path / "out") == contents(ready)
    finally:
        subprocess.run(["umount", "-l", str(tmp_path)], check=True)


def test_an_unreadable_record_is_reported_by_its_name(folder, tmp_path):
    assert main(prepare(folder, tmp_path / "out", "--codec", "copy")) == 0
    dataset = Prepared(str(tmp_path / "out"))
    errors = []
    for source in dataset.splits().values():
        batches = Data(dataset, num_frames=2, image_size=(16, 16), eval_batch_size=4).eval_batches(source)
        with contextlib.closing(batches):
            errors += [error for batch in batches for error in map(decode_error, batch["error"]) if error]
    assert errors == [f"{folder / 'walk' / '3.mp4'}: 8 bytes: Invalid data found when processing input"]


def test_the_validation_split_may_stand_for_the_test_split(ready):
    validation, test = (Prepared(str(ready), test="validation").open(split) for split in ("validation", "test"))
    assert test.names == validation.names and test.names != Prepared(str(ready)).open("test").names
    with pytest.raises(UserError, match=r"val.*validation"):
        Prepared(str(ready), test="val")


def test_a_dataset_that_is_built_is_prepared_as_files_are(digits, tmp_path):
    splits = {split: digits.open(split) for split in ("train", "validation", "test")}
    manifest = preparation.prepare(splits, tmp_path / "ready", preparation.Preparation(short_side=16))
    assert manifest["splits"]["test"]["names"][3] == "moving digits, test, clip 3"
    ready = Prepared(str(tmp_path / "ready")).open("test")
    assert len(ready) == len(splits["test"])
    assert [ready[i]["labels"] for i in range(5)] == [splits["test"][i]["labels"] for i in range(5)]


def test_prepared_videos_pickle_and_settings_survive_a_round_trip(ready):
    dataset = Prepared(str(ready))
    assert from_dict(to_dict(dataset)) == dataset
    source = dataset.open("train")
    assert source[3]["video"] == pickle.loads(pickle.dumps(source))[3]["video"]
    with pytest.raises(UserError, match=r"holdout.*expected train, validation, test"):
        dataset.open("holdout")


@pytest.mark.parametrize("codec", ["copy", "libx264"])
def test_segments_and_several_classes_are_prepared(codec, tmp_path):
    (tmp_path / "a.mp4").write_bytes(encode_noise(0, 50))
    rows = ["path,acts,EF,begin,end", "a.mp4,x;y,1.5,0.4,1", "a.mp4,,2.5,1,1.4", "a.mp4,y,-3,,"]
    (tmp_path / "list.csv").write_text("\n".join(rows))
    columns = ["--multi_label", "acts", "--targets", "EF"]
    assert main(["data", "prepare", str(tmp_path / "list.csv"), str(tmp_path / "out"), "--codec", codec, *columns]) == 0
    before = Table(str(tmp_path / "list.csv"), (), ("acts",), ("EF",)).open("train")
    after = Prepared(str(tmp_path / "out")).open("train")
    assert len(set(after.names)) == (1 if codec == "copy" else 3)
    settings = Data(Prepared("out"), num_frames=4, frame_stride=2, image_size=(32, 32))
    for i in range(3):
        for name, label in before[i]["labels"].items():
            np.testing.assert_array_equal(after[i]["labels"][name], label)
        if codec == "copy":
            assert after[i]["video"] == (tmp_path / "a.mp4").read_bytes()
            assert after[i].get("segment") == before[i]["segment"]
        else:
            assert "segment" not in after[i]
        clips = [settings.read_clip(example, 0.5).astype(int) for example in (before[i], after[i])]
        assert np.abs(clips[0] - clips[1]).mean() < 4
