"""`vitx evaluate` and `predict` on a user's own folder of videos, from other places and with other settings."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vitx.cli import main
from vitx.configuration import Words, to_dict
from vitx.data.encoding import encode_video
from vitx.errors import UserError
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
    assert check_same_data(home / "run", record, experiment, "those and more") == "those at the beginning"
    moved = experiment.override({"data.dataset.path": "/elsewhere"})
    with pytest.raises(UserError, match="/elsewhere"):
        check_same_data(home / "run", record, moved, "those and more")
    assert check_same_data(home / "run", record, moved, "those at the beginning") == "those at the beginning"
    assert check_same_data(home / "run", {}, experiment, "new") == "new"


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
    ["optimizer.peak_lr", "model.num_heads", "data.batch_size", "data.num_frames", "training.seed", "data.cilps"],
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
