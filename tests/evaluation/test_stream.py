"""A stream answers after each frame what the whole clip so far gives, at constant memory."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from vitx.errors import UserError
from vitx.evaluation import stream as streams
from vitx.evaluation.stream import Stream
from vitx.models.convlstm import ConvLSTM
from vitx.tasks.classification import Classification

NAMES = {"motion": ("left", "right", "up")}
MODEL = ConvLSTM(num_classes=3, widths=(4,), patch=4)
TASK = Classification(label="motion", mean=(0.2, 0.2, 0.2), std=(0.2, 0.2, 0.2))
FRAMES = np.random.default_rng(0).integers(0, 256, (7, 12, 8, 3), np.uint8)


@pytest.fixture(scope="module")
def variables():
    variables = jax.jit(MODEL.init)(jax.random.key(0), jnp.zeros((1, 1, 12, 8, 3)))
    return jax.tree.map(lambda leaf: leaf + jnp.sin(jnp.arange(leaf.size)).reshape(leaf.shape), variables)


@pytest.fixture
def stream(variables):
    return Stream(MODEL, variables, task=TASK, names=NAMES, image_size=(12, 8))


def test_each_answer_is_that_of_the_whole_clip_so_far(stream, variables):
    for i, frame in enumerate(FRAMES[:3]):
        answer = stream.read(frame)["motion"]
        logits = MODEL.apply(variables, TASK.normalise(FRAMES[None, : i + 1]))
        expected = dict(zip(NAMES["motion"], np.asarray(jax.nn.softmax(logits[0])), strict=True))
        assert answer == pytest.approx(expected, rel=1e-4) and list(answer.values()) == sorted(answer.values())[::-1]
    assert stream.num_frames == len(stream.milliseconds) == 3 and stream.answers[-1] == {"motion": answer}


def test_a_calibrated_stream_divides_logits_by_the_temperature(stream, variables):
    warm = Stream(MODEL, variables, task=TASK, names=NAMES, image_size=(12, 8), temperatures={"motion": 2.0})
    answers = [one.read(FRAMES[0])["motion"] for one in (stream, warm)]
    plain, scaled = (np.array([answer[name] for name in NAMES["motion"]]) for answer in answers)
    np.testing.assert_allclose(scaled, np.sqrt(plain) / np.sqrt(plain).sum(), rtol=1e-5)


def test_no_frame_compiles_anything(variables):
    """With variables that are placed on a device, as those of a run are: the state of a step then is, too."""
    placed = jax.device_put(variables, jax.devices()[0])
    stream, compiled = Stream(MODEL, placed, task=TASK, names=NAMES, image_size=(12, 8)), []

    def count(event, *_, **__):
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(event)

    jax.monitoring.register_event_duration_secs_listener(count)
    try:
        for frame in FRAMES[:3]:
            stream.read(frame)
    finally:
        jax.monitoring.unregister_event_duration_listener(count)
    assert not compiled


def test_memory_stays_constant_and_old_answers_are_forgotten(variables, monkeypatch):
    monkeypatch.setattr(streams, "MAX_HISTORY", 4)
    stream = Stream(MODEL, variables, task=TASK, names=NAMES, image_size=(12, 8))
    before = stream.state_bytes
    answers = [stream.read(frame) for frame in FRAMES]
    assert stream.state_bytes == before and f"{before:,} bytes" in repr(stream)
    assert stream.num_frames == 7 and list(stream.answers) == answers[3:]
    assert len(stream.milliseconds) == len(stream._frames) == 4
    curves, frames = stream.figure().axes
    assert [line.get_label() for line in curves.lines] == list(NAMES["motion"])
    np.testing.assert_array_equal(curves.lines[0].get_xdata(), [3, 4, 5, 6])
    np.testing.assert_array_equal(frames.images[0].get_array(), FRAMES[3])


def test_the_picture_has_frames_over_their_places(stream):
    for frame in FRAMES[:2]:
        stream.read(frame)
    figure = stream.figure()
    FigureCanvasAgg(figure).draw()  # matplotlib would warn about text that does not fit
    assert [np.mean(image.get_extent()[:2]) for image in figure.axes[1].images] == pytest.approx([0, 1])
    assert stream._repr_png_().startswith(b"\x89PNG")


def test_the_picture_of_a_long_stream_has_all_frames_on_its_axis(stream):
    for _ in range(25):
        stream.read(FRAMES[0])
    curves, frames = stream.figure().axes
    low, high = curves.get_xlim()
    assert low < 0 and high > 24 and len(curves.lines[0].get_xdata()) == 25
    assert len(frames.images) == 9  # one for three frames, in order and side by side
    extents = [image.get_extent() for image in frames.images]
    assert all(one[1] < next_one[0] for one, next_one in itertools.pairwise(extents))


def test_frames_of_another_size_are_scaled(stream):
    assert stream.read(FRAMES[0].repeat(2, axis=0).repeat(2, axis=1)).keys() == {"motion"}


def test_what_is_no_frame_is_refused(stream):
    with pytest.raises(UserError, match=r"\[7, 12, 8, 3\] of uint8"):
        stream.read(FRAMES)
    with pytest.raises(UserError, match="float32"):
        stream.read(FRAMES[0].astype(np.float32))
    assert stream.num_frames == 0 and stream._repr_png_() is None
    with pytest.raises(UserError, match=r"without frames.*read"):
        stream.figure()
    stream.read(FRAMES[0])
    with pytest.raises(UserError, match="did you mean motion"):
        stream.figure("motions")
