"""The data contract: batch k is a function of (seed, k), each example once an epoch, nothing lost silently."""

import collections
import contextlib
import dataclasses
import itertools
import pathlib
import re
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

import grain
import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vitx.data import sampling
from vitx.data.augmentation import Augmentation
from vitx.data.decoding import VideoError
from vitx.data.encoding import encode_video
from vitx.data.order import Order, class_weights
from vitx.data.pipeline import Data, decode_error, encode_error
from vitx.data.rand_augment import RandAugment
from vitx.errors import UserError


@dataclasses.dataclass(frozen=True)
class Numbered:
    """Clips of one colour, some of them broken."""

    size: int
    broken: tuple[int, ...] = ()
    label_names = {"place": tuple(map(str, range(100)))}  # noqa: RUF012

    def open(self, split: str) -> "Numbered":
        return self

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        frames = np.full((5, 8, 8, 3), 2 * index, np.uint8)
        video = b"not a video" if index in self.broken else encode_video(frames, options={"qp": "0"})
        return {"video": video, "labels": {"place": index}}


READ_OPTIONS = grain.ReadOptions  # the original, which one test replaces
HOST_ENTRIES = ("decode_seconds",)  # never reach the devices


def data(source, **fields):
    settings = {"num_frames": 2, "frame_stride": 1, "image_size": (8, 8), "batch_size": 4, "eval_batch_size": 4}
    return Data(dataset=source, **(settings | fields))


def batches(iterator):
    with contextlib.closing(iterator):
        return [{name: value for name, value in batch.items() if name not in HOST_ENTRIES} for batch in iterator]


def errors_by_index(iterator) -> dict[int, set[str]]:
    """Messages of the examples that could not be read; the others have none."""
    errors = collections.defaultdict(set)
    for batch in batches(iterator):
        for index, error in zip(batch["unreadable_index"], map(decode_error, batch["error"]), strict=True):
            if error is not None:
                errors[int(index)].add(error)
    return errors


def assert_same_batches(found, expected):
    assert len(found) == len(expected) > 0
    for pair in zip(found, expected, strict=True):
        jax.tree.map(np.testing.assert_array_equal, *pair)


@pytest.mark.smoke
def test_a_batch_keeps_the_contract():
    source = Numbered(10)
    (batch, *_) = batches(data(source).train_batches(source, 0, range(0, 3)))
    types = jax.tree.map(lambda value: (str(value.dtype), value.shape), batch)
    assert types == {
        "video": ("uint8", (4, 2, 8, 8, 3)),
        "labels": {"place": ("int32", (4,))},
        "weight": ("float32", (4,)),
        "index": ("int32", (4,)),
        "unreadable_index": ("int32", (4,)),
        "error": ("uint8", (4, 256)),
    }
    np.testing.assert_array_equal(batch["labels"]["place"], batch["index"])
    np.testing.assert_allclose(batch["video"].mean(axis=(1, 2, 3, 4)), 2 * batch["index"], atol=3)


VARIED = Augmentation(
    (0.3, 1.0),
    flip=0.5,
    flip_labels=(("left", "right"), ("clockwise", "anticlockwise")),
    brightness=0.3,
    hue=0.1,
    rand_augment=RandAugment(deviation=0.5),
    erase=0.5,
)


@pytest.fixture(scope="module")
def varied_batches(digits):
    """Everything that varies training: augmentation, repeats, resampling, a stride that jitters."""
    settings = {"augmentation": VARIED, "num_repeats": 2, "class_power": 0.0, "class_label": "motion"}
    settings["stride_jitter"] = 0.3
    settings = data(digits, num_frames=4, image_size=(24, 24), batch_size=8, **settings)
    source = digits.open("train")  # 52 clips: epochs end inside batches
    return settings, source, batches(settings.train_batches(source, 5, range(0, 20)))


@pytest.mark.parametrize("change", [{"num_threads": 1}, {"num_workers": 3}])
@pytest.mark.smoke
def test_batches_are_the_same_with_any_number_of_workers_and_after_a_resume(change, varied_batches):
    settings, source, whole = varied_batches
    assert_same_batches(
        whole[9:], batches(dataclasses.replace(settings, **change).train_batches(source, 5, range(9, 20)))
    )


def test_two_processes_read_halves_of_an_augmented_batch(varied_batches):
    settings, source, whole = varied_batches
    halves = [batches(settings.train_batches(source, 5, range(9, 20), process=i, processes=2)) for i in range(2)]
    assert_same_batches(
        whole[9:], [jax.tree.map(lambda a, b: np.concatenate([a, b]), *pair) for pair in zip(*halves, strict=True)]
    )


def test_any_training_clip_can_be_read_again_by_itself(varied_batches):
    settings, source, whole = varied_batches
    columns = jax.tree.map(lambda *parts: np.concatenate(parts), *whole[:13])  # one epoch: 52 draws, two clips each
    seen = collections.defaultdict(list)
    for row, index in enumerate(columns["index"]):
        seen[int(index)].append((columns["video"][row].tobytes(), columns["labels"]["motion"][row]))
    assert max(map(len, seen.values())) > 2
    for index, clips in seen.items():
        replayed = [settings.train_example(source, 5, 0, index, repeat) for repeat in range(len(clips))]
        assert {(clip["video"].tobytes(), int(clip["labels"]["motion"])) for clip in replayed} == set(clips)
        assert len(set(clips)) == len(clips)


def test_repeats_of_an_example_are_adjacent_and_augmented_independently():
    source = Numbered(12)
    settings = data(source, batch_size=6, num_repeats=3, augmentation=Augmentation(brightness=0.5))
    epoch = batches(settings.train_batches(source, 0, range(0, 6)))
    index = np.concatenate([batch["index"] for batch in epoch]).reshape(-1, 3)
    assert (index == index[:, :1]).all() and sorted(index[:, 0]) == list(range(12))
    plain = batches(data(source, batch_size=2).train_batches(source, 0, range(0, 6)))
    np.testing.assert_array_equal(index[:, 0], np.concatenate([batch["index"] for batch in plain]))
    means = np.concatenate([batch["video"] for batch in epoch]).mean((1, 2, 3, 4)).reshape(-1, 3)
    assert (np.ptp(means[index[:, 0] > 2], axis=1) > 0.5).all()


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
def test_classes_are_drawn_by_a_power_of_their_size(power):
    labels = np.repeat([0, 1, 2], [160, 36, 4])
    order = Order(7, 200, weights=class_weights(labels, power))
    expected = np.array([160, 36, 4.0]) ** power
    expected *= 200 / expected.sum()
    first = [order[place] for place in range(200)]
    counts = np.bincount([labels[example] for _, example, _ in first], minlength=3)
    assert abs(counts - expected).max() < 1.01
    again = [order[place] for place in range(200, 400)]
    assert {epoch for epoch, _, _ in again} == {1} and [example for _, example, _ in again] != [
        example for _, example, _ in first
    ]
    for drawn in (first, again):
        times = collections.defaultdict(list)
        for _, example, time in drawn:
            times[example].append(time)
        assert all(sorted(indices) == list(range(len(indices))) for indices in times.values())  # never one draw twice
        lengths = [len(times[example]) for example in range(164, 200)]
        assert np.ptp(lengths[-4:]) <= 1 and np.ptp(lengths[:32]) <= 1


def test_labels_classes_and_repeats_that_do_not_fit_are_refused(digits):
    with pytest.raises(UserError, match=r"data.class_label is None.*appearance, motion"):
        data(digits, class_power=0.5).train_batches(digits.open("train"), 0, range(0, 1))
    with pytest.raises(UserError, match=r"data.augmentation names the class 'lefd'.*did you mean left"):
        data(digits, augmentation=Augmentation(flip_never=("lefd",))).train_batches(digits.open("train"), 0, range(1))
    with pytest.raises(ValueError, match=r"batch_size is 4.*num_repeats, 3"):
        data(digits, num_repeats=3)


def test_evaluation_prefetches_no_more_than_its_memory_budget(monkeypatch):
    source, calls = Numbered(12), []
    monkeypatch.setattr(
        "vitx.data.batches.grain.ReadOptions", lambda **options: calls.append(options) or READ_OPTIONS(**options)
    )
    settings = data(source, eval_clips=5, eval_crops=3, prefetch_batches=9)
    for limit, prefetch in ((2**30, 9), (4 * 15 * 2 * 8 * 8 * 3 * 2, 2), (1, 1)):
        monkeypatch.setattr("vitx.data.pipeline.MAX_BUFFER", limit)
        settings.eval_batches(source).close()
        assert calls.pop()["prefetch_buffer_size"] == prefetch


def test_resuming_is_slicing():
    source = Numbered(10)
    whole = batches(data(source).train_batches(source, 1, range(0, 8)))
    assert_same_batches(whole[3:], batches(data(source).train_batches(source, 1, range(3, 8))))


def test_each_example_once_an_epoch_in_another_order_each_time():
    source = Numbered(12)
    epochs = [
        np.concatenate([batch["index"] for batch in batches(data(source).train_batches(source, seed, steps))])
        for seed, steps in ((0, range(0, 3)), (0, range(3, 6)), (1, range(0, 3)))
    ]
    assert all(sorted(epoch) == list(range(12)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3


def test_two_processes_take_the_rows_of_the_same_batches():
    source = Numbered(10, broken=(3,))
    whole = batches(data(source).train_batches(source, 0, range(0, 5)))
    halves = [batches(data(source).train_batches(source, 0, range(0, 5), process=i, processes=2)) for i in range(2)]
    joined = [jax.tree.map(lambda a, b: np.concatenate([a, b]), *pair) for pair in zip(*halves, strict=True)]
    assert_same_batches(whole, joined)
    whole = batches(data(source).eval_batches(source))
    halves = [batches(data(source).eval_batches(source, process=i, processes=2)) for i in range(2)]
    assert len(halves[0]) == len(halves[1]) == len(whole)
    assert_same_batches(
        whole, [jax.tree.map(lambda a, b: np.concatenate([a, b]), *pair) for pair in zip(*halves, strict=True)]
    )


def test_an_unreadable_clip_is_replaced_by_a_function_of_its_index_and_flagged():
    source = Numbered(12, broken=(3, 4, 11))
    seen = collections.Counter()
    for batch in batches(data(source).train_batches(source, 0, range(0, 3))):
        for index, unreadable in zip(batch["index"], batch["unreadable_index"], strict=True):
            seen[int(index), int(unreadable) >= 0] += 1
    whole = {(i, False): 1 for i in range(12) if i not in source.broken}
    assert seen == collections.Counter(whole) + collections.Counter({(5, True): 2, (0, True): 1})
    errors = errors_by_index(data(source).train_batches(source, 0, range(0, 3)))
    assert sorted(errors) == [3, 4, 11]
    assert errors[4] == {"example 4: 11 bytes: Invalid data found when processing input"}


@dataclasses.dataclass(frozen=True)
class Damaged(Numbered):
    """Long videos with a name; of the one that is broken, the frames at a quarter are noise."""

    def name(self, index: int) -> str:
        return f"clips/{index}.mp4"

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        frames = np.random.default_rng(0).integers(0, 255, (80, 16, 16, 3), np.uint8)
        video = bytearray(encode_video(frames, codec="mjpeg", pixel_format="yuvj420p"))
        if index in self.broken:
            middle = video.index(b"mdat") + int(0.25 * len(video))
            video[middle : middle + len(video) // 8] = bytes(len(video) // 8)
        return {"video": bytes(video), "labels": {"place": index}}


def test_a_failure_travels_with_its_example():
    """Damage at a quarter of a video: clips at its ends and its middle can be read."""
    source = Damaged(2, broken=(1,))
    settings = data(source, num_frames=2, batch_size=4)
    for start in (0.0, 0.5, 1.0):
        settings.read_clip(source[1], start)
    errors = errors_by_index(settings.train_batches(source, 3, range(0, 12)))
    assert list(errors) == [1] and all(re.match(r"clips/1\.mp4: \d+ bytes: .*", error) for error in errors[1])
    assert not errors_by_index(settings.eval_batches(source))  # one clip, in the middle
    errors = errors_by_index(dataclasses.replace(settings, eval_clips="all").eval_batches(source))
    assert list(errors) == [1] and all("bytes" in error for error in errors[1])


@given(st.text(max_size=400))
def test_an_error_message_fits_into_its_row_and_keeps_both_ends(message):
    row = encode_error(message)
    assert row.shape == (256,) and row.dtype == np.uint8
    whole, found = message.rstrip("\0"), decode_error(row) or ""
    if len(message.encode()) <= 256:
        assert found == whole
    else:
        length = len(found.split("…")[0])
        assert length > 25 and whole.startswith(found[:length]) and len(found.encode()) > 200


def test_an_error_message_may_name_a_file_that_is_not_utf8():
    assert decode_error(encode_error("\udcff.mp4: broken")) == r"\udcff.mp4: broken"


def test_data_without_a_readable_clip_stops():
    source = Numbered(4, broken=(0, 1, 2, 3))
    with pytest.raises(UserError, match=r"20 clips in a row.*Invalid data"):
        batches(data(source).train_batches(source, 0, range(0, 1)))


@pytest.mark.parametrize("size", [1, 7, 8])
def test_evaluation_reads_every_example_once_and_replaces_none(size):
    source = Numbered(size, broken=(3,))
    table = batches(data(source, eval_clips=2).eval_batches(source))
    assert len(table) == -(-size // 4) and all(batch["video"].shape == (4, 2, 2, 8, 8, 3) for batch in table)
    index = np.concatenate([batch["index"] for batch in table])
    weight = np.concatenate([batch["weight"] for batch in table])
    assert sorted(index[weight > 0]) == [i for i in range(size) if i != 3]
    np.testing.assert_array_equal(index[:size], range(size))


@given(st.integers(1, 300), st.integers(1, 40), st.integers(1, 8), st.floats(0, 1))
def test_dense_sampling_stays_inside_and_keeps_its_stride(num_frames, clip, stride, start):
    indices = sampling.sample_dense(num_frames, clip, stride, start)
    assert len(indices) == clip and indices.min() >= 0 and indices.max() < num_frames
    assert all((b - a) % num_frames == stride % num_frames for a, b in itertools.pairwise(indices))
    if num_frames > (clip - 1) * stride:
        assert (np.diff(indices) == stride).all()


def test_three_crops_are_both_ends_and_the_centre_of_the_longer_side():
    columns = np.broadcast_to((4 * np.arange(60, dtype=np.uint8))[:, None], (20, 60, 3))
    for frame, axis in ((columns, 2), (columns.transpose(1, 0, 2), 1)):
        example = {"video": encode_video(np.stack([frame] * 4), options={"qp": "0"}, pixel_format="yuv444p")}
        settings = data(Numbered(1), image_size=(20, 20), eval_clips=2, eval_crops=3)
        views = settings.read_views(example)
        assert views.shape == (6, 2, 20, 20, 3) and settings.views == "2x3"
        means = views.mean(axis=tuple(i for i in range(1, 5) if i != axis + 1))
        for crop, first in enumerate((0, 20, 40)):
            np.testing.assert_allclose(means[crop], 4 * np.arange(first, first + 20), atol=3)
        np.testing.assert_array_equal(views[:3], views[3:])
        one = dataclasses.replace(settings, eval_crops=1).read_views(example)
        np.testing.assert_array_equal(one[0], views[1])


def test_evaluation_may_scale_frames_to_a_side_and_crop_another_size():
    frame = np.broadcast_to((4 * np.arange(60, dtype=np.uint8))[:, None], (20, 60, 3))
    example = {"video": encode_video(np.stack([frame] * 4), options={"qp": "0"}, pixel_format="yuv444p")}
    settings = data(Numbered(1), image_size=(8, 8), eval_crops=3, eval_size=(10, 10), eval_short_side=20)
    views = settings.read_views(example)
    assert views.shape == (3, 2, 10, 10, 3)
    for crop, first in enumerate((0, 25, 50)):  # the frame is not scaled, and a crop has half of its height
        np.testing.assert_allclose(views[crop].mean(axis=(0, 1, 3)), 4 * np.arange(first, first + 10), atol=3)
    rows = np.broadcast_to((12 * np.arange(20, dtype=np.uint8))[:, None, None], (20, 60, 3))
    example = {"video": encode_video(np.stack([rows] * 4), options={"qp": "0"}, pixel_format="yuv444p")}
    heights = settings.read_views(example).mean(axis=(1, 3, 4))
    np.testing.assert_allclose(heights, np.tile(12 * np.arange(5, 15), (3, 1)), atol=3)
    with pytest.raises(ValueError, match=r"eval_size is \(10, 0\)"):
        data(Numbered(1), eval_size=(10, 0))


@given(st.integers(1, 300), st.integers(1, 40), st.floats(0.5, 8), st.floats(0, 1))
def test_a_short_video_is_padded_with_its_last_frame(num_frames, clip, stride, start):
    indices = sampling.sample_dense(num_frames, clip, stride, start, "pad")
    assert (np.diff(indices) >= 0).all() and indices[-1] < num_frames
    steps = np.floor(stride * np.arange(clip) + 1e-6)
    np.testing.assert_array_equal(indices, np.minimum(indices[0] + steps, num_frames - 1))
    shown = sampling.sample_at_rate(np.arange(num_frames) / 25, clip, 25 / stride, start, "pad")
    assert (np.diff(shown) >= 0).all() and shown[-1] < num_frames
    if (clip - 1) * stride > num_frames:
        assert indices[0] == shown[0] == 0 and indices[-1] == shown[-1] == num_frames - 1


@given(st.integers(1, 400), st.integers(1, 32), st.integers(1, 8))
def test_covering_clips_skip_no_more_than_a_stride(num_frames, clip, stride):
    starts = sampling.covering_starts(num_frames, clip, stride, 1000)
    clips = [sampling.sample_dense(num_frames, clip, stride, float(start)) for start in starts]
    seen = sorted({0, *np.concatenate(clips)})
    assert len(starts) == 1 or max(np.diff([-1, *seen, num_frames])) <= stride + (stride > 1)
    assert (len(starts) - 1) * clip * stride < num_frames + stride  # and are as few as can be
    assert len(sampling.covering_starts(num_frames, clip, stride, 2)) <= 2


@given(st.integers(1, 300), st.integers(1, 40))
def test_uniform_sampling_reaches_from_end_to_end(num_frames, clip):
    indices = sampling.sample_uniform(num_frames, clip)
    assert indices[0] == 0 and indices[-1] == (num_frames - 1 if clip > 1 else 0) and len(indices) == clip
    assert np.ptp(np.diff(indices)) <= 1 if clip > 1 else True


@given(st.integers(1, 200), st.integers(1, 32), st.floats(1, 60), st.floats(0, 1))
def test_a_frame_rate_samples_the_frames_on_the_screen(num_frames, clip, rate, start):
    times = np.arange(num_frames) / 25
    indices = sampling.sample_at_rate(times, clip, rate, start)
    assert len(indices) == clip and indices.min() >= 0 and indices.max() < num_frames
    if num_frames / 25 >= clip / rate:  # long enough: nothing comes round again
        assert (np.diff(indices) >= 0).all()
        assert abs(np.diff(indices) - 25 / rate).max(initial=0) <= 1 + 1e-6
    np.testing.assert_array_equal(sampling.sample_at_rate(times, num_frames, 25.0, start), np.arange(num_frames))


def test_a_frame_rate_does_not_depend_on_the_videos_own():
    slow, uneven = np.arange(20) / 10, np.sort(np.random.default_rng(0).uniform(0, 2, 300))
    uneven[0] = 0
    for times in (slow, uneven):
        shown = times[sampling.sample_at_rate(times, 4, 2.5, 0.0)]
        assert abs(shown - np.arange(4) / 2.5).max() < 0.11


@given(st.integers(1, 300), st.integers(1, 40), st.floats(0, 1))
def test_segments_take_one_frame_of_each_equal_part(num_frames, clip, place):
    indices = sampling.sample_segments(num_frames, clip, place)
    assert len(indices) == clip and (np.diff(indices) >= 0).all() and 0 <= indices[0] <= indices[-1] < num_frames
    edges = np.arange(clip + 1) * num_frames / clip
    assert (indices >= np.floor(edges[:-1]) - 1e-9).all() and (indices <= edges[1:]).all()
    np.testing.assert_array_equal(sampling.sample_segments(12, 4, 0.5), [1, 4, 7, 10])


def test_videos_of_any_length_get_as_many_clips_as_cover_them():
    @dataclasses.dataclass(frozen=True)
    class Lengths(Numbered):
        def __getitem__(self, index):
            frames = np.repeat(np.arange(4 * (index + 1), dtype=np.uint8) * 6, 8 * 8 * 3).reshape(-1, 8, 8, 3)
            return {"video": encode_video(frames, fps=5, options={"qp": "0"}), "labels": {"place": index}}

    for fields in ({}, {"frame_rate": 5.0}):
        settings = data(Lengths(6), num_frames=4, eval_clips="all", max_eval_clips=5, batch_size=4, **fields)
        table = batches(settings.eval_batches(Lengths(6)))
        assert settings.views == "all (at most 5) x1" and table[0]["video"].shape[:3] == (4, 5, 4)
        assert np.concatenate([batch["views"] for batch in table]).tolist() == [1, 2, 3, 4, 5, 5, 1, 1]
        third = table[0]["video"][2].mean((2, 3, 4))
        np.testing.assert_allclose(third[:3], 6 * np.arange(12).reshape(3, 4), atol=3)
        assert not third[3:].any()


@pytest.mark.parametrize("rate", [{}, {"frame_rate": 5.0}])
@pytest.mark.parametrize("clips", [{}, {"eval_clips": "all"}])
def test_a_video_of_one_frame_is_a_still_clip(rate, clips):
    @dataclasses.dataclass(frozen=True)
    class Still(Numbered):
        def __getitem__(self, index):
            frame = np.full((1, 8, 8, 3), 90, np.uint8)
            return {"video": encode_video(frame, options={"qp": "0"}), "labels": {"place": index}}

    settings = data(Still(4), **rate, **clips)
    for iterator in (settings.train_batches(Still(4), 0, range(1)), settings.eval_batches(Still(4))):
        (batch,) = batches(iterator)
        assert (batch["unreadable_index"] == -1).all()
        np.testing.assert_allclose(batch["video"].reshape(4, -1, 8 * 8 * 3)[:, :2], 90, atol=3)


def test_stride_jitter_is_drawn_in_training_only():
    frames = np.repeat(np.arange(0, 240, 4, dtype=np.uint8), 8 * 8 * 3).reshape(-1, 8, 8, 3)
    example = {"video": encode_video(frames, fps=10, options={"qp": "0"})}
    for fields in ({"frame_stride": 4}, {"frame_rate": 2.5}):
        settings = data(Numbered(1), num_frames=8, stride_jitter=0.5, **fields)
        drawn = [settings.read_clip(example, 0.0, np.random.default_rng(i)).mean((1, 2, 3)) for i in range(20)]
        strides = [(clip[-1] - clip[0]) / 4 / 7 for clip in drawn]
        assert 2 <= min(strides) < 3 and 5 < max(strides) <= 6
        np.testing.assert_allclose(settings.read_clip(example, 0.0).mean((1, 2, 3)), 16 * np.arange(8), atol=5)


@pytest.mark.parametrize(
    ("fields", "expected", "num_draws"),
    [
        ({"frame_rate": 5.0}, (80, 100, 120, 140), 1),
        ({"temporal": "segments"}, (30, 90, 150, 210), 5),
        ({"temporal": "uniform"}, (0, 80, 150, 230), 1),
    ],
)
def test_rate_segments_and_uniform_sampling_choose_their_frames(fields, expected, num_draws):
    frames = np.repeat(np.arange(0, 240, 10, dtype=np.uint8), 8 * 8 * 3).reshape(24, 8, 8, 3)
    example = {"video": encode_video(frames, fps=10, options={"qp": "0"})}
    settings = data(Numbered(1), num_frames=4, **fields)
    found = settings.read_clip(example, 0.5).mean((1, 2, 3))
    np.testing.assert_allclose(found, expected, atol=13)
    drawn = {settings.read_clip(example, 0.5, np.random.default_rng(i)).tobytes() for i in range(5)}
    assert len(drawn) == num_draws


def test_a_segment_is_sampled_like_a_video():
    frames = np.repeat(np.arange(0, 200, 10, dtype=np.uint8), 8 * 8 * 3).reshape(20, 8, 8, 3)
    example = {"video": encode_video(frames, fps=10, options={"qp": "0"}), "segment": (0.5, 1.1)}
    settings = data(Numbered(1), num_frames=3, frame_stride=2)
    for start, expected in ((0.0, (50, 70, 90)), (1.0, (60, 80, 100))):
        np.testing.assert_allclose(settings.read_clip(example, start).mean((1, 2, 3)), expected, atol=3)
    assert settings.read_clip(example | {"segment": (1.85, 1.89)}, 0.0).mean() == pytest.approx(180, abs=3)
    with pytest.raises(VideoError, match=r"1\.9 s.*\(2\.0, 3\.0\)"):
        settings.read_clip(example | {"segment": (2.0, 3.0)}, 0.0)


@given(st.integers(1, 50), st.floats(0, 3), st.floats(0.01, 3))
def test_segments_next_to_each_other_share_no_frame(num_frames, begin, length):
    times = np.arange(num_frames) / 25
    whole = sampling.frames_between(times, 0.0, np.inf)
    np.testing.assert_array_equal(whole, np.arange(num_frames))
    before, after = sampling.frames_between(times, 0.0, begin), sampling.frames_between(times, begin, np.inf)
    if begin <= times[-1]:
        np.testing.assert_array_equal(np.concatenate([before, after]), whole)
    inside = times[sampling.frames_between(times, begin, begin + length)]
    assert all(begin <= time < begin + length for time in inside[1:])


@pytest.mark.smoke
def test_a_data_worker_does_not_import_jax_through_vitx():
    code = "import sys, vitx, vitx.data.sources, vitx.data.sampling; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
    # Grain imports JAX where it is installed; our own files in data/ must not
    for file in pathlib.Path(sampling.__file__).parent.glob("*.py"):
        assert not re.search(r"^\s*(import|from) (jax|flax)\b", file.read_text(), re.MULTILINE), file
