"""Evaluated splits of every kind of task, and what is kept in memory."""

import threading

import numpy as np
import pytest

from vitx.board.clips import BoundedCache, SplitClips, encode_clip
from vitx.board.evaluated import EvaluatedSplit
from vitx.board.shown_runs import summarise
from vitx.evaluation.evaluate import Predictions
from vitx.evaluation.frames import FRAME_METRICS
from vitx.strict_json import dumps
from vitx.tasks.frame_prediction import SOURCES, FramePrediction
from vitx.tasks.masked_prediction import MaskedPrediction
from vitx.tasks.multilabel import MultiLabel
from vitx.tasks.regression import Regression

RNG = np.random.default_rng(0)


class Clips(SplitClips):
    """Clips that have names alone."""

    def __init__(self):
        """Opens nothing."""

    def name(self, index):
        return f"clip {index}"

    def example(self, index):
        return {}


def split_of(small, task, outputs, labels, names):
    experiment = small.override({"task": task})
    predictions = Predictions(outputs, labels, np.array([0, 2, 5]), (1,), "1x1", ("b.mp4: cannot be read",))
    return EvaluatedSplit(experiment, names, 4, predictions, Clips())


def test_several_labels_are_listed_by_loss_with_all_their_classes(small):
    logits = RNG.normal(size=(3, 3)).astype(np.float32)
    labels = np.array([[1, 0, 1], [0, 0, 0], [np.nan] * 3], np.float32)
    split = split_of(small, MultiLabel(), {"a": logits}, {"a": labels}, {"a": ("x", "y", "z")})
    overview = split.overview()
    assert overview["labels"][0]["confusion"] is None and overview["labels"][0]["per_class"]["x"]["support"] == 1
    (hardest,) = split.mistakes("a")
    loss = np.mean([clip["loss"] for clip in hardest["clips"]])
    assert hardest["total"] == 2 and loss == pytest.approx(split.task.metrics(split.predictions)["a/loss"])
    assert split.example(0)["true"] == {"a": "x, z"} and split.example(2)["true"] == {"a": "none"}
    assert split.example(5)["true"] == {"a": None}
    assert dumps([overview, hardest, split.example(5)])


def test_values_are_listed_by_error_with_their_names(small):
    values, labels = np.array([[1.0], [5.0], [2.0]], np.float32), np.array([[1.0], [2.0], [2.5]], np.float32)
    split = split_of(small, Regression(), {"speed": values}, {"speed": labels}, {"speed": ("m/s",)})
    (hardest,) = split.mistakes("speed")
    assert [(clip["index"], clip["true"], clip["predicted"]) for clip in hardest["clips"]] == [
        (2, "m/s 2", "m/s 5"),
        (5, "m/s 2.5", "m/s 2"),
        (0, "m/s 1", "m/s 1"),
    ]
    assert split.overview()["unreadable"] == ["b.mp4: cannot be read"]


def test_tasks_without_labels_are_listed_by_their_loss(small):
    errors = np.array([[1.0], [3.0], [2.0]], np.float32)
    split = split_of(
        small, MaskedPrediction(), {"loss": errors, "psnr": -errors}, {}, {"loss": ("mean",), "psnr": ("mean",)}
    )
    (hardest,) = split.mistakes("")
    assert [clip["index"] for clip in hardest["clips"]] == [2, 5, 0] and "true" not in hardest["clips"][0]
    assert split.example(2)["answer"]["psnr"] == [("mean", -3.0)] and split.example(2)["true"] == {}
    assert split.overview()["labels"] == [{"name": "", "classes": (), "confusion": None, "per_class": None}]


def test_predicted_frames_have_a_table(small):
    kinds = [metric + source for metric in FRAME_METRICS for source in SOURCES]
    outputs = {name: RNG.normal(size=(3, 2)).astype(np.float32) for name in ["loss", *kinds]}
    split = split_of(small, FramePrediction(), outputs, {}, {name: ("1", "2") for name in outputs})
    assert split.overview()["per_frame"]["mse"] == pytest.approx(outputs["mse"].mean(axis=0).tolist())
    assert split.mistakes("")[0]["total"] == 3


def test_a_cache_forgets_what_was_used_longest_ago_and_stays_within_its_bound():
    cache, created = BoundedCache(10), []

    def create(key, size=4):
        return cache.get(key, lambda: created.append(key) or bytes(size))

    for key in "abacab":  # when c comes, b is the one that was used longest ago
        create(key)
    assert created == ["a", "b", "c", "b"] and cache.size == 8
    assert len(create("large", 11)) == 11 and cache.size == 8
    with pytest.raises(ZeroDivisionError):
        cache.get("failing", lambda: 1 / 0)
    threads = [threading.Thread(target=create, args=(name,)) for name in "defghi"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert cache.size <= 10


@pytest.mark.parametrize("shape", [(3, 24, 24, 3), (2, 25, 31, 3), (1, 224, 320, 3)])
def test_clips_of_every_size_are_encoded(shape):
    assert encode_clip(np.zeros(shape, np.uint8))[4:8] == b"ftyp"


def test_the_state_of_a_run_is_read_from_its_rows_and_their_age(small):
    train = {"step": 4, "split": "train", "loss": 1.0, "seconds_per_step": 0.1}
    validation = [
        {"step": step, "split": "validation", "views": "1x1", "loss": loss} for step, loss in ((4, 0.5), (8, 0.7))
    ]
    other = {"step": 8, "split": "validation", "views": "4x1", "loss": 0.1, "settings": {"data.eval_clips": 4}}
    test = {"step": 4, "split": "test", "views": "1x1", "loss": 0.6}

    def state(rows, written):
        return summarise(small, rows, written)["state"]

    assert state([], None) == "no rows yet"
    assert state([train], 10.0) == "training" and state([train], 1e4) == "stopped"
    assert state([train | {"seconds_per_step": 1e4}], 1e4) == "training"  # a row takes hours
    last = train | {"step": small.training.steps}
    assert state([train, *validation, last, test], 1e9) == "finished"
    assert state([train, *validation, test], 1e9) == "stopped"  # evaluated by hand before its end
    assert state([test, last], 1e9) == "stopped"  # extended, and not tested again
    best = summarise(small, [train, *validation, other], 1.0)["best"]
    assert best == {"step": 4, "metrics": {"loss": 0.5}}
