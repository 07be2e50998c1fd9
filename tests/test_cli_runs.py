"""`vitx evaluate` and `predict` on a user's own folder of videos, from other places and with other settings."""

import csv
import dataclasses
import functools
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vitx import cli_predict
from vitx.cli import main
from vitx.configuration import Words, to_dict
from vitx.data.decoding import probe
from vitx.data.encoding import encode_video
from vitx.errors import UserError
from vitx.evaluation.prediction_file import PredictionFile
from vitx.experiment import load_config, load_experiment
from vitx.models.convlstm import ConvLSTM
from vitx.run_folder import check_same_data

EXPERIMENT = """
from vitx.experiment import load_experiment
experiment = load_experiment({folder!r}).override({{
    "model.num_frames": 4, "model.image_size": 32, "model.tubelet_size": (2, 16, 16), "model.hidden_size": 24,
    "model.num_layers": 1, "model.num_temporal_layers": 1, "model.num_heads": 2, "model.mlp_dim": 24,
    "data.frame_stride": 1, "data.batch_size": 4, "data.eval_batch_size": 4, "training.steps": 2,
    "training.log_every": 2, "training.evaluate_every": 2, "training.checkpoint_every": 2,
}})
"""
COLOURS = {"red": (200, 40, 40), "green": (40, 200, 40), "blue": (40, 40, 200)}


def write_videos(folder: Path, number: int) -> None:
    for name, colour in COLOURS.items():
        (folder / name).mkdir(parents=True)
        for i in range(number):
            frames = np.full((6, 32, 32, 3), colour, np.uint8) + np.uint8(i)
            (folder / name / f"{i}.mp4").write_bytes(encode_video(frames))


@pytest.fixture(scope="module")
def home(tmp_path_factory, pytestconfig) -> Path:
    """A folder with videos of three classes, an experiment file and a run that was started there."""
    home = tmp_path_factory.mktemp("home")
    write_videos(home / "videos", 8)
    folder = pytestconfig.rootpath / "experiments" / "folder.py"
    (home / "exp.py").write_text(EXPERIMENT.format(folder=str(folder)))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        assert main(["train", "exp.py", "--workdir", "run", "--data.dataset.path", "videos"]) == 0
    return home


def evaluate(capsys, *words: object) -> dict:
    assert main(["evaluate", *map(str, words), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_data_sets_the_number_of_classes_and_the_model_sets_the_clip(home):
    experiment = load_config(home / "run")
    assert experiment.model.num_classes == 3
    assert (experiment.data.num_frames, experiment.data.image_size) == (4, (32, 32))


def test_a_relative_path_resolves_from_anywhere(home, tmp_path, monkeypatch, capsys):
    assert load_config(home / "run").data.dataset.path == str(home / "videos")
    monkeypatch.chdir(tmp_path)
    assert evaluate(capsys, home / "run")["unreadable"] == 0


def test_a_run_resumes_from_its_directory_and_where_its_data_moved(home, tmp_path, monkeypatch, capsys):
    shutil.copytree(home / "run", tmp_path / "run")
    words = ["--workdir", str(tmp_path / "run"), "--training.steps", "3", "--extend"]
    monkeypatch.chdir(home)
    shutil.copytree(home / "videos", tmp_path / "copy")  # also where they are still where they were
    assert main(["train", "exp.py", *words, "--data.dataset.path", str(tmp_path / "copy")]) == 0
    assert load_config(tmp_path / "run").data.dataset.path == str(tmp_path / "copy")
    (tmp_path / "copy").rename(tmp_path / "moved")
    assert main(["train", "exp.py", *words, "--data.dataset.path", str(tmp_path / "moved")]) == 0


@pytest.mark.parametrize("change", ["fewer", "of other sizes", "of other names"])
@pytest.mark.parametrize("is_there", [True, False])
def test_a_run_is_not_resumed_on_other_videos(change, is_there, home, tmp_path, capsys):
    """Also where those that it began with are gone: nothing but the path would differ."""
    shutil.copytree(home / "run", tmp_path / "run")
    shutil.copytree(home / "videos", tmp_path / "others")
    videos = [tmp_path / "others" / name / f"{i}.mp4" for name in COLOURS for i in range(8)]
    for number, path in enumerate(videos):
        if change == "fewer" and number % 2:
            path.unlink()
        elif change == "of other sizes":
            path.write_bytes(path.read_bytes() + bytes([0, 0, 0, 8]) + b"free")
        elif change == "of other names":
            path.rename(path.with_stem(f"clip {path.stem}"))
    if not is_there:
        text = (tmp_path / "run" / "config.json").read_text()
        (tmp_path / "run" / "config.json").write_text(text.replace(str(home / "videos"), str(tmp_path / "gone")))
    words = ["--workdir", tmp_path / "run", "--training.steps", "3", "--extend", "--data.dataset.path"]
    assert main([str(word) for word in ("train", home / "exp.py", *words, tmp_path / "others")]) == 2
    err = capsys.readouterr().err
    assert "data.dataset.path" in err and str(tmp_path / "others") in err and "videos" in err


def test_checkpoints_of_a_run_on_other_videos_are_refused(home, tmp_path, capsys):
    shutil.copytree(home / "run", tmp_path / "run")
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    (tmp_path / "run" / "config.json").write_text(json.dumps(config | {"videos": "0" * 64}))
    assert main(["evaluate", str(tmp_path / "run")]) == 2
    err = capsys.readouterr().err
    assert "videos" in err and config["videos"] in err and "0" * 64 in err


def test_videos_that_are_added_at_the_same_path_stop_no_run(home):
    experiment = load_config(home / "run")
    record = {"videos": "those at the beginning", "config": to_dict(experiment)}
    check = functools.partial(check_same_data, home / "run", extend=False)
    assert check(record, experiment, "those and more") == "those at the beginning"
    moved = experiment.override({"data.dataset.path": "/elsewhere"})
    with pytest.raises(UserError, match="/elsewhere"):
        check(record, moved, "those and more")
    assert check(record, moved, "those at the beginning") == "those at the beginning"
    assert check({}, experiment, "new") == "new"


def test_a_run_resumes_by_its_folder_alone_with_settings(home, tmp_path):
    shutil.copytree(home / "run", tmp_path / "run")
    assert main(["train", "--resume", str(tmp_path / "run"), "--training.steps", "3", "--extend"]) == 0
    assert load_config(tmp_path / "run").training.steps == 3


def test_settings_of_an_evaluation_are_reported_beside_the_others(home, tmp_path, monkeypatch, capsys):
    shutil.copytree(home / "run", tmp_path / "run")
    write_videos(tmp_path / "others", 12)
    monkeypatch.chdir(tmp_path)
    plain = evaluate(capsys, "run")
    words = ("--data.dataset.path", "others", "--data.eval_clips", "4", "--data.eval_crops", "3")
    found = evaluate(capsys, "run", *words, "--data.eval_batch_size", "2", "--data.num_workers", "0")
    assert plain["views"] == "2x1" and found["views"] == "4x3" and found["examples"] != plain["examples"]
    used = {"data.dataset.path": str(tmp_path / "others"), "data.eval_clips": 4, "data.eval_crops": 3}
    assert found["settings"] == used | {"data.eval_batch_size": 2}
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["views"] for row in rows if row["split"] == "test"] == ["2x1", "4x3"]
    evaluate(capsys, "run", "--split", "validation")
    report = (tmp_path / "run" / "report.md").read_text()
    assert "## Test split, 4x3 views" in report and "## Validation split" in report
    assert "data.eval_clips: 4 here, 2 in config.json" in report
    assert load_config(tmp_path / "run").data.eval_clips == 2


@pytest.mark.parametrize(
    "word",
    ["optimizer.peak_lr", "model.num_heads", "data.batch_size", "model.num_frames", "training.seed", "data.cilps"],
)
def test_settings_that_an_evaluation_cannot_change_are_refused(word, home, capsys):
    assert main(["evaluate", str(home / "run"), f"--{word}", "1"]) == 2
    err = capsys.readouterr().err
    assert word in err and "data.eval_clips" in err


def test_predict_answers_for_what_can_be_read(home, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(home)
    clip = Path("videos/red/0.mp4")
    (tmp_path / "broken.mp4").write_bytes(clip.read_bytes()[:300])
    (tmp_path / "empty").mkdir()
    words = [clip, tmp_path / "broken.mp4", tmp_path / "empty", tmp_path / "none.mp4", "videos/green"]
    assert main(["predict", "run", *map(str, words), "--top", "1"]) == 1
    out, err = capsys.readouterr()
    assert all(str(word) in err for word in words[1:4]) and "vitx: 3 of 12 videos" in err
    assert out.splitlines()[::2] == [str(clip), *(f"videos/green/{i}.mp4" for i in range(8))]
    assert main(["predict", "run", str(tmp_path / "broken.mp4"), str(clip), "--json", "--data.eval_clips", "3"]) == 1
    answers = json.loads(capsys.readouterr().out)
    assert set(answers[str(clip)]["class"]) == set(COLOURS) and "broken.mp4" in answers[str(words[1])]["error"]
    assert main(["predict", "run", "videos"]) == 0
    assert capsys.readouterr().out.count(".mp4") == 24
    (tmp_path / "pictures").symlink_to(tmp_path / "deep")
    for number in range(3):
        picture = tmp_path / "deep" / "one" / f"{number}.png"
        picture.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.zeros((16, 16, 3), np.uint8)).save(picture)
    assert main(["predict", "run", str(tmp_path / "pictures"), "--json"]) == 0
    assert list(json.loads(capsys.readouterr().out)) == [str(tmp_path / "pictures" / "one")]


def read_table(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as lines:
        return list(csv.DictReader(lines))


def test_predictions_of_folders_and_lists_are_rows_of_a_file(home, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(home)
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    (tmp_path / "list.csv").write_text(f"path\nbroken.mp4\nnone.mp4\n{home / 'videos/red/0.mp4'}\n")
    words = ["predict", "run", "videos/green", str(tmp_path / "list.csv"), "--out", str(tmp_path / "rows.csv")]
    assert main([*words, "--json", "--batch_size", "4"]) == 1
    out, err = capsys.readouterr()
    summary = json.loads(out)
    assert summary == {"videos": 11, "unreadable": 2, "out": str(tmp_path / "rows.csv")}
    assert "1 of 3 videos in" in err and "vitx: 2 of 11 videos" in err and "broken.mp4: Invalid data" in err
    rows = read_table(tmp_path / "rows.csv")
    assert [Path(row["path"]).name for row in rows if row["error"]] == ["broken.mp4", "none.mp4"]
    assert main(["predict", "run", "videos/green", str(home / "videos/red/0.mp4"), "--json"]) == 0
    answers = json.loads(capsys.readouterr().out)
    for row in rows:
        if not row["error"]:
            assert json.loads(row["scores"]) == pytest.approx(answers[row["path"]]["class"], abs=1e-5)
            assert row["class"] == next(iter(json.loads(row["scores"])))
    assert main(words) == 2
    assert "rows.csv exists" in capsys.readouterr().err
    assert main([*words, "--overwrite", "--top", "1"]) == 1
    assert {len(json.loads(row["scores"] or "{}")) for row in read_table(tmp_path / "rows.csv")} == {0, 1}


def test_a_stopped_prediction_resumes_and_repeats_nothing(home, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(home)
    words = ["predict", "run", "videos", "--out", str(tmp_path / "rows.jsonl"), "--batch_size", "2"]
    added, add = [], PredictionFile.add

    def stop(self, video, **line):
        if len(added) == 5:
            raise KeyboardInterrupt
        added.append(video)
        add(self, video, **line)

    monkeypatch.setattr(PredictionFile, "add", stop)
    assert main(words) == 1
    assert "rows.jsonl.partial" in capsys.readouterr().err and not (tmp_path / "rows.jsonl").exists()
    monkeypatch.setattr(
        PredictionFile, "add", lambda self, video, **line: added.append(video) or add(self, video, **line)
    )
    assert main([*words, "--top", "1"]) == 2 and "top: None before, 1 now" in capsys.readouterr().err
    # Of videos that are done nobody would draw a picture.
    assert main([*words, "--overlay", str(tmp_path)]) == 2 and "overlay: None before" in capsys.readouterr().err
    assert main(words) == 0 and "5 of 24 videos" in capsys.readouterr().err
    assert len(added) == len(set(added)) == 24
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert [row["path"] for row in rows] == added == sorted(added)


@pytest.mark.usefixtures("pictures")
def test_windows_have_rows_segments_pictures_and_a_video_with_labels(home, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(home)
    frames = np.concatenate([np.full((10, 32, 32, 3), COLOURS[name], np.uint8) for name in COLOURS])
    (tmp_path / "long.mp4").write_bytes(encode_video(frames, fps=10))
    words = [
        "predict",
        "run",
        str(tmp_path / "long.mp4"),
        "--windows",
        "5f",
        "--stride",
        "5f",
        "--thresholds",
        "0",
        "0",
    ]
    assert main(words) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[0] == str(tmp_path / "long.mp4") and len(shown) == 4
    files = ["--segments", "segments.json", "--timelines", "pictures", "--overlay", "videos", "--out", "rows.csv"]
    assert main([*words, *(word if word[:2] == "--" else str(tmp_path / word) for word in files)]) == 0
    rows = read_table(tmp_path / "rows.csv")
    assert [(row["start"], row["end"]) for row in rows][:2] == [("0.0", "0.5"), ("0.5", "1.0")] and len(rows) == 6
    segments = json.loads((tmp_path / "segments.json").read_text())
    assert {row["class"] for row in segments} == set(COLOURS)
    assert {(row["start"], row["end"]) for row in segments} == {(0, 3)}
    assert (tmp_path / "pictures" / "long_timeline.png").read_bytes().startswith(b"\x89PNG")
    found = probe(str(tmp_path / "videos" / "long_labels.mp4"))
    assert found.num_frames == 30 and found.fps == 10
    assert main([*words, "--overlay", str(tmp_path / "videos")]) == 2 and "long_labels.mp4" in capsys.readouterr().err
    assert main(["predict", "run", "videos/red/0.mp4", "--windows", "0.12s", "--stride", "0.04s"]) == 1
    assert re.search(r"videos/red/0\.mp4.* 3 frames.* 4", capsys.readouterr().err)


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["--windows", "0s"], "'0s'"),
        (["--windows", "2s", "--stride", "3s"], "3s"),
        (["--stride", "3s"], "--windows LENGTH"),
        (["--windows", "4f", "--thresholds", "0.7", "0.3"], "0.7 and 0.3"),
        (["--windows", "3f"], "3 frames; expected at least 4"),
        (["--windows", "4f", "--segments", "rows.csv", "--out", "rows.csv"], "two files"),
        (["--out", "rows.txt"], ".csv, .json, .jsonl, .parquet"),
        (["--out", "no/rows.csv"], "there is no folder no"),
        (["--out", "rows.csv", "--batch_size", "0"], "batch_size is 0"),
        (["--overlay", "here"], "0_labels.mp4 exists"),
    ],
)
def test_predictions_that_cannot_be_made_are_one_message(words, found, home, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(home)
    clip = Path("videos/red/0.mp4")
    if "--overlay" in words:
        clip = tmp_path / "0.mp4"
        shutil.copy(home / "videos/red/0.mp4", clip)
        (tmp_path / "0_labels.mp4").touch()
        words = ["--overlay", str(tmp_path)]
    before = sorted(home.rglob("*"))
    assert main(["predict", "run", str(clip), *words]) == 2
    err = capsys.readouterr().err
    assert found in err and err.count("vitx: ") == 1
    assert sorted(home.rglob("*")) == before


@pytest.mark.parametrize(("name", "found"), [("rows.txt", ".parquet"), ("no/rows.csv", "there is no folder no")])
def test_segments_that_cannot_be_written_are_refused_before_the_work(name, found, home, monkeypatch, capsys):
    monkeypatch.chdir(home)
    monkeypatch.setattr(cli_predict, "_load_predictor", None)
    assert main(["predict", "run", "videos", "--windows", "4f", "--overwrite", "--segments", name]) == 2
    assert found in capsys.readouterr().err


@pytest.mark.parametrize("out", [[], ["--out", "rows.csv"]])
def test_videos_shorter_than_a_clip_are_reported(out, home, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "short.mp4").write_bytes(encode_video(np.zeros((3, 32, 32, 3), np.uint8)))
    assert main(["predict", str(home / "run"), "short.mp4", *out]) == 0
    assert re.search(r"\b4 of a clip.* 1, such as short\.mp4 with 3", capsys.readouterr().err)


def test_empty_folders_alone_write_no_file(home, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    assert main(["predict", str(home / "run"), str(tmp_path / "empty"), "--out", str(tmp_path / "rows.csv")]) == 2
    err = capsys.readouterr().err
    assert str(tmp_path / "empty" / "clip.mp4") in err and err.count("vitx: ") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]


@pytest.mark.usefixtures("pictures")
def test_a_calibrated_run_has_its_temperature_in_predictions_and_report(home, tmp_path, capsys):
    shutil.copytree(home / "run", tmp_path / "run")
    clip = str(home / "videos/red/0.mp4")
    assert main(["predict", str(tmp_path / "run"), clip, "--json"]) == 0
    plain = json.loads(capsys.readouterr().out)[clip]["class"]
    found = evaluate(capsys, tmp_path / "run", "--calibrate")["calibration"]["class"]
    assert found.keys() == {"temperature", "ece", "calibrated_ece"}
    report = (tmp_path / "run" / "report.md").read_text()
    assert "### Calibration" in report and (tmp_path / "run" / "test_reliability_class.png").exists()
    assert main(["predict", str(tmp_path / "run"), clip, "--json"]) == 0
    out, err = capsys.readouterr()
    powers = {name: value ** (1 / found["temperature"]) for name, value in plain.items()}
    expected = {name: value / sum(powers.values()) for name, value in powers.items()}
    assert json.loads(out)[clip]["class"] == pytest.approx(expected, abs=1e-4) and "calibrated" in err
    assert main(["predict", str(tmp_path / "run"), clip, "--out", str(tmp_path / "rows.csv")]) == 0
    (row,) = read_table(tmp_path / "rows.csv")
    assert json.loads(row["scores"]) == pytest.approx(expected, abs=1e-4)
    stale = json.loads((tmp_path / "run" / "calibration.json").read_text()) | {"step": 1}
    (tmp_path / "run" / "calibration.json").write_text(json.dumps(stale))
    capsys.readouterr()
    assert main(["predict", str(tmp_path / "run"), clip, "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)[clip]["class"] == pytest.approx(plain) and "step 1" in err and "--calibrate" in err


@pytest.fixture
def base(home):
    return load_experiment(home / "exp.py")


@pytest.mark.parametrize("name", ["cnn_small", "vivit_ti_16x2", "x3d_xs", "FactorisedEncoder"])
def test_a_model_is_chosen_by_name_with_the_classes_and_clips_of_the_experiment(base, name):
    model = base.override({"model.num_classes": 7, "data.image_size": (48, 48)})
    chosen = model.override(
        {"model": name} | ({"model.tubelet_size": (2, 16, 16)} if name == "FactorisedEncoder" else {})
    )
    assert chosen.model.num_classes == 7 and chosen.data == model.data
    assert chosen.model.input_shape[:3] == (4, 48, 48)


def test_a_model_given_as_an_object_keeps_the_clip_unless_it_needs_its_own(base):
    assert base.override({"model": ConvLSTM(3, widths=(4,))}).data == base.data
    larger = base.override({"model.image_size": 48}).model
    assert base.override({"model": larger}).data.image_size == (48, 48)
    moved = base.override({"model": larger, "data.num_frames": 8})
    assert moved.model.input_shape[:3] == (8, 48, 48) == (moved.data.num_frames, *moved.data.image_size)


def test_an_optimizer_is_chosen_by_name_and_keeps_what_all_have(base):
    lion = base.override({"optimizer": "Lion", "optimizer.weight_decay": 1.0}).optimizer
    assert to_dict(lion)["type"] == "Lion" and lion.peak_lr == base.optimizer.peak_lr and lion.weight_decay == 1.0


def test_a_dataset_is_chosen_by_name(base):
    table = base.override({"data.dataset": "Table", "data.dataset.path": "list.csv"}).data.dataset
    assert to_dict(table)["type"] == "Table" and table.path == "list.csv"


@pytest.mark.parametrize(
    ("changes", "clip"),
    [
        ({"data.num_frames": 8}, (8, 32, 32)),
        ({"model.num_frames": 8}, (8, 32, 32)),
        ({"data.image_size": (48, 64)}, (4, 48, 64)),
        ({"model.image_size": 48, "data.num_frames": 2}, (2, 48, 48)),
        ({"model.tubelet_size": (3, 8, 8), "data.num_frames": 6, "data.image_size": (24, 24)}, (6, 24, 24)),
    ],
)
def test_frames_and_size_are_set_once(base, changes, clip):
    experiment = base.override(changes)
    assert (experiment.data.num_frames, *experiment.data.image_size) == clip == experiment.model.input_shape[:3]


def test_data_given_as_an_object_keeps_its_clip_or_is_refused(base):
    data = dataclasses.replace(base.data, num_frames=8, image_size=(48, 48))
    for changes in ({"data": data}, {"data": data, "model": "x3d_xs"}):
        experiment = base.override(changes)
        assert (experiment.data.num_frames, *experiment.data.image_size) == (8, 48, 48)
        assert experiment.model.input_shape[:3] == (8, 48, 48)
    with pytest.raises(UserError, match=r"\(8, 48, 48\)"):
        base.override({"data": data, "model.num_frames": 4})
    with pytest.raises(UserError, match=r"\(8, 48, 48\)"):
        base.override({"data.num_frames": 8, "data.image_size": (48, 48), "model.num_frames": 4})
    follows = base.override({"data": dataclasses.replace(data, num_frames=None, image_size=None)})
    assert follows.data.num_frames == base.model.num_frames


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (["trian"], "train"),
        (["data", "chek"], "check"),
        (["evaluate", "run", "--splt", "test"], "--split"),
        (["evaluate", "run", "--split", "tets"], "test"),
        (["train", "exp.py", "--workdir", "new", "--seed", "3"], "training.seed"),
        (["train", "exp.py", "--workdir", "new", "--lr", "3"], "optimizer.peak_lr"),
        (["train", "exp.py", "--workdir", "new", "--optimizer.lr", "3"], "optimizer.peak_lr"),
        (["train", "exp.py", "--workdir", "new", "--optimizer.learning_rate", "3"], "optimizer.peak_lr"),
        (["train", "exp.py", "--workdir", "new", "--model.layers", "3"], "model.num_layers"),
        (["train", "exp.py", "--workdir", "new", "--model", "cnn_smal"], "cnn_small"),
        (["train", "exp.py", "--workdir", "new", "--optimizer", "Lyon"], "Lion"),
        (["train", "exp.py", "--workdir", "new", "--data.dataset", "Tabel"], "Table"),
    ],
)
def test_what_was_probably_meant_is_suggested(words, meant, home, monkeypatch, capsys):
    monkeypatch.chdir(home)
    assert main(words) == 2
    out, err = capsys.readouterr()
    assert out == "" and f"did you mean {meant}?" in err and err.count("vitx: ") == 1


def test_a_dataset_without_a_path_names_the_setting(home, monkeypatch, capsys):
    monkeypatch.chdir(home)
    assert main(["train", "exp.py", "--workdir", "new", "--data.dataset", "Table"]) == 2
    assert "--data.dataset.path" in capsys.readouterr().err


@pytest.mark.parametrize("setting", ["training.initialise_from", "data.frame_rate", "optimizer.clip_norm"])
def test_none_on_a_command_line_is_none(base, setting):
    part, name = setting.split(".")
    assert getattr(getattr(base.override({setting: Words(["None"])}), part), name) is None
