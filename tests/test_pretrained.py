"""Weights from anywhere: a run's too; converted in both directions; as the start of training."""

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

import vitx
from vitx.cli import main
from vitx.data.encoding import encode_video
from vitx.experiment import load_experiment
from vitx.models.convlstm import ConvLSTM
from vitx.run import load_run, train

GOLDEN = Path(__file__).parent / "interop" / "golden"


@pytest.mark.smoke
def test_convert_round_trip_returns_the_same_weights(tmp_path, capsys):
    own, back = tmp_path / "weights.safetensors", tmp_path / "back"
    assert main(["convert", str(GOLDEN / "vivit"), str(own), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["loaded"]["head/logits/bias"] == "classifier.bias" and not report["fresh"]
    assert main(["convert", str(own), str(back)]) == 0
    first, second, third = (vitx.load_pretrained(path) for path in (GOLDEN / "vivit", own, back))
    assert first[0] == second[0] == third[0] and first.labels == second.labels == third.labels
    for other in (second, third):
        jax.tree.map(np.testing.assert_array_equal, first[1], other[1])
    assert main(["convert", str(GOLDEN / "vivit"), str(own)]) == 2
    assert "weights.safetensors exists" in capsys.readouterr().err
    bigger = tmp_path / "bigger"
    assert main(["convert", str(own), str(bigger), "--num_frames", "8"]) == 0
    assert json.loads((bigger / "config.json").read_text())["num_frames"] == 8


def test_a_file_of_ours_names_registered_models_only(tmp_path, capsys):
    own = tmp_path / "weights.safetensors"
    vitx.load_pretrained(GOLDEN / "vivit")
    main(["convert", str(GOLDEN / "vivit"), str(own)])
    whole = own.read_bytes()
    own.write_bytes(whole.replace(b'\\"ViViT\\"', b'\\"VivIT\\"'))
    with pytest.raises(vitx.UserError, match="no part of type 'VivIT' is registered"):
        vitx.load_pretrained(own)


@pytest.fixture(scope="module")
def run(small_file, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "four"
    train(load_experiment(small_file).override({"training.steps": 4}), workdir)
    return workdir


def test_a_run_is_loaded_with_its_preprocessing(run):
    model, variables = loaded = vitx.load_pretrained(run)
    assert model.num_classes == (("appearance", 10), ("motion", 8)) and not loaded.report.fresh
    jax.tree.map(np.testing.assert_array_equal, variables, load_run(run).variables)
    assert loaded.preprocessing.mean == (0.2, 0.2, 0.2) and loaded.preprocessing.num_frames == 4
    swapped = vitx.load_pretrained(run, num_classes=3, num_frames=8)
    assert swapped.report.fresh == ("head/logits/bias", "head/logits/kernel")
    assert set(swapped.report.resized) == {"temporal_positions/positions"}
    assert swapped.preprocessing.num_frames == 8 and swapped.labels is None
    assert loaded.labels["motion"] == load_run(run).output_names["motion"]


def test_a_converted_run_keeps_its_labels_and_answers(run, tmp_path, capsys):
    assert main(["convert", str(run), str(tmp_path / "run.safetensors")]) == 0
    again = vitx.load_pretrained(tmp_path / "run.safetensors")
    assert again.labels == load_run(run).output_names
    frames = np.zeros((8, 24, 24, 3), np.uint8)
    frames[:, 8:16, 8:16] = 200
    clip = tmp_path / "clip.mp4"
    clip.write_bytes(encode_video(frames))
    capsys.readouterr()
    answers = []
    for source in (run, tmp_path / "run.safetensors"):
        assert main(["predict", str(source), str(clip), "--json", "--top", "8"]) == 0
        answers.append(json.loads(capsys.readouterr().out)[str(clip)]["motion"])
    assert answers[0] == pytest.approx(answers[1], abs=1e-5)  # a clip that needs no scaling


def test_a_convlstm_run_is_given_away_with_its_clip(small, tmp_path, capsys):
    heads = (("appearance", 10), ("motion", 8))
    model = ConvLSTM(num_classes=heads, widths=(4,), patch=8)  # whose own clip is another
    run, own = tmp_path / "run", tmp_path / "own.safetensors"
    train(small.override({"model": model, "training.steps": 1, "optimizer.peak_lr": 0.1}), run)
    assert main(["convert", str(run), str(own)]) == 0
    (tmp_path / "clip.mp4").write_bytes(small.data.dataset.open("test")[0]["video"])
    capsys.readouterr()
    answers = []
    for source in (run, own):
        assert main(["predict", str(source), str(tmp_path / "clip.mp4"), "--json", "--top", "8"]) == 0
        answers.append(json.loads(capsys.readouterr().out)[str(tmp_path / "clip.mp4")]["motion"])
    assert answers[0] == pytest.approx(answers[1], abs=1e-5)
    assert vitx.load_pretrained(own)[0].clip == (4, 24, 24)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--name", "x"], "there is no setting name"),
        (["--path", "x"], "there is no setting path"),
        (["--from_image", "central"], "there is no setting from_image"),
    ],
)
def test_words_that_are_no_settings_are_refused(words, message, tmp_path, capsys):
    assert main(["convert", str(GOLDEN / "vivit"), str(tmp_path / "new"), *words]) == 2
    assert message in capsys.readouterr().err and not (tmp_path / "new").exists()


def test_impossible_destinations_are_refused(tmp_path, capsys):
    for destination, message in (("weights.npz", ".npz; expected .safetensors"), ("no/where", "is no directory")):
        assert main(["convert", str(GOLDEN / "vivit"), str(tmp_path / destination)]) == 2
        assert message in capsys.readouterr().err
    assert main(["predict", str(tmp_path / "none.npz"), "clip.mp4", "--model", "vivit_b_16x2"]) == 2


def test_training_starts_from_weights_from_elsewhere(small, tmp_path, capsys):
    from vitx.models.vivit import ViViT

    fields = {"num_frames": 4, "image_size": 24, "tubelet_size": (2, 12, 12), "hidden_size": 24, "num_layers": 2}
    model = ViViT(**fields, num_heads=3, mlp_dim=40, num_classes=(("appearance", 10), ("motion", 8)))
    _, variables = vitx.load_pretrained(GOLDEN / "vivit", num_classes=7, image_size=24)
    shutil.copytree(GOLDEN / "vivit", tmp_path / "hf")
    experiment = small.override(
        {
            "model": model.copy(tubelet_size=(2, 8, 8)),
            "training.initialise_from": str(tmp_path / "hf"),
            "training.steps": 1,
            "optimizer.peak_lr": 0.0,
        }
    )
    train(experiment, tmp_path / "run")
    kernel = load_run(tmp_path / "run").variables["params"]["encoder"]["block_1"]["mlp"]["hidden"]["kernel"]
    np.testing.assert_array_equal(kernel, variables["params"]["encoder"]["block_1"]["mlp"]["hidden"]["kernel"])
    assert "resized positions/positions" in capsys.readouterr().err


def test_a_run_starts_from_the_best_checkpoint_of_another_with_other_classes_and_clips(small, run, tmp_path):
    heads = (("appearance", 10), ("motion", 8))
    experiment = small.override(
        {
            "training.initialise_from": str(run),
            "training.steps": 1,
            "optimizer.peak_lr": 0.0,
            "model.num_frames": 6,
            "data.num_frames": 6,
            "model.num_classes": heads[:1],
        }
    )
    train(experiment, tmp_path / "new")
    report = json.loads((tmp_path / "new" / "initialised_from.json").read_text())
    assert report["source"] == str(run) and not report["fresh"] and not report["classes"]
    assert report["left_over"] == ["head/motion/bias", "head/motion/kernel"]
    assert list(report["resized"]) == ["temporal_positions/positions"]
    ours, source = load_run(tmp_path / "new").variables["params"], load_run(run, "best").variables["params"]
    jax.tree.map(np.testing.assert_array_equal, ours["head"]["appearance"], source["head"]["appearance"])
    jax.tree.map(np.testing.assert_array_equal, ours["spatial_encoder"], source["spatial_encoder"])


def test_a_run_of_another_function_is_no_start(small, run, tmp_path):
    experiment = small.override({"training.initialise_from": str(run), "model.num_heads": 3})
    with pytest.raises(vitx.UserError, match=r"num_heads: 2 .* 3 expected"):
        train(experiment, tmp_path / "new")
