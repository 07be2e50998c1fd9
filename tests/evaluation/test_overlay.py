"""Labels on the frames of a video: at the time of their window, at the video's own frame rate."""

import dataclasses
from fractions import Fraction

import numpy as np
import pytest

from tests.test_fonts import build_font
from vitx.data.decoding import open_video, probe
from vitx.data.encoding import encode_video
from vitx.data.files import Folder
from vitx.data.pipeline import Data
from vitx.data.windows import EvaluationReader
from vitx.evaluation.overlay import LEAST_SIDE, caption_windows, draw_caption, write_overlay
from vitx.evaluation.predictor import Predictor, VideoPrediction
from vitx.evaluation.presentation import presenter_for
from vitx.tasks.classification import Classification

NAMES = {"colour": ("dark", "bright")}


@pytest.fixture
def predictor():
    reader = EvaluationReader(Data(Folder("videos"), num_frames=2, image_size=(8, 8)))
    return Predictor(reader, lambda clips, views: {}, NAMES, presenter_for(Classification()))


def prediction(path, logits, windows):
    return VideoPrediction(str(path), {"colour": np.array(logits, np.float32)}, windows, 30, True)


def test_a_caption_is_drawn_on_a_dark_band_at_the_bottom_alone():
    frame = np.full((120, 160, 3), 128, np.uint8)
    drawn = draw_caption(frame, ["colour: bright 99.0 %", "Größe: Ωмега"])
    assert (frame == 128).all() and (drawn[:60] == 128).all()
    assert drawn[80:].max() > 240 and drawn[-1].max() < 60
    wide = draw_caption(frame, ["colour: " + 30 * "wide "])
    assert wide.shape == frame.shape and (wide[60:] != 128).any()


def test_names_of_any_script_are_drawn_by_an_installed_font_or_as_boxes(install_font, tmp_path, capsys):
    frame = np.zeros((240, 320, 3), np.uint8)
    boxes = draw_caption(frame, ["狗 собака"])
    install_font(build_font(tmp_path / "a.ttf", "狗"))
    squares = draw_caption(frame, ["狗 собака"])
    assert (boxes > 128).sum() < (squares > 128).sum()  # the font has solid squares
    assert capsys.readouterr().err.count("狗") == 1


def test_one_message_has_all_characters_of_a_video_that_no_font_has(predictor, install_font, tmp_path, capsys):
    chinese = dataclasses.replace(predictor, names={"colour": ("暗", "亮")})
    (tmp_path / "clip.mp4").write_bytes(encode_video(np.zeros((8, 48, 64, 3), np.uint8), fps=8))
    windows = ((0.0, 0.5), (0.5, 1.0))
    write_overlay(prediction(tmp_path / "clip.mp4", [[9, 0], [0, 9]], windows), chinese, tmp_path / "out.mp4")
    (line,) = capsys.readouterr().err.splitlines()
    assert "亮 暗" in line and probe(str(tmp_path / "out.mp4")).height == LEAST_SIDE


def test_text_that_is_too_wide_is_shrunk_whatever_its_fonts(install_font, tmp_path):
    install_font(build_font(tmp_path / "a.ttf", "狗"))
    drawn = draw_caption(np.zeros((240, 320, 3), np.uint8), ["a " + 25 * "狗" + " b"])
    assert (drawn[:, -5:] == 0).all() and (drawn[:, 285:] > 128).any()


def test_each_window_has_the_caption_of_its_best_class(predictor):
    found = caption_windows(prediction("a.mp4", [[9, 0], [0, 9]], ((0.0, 1.0), (0.5, 1.5))), predictor)
    assert [line.split(" ")[1] for (line,) in found] == ["dark", "bright"]


def test_names_that_are_no_text_are_drawn_escaped(predictor):
    odd = dataclasses.replace(predictor, names={"colour": ("a\nb\udce9", "bright")})
    ((line,),) = caption_windows(prediction("a.mp4", [[9, 0]], ((0.0, 1.0),)), odd)
    assert line.startswith(r"colour: a\nb\udce9")
    assert draw_caption(np.zeros((60, 80, 3), np.uint8), [line]).any()


@pytest.mark.parametrize("rate", [Fraction(10), Fraction(30000, 1001)])
def test_an_overlay_keeps_frames_and_times_and_changes_the_label_at_its_time(predictor, tmp_path, monkeypatch, rate):
    source = tmp_path / "clip.mp4"
    source.write_bytes(encode_video(np.full((30, 48, 64, 3), 90, np.uint8), fps=rate))
    drawn = []
    monkeypatch.setattr(
        "vitx.evaluation.overlay.draw_caption", lambda frame, lines: drawn.append(lines[0].split(" ")[1]) or frame
    )
    # The label changes between the centres of the windows: after 14.5 frames.
    end, split = float(30 / rate), float(14 / rate)
    halves = ((0.0, split), (split, end))
    write_overlay(prediction(source, [[9, 0], [0, 9]], halves), predictor, tmp_path / "out.mp4")
    assert drawn == ["dark"] * 15 + ["bright"] * 15
    with open_video(str(source)) as before, open_video(str(tmp_path / "out.mp4")) as after:
        np.testing.assert_allclose(after.times, before.times, atol=1e-4)
    found = probe(str(tmp_path / "out.mp4"))
    assert (found.height, found.width) == (LEAST_SIDE, LEAST_SIDE * 4 // 3) and found.fps == pytest.approx(float(rate))
