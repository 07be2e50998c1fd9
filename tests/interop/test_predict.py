"""Prediction with pretrained weights: the preprocessing that came with them, and the same as transformers' own."""

import json

import jax
import numpy as np
import pytest

import vitx
from vitx.cli import main
from vitx.data.decoding import decode_frames
from vitx.data.encoding import encode_video
from vitx.data.windows import SlidingWindows
from vitx.evaluation.prediction_table import PredictionTable
from vitx.evaluation.predictor import predict_videos
from vitx.evaluation.weights_predictor import weights_predictor
from vitx.interop import predict
from vitx.interop.predict import predict_each
from vitx.interop.preprocessing import Preprocessing


@pytest.fixture
def clip(tmp_path):
    """Twelve frames of something that has edges, colours and a size that does not fit."""
    rows, columns, times = np.mgrid[:46, :70, :12].astype(float)
    waves = [np.sin(rows / 5 + times / 2), np.cos(columns / 7 - times / 3), np.sin((rows + columns) / 9)]
    frames = (127.5 * (1 + np.stack(waves, -1))).astype(np.uint8).transpose(2, 0, 1, 3)
    path = tmp_path / "clip.mp4"
    path.write_bytes(encode_video(np.ascontiguousarray(frames), options={"crf": "5"}))
    return path


@pytest.fixture
def vivit(vivit):
    """The directory with the preprocessing of the released ViViT models."""
    settings = {"size": {"shortest_edge": 20}, "crop_size": {"height": 16, "width": 16}, "do_rescale": True}
    settings |= {"rescale_factor": 1 / 127.5, "offset": True, "do_normalize": True}
    settings |= {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "image_processor_type": "VivitImageProcessor"}
    (vivit / "preprocessor_config.json").write_text(json.dumps(settings | {"do_resize": True, "do_center_crop": True}))
    return vivit


@pytest.mark.smoke
def test_predict_uses_the_preprocessing_that_came_with_the_weights(vivit, clip, capsys):
    loaded = vitx.load_pretrained(vivit)
    found = dict(predict_each(loaded, [clip], top=5))[str(clip)]["class"]
    frames = decode_frames(str(clip), [1, 4, 7, 10])
    shown = loaded.preprocessing.normalise(loaded.preprocessing.fit(frames))
    expected = np.asarray(jax.nn.softmax(loaded[0].apply(loaded[1], jax.numpy.asarray(shown[None]))[0]))
    assert list(found) == [f"LABEL_{i}" for i in expected.argsort()[::-1]]
    np.testing.assert_allclose(sorted(found.values()), sorted(expected), rtol=1e-4)
    capsys.readouterr()
    assert main(["predict", str(vivit), str(clip), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[str(clip)]["class"] == pytest.approx(found, rel=1e-4)
    bare = ["predict", str(vivit / "model.safetensors"), str(clip)]
    assert main(bare) == 2 and "model's name" in capsys.readouterr().err


def test_files_are_read_one_by_one(vivit, clip, monkeypatch):
    """An answer comes before the next file is read; memory holds one."""
    happened, read, best = [], predict.read_clip, predict._select_best
    monkeypatch.setattr(predict, "read_clip", lambda *words: happened.append("read") or read(*words))
    monkeypatch.setattr(predict, "_select_best", lambda *words: happened.append("answered") or best(*words))
    list(predict_each(vitx.load_pretrained(vivit), [clip, clip]))
    assert happened == ["read", "answered"] * 2


def test_a_broken_video_is_reported(vivit, tmp_path, capsys):
    (tmp_path / "bad.mp4").write_bytes(b"no video")
    assert main(["predict", str(vivit), str(tmp_path / "bad.mp4")]) == 1
    assert str(tmp_path / "bad.mp4") in capsys.readouterr().err


def test_rows_and_windows_of_weights_are_the_answers_one_by_one(vivit, clip, tmp_path):
    loaded = vitx.load_pretrained(vivit)
    predictor = weights_predictor(loaded)
    one_by_one = dict(predict_each(loaded, [clip], top=5))[str(clip)]["class"]
    (row,) = PredictionTable(list(predict_videos(predictor, [str(clip)])), predictor)
    assert row["scores"] == pytest.approx(one_by_one, rel=1e-4) and row["class"] == next(iter(one_by_one))
    (video,) = predict_videos(predictor, [str(clip)], SlidingWindows.parse("6f", "6f"))
    assert len(video.windows) == 2
    frames = decode_frames(str(clip), [6, 8, 9, 11])  # the middles of four parts of the second half
    clips = loaded.preprocessing.normalise(loaded.preprocessing.fit(frames))[None]
    expected = np.asarray(jax.jit(loaded.model.apply)(loaded.variables, clips))
    np.testing.assert_allclose(video.outputs["class"][1:], expected, rtol=1e-4, atol=1e-4)


def test_clips_are_of_the_centre_or_of_the_whole_video():
    fields = {"mean": (0.5,) * 3, "std": (0.5,) * 3, "size": (8, 8), "short_side": None, "num_frames": 4}
    assert list(Preprocessing(**fields).indices(12)) == [1, 4, 7, 10]
    assert list(Preprocessing(**fields, frame_stride=2).indices(12)) == [3, 5, 7, 9]
    assert list(Preprocessing(**fields, frame_stride=2).indices(3)) == [0, 2, 1, 0]


@pytest.mark.peers
@pytest.mark.parametrize("shape", [(46, 70), (70, 46), (33, 21)])
def test_probabilities_are_those_of_transformers_processor_and_model(shape, vivit, tmp_path):
    import torch
    import transformers

    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 255, (12, *(-(-side // 8) for side in shape), 3), np.uint8)
    frames = coarse.repeat(8, 1).repeat(8, 2)[:, : shape[0] // 2 * 2, : shape[1] // 2 * 2]
    path = tmp_path / "blocks.mp4"
    path.write_bytes(encode_video(np.ascontiguousarray(frames), options={"crf": "1"}))
    found = dict(predict_each(vitx.load_pretrained(vivit), [path], top=5))[str(path)]["class"]

    processor = transformers.VivitImageProcessor.from_pretrained(vivit)
    model = transformers.VivitForVideoClassification.from_pretrained(vivit)
    inputs = processor(list(decode_frames(str(path), [1, 4, 7, 10])), return_tensors="pt")
    with torch.no_grad():
        probabilities = model(**inputs).logits.softmax(-1)[0].numpy()
    for i, expected in enumerate(probabilities):
        assert found[f"LABEL_{i}"] == pytest.approx(expected, rel=5e-3, abs=1e-4)
