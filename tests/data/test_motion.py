"""The codec's motion as a fourth channel: of a moving square, through every way from file to batch, and its errors."""

import contextlib
import io

import av
import numpy as np
import pytest
from PIL import Image

from tests.data.test_upright import ORIENTATIONS, turned
from vitx.data import motion, operations
from vitx.data.augmentation import Augmentation, erase
from vitx.data.decoding import VideoError, decode_frames, open_video
from vitx.data.encoding import encode_video, mux_images
from vitx.data.files import Folder
from vitx.data.motion import CODECS, LEVELS, measure_motion
from vitx.data.pipeline import Data
from vitx.data.preparation import Preparation, prepare
from vitx.data.prepared import Prepared
from vitx.data.rand_augment import RandAugment
from vitx.data.windows import EvaluationReader, SlidingWindows, read_windows

P_FRAMES = {"x264-params": "bframes=0:scenecut=0:ref=1:qp=10"}  # every frame refers to the one before
SPEED, HEIGHT, WIDTH = 2, 64, 96


def moving_square(num_frames: int = 24, row: int = 16) -> np.ndarray:
    """Frames of a textured square of 16 pixels that moves to the right over a still textured background."""
    rng = np.random.default_rng(0)
    still = rng.integers(40, 90, (HEIGHT // 4, WIDTH // 4, 3)).repeat(4, 0).repeat(4, 1).astype(np.uint8)
    frames = np.tile(still, (num_frames, 1, 1, 1))
    square = rng.integers(120, 250, (16, 16, 3))
    for number, frame in enumerate(frames):
        frame[row : row + 16, SPEED * number : SPEED * number + 16] = square
    return frames


FRAMES = moving_square()
VIDEO = encode_video(FRAMES, options=P_FRAMES)


def read(video: bytes = VIDEO, frames=range(0, 24, 3), **options) -> np.ndarray:
    with open_video(video, motion=True) as opened:
        return opened.read(frames, **options)[0]


def covers_square(clip: np.ndarray, show=lambda frames: frames) -> bool:
    """Whether what moves lies in the square of each frame, or nearer than a macroblock, and covers most of it."""
    inside, near = np.zeros((len(clip), HEIGHT, WIDTH, 1), bool), np.zeros((len(clip), HEIGHT, WIDTH, 1), bool)
    for i in range(len(clip)):
        left = 3 * SPEED * i
        inside[i, 16:32, left : left + 16] = True
        near[i, 8:40, max(left - 24, 0) : left + 32] = True  # blocks of the two frames before, too
    inside, near, motion = show(inside), show(near), clip[..., 3:]
    return not motion[~near].any() and (motion[inside] > 0).mean() > 0.7


def test_the_square_moves_at_its_speed_and_the_background_not():
    clip = read()
    assert covers_square(clip)
    assert np.median(clip[..., 3][clip[..., 3] > 0]) == SPEED * LEVELS


def test_pixels_are_those_of_a_video_that_is_opened_without_motion():
    np.testing.assert_array_equal(read()[..., :3], decode_frames(VIDEO, range(0, 24, 3)))


def test_without_motion_no_vectors_are_exported():
    with open_video(VIDEO) as video:
        frames = list(video.decode([*range(24)]))
    assert len(frames) == 24 and not any(measure_motion(frame).any() for frame in frames)


@pytest.mark.parametrize("name", ORIENTATIONS)
def test_motion_is_turned_like_the_pixels(name):
    matrix, show = ORIENTATIONS[name]
    clip = read(turned(VIDEO, matrix))
    assert covers_square(clip, show)
    np.testing.assert_array_equal(clip, show(read()))


def test_motion_is_cropped_and_scaled_like_the_pixels():
    whole = read()
    box = np.array([[16.0, 8.0, 32.0, 64.0]])
    np.testing.assert_array_equal(read(boxes=box, size=(32, 64)), whole[:, 16:48, 8:72])
    doubled = read(boxes=box, size=(64, 128))
    moving = whole[:, 16:48, 8:72, 3].repeat(2, 1).repeat(2, 2)
    np.testing.assert_allclose(doubled[..., 3], 2.0 * moving, atol=1)  # in pixels of the clip


def test_the_mean_is_over_all_frames_since_the_last_wanted_one():
    still, late = FRAMES[:1].repeat(7, axis=0), FRAMES[:6]  # stands still for 6 frames, then moves
    video = encode_video(np.concatenate([still, late]), options=P_FRAMES)
    for wanted, fraction in (((0, 4, 8, 12), 1), ((0, 6, 12), 5 / 6), ((0, 2, 3, 12), 1)):  # the last: 2 frames count
        last = read(video, wanted)[-1, 20:28, 12:24, 3]
        assert np.median(last) == pytest.approx(fraction * SPEED * LEVELS, abs=1)


def test_frames_in_another_order_have_the_motion_of_their_frame():
    clip = read()
    np.testing.assert_array_equal(read(frames=[9, 0, 3, 6, 12, 15, 18, 21, 9]), clip[[3, 0, 1, 2, 4, 5, 6, 7, 3]])


def test_a_keyframe_has_the_motion_of_the_next_frame():
    video = encode_video(FRAMES, options={"x264-params": "bframes=0:scenecut=0:keyint=6:min-keyint=6"})
    clip = read(video, range(24))
    for number in (0, 6, 12, 18):
        np.testing.assert_array_equal(clip[number, ..., 3], clip[number + 1, ..., 3])
        assert clip[number, ..., 3].any()


def test_a_jump_measures_what_is_decoded():
    video = encode_video(moving_square(40), options={"x264-params": "bframes=0:scenecut=0:keyint=8:min-keyint=8"})
    clip = read(video, [1, 2, 38, 39])  # a jump to keyframe 32 lies between
    assert clip[..., 3].any(axis=(1, 2)).all()
    np.testing.assert_array_equal(clip[2:], read(video, [37, 38, 39])[1:])


@pytest.mark.parametrize("codec", sorted({*CODECS} - {"h264"}))
def test_other_codecs_export_motion_too(codec):
    assert covers_square(read(encode_video(FRAMES, codec=codec, options={"qmin": "1", "qmax": "2"})))


def test_a_file_whose_frames_have_to_be_counted_has_motion():
    file = io.BytesIO()
    with av.open(io.BytesIO(VIDEO)) as source, av.open(file, "w", format="h264") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.size:
                packet.stream = stream
                target.mux(packet)
    raw = file.getvalue()
    with open_video(raw) as video:
        assert not video.index.keyframes
    np.testing.assert_array_equal(read(raw), read())


def data(**fields) -> Data:
    settings = {"num_frames": 4, "frame_stride": 3, "image_size": (48, 48), "motion": True}
    return Data(**({"dataset": Folder("")} | settings | fields))


def test_views_have_motion_and_none_costs_a_channel_without():
    views = data(eval_clips=2, eval_crops=3).read_views({"video": VIDEO})
    plain = data(eval_clips=2, eval_crops=3, motion=None).read_views({"video": VIDEO})
    assert views.shape == (6, 4, 48, 48, 4) and plain.shape == (6, 4, 48, 48, 3)
    np.testing.assert_array_equal(views[..., :3], plain)
    assert views[0, ..., 3].any()


def test_windows_have_the_motion_of_a_clip():
    reader = EvaluationReader(data())
    with reader.open(VIDEO, 60.0) as video:
        windows = list(read_windows(reader, video, SlidingWindows(12.0, 12.0, "frames").plan(video.times)))
    assert len(windows) == 2 and all(views[..., 3].any(axis=(2, 3)).all() for views in windows)


def test_mirroring_moves_motion_with_the_pixels():
    clip = read()
    mirrored, _ = Augmentation(flip=1.0).mirror(np.random.default_rng(0), clip, {}, {})
    np.testing.assert_array_equal(mirrored, clip[:, :, ::-1])


def test_colours_leave_motion_alone():
    clip = read()
    augmentation = Augmentation(brightness=0.5, contrast=0.5, saturation=0.5, hue=0.2, lightness=0.1, grey=1.0)
    varied = augmentation.vary(np.random.default_rng(0), clip)
    np.testing.assert_array_equal(varied[..., 3], clip[..., 3])
    np.testing.assert_array_equal(varied[..., :3], augmentation.vary(np.random.default_rng(0), clip[..., :3]))


@pytest.mark.parametrize(
    ("operation", "argument"),
    [
        (operations.translate_x, 0.25),
        (operations.translate_y, -0.25),
        (operations.rotate, 90.0),
        (operations.shear_x, 0.3),
        (operations.shear_y, 0.3),
    ],
)
def test_what_moves_pixels_moves_motion(operation, argument):
    clip = read()[:, :, :64]
    marked = np.concatenate([clip[..., 3:].repeat(3, axis=-1), clip[..., 3:]], axis=-1)
    moved = operation(marked, argument)
    inside = operation(np.full_like(clip[..., :3], 255), argument)[..., 0] == 255  # not from outside the frame
    np.testing.assert_array_equal(moved[inside][:, 3], moved[inside][:, 0])
    np.testing.assert_array_equal(operation(clip, argument)[..., :3], operation(clip[..., :3], argument))
    assert not moved[~inside & (operation(np.full_like(clip[..., :3], 255), argument)[..., 0] == 128)][:, 3].any()


def test_rand_augment_draws_the_same_with_motion():
    clip, augment = read(), RandAugment(layers=6, probability=1.0)
    for seed in range(6):
        found = augment(np.random.default_rng(seed), clip)
        np.testing.assert_array_equal(found[..., :3], augment(np.random.default_rng(seed), clip[..., :3]))


@pytest.mark.parametrize("fill", ["noise", "colour", "grey"])
def test_erased_boxes_do_not_move(fill):
    clip = np.full((2, 32, 32, 4), 200, np.uint8)
    erased = erase(np.random.default_rng(0), clip, 2, fill)
    np.testing.assert_array_equal(erased[..., :3], erase(np.random.default_rng(0), clip[..., :3], 2, fill))
    changed = (erased[..., :3] != 200).any(axis=-1)
    assert changed.any() and not erased[changed][:, 3].any() and (erased[..., 3] > 0).any()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Twelve videos of two classes, which move at the top or at the bottom."""
    path = tmp_path_factory.mktemp("squares")
    for name, row in (("bottom", 48), ("top", 0)):
        (path / name).mkdir()
        for number in range(6):
            video = encode_video(moving_square(20 + number, row), options=P_FRAMES)
            (path / name / f"{number}.mp4").write_bytes(video)
    return Folder(str(path), validation=0.0, test=0.5)


def test_batches_have_motion(folder):
    settings = data(
        dataset=folder,
        batch_size=4,
        eval_batch_size=4,
        augmentation=Augmentation(crop_area=(0.5, 1.0), flip=0.5),
    )
    train, test = folder.open("train"), folder.open("test")
    with contextlib.closing(settings.train_batches(train, 0, range(2))) as batches:
        batches = list(batches)
    assert all(batch["video"].shape == (4, 4, 48, 48, 4) for batch in batches)
    assert any(batch["video"][..., 3].any() for batch in batches)
    with contextlib.closing(settings.eval_batches(test)) as found:
        assert all(batch["video"].shape == (4, 1, 4, 48, 48, 4) for batch in found)  # padding too


def test_prepared_videos_have_motion(folder, tmp_path):
    prepare(folder.splits(), tmp_path, Preparation(short_side=64))
    source = Prepared(str(tmp_path)).open("train")
    assert all(data().read_views(source[index])[..., 3].any() for index in range(len(source)))


def pictures() -> bytes:
    """A video of PNG images, as a folder of pictures becomes."""
    images = []
    for frame in FRAMES[:4]:
        file = io.BytesIO()
        Image.fromarray(frame).save(file, "PNG")
        images.append(file.getvalue())
    return mux_images(images)


@pytest.mark.parametrize(
    ("video", "found"),
    [
        (pictures(), "the codec png"),
        (encode_video(FRAMES, codec="mjpeg", pixel_format="yuvj420p"), "the codec mjpeg"),
        (encode_video(FRAMES, options={"x264-params": "keyint=1"}), "keyframes only"),
    ],
)
def test_videos_without_motion_are_reported(video, found):
    with pytest.raises(VideoError, match=rf"found {found}.*data\.motion needs h264.*vitx data prepare"):
        data().read_views({"video": video})
    assert data(motion=False).read_views({"video": video}).shape[-1] == 3


def test_wanted_keyframes_alone_are_reported():
    video = encode_video(moving_square(40), options={"x264-params": "keyint=8:min-keyint=8:scenecut=0"})
    with pytest.raises(VideoError, match="found keyframes only"):
        read(video, [0, 8, 16, 24, 32])
    assert not read(video, [8])[..., 3].any()  # a single frame has moved nowhere


def test_few_frames_are_held_until_one_has_motion(monkeypatch):
    monkeypatch.setattr(motion, "MAX_WAITING", 3)
    taken = []
    with pytest.raises(VideoError, match="found keyframes only"):
        list(motion.MotionRecorder().add_motion([*range(9)], map(taken.append, range(9))))
    assert len(taken) == 3


def test_another_decoder_is_refused_at_once():
    with pytest.raises(ValueError, match=r"decoder is 'torchcodec' with motion True.*data\.decoder"):
        data(decoder="torchcodec")
