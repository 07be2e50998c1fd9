"""The board over HTTP: its numbers are the package's own, and no path in a request reaches the disk."""

import base64
import io
import json
import os
import re
import shutil
import socket

import av
import numpy as np
import pytest

import vitx
from vitx import storage
from vitx.ablations.comparison import compare_settings
from vitx.board import explanations, shown_runs
from vitx.board.clips import SplitClips
from vitx.board.folders import find_runs
from vitx.board.server import PAGE, Server
from vitx.board.shown_runs import ShownRuns
from vitx.cli import main
from vitx.data.sources import MovingDigits
from vitx.errors import UserError
from vitx.evaluation.calibration import Calibration, LabelCalibration, save_calibration
from vitx.evaluation.examples import accuracy_intervals, example_metric, load_predictions
from vitx.evaluation.presentation import presenter_for
from vitx.evaluation.report import learning_curves
from vitx.experiment import load_config
from vitx.explain.explanation import Explanation
from vitx.run import Run
from vitx.training.logs import read_metrics

NAMES = ["base_seed0", "base_seed1", "no_temporal_layer_seed0", "no_temporal_layer_seed1"]


@pytest.fixture(scope="module")
def folder(done):
    """Folder of the run that is the first on the board."""
    return done[0] / "runs" / "base_seed0"


@pytest.fixture(scope="module")
def run(folder):
    return vitx.load_run(folder)


@pytest.fixture(scope="module")
def predictions(folder):
    return load_predictions(folder / "predictions_test.npz")[1]


@pytest.fixture
def copy(folder, tmp_path):
    """A copy of the run, to be changed."""
    shutil.copytree(folder, tmp_path / "runs" / "copy")
    return tmp_path / "runs" / "copy"


def frames_of(video):
    with av.open(io.BytesIO(video)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def test_all_runs_are_listed_with_state_metrics_and_the_settings_that_differ(client, done):
    found = client.get("")
    assert [run["name"] for run in found["runs"]] == NAMES
    expected = compare_settings({name: load_config(done[0] / "runs" / name) for name in NAMES})
    ours = {row["path"]: {NAMES[int(index)]: x for index, x in row["values"].items()} for row in found["settings"]}
    assert ours == expected
    for run in found["runs"]:
        rows = read_metrics(storage.as_path(run["path"]))
        assert run["state"] == "finished" and (run["step"], run["steps"]) == (2, 2)
        (test,) = (row for row in rows if row["split"] == "test")
        assert run["test"]["step"] == test["step"] and {"loss", "motion/top1"} <= run["test"]["metrics"].keys()
        assert run["test"]["metrics"].items() <= test.items()
        losses = [row[run["monitor"]] for row in rows if row["split"] == "validation"]
        assert run["best"]["metrics"][run["monitor"]] == min(losses)


def test_curves_are_those_of_the_report(client, folder, tiny):
    found = client.get("/0/curves")
    figure = learning_curves(read_metrics(folder), presenter_for(tiny.task).curves)
    titles = [axes.get_title() for axes in figure.axes]
    assert [f"{name} {unit and f'({unit})'}" for name, unit in found["units"].items()] == titles
    for axes, splits in zip(figure.axes, found["curves"].values(), strict=True):
        drawn = {line.get_label(): line.get_xydata().tolist() for line in axes.lines}
        assert drawn == splits


def test_metrics_and_tables_are_those_of_the_task_and_its_presenter(client, run, predictions):
    task, found = run.experiment.task, client.get("/0/test")
    metrics = task.metrics(predictions)
    assert {row["name"]: row["value"] for row in found["metrics"]} == metrics
    intervals = {row["name"]: tuple(row["interval"]) for row in found["metrics"] if row["interval"]}
    assert intervals == accuracy_intervals(task, predictions, metrics)
    names = {label["name"]: tuple(label["classes"]) for label in found["labels"]}
    assert names == run.output_names
    tables = presenter_for(task).tables(predictions, names)
    for label in found["labels"]:
        assert label["confusion"] == tables["confusion"][label["name"]]
        assert label["per_class"] == tables["per_class"][label["name"]]


def test_cells_hold_each_clip_once_under_its_class_and_its_prediction(client, predictions):
    labels = [label["name"] for label in client.get("/0/test")["labels"]]
    number = labels.index("motion")
    (counts,) = (label["confusion"] for label in client.get("/0/test")["labels"] if label["name"] == "motion")
    shown = []
    for true, predicted in np.argwhere(np.array(counts)):
        cell = client.get(f"/0/test/cells/{number}/{true}/{predicted}")
        assert cell["total"] == counts[true][predicted] == len(cell["clips"])
        rows = [int(np.flatnonzero(predictions.index == clip["index"])[0]) for clip in cell["clips"]]
        logits = predictions.outputs["motion"][rows]
        assert (predictions.labels["motion"][rows] == true).all() and (logits.argmax(axis=1) == predicted).all()
        confidence = np.exp(logits[:, predicted]) / np.exp(logits).sum(axis=1)
        assert (np.diff(confidence) <= 1e-6).all()
        assert {clip["correct"] for clip in cell["clips"]} == {bool(true == predicted)}
        shown += [clip["index"] for clip in cell["clips"]]
    assert sorted(shown) == predictions.index.tolist()


def test_mistakes_are_wrong_and_the_most_confident_come_first(client, run, predictions):
    confident, hardest = client.get("/0/test/mistakes/0")
    (label, *_) = predictions.labels
    correct = predictions.outputs[label].argmax(axis=1) == predictions.labels[label]
    assert confident["total"] == (~correct).sum() and not any(clip["correct"] for clip in confident["clips"])
    losses = example_metric(run.experiment.task, predictions, f"{label}/loss")
    assert [clip["loss"] for clip in hardest["clips"]] == sorted(losses.tolist(), reverse=True)
    percents = [float(clip["predicted"].split()[-2]) for clip in confident["clips"]]
    assert percents == sorted(percents, reverse=True) and len(percents) > 1


def test_a_clip_has_its_labels_its_answer_and_its_frames(client, run, predictions):
    index = int(predictions.index[3])
    about = client.get(f"/0/test/examples/{index}")
    source = run.experiment.data.dataset.open("test")
    example = source[index]
    assert about["missing"] is None
    for label, true in about["true"].items():
        assert true == source.label_names[label][example["labels"][label]]
    answer = presenter_for(run.experiment.task).answer(
        {label: values[3] for label, values in predictions.outputs.items()}, run.output_names, 5
    )
    assert about["answer"] == {label: [list(pair) for pair in best.items()] for label, best in answer.items()}
    status, headers, video = client.request(f"/api/runs/0/test/clips/{index}.mp4")
    assert status == 200 and headers["Content-Type"] == "video/mp4"
    frames, expected = frames_of(video), run.experiment.data.read_views(example)[0]
    factor = frames.shape[1] // expected.shape[1]
    assert frames.shape[0] == len(expected) and frames.shape[1] >= 128
    middle = frames[:, factor // 2 :: factor, factor // 2 :: factor].astype(int)
    assert np.abs(middle - expected).mean() < 6  # colours are stored coarsely
    part = client.request(f"/api/runs/0/test/clips/{index}.mp4", Range="bytes=4-9")
    assert part[0] == 206 and part[2] == video[4:10]
    assert part[1]["Content-Range"] == f"bytes 4-9/{len(video)}"


class Explained(Run):
    """A run that explains everything by the brightness of the last frame."""

    def __init__(self, step):
        object.__setattr__(self, "step", step)

    def explain(self, frames, *, method, label, class_name):
        """Returns an explanation; `method` is None for the default one."""
        relevance = np.zeros(frames.shape[:3], np.float32)
        relevance[-1] = 1 + frames[-1].mean(axis=-1)
        return Explanation(frames, relevance, method or "first", label, class_name, 0.25)


def test_an_explanation_has_its_title_the_importance_of_frames_and_a_video(client, run, predictions, monkeypatch):
    step = client.get("/1/test")["step"]
    monkeypatch.setattr(explanations, "load_run", lambda path, which="best": Explained(step + (which == "best")))
    labels = [label["name"] for label in client.get("/1/test")["labels"]]
    number, index = labels.index("motion"), int(predictions.index[2])
    path = f"/1/test/explanations/{index}/{number}/2"
    found = client.get(f"{path}/default")
    name = run.output_names["motion"][2]
    assert (found["class"], found["method"]) == (name, "first") and f"motion: {name}, 25.0 %" in found["title"]
    assert found["over_time"] == [0, 0, 0, 1] and found["video"].startswith("data:video/mp4;base64,")
    assert len(frames_of(base64.b64decode(found["video"].partition(",")[2]))) == 4
    assert client.get(f"{path}/occlusion")["method"] == "occlusion"
    assert client.error(f"/api/runs{path}/no_such").startswith("found the method no_such")


def test_a_checkpoint_that_was_not_evaluated_is_not_explained(monkeypatch, tmp_path):
    monkeypatch.setattr(explanations, "load_run", lambda path, which="best": Explained({"best": 8, "last": 9}[which]))
    assert [explanations._load_evaluated(tmp_path, step).step for step in (8, 9)] == [8, 9]
    with pytest.raises(UserError, match=r"step 7.*evaluate again: vitx evaluate"):
        explanations._load_evaluated(tmp_path, 7)


def test_a_split_that_is_evaluated_again_has_other_clips(copy, serve, monkeypatch):
    client = serve(copy)
    before = client.request("/api/runs/0/test/clips/0.mp4")[2]
    monkeypatch.setattr(SplitClips, "frames", lambda self, index: np.zeros((4, 8, 8, 3), np.uint8))
    assert client.request("/api/runs/0/test/clips/0.mp4")[2] == before
    os.utime(copy / "predictions_test.npz", (0, 0))
    assert client.request("/api/runs/0/test/clips/0.mp4")[2] != before


def test_answers_of_a_calibrated_run_are_calibrated(copy, serve):
    client, (step, _) = serve(copy), load_predictions(copy / "predictions_test.npz")
    before = dict(client.get("/0/test/examples/0")["answer"]["motion"])
    fitted = LabelCalibration(0.5, 100, 1.0, 0.9, 10.0, 1.0)
    save_calibration(copy, Calibration(step + 1, "1x1", {"motion": fitted}))
    assert dict(client.get("/0/test/examples/0")["answer"]["motion"]) == before  # of another checkpoint
    save_calibration(copy, Calibration(step, "1x1", {"motion": fitted}))
    after = dict(client.get("/0/test/examples/0")["answer"]["motion"])
    one, other = list(after)[:2]
    assert after[one] / after[other] == pytest.approx((before[one] / before[other]) ** 2, rel=1e-4)


@pytest.mark.slow
def test_an_explanation_is_that_of_the_run(client, run, predictions):
    index = int(predictions.index[3])
    labels = [label["name"] for label in client.get("/0/test")["labels"]]
    label, number = "motion", labels.index("motion")
    found = client.get(f"/0/test/explanations/{index}/{number}/2/attention")
    frames = run.experiment.data.read_views(run.experiment.data.dataset.open("test")[index])[0]
    name = run.output_names[label][2]
    expected = run.explain(frames, label=label, class_name=name, method="attention")
    assert (found["class"], found["method"], found["title"]) == (name, "attention", expected.title)
    np.testing.assert_allclose(found["over_time"], expected.over_time, rtol=1e-5)
    video = base64.b64decode(found["video"].partition(",")[2])
    assert len(frames_of(video)) == len(frames)


HOSTILE = (
    "/../../etc/passwd",
    "/..%2f..%2fetc%2fpasswd",
    "/board.js/../../server.py",
    "//etc/passwd",
    "/page/index.html",
    "/api/runs/../../etc",
    "/api/runs/0/../../../config.json",
    "/api/runs/0/test/clips/..%2f..%2fconfig.json",
    "/api/runs/0/test/clips/0.mp4/",
    "/api/runs/-1/curves",
    "/api/runs/4/curves",
    "/api/runs/999999999/curves",
    f"/api/runs/{10**40}/curves",
    "/api/runs/%D9%A3/curves",  # a digit, but no ASCII one
    "/api/runs/0/train",
    "/api/runs/0/holdout",
    "/api/runs/0/test/cells/0/0/999999999",
    "/api/runs/0/test/cells/9/0/0",
    "/api/runs/0/test/clips/999999999.mp4",
    "/api/runs/0/test/examples/999999999",
    "/api/runs/0/test/mistakes/999",
    "/api/runs/0/test/explanations/0/0/999999999/default",
    "/api/runs/0/pictures/999999999",
    "/api/runs/0/pictures/config.json",
)


@pytest.mark.parametrize("path", HOSTILE)
def test_what_is_not_there_is_a_message(client, path):
    message = client.error(path)
    assert message and "Traceback" not in message and "root:" not in message


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example:80", "evil.example:8765", "", "127.0.0.1@x"])
def test_another_host_is_refused(client, host):
    assert client.request("/api/runs", Host=host)[0] == 403
    assert client.request("/", Host=host)[0] == 403


def test_requests_of_other_sites_are_refused(client):
    statuses = {"cross-site": 403, "same-site": 403, "same-origin": 200, "none": 200}
    for site, status in statuses.items():
        assert client.request("/api/runs", **{"Sec-Fetch-Site": site})[0] == status
    assert client.request("/", **{"Sec-Fetch-Site": "cross-site"})[0] == 200  # a link to the page


def test_this_machine_is_served_whatever_port_is_forwarded(client):
    for host in ("localhost", "127.0.0.1:1", "localhost:9999"):
        assert client.request("/api/runs", Host=host)[0] == 200


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "HEAD"])
def test_only_get_is_allowed(client, method):
    status, headers, _ = client.request("/api/runs", method)
    assert status == 405 and headers["Allow"] == "GET"


def test_the_page_needs_no_network_and_may_load_nothing_else(client):
    for path, (name, kind) in PAGE.items():
        status, headers, body = client.request(path)
        assert status == 200 and headers["Content-Type"] == kind and headers["X-Content-Type-Options"] == "nosniff"
        policy = headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy and "unsafe" not in policy and "http" not in policy
        text = body.decode().replace("http://www.w3.org/2000/svg", "")  # a name, which nothing loads
        assert not re.search(r"https?:|innerHTML|insertAdjacentHTML|document\.write|eval\(", text), name
        for other in re.findall(r'(?:src|href)="([\w.]+)"|from "\./([\w.]+)"', text):
            assert f"/{''.join(other)}" in PAGE


def test_names_of_classes_are_data_and_never_a_part_of_the_page(copy, serve):
    hostile = "<img src=x onerror=alert(1)>"
    copy.rename(copy.parent / hostile)
    client = serve(copy.parent)
    assert client.get("")["runs"][0]["name"] == hostile
    assert client.request("/")[2] == client.request("/?run=<script>")[2]


def test_a_run_without_predictions_shows_its_curves_and_the_command_that_adds_them(copy, serve):
    (copy / "predictions_test.npz").unlink()
    client = serve(copy)
    assert client.get("/0/curves")["curves"]["loss"]["train"]
    found = client.get("/0/evaluated")
    assert found["splits"] == [] and found["command"] == f"vitx evaluate {copy}"
    assert f"vitx evaluate {copy} --split test" in client.error("/api/runs/0/test")


def test_damaged_files_are_named_and_the_other_runs_stay(copy, serve):
    (copy / "predictions_test.npz").write_bytes(b"PK no archive")
    broken = copy.parent / "broken"
    broken.mkdir()
    (broken / "config.json").write_text("{")
    client = serve(copy.parent)
    runs = {run["name"]: run for run in client.get("")["runs"]}
    assert runs["broken"]["state"] == "unreadable" and "config.json" in runs["broken"]["error"]
    assert runs["copy"]["state"] == "finished"
    assert str(copy / "predictions_test.npz") in client.error(f"/api/runs/{runs['copy']['index']}/test")


def test_without_the_dataset_metrics_stay_and_clips_say_why_they_are_missing(copy, serve, monkeypatch):
    def refuse(*_):
        raise UserError("there is no folder /data/videos")

    monkeypatch.setattr(MovingDigits, "open", refuse)
    client = serve(copy)
    assert client.get("/0/test")["metrics"] and client.get("/0/test/mistakes/0")[0]["clips"]
    assert client.get("/0/test/examples/0")["missing"] == "there is no folder /data/videos"
    assert client.error("/api/runs/0/test/clips/0.mp4") == "there is no folder /data/videos"


def test_clips_of_a_dataset_that_has_changed_are_not_shown(copy, serve, predictions):
    with np.load(copy / "predictions_test.npz") as file:
        arrays = dict(file)
    arrays["labels/motion"] = (arrays["labels/motion"] + 1) % 8
    np.savez(copy / "predictions_test.npz", **arrays)
    client = serve(copy)
    assert "another motion" in client.error("/api/runs/0/test/clips/0.mp4")
    assert "another motion" in client.get("/0/test/examples/0")["missing"]
    np.savez(copy / "predictions_test.npz", **{name: x[:5] if x.ndim else x for name, x in arrays.items()})
    assert f"{len(predictions.index)} clips here and had 5" in client.error("/api/runs/0/test/clips/0.mp4")


def test_rows_and_runs_that_are_added_are_shown_under_places_that_stay(copy, serve, monkeypatch):
    monkeypatch.setattr(shown_runs, "RESCAN_SECONDS", 0.0)
    lines = (copy / "metrics.jsonl").read_text().splitlines(keepends=True)
    kept = [line for line in lines if '"test"' not in line]
    (copy / "metrics.jsonl").write_text("".join(kept[:1]))
    client = serve(copy.parent)
    (before,) = client.get("")["runs"]
    assert (before["state"], before["step"]) == ("training", json.loads(kept[0])["step"])
    (copy / "metrics.jsonl").write_text("".join(lines))
    shutil.copytree(copy, copy.parent / "a_new_one")
    after = client.get("")["runs"]
    assert [(run["index"], run["name"], run["state"]) for run in after] == [
        (0, "copy", "finished"),
        (1, "a_new_one", "finished"),
    ]
    shutil.rmtree(copy.parent)
    assert [run["state"] for run in client.get("")["runs"]] == ["unreadable", "unreadable"]


def test_folders_are_expanded_and_runs_of_one_name_get_different_names(done, folder, tmp_path):
    for path in (done[0], done[0] / "runs"):
        assert [run.name for run in find_runs([path])] == NAMES
    found = find_runs([folder, done[0]])
    assert found[0].path == folder and len(found) == 4  # the same run once
    shutil.copytree(folder, tmp_path / "base_seed0")
    (tmp_path / "loop").symlink_to(tmp_path)
    both = find_runs([folder, tmp_path])
    assert [run.name for run in both] == [str(folder), str(tmp_path / "base_seed0")]


def test_a_folder_without_runs_and_a_missing_one_are_user_errors(tmp_path, folder, capsys):
    for path, message in (
        (tmp_path, "holds no run"),
        (tmp_path / "no", "no folder"),
        (folder / "report.md", "no folder"),
    ):
        assert main(["board", str(path)]) == 2
        assert message in capsys.readouterr().err
    with pytest.raises(UserError, match="one of the 1 runs"):
        ShownRuns([folder]).folder(1)


def test_a_port_in_use_or_out_of_range_is_one_message(folder, capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["board", str(folder), "--port", str(port)]) == 2
    error = capsys.readouterr().err
    assert str(port) in error and "--port" in error and error.count("\n") == 1
    assert main(["board", str(folder), "--port", "70000"]) == 2
    assert "70000" in capsys.readouterr().err


def test_the_command_prints_the_address_opens_the_browser_if_asked_and_ends_at_ctrl_c(folder, capsys, monkeypatch):
    def interrupt(server):
        assert server.server_address[0] == "127.0.0.1"
        raise KeyboardInterrupt

    opened = []
    monkeypatch.setattr(Server, "serve_forever", interrupt)
    monkeypatch.setattr("webbrowser.open", opened.append)
    assert main(["board", str(folder), "--port", "0"]) == 0 and opened == []
    assert re.search(r"1 runs? at http://127\.0\.0\.1:\d+/", capsys.readouterr().err)
    assert main(["board", str(folder), "--port", "0", "--open"]) == 0 and opened[0].startswith("http://127.0.0.1:")
