"""`vitx data bench`: every stage, every pipeline, and what holds the others up."""

import json

import numpy as np
import pytest

from vitx.cli import main
from vitx.data import bench
from vitx.data.encoding import encode_video
from vitx.data.files import Folder
from vitx.data.pipeline import Data

STAGES = {"read", "decode", "augment", "batch", "to_device"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("videos")
    frames = np.random.default_rng(0).integers(0, 255, (20, 32, 48, 3), np.uint8)
    for i in range(12):
        (root / f"{i % 2}").mkdir(exist_ok=True)
        (root / f"{i % 2}" / f"{i}.mp4").write_bytes(encode_video(np.roll(frames, i)) if i != 2 else b"no video")
    return root


def test_a_folder_is_timed_and_reported_as_text_and_json(folder, capsys):
    words = ["data", "bench", str(folder), "--clips", "10", "--threads", "1", "2", "--workers", "0"]
    assert main([*words, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert set(report["stages"]) == STAGES and report["step"] is None and report["bottleneck"] in STAGES
    assert [(pipeline["threads"], pipeline["workers"]) for pipeline in report["pipelines"]] == [(1, 0), (2, 0)]
    assert all(part["clips_per_second"] > 0 for part in [*report["pipelines"], *report["stages"].values()])
    assert main(words) == 0
    out = capsys.readouterr().out
    assert "bottleneck: " in out and "decode" in out and "clips/s" in out
    assert main([*words, "--clips", "0"]) == 2 and main(["data", "bench", str(folder / "no")]) == 2


def test_an_experiment_is_timed_with_its_step(small_file, capsys):
    words = ["data", "bench", small_file, "--clips", "16", "--threads", "1", "--workers", "0", "--json"]
    assert main(words) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["step"]["clips_per_second"] == pytest.approx(8 / report["step"]["ms"] * 1e3)
    fastest = max(pipeline["clips_per_second"] for pipeline in report["pipelines"])
    assert (report["bottleneck"] == "model") == (fastest >= report["step"]["clips_per_second"])


def test_the_bottleneck_is_the_model_or_the_slowest_stage(folder):
    dataset = Folder(str(folder), validation=0.0, test=0.0)
    data = Data(dataset, num_frames=4, frame_stride=1, image_size=(16, 16), batch_size=2)

    def bottleneck(seconds):
        given = {"clips": 6, "threads": (1,), "workers": (0,), "step_seconds": seconds}
        report = bench.bench(data, dataset.open("train"), lambda batch: None, **given)
        slowest = max(report["stages"], key=lambda name: report["stages"][name]["ms"])
        return report["bottleneck"], slowest

    assert bottleneck(1000.0)[0] == "model"
    found, slowest = bottleneck(1e-9)
    assert found == slowest
