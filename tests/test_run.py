"""A run in memory and on disk: what training returns, and what its folder gives back."""

import ast
import inspect
import json
import pydoc
import re
import shutil

import jax
import numpy as np
import pytest

import vitx
from vitx.cli import main
from vitx.data.decoding import open_video
from vitx.data.encoding import encode_video
from vitx.errors import UserError
from vitx.explain.methods import METHODS
from vitx.layers.token_merging import TokenMerging
from vitx.run import Run, load_run, train
from vitx.training.sharding import Mesh


@pytest.fixture(scope="module")
def run(small, tmp_path_factory):
    return train(small, tmp_path_factory.mktemp("run"))


@pytest.mark.smoke
def test_training_returns_the_run_that_its_folder_holds(run):
    loaded = load_run(run.workdir)
    assert (loaded.step, loaded.output_names) == (run.step, run.output_names)
    jax.tree.map(np.testing.assert_array_equal, loaded.variables, run.variables)
    assert loaded.experiment.task == run.experiment.task


def test_best_and_last_checkpoint_are_loaded_by_name(run):
    rows = [row for row in run.metrics() if row["split"] == "validation"]
    best = min(rows, key=lambda row: row["loss"])["step"]
    assert load_run(run.workdir).step == best == run.step and load_run(run.workdir, "last").step == 12
    with pytest.raises(UserError, match=r"'newest'.*'best'.*'last'"):
        inspect.unwrap(load_run)(run.workdir, "newest")  # without the type checks of the tests


def test_a_damaged_last_checkpoint_leaves_the_best_of_the_others(run, tmp_path, capsys):
    workdir = shutil.copytree(run.workdir, tmp_path / "run")
    steps = sorted(int(path.name) for path in (workdir / "checkpoints").iterdir() if path.name.isdecimal())
    next((workdir / "checkpoints" / str(steps[-1]) / "record").glob("*")).write_text("{}")
    assert load_run(workdir).step in steps[:-1]
    assert vitx.load_pretrained(workdir).model == run.experiment.model
    assert f"checkpoint {steps[-1]}" in capsys.readouterr().err
    with pytest.raises(UserError, match=f"{steps[-1]} cannot be read"):
        load_run(workdir, "last")


def test_the_mesh_of_an_evaluation_is_given_by_axis_or_as_a_whole(run):
    for settings in ({"training.mesh": Mesh(data=1)}, {"training.mesh.data": 1}):
        assert load_run(run.workdir, settings=settings).experiment.training.mesh == Mesh(data=1)
    with pytest.raises(UserError, match=r"training\.steps"):
        load_run(run.workdir, settings={"training.steps": 3})


def test_repr_of_a_run_is_one_short_line(run):
    assert str(run.workdir) in repr(run) and len(repr(run)) < 200 and "\n" not in repr(run)


def test_predictions_are_probabilities_of_every_head(run, tmp_path):
    clip = tmp_path / "clip.mp4"
    clip.write_bytes(encode_video(np.zeros((9, 32, 32, 3), np.uint8)))
    (answer,) = run.predict([clip], top=100).values()
    assert {label: len(classes) for label, classes in answer.items()} == {"appearance": 10, "motion": 8}
    assert all(sum(classes.values()) == pytest.approx(1, abs=1e-5) for classes in answer.values())
    with pytest.raises(UserError, match=r"no\.mp4"):
        run.predict([tmp_path / "no.mp4"])


def test_public_names_are_importable_and_lazy():
    for name in vitx.__all__:
        assert getattr(vitx, name) is not None
    assert {"train", "load_run", "create_model", "load_pretrained", "count_cost"} <= set(dir(vitx))
    with pytest.raises(AttributeError, match="nothing_of_this_name"):
        _ = vitx.nothing_of_this_name


def test_editors_see_the_public_names_that_run_time_has():
    body = ast.parse(inspect.getsource(vitx)).body
    (block,) = (node for node in body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
    assert all(len(line.names) == 1 and line.names[0].asname == line.names[0].name for line in block.body)
    assert {line.names[0].name: line.module for line in block.body} == vitx._HOMES


def test_help_lists_the_public_names_with_their_docstrings():
    text = pydoc.plain(pydoc.render_doc(vitx))
    for name in set(vitx.__all__) - {"__version__"}:
        assert re.search(rf"^    (class )?{name}\(", text, re.MULTILINE), name
        assert getattr(vitx, name).__doc__.splitlines()[0] in text


def test_an_explanation_names_class_and_method_and_has_every_form(run, tmp_path):
    frames = np.random.default_rng(0).integers(0, 255, (4, 24, 24, 3), np.uint8)
    explanation = run.explain(frames, label="motion")
    assert explanation.relevance.shape == (4, 24, 24) and explanation.method == "gradient_attention"
    assert explanation.class_name in run.output_names["motion"] and 0 < explanation.probability <= 1
    assert explanation.over_time.sum() == pytest.approx(1) and explanation.overlay().shape == frames.shape
    magic = {".png": b"\x89PNG", ".gif": b"GIF8", ".npz": b"PK"}
    for suffix, begin in magic.items():
        explanation.save(tmp_path / f"clip{suffix}")
        assert (tmp_path / f"clip{suffix}").read_bytes().startswith(begin)
    explanation.save(tmp_path / "clip.mp4")
    with open_video(str(tmp_path / "clip.mp4")) as video:
        assert len(video.times) == 4
    assert explanation._repr_png_().startswith(b"\x89PNG")
    with pytest.raises(UserError, match=r"\.jpeg.*\.png"):
        explanation.save(tmp_path / "clip.jpeg")


def test_a_named_class_is_explained_on_another_method(run):
    frames = np.zeros((9, 30, 40, 3), np.uint8)
    explanation = run.explain(frames, method="occlusion", label="appearance", class_name="7", tubelet=(4, 12, 12))
    assert (explanation.label, explanation.class_name, explanation.method) == ("appearance", "7", "occlusion")
    assert explanation.frames.shape == (4, 24, 24, 3)


def test_what_cannot_be_explained_is_refused_with_what_works(run, tmp_path):
    frames = np.zeros((4, 24, 24, 3), np.uint8)
    with pytest.raises(UserError, match=r"\b3 frames.*\b4\b"):
        run.explain(frames[:3])
    with pytest.raises(UserError, match=r"float32.*uint8"):
        run.explain(frames.astype(np.float32))
    with pytest.raises(UserError, match=r"colour.*appearance, motion"):
        run.explain(frames, label="colour")
    with pytest.raises(UserError, match=r"backwards.*left"):
        run.explain(frames, label="motion", class_name="backwards")
    with pytest.raises(UserError, match=r"saliency.*gradient_attention"):
        run.explain(frames, method="saliency")
    with pytest.raises(UserError, match=r"no\.mp4"):
        run.explain(tmp_path / "no.mp4")


def test_explain_on_the_command_line_writes_pictures(run, tmp_path, capsys):
    clip = tmp_path / "clip.mp4"
    clip.write_bytes(encode_video(np.zeros((9, 32, 32, 3), np.uint8)))
    arguments = ["explain", str(run.workdir), str(clip), "--output", str(tmp_path / "out"), "--label", "motion"]
    assert main([*arguments, "--formats", "png", "npz", "--json"]) == 0
    (answer,) = json.loads(capsys.readouterr().out).values()
    assert answer["label"] == "motion" and answer["class"] in run.output_names["motion"]
    assert sum(answer["importance_over_time"]) == pytest.approx(1)
    assert sorted(path.suffix for path in (tmp_path / "out").iterdir()) == [".npz", ".png"]
    written = {path: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Run, "explain", None)  # is not called
        assert main([*arguments, "--formats", "png"]) == 2 and "--overwrite" in capsys.readouterr().err
    assert written == {path: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert main([*arguments, "--formats", "png", "--overwrite", "--class", answer["class"]]) == 0
    assert len(list((tmp_path / "out").iterdir())) == 3  # the class is part of the name
    assert main([*arguments, "--formats", "bmp"]) == 2 and main([*arguments, "--method", "saliency"]) == 2
    capsys.readouterr()
    assert main(["explain", str(tmp_path), str(clip)]) == 2  # no run
    shutil.copy(run.workdir / "config.json", tmp_path)
    assert main(["explain", str(tmp_path), str(clip)]) == 2 and "no checkpoints" in capsys.readouterr().err


def test_a_broken_video_does_not_keep_the_others_from_being_explained(run, tmp_path, capsys):
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    (tmp_path / "clip.mp4").write_bytes(encode_video(np.zeros((9, 32, 32, 3), np.uint8)))
    words = ["explain", str(run.workdir), *(str(tmp_path / f"{name}.mp4") for name in ("broken", "clip"))]
    assert main([*words, "--output", str(tmp_path / "out"), "--formats", "npz", "--json"]) == 1
    answers = json.loads(capsys.readouterr().out)
    broken, clip = (answers[file] for file in words[2:4])
    assert list(broken) == ["error"] and clip["files"] == [str(path) for path in (tmp_path / "out").iterdir()]


def test_videos_whose_pictures_would_have_one_name_are_refused(run, tmp_path, capsys):
    names = ("take 1", "take-1")
    for name in names:
        (tmp_path / f"{name}.mp4").write_bytes(encode_video(np.zeros((4, 24, 24, 3), np.uint8)))
    words = ["explain", str(run.workdir), *(str(tmp_path / f"{name}.mp4") for name in names)]
    assert main([*words, "--output", str(tmp_path / "out")]) == 2
    assert "take-1.mp4" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_options_of_a_method_are_words_on_the_command_line(run, tmp_path, capsys):
    for name in ("short", "other/short"):  # 2 frames, of which the model needs 4: they repeat, as in training
        (tmp_path / name).parent.mkdir(exist_ok=True)
        frames = np.random.default_rng(0).integers(0, 255, (2, 24, 24, 3), np.uint8)
        (tmp_path / f"{name}.mp4").write_bytes(encode_video(frames))
    command = [
        "explain",
        str(run.workdir),
        str(tmp_path / "short.mp4"),
        "--output",
        str(tmp_path / "out"),
        "--overwrite",
    ]
    method = ["--formats", "npz", "--method", "kernel_shap", "--options"]
    assert main([*command, *method, "tubelet=2,24,12", "samples=14"]) == 0
    capsys.readouterr()
    relevance = np.load(tmp_path / "out" / "short_kernel_shap.npz")["relevance"]
    assert len(np.unique(relevance)) == len(np.unique(relevance[::2, 0, ::12])) > 1
    for wrong, named in [
        (["samples"], "NAME=VALUE"),
        (["tubelets=2,8,8"], "did you mean tubelet?"),
        (["steps=4"], "kernel_shap"),
        (["samples=nan"], "samples is nan"),
        (["tubelet=2,0,8"], "(2, 0, 8)"),
        (["label=motion"], "label"),
    ]:
        assert main([*command, *method, *wrong]) == 2 and named in capsys.readouterr().err
    assert main([*command[:3], str(tmp_path / "other" / "short.mp4")]) == 2
    assert "other/short.mp4" in capsys.readouterr().err


def test_help_of_explain_names_every_method(capsys):
    with pytest.raises(SystemExit):
        main(["explain", "--help"])
    words = capsys.readouterr().out.replace(",", " ").split()
    assert set(METHODS) <= set(words)


def test_a_single_video_gets_an_answer_of_its_own(run, tmp_path):
    frames = np.random.default_rng(0).integers(0, 255, (4, 24, 24, 3), np.uint8)
    answer = run.predict(frames, top=100)
    assert {label: len(classes) for label, classes in answer.items()} == {"appearance": 10, "motion": 8}
    clip = tmp_path / "clip.mp4"
    clip.write_bytes(encode_video(np.zeros((9, 32, 32, 3), np.uint8)))
    assert run.predict(clip) == run.predict([clip])[str(clip)]
    assert np.array_equal(answer.frames, frames)
    lines = [text.get_text() for text in answer.figure().axes[0].texts]
    assert {f"motion: {name} {100 * number:.1f} %" for name, number in list(answer["motion"].items())[:4]} <= set(lines)
    assert answer._repr_png_().startswith(b"\x89PNG")


def test_a_run_that_reads_whole_clips_neither_streams_nor_forecasts(run):
    with pytest.raises(UserError, match=r"FactorisedEncoder.*lrcn"):
        run.stream()
    with pytest.raises(UserError, match=r"Classification.*FramePrediction"):
        run.forecast(np.zeros((4, 24, 24, 3), np.uint8))


def test_a_table_of_predictions_has_the_answers_of_files_arrays_and_windows(run, tmp_path):
    frames = np.random.default_rng(0).integers(0, 255, (9, 32, 32, 3), np.uint8)
    clip = tmp_path / "clip.mp4"
    clip.write_bytes(encode_video(frames))
    answer, table = run.predict(clip), run.predict_table([clip, tmp_path / "no.mp4"], top=5)
    assert [row["label"] for row in table] == ["appearance", "motion", None] and list(table.errors) == [
        str(tmp_path / "no.mp4")
    ]
    for row in table[:2]:
        assert row["scores"] == pytest.approx(answer[row["label"]], abs=1e-5)
    answer = run.predict(frames[:4])
    assert {row["label"]: row["class"] for row in run.predict_table(frames[:4])} == {
        label: next(iter(classes)) for label, classes in answer.items()
    }
    windows = run.predict_table(clip, windows="4f", stride="4f")
    assert [row["start"] for row in windows[::2]] == pytest.approx([0, 0.16, 0.2])
    assert {row["label"] for row in windows.segments(0.0, 0.0)} == {"appearance", "motion"}
    with pytest.raises(UserError, match="array"):
        run.predict_table(frames, windows=4)


def test_a_trained_run_is_evaluated_with_merged_tokens(run, tmp_path):
    shutil.copytree(run.workdir, tmp_path / "run")
    merging = load_run(tmp_path / "run", settings={"model.reducer": "TokenMerging", "model.reducer.r": 1})
    assert merging.experiment.model.reducer == TokenMerging(1)
    metrics = merging.evaluate("validation")
    assert metrics["settings"]["model.reducer.r"] == 1 and np.isfinite(metrics["loss"])
    learner = {"model.reducer": "TokenLearner", "model.reducer.num_tokens": 2, "model.reducer.after_layer": 0}
    with pytest.raises(UserError, match=r"model\.reducer .*parameters"):
        load_run(run.workdir, settings=learner)


def test_features_are_what_the_head_classifies(run):
    frames = np.random.default_rng(0).integers(0, 255, (4, 24, 24, 3), np.uint8)
    features = run.features(frames)
    kernel = run.variables["params"]["head"]["motion"]["kernel"]
    logits = features @ np.asarray(kernel) + np.asarray(run.variables["params"]["head"]["motion"]["bias"])
    motions = run.predict(frames, top=8)["motion"]
    expected = [np.log(motions[name]) for name in run.output_names["motion"]]
    np.testing.assert_allclose(logits - logits.max(), np.array(expected) - max(expected), atol=1e-4)


def test_metrics_are_a_list_that_a_notebook_shows_as_a_table(run):
    metrics = run.metrics()
    assert metrics == [dict(row) for row in metrics] and metrics.columns()[:2] == ["step", "split"]
    shown = metrics._repr_html_()
    assert shown.count("<tr>") == len(metrics) + 1 and "<th>motion/top1</th>" in shown
    assert run._repr_png_().startswith(b"\x89PNG")
