"""Preprocessing that comes with weights: what preprocessor_config.json asks for, what is done, and what is reported."""

import json

import jax
import numpy as np
import pytest

import vitx
from vitx.interop.preprocessing import Preprocessing


def test_the_hubs_preprocessing_is_followed_exactly_and_reported(vivit, capsys):
    settings = {"do_resize": True, "size": {"shortest_edge": 20}, "do_rescale": True, "rescale_factor": 1 / 127.5}
    settings |= {"offset": True, "do_normalize": True, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    (vivit / "preprocessor_config.json").write_text(json.dumps(settings))
    loaded = vitx.load_pretrained(vivit)
    np.testing.assert_allclose(loaded.preprocessing.value_range, (-3, 1), atol=1e-6)
    frame = np.array([0, 128, 255], np.uint8)
    np.testing.assert_allclose(loaded.preprocessing.normalise(frame), (frame / 127.5 - 1 - 0.5) / 0.5, atol=1e-5)
    assert "trained on [-1, 1]" in capsys.readouterr().err


@pytest.mark.parametrize(
    "wrong",
    [
        {"image_std": [0, 0, 0]},
        {"image_std": [float("nan")] * 3},
        {"image_mean": [float("inf")] * 3},
        {"image_mean": [0.5]},
        {"image_mean": None},
        {"rescale_factor": 0},
        {"rescale_factor": "much"},
        {"size": {"shortest_edge": "20"}},
        {"size": {"shortest_edge": -5}},
        {"size": {"height": 16}},
        {"size": [20]},
        {"frame_stride": 0},
        {"frame_stride": "4"},
        {"frame_stride": 10**30},
        {"do_center_crop": "no"},
        {"do_resize": None},
        [],
    ],
)
def test_weights_load_whatever_the_file_of_preprocessing_holds(wrong, vivit, capsys):
    expected = vitx.load_pretrained(vivit)
    capsys.readouterr()
    (vivit / "preprocessor_config.json").write_text(json.dumps(wrong))
    loaded = vitx.load_pretrained(vivit)
    jax.tree.map(np.testing.assert_array_equal, loaded.variables, expected.variables)
    assert loaded.preprocessing is None and "preprocessor_config.json" in "".join(loaded.report.notes)
    assert "preprocessor_config.json" in capsys.readouterr().err


def test_weights_load_beside_a_file_of_preprocessing_that_is_no_json(vivit):
    (vivit / "preprocessor_config.json").write_text("{")
    assert vitx.load_pretrained(vivit).report.notes


@pytest.mark.parametrize(
    ("settings", "fields"),
    [
        ({"resample": 3}, {"resampling": "bicubic"}),
        ({"resample": 0}, {"resampling": "nearest"}),
        ({"resample": 1, "size": 20}, {"resampling": "lanczos", "short_side": 20}),
        ({"size": {"height": 16, "width": 18}, "do_center_crop": False}, {"scaled_to": (16, 18), "short_side": None}),
        ({"size": {"longest_edge": 16}}, {"long_side": 16, "short_side": None}),
        ({"size": [16, 18]}, {"scaled_to": (16, 18), "short_side": None}),
        ({"image_mean": 0.25, "image_std": 0.5}, {"mean": (0.25,) * 3, "std": (0.5,) * 3}),
        ({"do_resize": False}, {"scale": False}),
    ],
)
def test_usual_kinds_of_preprocessing_are_read_and_written(settings, fields, vivit):
    (vivit / "preprocessor_config.json").write_text(json.dumps(settings))
    preprocessing = vitx.load_pretrained(vivit).preprocessing
    assert {name: getattr(preprocessing, name) for name in fields} == fields
    again = Preprocessing.from_huggingface(preprocessing.to_huggingface("VideoMAEImageProcessor"), 4, (16, 16))
    assert {name: getattr(again, name) for name in fields} == fields


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"do_center_crop": False}, "crops nothing"),
        ({"resample": 9}, "resample 9"),
        ({"crop_size": {"height": 8, "width": 8}}, "crops"),
        ({"size": {"shortest_edge": 16, "longest_edge": 32}}, "longest_edge"),
        ({"do_flip_channel_order": True}, "do_flip_channel_order"),
        ({"do_pad": True, "do_convert_rgb": True, "do_thumbnail": False}, "do_pad, which is not applied"),
    ],
)
def test_preprocessing_that_differs_here_is_reported(settings, word, vivit, capsys):
    (vivit / "preprocessor_config.json").write_text(json.dumps(settings))
    assert word in vitx.load_pretrained(vivit).preprocessing.note and word in capsys.readouterr().err


def test_frames_are_scaled_cropped_and_padded_as_the_settings_say():
    """Against Pillow, on a wide and a tall frame."""
    from PIL import Image

    half = (0.5, 0.5, 0.5)
    rng = np.random.default_rng(0)
    for height, width in ((20, 40), (40, 20), (33, 21)):
        frames = rng.integers(0, 255, (2, height, width, 3), np.uint8)

        def scaled(size, how, frames=frames):
            return np.stack([np.asarray(Image.fromarray(x).resize(size[::-1], how)) for x in frames])

        def fit(frames=frames, **fields):
            return Preprocessing(half, half, (16, 16), num_frames=2, **({"short_side": None} | fields)).fit(frames)

        exact = fit(scaled_to=(16, 16), resampling="bicubic")
        np.testing.assert_array_equal(exact, scaled((16, 16), Image.Resampling.BICUBIC))
        long = scaled((height * 16 // max(height, width), width * 16 // max(height, width)), Image.Resampling.BILINEAR)
        rows, columns = 16 - long.shape[1], 16 - long.shape[2]
        black = np.pad(long, [(0, 0), (-(-rows // 2), rows // 2), (-(-columns // 2), columns // 2), (0, 0)])
        np.testing.assert_array_equal(fit(long_side=16), black)
        top, left = (height - 16) // 2, (width - 16) // 2
        np.testing.assert_array_equal(fit(scale=False), frames[:, top : top + 16, left : left + 16])
        assert fit(short_side=18, resampling="bicubic").shape == (2, 16, 16, 3)
    larger = Preprocessing(half, half, (16, 16), None, 2, scaled_to=(16, 20), long_side=None).resize(4, (32, 32))
    assert (larger.scaled_to, larger.num_frames) == ((32, 40), 4)


def test_defaults_are_those_of_the_processor_that_the_file_names(vivit):
    for kind, low, short_side in (("VivitImageProcessor", -3, 256), ("VideoMAEImageProcessor", -1, 224)):
        (vivit / "preprocessor_config.json").write_text(json.dumps({"image_processor_type": kind}))
        preprocessing = vitx.load_pretrained(vivit).preprocessing
        assert preprocessing.value_range == pytest.approx((low, 1)) and preprocessing.short_side == short_side


def test_a_larger_crop_scales_its_short_side_along(vivit):
    (vivit / "preprocessor_config.json").write_text(json.dumps({"size": {"shortest_edge": 20}}))
    preprocessing = vitx.load_pretrained(vivit, image_size=32).preprocessing
    assert (preprocessing.size, preprocessing.short_side) == ((32, 32), 40)
    wide = np.zeros((1, 30, 90, 3), np.uint8)
    wide[:, :, 44:46] = 255  # the middle stays the middle, and as wide in proportion
    fitted = preprocessing.fit(wide)[0, 16, :, 0]
    assert fitted[15:17].min() > 150 and fitted[:12].max() == fitted[20:].max() == 0
