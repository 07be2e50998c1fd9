"""Predictions of many videos: batches across files, rows, formats, and files that resume after a kill."""

import csv
import json
import os

import numpy as np
import pytest

from vitx.data.container import VideoError
from vitx.data.encoding import encode_video
from vitx.data.files import Folder
from vitx.data.lists import read_list
from vitx.data.pipeline import Data
from vitx.data.windows import EvaluationReader, SlidingWindows
from vitx.errors import UserError
from vitx.evaluation import predictor as predictor_module
from vitx.evaluation.prediction_file import open_predictions
from vitx.evaluation.prediction_outputs import Outputs
from vitx.evaluation.prediction_table import COLUMNS, PredictionTable, to_rows, write_rows
from vitx.evaluation.predictor import Predictor, VideoPrediction, predict_videos, predict_views
from vitx.evaluation.presentation import presenter_for
from vitx.evaluation.segments import Thresholds
from vitx.tasks.classification import Classification
from vitx.tasks.regression import Regression

NAMES = {"colour": ("red", "green", "blue")}
DATA = Data(Folder("videos"), num_frames=4, frame_stride=1, image_size=(8, 8))


def mean_colours(clips, views):
    """Logits that are the mean of each channel, over the views that a video has."""
    sums = [clip[:count].astype(np.float32).mean((0, 1, 2, 3)) / 255 for clip, count in zip(clips, views, strict=True)]
    return {"colour": np.stack(sums)}


@pytest.fixture
def batches():
    return []


@pytest.fixture
def predictor(batches):
    def compute(clips, views):
        batches.append(len(clips))
        return mean_colours(clips, views)

    return Predictor(EvaluationReader(DATA), compute, NAMES, presenter_for(Classification()))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Five videos from 8 to 24 frames; the colour of each frame is its number."""
    folder = tmp_path_factory.mktemp("clips")
    for i in range(5):
        frames = np.zeros((8 + 4 * i, 16, 16, 3), np.uint8)
        frames[..., i % 3] = 200
        (folder / f"{i}.mp4").write_bytes(encode_video(frames, options={"crf": "1"}))
    return folder


@pytest.fixture
def files(folder):
    return [str(path) for path in sorted(folder.iterdir())]


def test_whole_videos_are_computed_in_batches_and_answered_in_order(predictor, files, batches):
    found = list(predict_videos(predictor, files, batch_size=2))
    assert [video.path for video in found] == files and batches == [2, 2, 1]
    for video in found:
        expected = mean_colours(DATA.read_views({"video": video.path})[None], [1])["colour"]
        np.testing.assert_allclose(video.outputs["colour"], expected)
        assert not video.is_windowed and video.windows == ((0.0, pytest.approx(video.frames / 25)),)


def test_windows_of_several_videos_share_batches(predictor, files, batches):
    found = list(predict_videos(predictor, files, SlidingWindows.parse("8f", "4f"), batch_size=4))
    assert [len(video.windows) for video in found] == [1, 2, 3, 4, 5] and batches == [4, 4, 4, 4]
    assert found[2].windows == (pytest.approx((0, 0.32)), pytest.approx((0.16, 0.48)), pytest.approx((0.32, 0.64)))
    assert len(to_rows(found[2], predictor)) == 3


def test_a_file_that_cannot_be_read_is_a_row_with_its_error(predictor, files, tmp_path):
    bad = tmp_path / "bad.mp4"
    bad.write_bytes(b"no video")
    for windows in (None, SlidingWindows.parse("8f")):
        table = PredictionTable(list(predict_videos(predictor, [files[0], str(bad), files[1]], windows)), predictor)
        assert list(table.errors) == [str(bad)]
        (row,) = (row for row in table if row["path"] == str(bad))
        assert row["class"] is None and row["error"].startswith(str(bad))
        assert {row["path"] for row in table if row["error"] is None} == {files[0], files[1]}


def test_an_error_in_the_middle_of_windows_is_that_of_the_file(predictor, files, monkeypatch):
    read = predictor_module.read_windows

    def fail(reader, video, windows):
        for number, views in enumerate(read(reader, video, windows)):
            if number == 2:
                raise VideoError("damaged")
            yield views

    monkeypatch.setattr(predictor_module, "read_windows", fail)
    found = list(predict_videos(predictor, files, SlidingWindows.parse("8f", "4f"), batch_size=2))
    assert [video.error is None for video in found] == [True, True, False, False, False]
    assert found[2].outputs == {} and "damaged" in found[2].error


def test_windows_of_fewer_frames_than_a_clip_are_refused_before_anything_is_read(predictor):
    with pytest.raises(UserError, match="3 frames; expected at least 4"):
        next(predict_videos(predictor, ["no.mp4"], SlidingWindows.parse("3f")))


def test_temperatures_divide_logits(predictor, files):
    cold = Predictor(**{**vars(predictor), "temperatures": {"colour": 0.25}})
    (plain,), (sharp,) = (list(predict_videos(of, files[:1])) for of in (predictor, cold))
    np.testing.assert_allclose(sharp.outputs["colour"], 4 * plain.outputs["colour"])


def test_rows_have_the_best_class_and_as_many_scores_as_asked_for(predictor, files):
    (video,) = predict_videos(predictor, files[1:2])
    (row,) = to_rows(video, predictor, top=2)
    assert tuple(row) == COLUMNS and row["class"] == "green" and len(row["scores"]) == 2
    assert row["probability"] == row["scores"]["green"] and row["start"] is None
    (row,) = to_rows(video, predictor)
    assert sum(row["scores"].values()) == pytest.approx(1)


def test_values_of_a_regression_are_scores_without_a_class(predictor, files):
    values = Predictor(predictor.reader, predictor.compute, NAMES, presenter_for(Regression()))
    (row,) = PredictionTable(list(predict_videos(values, files[:1])), values)
    assert row["class"] is None and row["probability"] is None and list(row["scores"]) == list(NAMES["colour"])


def test_all_labels_are_shown_on_the_terminal(predictor):
    """A video has room for fewer."""
    names = {f"label {i}": ("yes", "no") for i in range(6)}
    many = Predictor(**{**vars(predictor), "names": names})
    video = VideoPrediction("a.mp4", dict.fromkeys(names, np.array([[0.0, 9.0]], np.float32)), ((0.0, 1.0),), 25)
    shown = Outputs.plan([], None, Thresholds(), None, None).write(video, many, None)["shown"]
    assert shown == [f"{name}: no 100.0 %" for name in names]


def test_a_video_whose_end_cannot_be_drawn_keeps_its_prediction(predictor, files, tmp_path, monkeypatch):
    def write_overlay(*_):
        raise VideoError("frame 9 is damaged")

    monkeypatch.setattr("vitx.evaluation.prediction_outputs.write_overlay", write_overlay)
    (video,) = predict_videos(predictor, files[:1])
    written = Outputs.plan(files[:1], None, Thresholds(), None, tmp_path).write(video, predictor, None)
    assert written["rows"] == to_rows(video, predictor) and written["rows"][0]["error"] is None
    assert written["unwritten"] == f"{files[0]}: frame 9 is damaged"


@pytest.fixture
def table(predictor, files, tmp_path):
    return PredictionTable(list(predict_videos(predictor, [*files, str(tmp_path / "no.mp4")])), predictor)


def test_every_format_holds_the_same_rows(table, tmp_path):
    pq = pytest.importorskip("pyarrow.parquet")
    for ending in ("csv", "json", "jsonl", "parquet"):
        table.save(tmp_path / f"rows.{ending}")
    assert json.loads((tmp_path / "rows.json").read_text()) == table
    assert [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()] == table
    in_parquet = pq.read_table(tmp_path / "rows.parquet").to_pylist()
    assert [row | {"scores": row["scores"] and dict(row["scores"])} for row in in_parquet] == table
    with open(tmp_path / "rows.csv", newline="") as lines:
        cells = list(csv.DictReader(lines))
    assert tuple(cells[0]) == COLUMNS and len(cells) == len(table)
    assert [json.loads(row["scores"] or "null") for row in cells] == [row["scores"] for row in table]
    assert [float(row["probability"] or "nan") for row in cells] == pytest.approx(
        [np.nan if row["probability"] is None else row["probability"] for row in table], nan_ok=True
    )


def test_names_of_files_that_are_no_text_survive_csv(tmp_path):
    name = os.fsdecode(b"caf\xe9.mp4")
    (tmp_path / name).touch()
    row = dict.fromkeys(COLUMNS) | {"path": name}
    for ending in ("csv", "json", "jsonl"):
        write_rows(tmp_path / f"rows.{ending}", COLUMNS, [row])
    ((_, fields),) = read_list(tmp_path / "rows.csv", ("path",), "path")
    assert fields["path"] == name


def test_an_unknown_ending_and_a_missing_package_are_refused(table, tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"rows\.xlsx.*\.csv, \.json, \.jsonl, \.parquet"):
        table.save(tmp_path / "rows.xlsx")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"rows\.parquet.*pip install pyarrow.*\.csv"):
        table.save(tmp_path / "rows.parquet")
    assert not list(tmp_path.glob("rows*"))


def test_what_only_windows_or_files_have_is_refused_of_others(predictor):
    array = PredictionTable([predict_views(predictor, "array", np.full((1, 4, 8, 8, 3), 9, np.uint8))], predictor)
    for method in (array.segments, array.timeline):
        with pytest.raises(UserError, match=r"array predicted as a whole.*windows="):
            method(low=0.0, high=0.0)
    with pytest.raises(UserError, match="there is no array"):
        array.save_overlays("labelled")
    with pytest.raises(UserError, match="damaged"):
        PredictionTable([VideoPrediction("a.mp4", error="a.mp4: damaged")], predictor).timeline()


def test_a_table_shows_itself_in_a_notebook(table):
    shown = table._repr_html_()
    assert shown.count("<tr>") == len(table) + 1 and "<th>error</th>" in shown and "<th>start</th>" not in shown


@pytest.mark.parametrize("cut", [0, 9])
def test_a_file_resumes_after_a_kill_and_repeats_nothing(predictor, files, tmp_path, cut):
    """`cut` bytes of the journal's last line are lost."""
    path, read = tmp_path / "rows.csv", []

    def write(limit):
        with open_predictions(path, files, {"top": None}) as target:
            waiting = [file for file in files if file not in target.done]
            for number, video in enumerate(predict_videos(predictor, waiting, batch_size=1)):
                if number == limit:
                    raise KeyboardInterrupt
                target.add(video.path, to_rows(video, predictor))
                read.append(video.path)

    with pytest.raises(KeyboardInterrupt):
        write(2)
    assert not path.exists()
    journal = tmp_path / "rows.csv.partial" / "journal.jsonl"
    journal.write_bytes(journal.read_bytes()[: -cut or None])
    write(None)
    assert read == [*files[:2], *files[(1 if cut else 2) :]]
    expected = PredictionTable(list(predict_videos(predictor, files, batch_size=1)), predictor)
    expected.save(tmp_path / "expected.csv")
    assert path.read_text() == (tmp_path / "expected.csv").read_text()
    assert sorted(os.listdir(tmp_path)) == ["expected.csv", "rows.csv"]


def test_a_file_is_neither_replaced_nor_mixed_with_other_settings(tmp_path):
    path = tmp_path / "rows.jsonl"
    with pytest.raises(KeyboardInterrupt), open_predictions(path, ["a"], {"top": 3}):
        raise KeyboardInterrupt
    assert (tmp_path / "rows.jsonl.partial").exists()  # pictures of the first video may be there
    with pytest.raises(KeyboardInterrupt), open_predictions(path, ["a"], {"top": 3}) as target:
        assert not target.is_new
        raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt), open_predictions(path, ["a"], {"top": 3}) as target:
        target.add("a", [])
        raise KeyboardInterrupt
    with (
        pytest.raises(UserError, match=r"rows\.jsonl(?s:.*)top: 3 before, 5 now"),
        open_predictions(path, [], {"top": 5}),
    ):
        pass
    with open_predictions(path, ["a"], {"top": 3}, overwrite=True) as target:
        assert set(target.done) == {"a"}  # the same command resumes, also with this option
    with pytest.raises(UserError, match="refused"), open_predictions(path, ["a"], {"top": 4}, overwrite=True) as target:
        assert target.is_new and not target.done
        raise UserError("refused")
    with open_predictions(path, [], {"top": 5}, overwrite=True) as target:
        assert target.is_new
    with pytest.raises(UserError, match=r"rows\.jsonl exists.*--overwrite"), open_predictions(path, [], {"top": 5}):
        pass
    with pytest.raises(UserError, match="there is no folder"), open_predictions(tmp_path / "no" / "x.csv", [], {}):
        pass
