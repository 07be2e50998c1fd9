"""Fonts of names: DejaVu where it has the characters, else an installed font, and boxes where none has them."""

import dataclasses
import io
import logging
import subprocess
import sys
import warnings

import numpy as np
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from fontTools.ttLib import TTCollection, TTFont
from matplotlib import font_manager
from matplotlib.figure import Figure
from PIL import Image

from vitx import fonts
from vitx.ablations.pictures import pareto
from vitx.analysis import growth
from vitx.data.check import draw_sheet
from vitx.data.encoding import encode_video
from vitx.data.files import Folder
from vitx.evaluation.figures import save_figure
from vitx.evaluation.report import bars, clip_strip, confusion_matrix, encode_png
from vitx.explain.pictures import strip

HAS_FACES = any(field.name == "index" for field in dataclasses.fields(font_manager.FontEntry))  # matplotlib 3.11
NAMES = ("dog", "собака", "狗", "猫")


def build_font(path, characters, name="Made Up", weight=400):
    """Writes a font whose characters are solid squares."""
    pen = TTGlyphPen(None)
    pen.moveTo((0, 0))
    for point in ((0, 800), (800, 800), (800, 0)):
        pen.lineTo(point)
    pen.closePath()
    builder = FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder([".notdef", "square"])
    builder.setupCharacterMap({ord(character): "square" for character in characters})
    builder.setupGlyf({".notdef": TTGlyphPen(None).glyph(), "square": pen.glyph()})
    builder.setupHorizontalMetrics({".notdef": (900, 0), "square": (900, 0)})
    builder.setupHorizontalHeader(ascent=800, descent=-200)
    builder.setupNameTable({"familyName": name, "styleName": "Regular"})
    builder.setupOS2(usWeightClass=weight)
    builder.setupPost()
    builder.save(path)
    return str(path)


def write(text):
    figure = Figure(figsize=(3, 1))
    figure.text(0.1, 0.4, text)
    return figure


def ink(figure):
    file = io.BytesIO(encode_png(figure, dpi=100))
    return int((np.asarray(Image.open(file))[..., 0] < 128).sum())


def test_names_that_dejavu_has_are_drawn_as_before_and_without_a_search(monkeypatch):
    monkeypatch.setattr(fonts, "_search_fonts", lambda _: pytest.fail("searched"))
    text = "Größe собака σκύλος كلب"
    assert fonts.split_by_font(text) == [(text, fonts.DEJAVU)]
    figure = write(text)
    before = figure.texts[0].get_fontfamily()
    fonts.add_fallback_fonts(figure)
    assert figure.texts[0].get_fontfamily() == before and figure.texts[0].get_text() == text


def test_an_installed_font_draws_what_dejavu_lacks(install_font, tmp_path, capsys):
    path = build_font(tmp_path / "a.ttf", "狗")
    install_font(path)
    assert fonts.split_by_font("a 狗 b") == [("a ", fonts.DEJAVU), ("狗", (path, 0)), (" b", fonts.DEJAVU)]
    # twelve points of 72 to an inch at 100 dots an inch, of which the square takes 0.8 by 0.8
    assert ink(Figure(figsize=(3, 1))) == 0 and ink(write("狗")) >= 0.9 * (0.8 * 10 * 100 / 72) ** 2
    assert capsys.readouterr().err == ""


def test_few_fonts_are_chosen_and_the_one_with_most_characters_first(install_font, tmp_path):
    paths = [build_font(tmp_path / f"{i}.ttf", text, f"F{i}") for i, text in enumerate(("狗", "狗猫", "鸟猫狗", "あ"))]
    for path in paths:
        install_font(path)
    found = fonts.choose_faces("狗猫あ")
    assert found == {"狗": (paths[1], 0), "猫": (paths[1], 0), "あ": (paths[3], 0)}


def test_a_family_without_a_regular_weight_is_used_without_a_message(install_font, tmp_path, caplog):
    install_font(build_font(tmp_path / "a.ttf", "狗", weight=900))
    with caplog.at_level(logging.WARNING):
        assert ink(write("狗")) > 50
    assert not caplog.records


@pytest.mark.skipif(not HAS_FACES, reason="matplotlib before 3.11 reads the first font of a collection alone")
def test_a_character_in_the_second_font_of_a_collection_is_found(install_font, tmp_path):
    single = [build_font(tmp_path / f"{i}.ttf", text, f"F{i}") for i, text in enumerate("狗猫")]
    collection = TTCollection()
    collection.fonts = [TTFont(path) for path in single]
    collection.save(tmp_path / "both.ttc")
    install_font(str(tmp_path / "both.ttc"))
    assert fonts.choose_faces("猫") == {"猫": (str(tmp_path / "both.ttc"), 1)}
    assert ink(write("猫")) > 50


@pytest.mark.parametrize("damage", ["empty", "cut", "gone", "outlines"])
def test_a_damaged_font_is_skipped(damage, install_font, tmp_path):
    bad, good = (build_font(tmp_path / f"{name}.ttf", "狗", name) for name in ("bad", "good"))
    install_font(bad)
    install_font(good)
    content = (tmp_path / "bad.ttf").read_bytes()
    if damage == "gone":
        (tmp_path / "bad.ttf").unlink()
    elif damage == "outlines":
        place = content.index(TTFont(bad).reader["glyf"])
        (tmp_path / "bad.ttf").write_bytes(content[:place] + b"\x7f" * 20 + content[place + 20 :])
    else:
        (tmp_path / "bad.ttf").write_bytes(content[: {"empty": 0, "cut": 200}[damage]])
    found, dark = fonts.choose_faces("狗"), ink(write("狗"))
    if damage != "outlines" or HAS_FACES:  # FreeType of matplotlib 3.10 draws something else where outlines are damaged
        assert found == {"狗": (good, 0)} and dark > 50


def test_characters_of_no_font_are_boxes_and_one_message(install_font, capsys):
    for _ in range(2):
        encode_png(write("a 狗\n猫"))
    assert fonts.split_by_font("a 狗") == [("a □", fonts.DEJAVU)]
    fonts.choose_faces("鸟")
    (line,) = capsys.readouterr().err.splitlines()
    assert "狗 猫" in line and "fonts-noto" in line


def test_joiners_stay_with_the_letters_that_they_shape(install_font, tmp_path):
    path = build_font(tmp_path / "a.ttf", "👩🐶")
    install_font(path)
    assert fonts.split_by_font("👩\u200d🐶 x") == [("👩\u200d🐶", (path, 0)), (" x", fonts.DEJAVU)]


def pictures():
    clips = np.zeros((1, 2, 8, 8, 3), np.uint8)
    yield confusion_matrix(np.eye(4, dtype=int), NAMES, "标签")
    yield bars(dict.fromkeys(NAMES, 50.0), "%", "标签")
    yield clip_strip(clips, [[(name, None) for name in NAMES]])
    yield strip(clips[0], clips[0], np.ones(2) / 2, ", ".join(NAMES))
    yield pareto({name: {"gmacs": (1.0, None), "top1": (5.0, None)} for name in NAMES}, {"top1": True}, {"top1": ""})


@pytest.mark.parametrize("number", range(5))
@pytest.mark.parametrize("has", ["", "狗猫标签"])
def test_pictures_have_names_of_any_script_without_warnings(number, has, install_font, tmp_path):
    if has:
        install_font(build_font(tmp_path / "a.ttf", has))
    figure = list(pictures())[number]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        save_figure(figure, tmp_path / "picture")
    # reads the labels as they were drawn
    drawn = "".join(text.get_text() for text in figure.findobj(fonts.Text))
    assert "собака" in drawn and ("狗" in drawn) == bool(has) and (fonts.BOX in drawn) != bool(has)


def test_a_picture_of_costs_and_one_of_videos_have_names_of_any_script(install_font, tmp_path):
    rows = [{"model": "狗", "frames": 8, "macs": 1e9, "activation_bytes": 2**30}]
    growth.draw_growth(rows, tmp_path / "growth.png")
    (tmp_path / "videos" / "狗 $a$b").mkdir(parents=True)
    video = encode_video(np.zeros((4, 16, 16, 3), np.uint8), fps=4)
    (tmp_path / "videos" / "狗 $a$b" / "$猫$.mp4").write_bytes(video)
    draw_sheet({"train": Folder(str(tmp_path / "videos")).open("train")}, set(), tmp_path / "sheet.png")
    assert (tmp_path / "growth.png").stat().st_size and (tmp_path / "sheet.png").stat().st_size


def test_vitx_is_imported_without_fonts():
    code = "import sys, vitx, vitx.data.check; sys.exit('vitx.fonts' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
