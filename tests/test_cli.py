"""The `vitx` command as people type it: every mistake is one message and the right status."""

import contextlib
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from vitx import run as run_module
from vitx.cli import main
from vitx.configuration import paths
from vitx.data.encoding import encode_video
from vitx.data.pipeline import Data
from vitx.experiment import load_experiment


@pytest.fixture(scope="module")
def run(small_file, tmp_path_factory) -> Path:
    workdir, printed = tmp_path_factory.mktemp("run"), io.StringIO()
    words = ["train", small_file, "--workdir", str(workdir), "--training.steps", "4", "--debug", "--profile_startup"]
    with contextlib.redirect_stderr(printed):
        assert main(words) == 0
    workdir.with_name("printed").write_text(printed.getvalue())
    return workdir


def refused(capsys, *words: object) -> str:
    assert main([str(word) for word in words]) == 2
    out, err = capsys.readouterr()
    assert out == "" and "Traceback" not in err
    (line, *_) = [line for line in err.splitlines() if line.startswith("vitx: ")]
    return err[err.index(line) :]


def test_profile_of_the_start_lists_its_phases_before_the_run_ends(run):
    before, _, after = run.with_name("printed").read_text().partition("until the first step ended")
    for phase in ("imports", "data: open or build", "initialise", "compile the step", "first batch", "first step"):
        assert re.search(rf"^  {phase}.* \d+\.\d\d$", before, re.MULTILINE), phase
    assert "lowering" in after and "time: build" in after and "import" not in after


@pytest.mark.smoke
def test_help_lists_every_setting_with_its_meaning(small_file, capsys, small):
    with pytest.raises(SystemExit) as stop:
        main(["train", small_file, "--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    for path, _ in paths(small):
        assert f"--{path}" in text, path
    assert re.search(r"learning rate after the warm-up", " ".join(text.split()))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["--training.step", "4"], "there is no setting training.step; did you mean training.steps?"),
        (["--training.steps", "many"], "training.steps is 'many'; expected int"),
        (["--training.steps"], "--training.steps has no value"),
        (["--model.pooling=max"], "model.pooling is 'max'; expected one of 'class', 'mean'"),
        (["--model.num_heads", "5"], "num_heads 5"),
        (["--training.steps", "0"], "steps is 0; expected at least 1"),
        (["--training.seed", "-1"], "seed is -1; expected 0 to 4294967295"),
        (["--training.ema_decay", "1.5"], "ema_decay is 1.5; expected 0 to below 1"),
        (["--training.ema_warmup", "True"], "ema_warmup is True and ema_decay None"),
        (["--training.hang_minutes", "0"], "hang_minutes is 0.0"),
        (["--training.spike_deviations", "-1"], "spike_deviations is -1.0"),
        (["--optimizer.clip_norm", "0"], "clip_norm is 0.0"),
        (["--optimizer.sam_rho", "-1"], "sam_rho is -1.0"),
        (["--optimizer.peak_lr", "-1"], "peak_lr is -1.0"),
        (["--optimizer.weight_decay", "-1"], "weight_decay is -1.0"),
        (["--optimizer.layer_decay", "0"], "layer_decay is 0.0"),
        (["--training.profile_steps", "20", "25"], "profile_steps is (20, 25)"),
        (["--optimizer", "Lyon"], "optimizer is 'Lyon'"),
        (["stray"], "'stray' belongs to no setting"),
    ],
)
def test_mistaken_settings_are_refused(settings, message, small_file, tmp_path, capsys):
    assert message in refused(capsys, "train", small_file, "--workdir", tmp_path / "new", *settings)
    assert not (tmp_path / "new").exists()


def test_mistaken_experiment_files_are_refused(tmp_path, capsys):
    assert "there is no experiment file" in refused(capsys, "train", tmp_path / "no.py", "--workdir", tmp_path)
    for text, message in (
        ("x = 1\ny = x / 0\n", "line 2: ZeroDivisionError: division by zero"),
        ("experiment = 3\n", "defines no `experiment = vitx.Experiment(...)`"),
        ("experiment =\n", "SyntaxError"),
        ("import vitx_of_tomorrow\n", "No module named 'vitx_of_tomorrow'"),
    ):
        file = tmp_path / "bad.py"
        file.write_text(text)
        error = refused(capsys, "train", file, "--workdir", tmp_path / "run")
        assert message in error and str(file) in error
    assert not (tmp_path / "run").exists()


def test_mistaken_folders_are_refused(run, small_file, tmp_path, capsys):
    assert "needs --workdir DIR" in refused(capsys, "train", small_file)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    words = ("train", small_file, "--workdir", run, "--training.steps", 4, "--optimizer.peak_lr", 0.5)
    assert "holds a run with other settings" in refused(capsys, *words)
    assert before == {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    (tmp_path / "file").touch()
    assert "is a file" in refused(capsys, "train", small_file, "--workdir", tmp_path / "file")
    for command in ("evaluate", "predict"):
        clip = [tmp_path / "file"] if command == "predict" else []
        assert "is not a run's folder" in refused(capsys, command, tmp_path, *clip)


def test_a_config_is_never_executed(run, tmp_path, capsys):
    config = json.loads((run / "config.json").read_text())
    config["experiment"]["task"] = {"type": "os.system", "command": "touch hacked"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert "no part of type 'os.system' is registered" in refused(capsys, "evaluate", tmp_path)


def test_evaluate_prints_metrics(run, capsys):
    assert main(["evaluate", str(run), "--json"]) == 0
    metrics = json.loads(capsys.readouterr().out)
    assert metrics["step"] == 4 and metrics["examples"] == 19
    assert metrics["intervals"].keys() == {"appearance/top1", "appearance/top5", "motion/top1", "motion/top5"}
    assert all(low <= metrics[name] <= high and low < high for name, (low, high) in metrics["intervals"].items())
    assert main(["evaluate", str(run), "--split", "validation", "--checkpoint", "last"]) == 0
    out, err = capsys.readouterr()
    assert re.search(r"^motion/top1 +[\d.]+  95 % interval [\d.]+ to [\d.]+$", out, re.MULTILINE)
    assert f"see {run / 'report.md'}" in err


def test_evaluate_and_predict_run_in_a_fresh_process(run, tmp_path):
    clip = tmp_path / "clip.mp4"
    clip.write_bytes(encode_video(np.zeros((9, 32, 32, 3), np.uint8)))
    for words in (["evaluate", str(run)], ["predict", str(run), str(clip)]):
        done = subprocess.run([sys.executable, "-m", "vitx.cli", *words, "--json"], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)


def test_predict_prints_probabilities(run, tmp_path, capsys):
    clip = tmp_path / "a clip.mp4"
    clip.write_bytes(encode_video(np.random.default_rng(0).integers(0, 255, (9, 50, 70, 3), np.uint8)))
    assert main(["predict", str(run), str(clip), "--json", "--top", "3"]) == 0
    answer = json.loads(capsys.readouterr().out)[str(clip)]
    assert list(answer) == ["appearance", "motion"]
    for probabilities in answer.values():
        values = list(probabilities.values())
        assert len(values) == 3 and sorted(values, reverse=True) == values
    assert main(["predict", str(run), str(clip)]) == 0
    assert "motion: " in capsys.readouterr().out
    (tmp_path / "bad.mp4").write_bytes(b"no video")
    (tmp_path / "worse.mp4").write_bytes(b"")
    words = [str(run), str(clip), *(str(tmp_path / name) for name in ("bad.mp4", "worse.mp4", "no.mp4"))]
    assert main(["predict", *words]) == 1
    error = capsys.readouterr().err
    assert f"{tmp_path / 'bad.mp4'}: Invalid data" in error and "worse.mp4" in error
    assert f"there is no {tmp_path / 'no.mp4'}" in error


def test_files_are_predicted_one_by_one(run, tmp_path, monkeypatch):
    """An answer comes before the next file is read; memory holds one."""
    clips = [tmp_path / name for name in ("a.mp4", "b.mp4")]
    for clip in clips:
        clip.write_bytes(encode_video(np.zeros((9, 32, 32, 3), np.uint8)))
    happened, read, predicted = [], Data.read_views, run_module.predict
    monkeypatch.setattr(Data, "read_views", lambda *words: happened.append("read") or read(*words))
    monkeypatch.setattr(
        run_module, "predict", lambda *words, **more: happened.append("answered") or predicted(*words, **more)
    )
    assert len(run_module.load_run(run).predict(clips)) == 2 and happened == ["read", "answered"] * 2


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")
@pytest.mark.parametrize(
    "size",  # full while the first checkpoint is written, before that, and while a later one is written
    ["352k", pytest.param("150k", marks=pytest.mark.slow), pytest.param("500k", marks=pytest.mark.slow)],
)
def test_full_disk_is_one_message(size, small_file, tmp_path):
    if subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(tmp_path)]).returncode:
        pytest.skip("this machine does not let us mount a small disk")
    try:
        words = [sys.executable, "-m", "vitx.cli", "train", small_file, "--workdir", str(tmp_path / "run")]
        words += ["--training.checkpoint_every", "2", "--training.keep_checkpoints", "9"]
        done = subprocess.run(words, capture_output=True, text=True)
        assert done.returncode == 2, done.stderr
        assert done.stderr.splitlines()[-1].startswith("vitx: the disk is full")
        assert "Traceback" not in done.stderr and "ERROR" not in done.stderr  # of other threads either
    finally:
        subprocess.run(["umount", "-l", str(tmp_path)], check=True)


@pytest.mark.smoke
def test_models_are_listed(capsys):
    assert main(["models", "vivit_b_16x2_f*"]) == 0
    assert capsys.readouterr().out.split() == ["vivit_b_16x2_fdp", "vivit_b_16x2_fe", "vivit_b_16x2_fsa"]
    assert main(["models", "vivit_b_16x2_fe", "x3d_x*"]) == 0
    assert capsys.readouterr().out.split() == ["vivit_b_16x2_fe", "x3d_xs"]
    assert "no model matches" in refused(capsys, "models", "resnet*")
    assert main(["models", "timesformer_hr", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["timesformer_hr"]["num_frames"] == 16


SMALL = ["--num_frames", "8", "--image_size", "(32, 48)", "--num_layers", "1"]


def test_cost_counts_any_clip(capsys, tmp_path):
    narrow = ["--width", "8", "--depths", "1", "1", "1", "1"]
    assert main(["cost", "vivit_ti_16x2_fe", "timesformer_b_16_divided", *SMALL, "--json"]) == 0
    first, second = json.loads(capsys.readouterr().out)["models"]
    assert first["model"] == "vivit_ti_16x2_fe" and (first["height"], first["width"]) == (32, 48)
    assert 2 * first["macs"] < first["flops_xla"] and second["activation_bytes"] > first["activation_bytes"] > 0
    assert main(["cost", "vivit_ti_16x2_fe", *SMALL]) == 0
    assert "GMACs" in capsys.readouterr().out
    assert main(["cost", "x3d_xs", "r2plus1d_18", *narrow, "--clip", "8", "32", "48", "--json"]) == 0
    for row in json.loads(capsys.readouterr().out)["models"]:
        assert (row["frames"], row["height"], row["width"]) == (8, 32, 48) and row["activation_bytes"] > row["params"]
    shaped = ["cnn_small", "timesformer_b_16_space", "--clip", "8", "32", "48", "--json"]
    assert main(["cost", *shaped]) == 0
    rows = json.loads(capsys.readouterr().out)["models"]
    small = ["--clip", "8", "32", "48", "--num_layers", "2", "--json"]
    assert main(["cost", "vivit_ti_16x2", *small]) == 0
    rows += json.loads(capsys.readouterr().out)["models"]
    assert [(row["frames"], row["height"], row["width"]) for row in rows] == [(8, 32, 48)] * 3
    assert main(["cost", "convlstm_small", "--num_frames", "8", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["models"][0]["frames"] == 8
    picture = tmp_path / "growth.png"
    assert main(["cost", "vivit_ti_16x2", "--image_size", "32", "--num_layers", "1", "--plot", str(picture)]) == 0
    assert picture.stat().st_size > 10_000 and "128" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["timesformer_l2"], "did you mean timesformer_l? `vitx models` lists all"),
        (["unlike_any"], "no model matches 'unlike_any'. `vitx models` lists all"),
        (["vivit_ti_16x2", "--num_frames", "15"], "does not divide a clip of (15, 224, 224)"),
        (["vivit_ti_16x2", "--num_frame", "16"], "did you mean num_frames?"),
        (
            ["r3d_18", "--clip", "4", "112", "112"],
            "r3d_18: video has shape [1, 4, 112, 112, 3]; ResNet3D strides over 8 x 16 x 16",
        ),
        (["vivit_ti_16x2", "--clip", "8", "32"], "--clip is (8, 32); expected"),
        (["x3d_xs", "--clip", "8", "x", "32"], "--clip is (8, 'x', 32); expected"),
        (["x3d_xs", "--clip", "8", "32", "32", "--num_frames", "4"], "--clip sets frames, height and width"),
        (["vivit_ti_16x2", "--clip=8,32,32", "--image_size", "4"], "--clip sets frames, height and width"),
        (["x3d_xs", "--num_frames", "many"], "--num_frames is 'many'; expected int"),
        ([], "vitx cost needs the NAME of a model"),
        (["vivit_ti_16x2", "--published"], "vivit_ti_16x2"),
        (["vivit_b_16x2", "--published", "--num_frames", "8"], "leave out --plot and settings"),
    ],
)
def test_mistaken_cost_commands_are_refused(words, message, capsys):
    assert message in refused(capsys, "cost", *words)


def test_bench_refuses_impossible_clips_before_it_measures(capsys):
    stderr = refused(capsys, "bench", "x3d_xs", "slowfast_r50_8x8", "--num_frames", 6)
    assert "slowfast_r50_8x8: " in stderr and "multiple of 4" in stderr
    assert "ValueError" not in stderr
    stderr = refused(capsys, "bench", "r3d_18", "--clip", 8, 16, 16, "--batch", 1, "--width", 4)
    assert "r3d_18: " in stderr and "one value for each channel" in stderr


def test_clips_that_a_network_cannot_take_are_refused(small_file, tmp_path, capsys):
    file = tmp_path / "cnn.py"
    file.write_text(
        "from vitx.experiment import load_experiment\n"
        "from vitx.models.resnet3d import ResNet3D\n"
        'heads = (("appearance", 10), ("motion", 8))\n'
        "model = ResNet3D(width=2, kernels=(((3, 3, 3),),) * 3, depths=(1, 1, 1), num_classes=heads)\n"
        f'experiment = load_experiment({small_file!r}).override({{"model": model}})\n'
    )
    for settings, message in (
        (["--data.num_frames", 3], "data.num_frames"),
        (["--data.image_size", "(6, 24)"], "data.image_size"),
        (["--model.norm_groups", 3], "model.norm_groups is 3; expected a divisor of the 8 clips"),
        (["--training.num_micro_batches", 4, "--model.norm_groups", 4], "a divisor of the 2 clips"),
    ):
        stderr = refused(capsys, "train", file, "--workdir", tmp_path / "run", *settings)
        assert message in stderr and "ValueError" not in stderr


def test_unknown_options_are_refused(run, capsys):
    assert main(["evaluate", str(run), "--fast"]) == 2
    assert "there is no option --fast here" in capsys.readouterr().err


def test_only_training_resumes_after_ctrl_c(small_file, tmp_path, monkeypatch, capsys):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("vitx.run.train", interrupted)
    monkeypatch.setattr("vitx.analysis.cost.count_cost", interrupted)
    for words, stderr in (
        (("train", small_file, "--workdir", str(tmp_path)), "interrupted; the same command resumes"),
        (("cost", "x3d_s"), "interrupted\n"),
    ):
        assert main(words) == 1 and f"vitx: {stderr}" in capsys.readouterr().err


def test_incomplete_address_is_refused(small_file, tmp_path, capsys):
    words = ("train", small_file, "--workdir", tmp_path / "run", "--num_processes", 2, "--process_id", 1)
    assert "missing: --coordinator" in refused(capsys, *words)


def test_debug_prints_the_traceback(tmp_path, capsys):
    assert main(["train", str(tmp_path / "no.py"), "--workdir", str(tmp_path), "--debug"]) == 2
    assert "Traceback" in capsys.readouterr().err


def test_an_experiment_builds_on_another(tmp_path, pytestconfig):
    (tmp_path / "base.py").write_text((pytestconfig.rootpath / "experiments" / "quickstart.py").read_text())
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "next.py").write_text(
        "from vitx import load_experiment\n"
        'experiment = load_experiment("../base.py").override({"optimizer.peak_lr": 0.05})\n'
    )
    assert load_experiment(tmp_path / "sub" / "next.py").optimizer.peak_lr == 0.05


def test_output_that_nobody_reads_to_its_end_is_no_error(monkeypatch, capsys):
    """As in `vitx models | head`."""
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w") as closed:
        monkeypatch.setattr(sys, "stdout", closed)
        assert main(["models"]) == 1
        monkeypatch.undo()
    assert capsys.readouterr().err == ""
