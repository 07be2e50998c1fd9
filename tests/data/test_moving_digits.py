"""Moving Digits: its geometry, its build, and that the answer is in the order of the frames and nowhere else."""

import functools
import io
import os
import pickle
import subprocess
import sys
import time

import av
import filelock
import numpy as np
import pytest
from joblib import Parallel, delayed
from scipy import stats
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from vitx.data import moving_digits, moving_digits_builder
from vitx.data.decoding import decode_frames
from vitx.data.encoding import encode_video
from vitx.data.moving_digits import (
    ALL_INTRA,
    CONFIGS,
    DIGITS,
    MOTIONS,
    ClipConfig,
    clip_labels,
    encode_clip,
    render_clip,
    sample_trajectory,
)
from vitx.data.moving_digits_builder import config_of, load
from vitx.errors import UserError

STANDARD = CONFIGS["standard"]


@functools.cache
def sample_trajectories(motion: str, count: int = 1500) -> tuple[np.ndarray, np.ndarray]:
    """Centres `[count, frames, 2]` and sizes `[count, frames]`."""
    code = MOTIONS.index(motion)
    drawn = [sample_trajectory(STANDARD, code, np.random.default_rng([code, seed])) for seed in range(count)]
    return np.stack([t.centre for t in drawn]), np.stack([t.size for t in drawn])


def measure_steps(centres: np.ndarray, side: int = STANDARD.side) -> np.ndarray:
    """Displacements the short way round the torus, `[count, frames - 1, 2]`."""
    return (np.diff(centres, axis=1) + side / 2) % side - side / 2


# Geometry


@pytest.mark.parametrize("motion", MOTIONS)
def test_position_is_uniform_in_every_frame(motion):
    centres, _ = sample_trajectories(motion)
    for frame in range(STANDARD.num_frames):
        for axis in range(2):
            assert stats.kstest(centres[:, frame, axis] / STANDARD.side, "uniform").pvalue > 1e-5


def test_size_in_a_random_frame_is_the_same_for_every_motion():
    reference = sample_trajectories("growing")[1]
    clips, frame = np.arange(1500), np.random.default_rng(0).integers(STANDARD.num_frames, size=1500)
    for motion in MOTIONS:
        size = sample_trajectories(motion)[1][clips, frame]
        assert stats.ks_2samp(size, reference[clips, ::-1][clips, frame]).pvalue > 1e-5


@pytest.mark.parametrize("motion", MOTIONS)
def test_each_motion_moves_as_named(motion):
    centres, sizes = sample_trajectories(motion)
    step = measure_steps(centres)
    turn = step[:, :-1, 0] * step[:, 1:, 1] - step[:, :-1, 1] * step[:, 1:, 0]
    holds = {
        "left": (step[..., 0] < 0) & (step[..., 1] == 0),
        "right": (step[..., 0] > 0) & (step[..., 1] == 0),
        "up": (step[..., 1] < 0) & (step[..., 0] == 0),
        "down": (step[..., 1] > 0) & (step[..., 0] == 0),
        "growing": np.diff(sizes) > 0,
        "shrinking": np.diff(sizes) < 0,
        # With y pointing down, a right turn has a positive cross product.
        "clockwise": turn > 0,
        "anticlockwise": turn < 0,
    }
    assert holds[motion].all()
    if motion not in ("growing", "shrinking"):
        assert (np.ptp(sizes, axis=1) == 0).all()


def test_steps_are_visible_and_well_below_half_the_period():
    for motion in MOTIONS:
        centres, sizes = sample_trajectories(motion)
        length = np.linalg.norm(measure_steps(centres), axis=-1)
        assert length.max() < STANDARD.side / 4
        assert sizes.min() >= STANDARD.size[0] - 1e-9 and sizes.max() <= STANDARD.size[1] + 1e-9
        if motion not in ("growing", "shrinking"):
            assert length.min() > 1.4


@pytest.mark.parametrize("pair", range(4))
def test_each_pair_is_one_motion_and_its_reversal(pair):
    """A path and the reversal of the other motion's path agree in distribution: in speed, in size, in both ends."""
    forward, forward_size = sample_trajectories(MOTIONS[2 * pair])
    backward, backward_size = sample_trajectories(MOTIONS[2 * pair + 1])
    backward, backward_size = backward[:, ::-1], backward_size[:, ::-1]
    for feature in (
        lambda centres, sizes: np.linalg.norm(measure_steps(centres)[:, 0], axis=-1),
        lambda centres, sizes: measure_steps(centres)[:, 0, 0],
        lambda centres, sizes: measure_steps(centres)[:, -1, 1],
        lambda centres, sizes: sizes[:, 0],
        lambda centres, sizes: sizes[:, -1],
        lambda centres, sizes: sizes[:, -1] / sizes[:, 0],
    ):
        found = stats.ks_2samp(feature(forward, forward_size).round(6), feature(backward, backward_size).round(6))
        assert found.pvalue > 1e-5


def test_a_digit_over_the_border_is_drawn_on_the_other_side():
    """Moving a digit over the border is rolling the picture."""
    image = np.random.default_rng(0).uniform(0, 1, (8, 8)).astype(np.float32)
    centres = np.array([[24.0, 24.0], [2.0, 46.0]])
    middle, corner = moving_digits._draw_ink(image, moving_digits.Trajectory(centres, np.full(2, 20.0)), 48)
    np.testing.assert_allclose(np.roll(middle, (22, -22), (0, 1)), corner, atol=1e-6)


# Labels


def test_labels_are_balanced_and_independent():
    for split, num_clips in zip(DIGITS, STANDARD.num_clips, strict=True):
        digits, motions = np.array([clip_labels(split, index) for index in range(num_clips)]).T
        assert (np.bincount(motions) == num_clips // 8).all()
        assert np.ptp(np.unique(digits, return_counts=True)[1]) <= 1
        table = stats.contingency.crosstab(moving_digits._digits()[1][digits], motions).count
        assert stats.chi2_contingency(table).pvalue > 1e-4


def test_splits_share_no_digits():
    drawn = [{clip_labels(split, index)[0] for index in range(4000)} for split in DIGITS]
    assert [sorted(digits) for digits in drawn] == [list(block) for block in DIGITS.values()]
    assert not (drawn[0] & drawn[1] or drawn[1] & drawn[2] or drawn[0] & drawn[2])


# Pictures


@pytest.mark.parametrize("name", CONFIGS)
def test_rendering_is_deterministic(name):
    config = CONFIGS[name]
    frames, appearance, motion = render_clip(config, "test", 3)
    assert frames.shape == (config.num_frames, 48, 48, 3) and frames.dtype == np.uint8
    assert 0 <= appearance < 10 and 0 <= motion < 8
    np.testing.assert_array_equal(frames, render_clip(config, "test", 3)[0])
    assert encode_clip(config, "test", 3) == encode_clip(config, "test", 3)
    assert (frames != render_clip(config, "test", 4)[0]).any()
    assert (frames != render_clip(config, "train", 3)[0]).any()


@pytest.mark.parametrize("name", CONFIGS)
def test_video_is_all_keyframes_and_close_to_the_picture(name):
    frames, *_ = render_clip(CONFIGS[name], "train", 0)
    video = encode_clip(CONFIGS[name], "train", 0)["video"]
    with av.open(io.BytesIO(video)) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
    assert len(packets) == len(frames) and all(packet.is_keyframe for packet in packets)
    assert np.abs(decode_frames(video, range(len(frames))).astype(int) - frames).mean() < 5


def test_digits_stay_recognisable():
    """Cut out of the decoded frames, they are classified nearly as well as the clean 8x8 images."""

    def crops(split: str, count: int) -> tuple[np.ndarray, np.ndarray]:
        images, targets = [], []
        for index in range(count):
            frames, appearance, motion = render_clip(STANDARD, split, index)
            trajectory = replay_trajectory(split, index, motion)
            frame = decode_frames(encode_video(frames[:1], options=ALL_INTRA), [0])[0].mean(-1)  # coded alone anyhow
            x, y = (
                np.round(centre + (np.arange(8) - 3.5) * trajectory.size[0] / 8).astype(int) % STANDARD.side
                for centre in trajectory.centre[0]
            )
            images.append(frame[np.ix_(y, x)].ravel() / 255)
            targets.append(appearance)
        return np.stack(images), np.array(targets)

    classifier = SVC(C=10).fit(*crops("train", 400))
    assert classifier.score(*crops("test", 150)) > 0.85


def replay_trajectory(split: str, index: int, motion: int) -> moving_digits.Trajectory:
    rng = np.random.default_rng([list(DIGITS).index(split), 2, index])
    moving_digits._draw_texture(STANDARD.texture, STANDARD.side, rng)
    return sample_trajectory(STANDARD, motion, rng)


# The measurement


def frame_statistics(frames: np.ndarray) -> np.ndarray:
    """What a frame gives away about size, coding and sharpness, wherever the digit is: `[frames, features]`."""
    grey = frames[..., 1].astype(np.float32)
    power = np.abs(np.fft.rfft2(grey / 255)) ** 2
    radius = np.hypot(48 * np.fft.fftfreq(48)[:, None], 48 * np.fft.rfftfreq(48))
    edges = np.array([1, 2, 3, 5, 8, 12, 18, 35])
    bands = power.reshape(len(frames), -1) @ (np.digitize(radius.ravel(), edges)[:, None] == np.arange(1, len(edges)))
    levels = [grey.mean((1, 2)), grey.std((1, 2)), (grey > 90).mean((1, 2)), (grey > 140).mean((1, 2))]
    detail = [np.abs(np.diff(grey, order, axis)).mean((1, 2)) for axis in (1, 2) for order in (1, 2)]
    return np.stack([*levels, *detail, *np.log(1e-3 + bands.T)], axis=1)


def measure(split: str, indices: list[int], options: dict | None = None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Statistics `[clips, frames, features]`, thumbnails of one random frame each `[clips, 144]`, motions `[clips]`."""
    if options is None:
        records = Parallel(2, batch_size=25, pre_dispatch=400, return_as="generator")(
            delayed(encode_clip)(STANDARD, split, index) for index in indices
        )
        videos = (record["video"] for record in records)
    else:
        videos = (encode_video(render_clip(STANDARD, split, index)[0], options=options) for index in indices)
    rng, features, thumbnails = np.random.default_rng(0), [], []
    for video in videos:
        frames = decode_frames(video, range(STANDARD.num_frames))
        features.append(frame_statistics(frames))
        thumbnails.append(frames[rng.integers(len(frames))].reshape(12, 4, 12, 4, 3).mean((1, 3, 4)).ravel())
    return np.stack(features), np.stack(thumbnails), np.array([clip_labels(split, index)[1] for index in indices])


def drop_order(features: np.ndarray) -> np.ndarray:
    """What the set of frames gives away, whatever their order: quantiles, moments and correlations over frames."""
    quantiles = np.sort(features, axis=1)[:, [0, 3, 6, 9, 11]].reshape(len(features), -1)
    scaled = (features - features.mean(1, keepdims=True)) / (features.std(1, keepdims=True) + 1e-6)
    correlations = np.einsum("ntf,ntg->nfg", scaled, scaled)[:, *np.triu_indices(features.shape[-1], 1)]
    return np.concatenate([quantiles, features.mean(1), features.std(1), (scaled**3).mean(1), correlations], axis=1)


def measure_change(features: np.ndarray) -> np.ndarray:
    return features[:, -1] - features[:, 0]


def cross_score(first: tuple[np.ndarray, np.ndarray], second: tuple[np.ndarray, np.ndarray]) -> float:
    """Returns the mean accuracy on one of two sets of clips of a probe fitted to the other."""
    probe = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=200))
    return (probe.fit(*first).score(*second) + probe.fit(*second).score(*first)) / 2


def pair_score(sets: list[tuple[np.ndarray, np.ndarray]], pair: int) -> float:
    return cross_score(*((x[y // 2 == pair], y[y // 2 == pair] % 2) for x, y in sets))


@pytest.mark.slow
def test_only_the_order_of_frames_reveals_the_motion():
    """4,000 clips of digits to train on and as many of digits to test on, more than the splits hold.

    2,000 clips of each pair are scored: a blind probe's standard error is 1.1 points, 0.4 points for one frame. One
    test, so that the clips are rendered once, however tests are distributed over processes.
    """
    measured = [measure(split, range(4000)) for split in ("train", "test")]

    rng, one_frame = np.random.default_rng(1), []
    for features, thumbnails, motions in measured:
        frame = rng.integers(features.shape[1], size=len(features))
        one_frame.append((np.concatenate([features[np.arange(len(frame)), frame], thumbnails], axis=1), motions))
    assert abs(cross_score(*one_frame) - 1 / 8) < 0.05

    frame_set = [(drop_order(features), motions) for features, _, motions in measured]
    scores = {MOTIONS[2 * pair]: pair_score(frame_set, pair) for pair in range(4)}
    assert max(scores.values()) < 0.53, scores

    ordered = [(measure_change(features), motions) for features, _, motions in measured]
    assert pair_score(ordered, MOTIONS.index("growing") // 2) > 0.95


def test_ordinary_coding_reveals_the_motion_in_the_set_of_frames():
    """The probe can fail: x264's defaults code later frames differently from earlier ones."""
    pair = MOTIONS.index("growing") // 2
    sets = []
    for split in ("train", "test"):
        indices = [index for index in range(1600) if clip_labels(split, index)[1] // 2 == pair][:200]
        features, _, motions = measure(split, indices, options={})
        sets.append((drop_order(features), motions))
    assert pair_score(sets, pair) > 0.8


# The build

TINY = ClipConfig(num_clips=(24, 8, 8))
LONG = ClipConfig(num_clips=(400, 8, 8))

BUILD = """
import sys
from vitx.data import moving_digits_builder
from vitx.data.moving_digits import ClipConfig
from vitx.data.moving_digits_builder import load
moving_digits_builder.CLIPS_PER_WORKER = 100
source = load("train", ClipConfig(num_clips=({train}, 8, 8)), data_dir={directory!r})
print(len(source), source[5]["labels"], [name for name in ("tensorflow", "jax") if name in sys.modules])
"""


def start_build(directory: os.PathLike, train: int = 24) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", BUILD.format(train=train, directory=str(directory))],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return tmp_path_factory.mktemp("data")


def test_round_trip_equals_the_pure_function(directory, capsys):
    for split, num_clips in zip(DIGITS, TINY.num_clips, strict=True):
        source = load(split, TINY, data_dir=directory)
        assert len(source) == num_clips
        for index in (0, num_clips - 1):
            record = encode_clip(TINY, split, index)
            labels = {"appearance": record["appearance"], "motion": record["motion"]}
            assert source[index] == {"video": record["video"], "labels": labels}
    assert capsys.readouterr().out == ""


def test_source_is_small_and_pickles(directory):
    source = load("test", TINY, data_dir=directory)
    source[0]
    copy = pickle.loads(pickle.dumps(source))
    assert len(pickle.dumps(source)) < 1000 and copy == source and copy[3] == source[3]
    assert source.label_names["motion"] == MOTIONS


def test_an_unknown_split_and_an_impossible_folder_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"tets.*expected train"):
        load("tets", TINY, data_dir=tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be built in"):
        load("test", TINY, data_dir=tmp_path / "file" / "below")


def test_unnamed_configurations_have_folders_of_their_own(tmp_path):
    small, smaller = (ClipConfig(num_clips=(count, 8, 8)) for count in (16, 8))
    assert len(load("train", small, data_dir=tmp_path)) == 16
    assert len(load("train", smaller, data_dir=tmp_path)) == 8


def test_two_processes_build_the_dataset_once(tmp_path):
    with filelock.FileLock(tmp_path / f"moving_digits.{config_of(TINY).name}.lock"):
        builds = [start_build(tmp_path) for _ in range(2)]
        for build in builds:
            assert "waiting" in build.stderr.readline()
    outputs = [build.communicate(timeout=120) for build in builds]
    assert [build.returncode for build in builds] == [0, 0]
    assert outputs[0][0] == outputs[1][0] and outputs[0][0].startswith("24 ") and outputs[0][0].endswith("[]\n")
    assert sum("building" in err for _, err in outputs) == 1


def test_a_killed_build_starts_again(tmp_path, monkeypatch):
    monkeypatch.setattr(moving_digits_builder, "CLIPS_PER_WORKER", 100)  # several workers, as for a large dataset
    version = tmp_path / "moving_digits" / config_of(LONG).name
    with start_build(tmp_path, train=400) as build:
        while not list(version.glob("incomplete.*")):
            assert build.poll() is None
            time.sleep(0.01)
        build.kill()
    assert not list(version.glob("1.*"))
    assert len(load("train", LONG, data_dir=tmp_path)) == 400
    assert not list(version.glob("incomplete.*"))
