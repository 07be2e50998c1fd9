"""From a clip to its explanation."""

import numpy as np
import pytest

from tests.explain.conftest import Linear
from vitx.data.encoding import encode_video
from vitx.data.files import Folder
from vitx.data.pipeline import Data
from vitx.explain.clips import explain_clip, read_clip

NAMES = {"letter": ("a", "b", "c")}
traced = []


class TracedLinear(Linear):
    """Records every trace."""

    def __call__(self, video, *, train=False):
        traced.append(video.shape)
        return super().__call__(video, train=train)


def answer(logits):
    return {label: dict.fromkeys(NAMES[label], 1 / 3) for label in logits}


def test_a_second_explanation_compiles_nothing(linear, video):
    frames, counts = np.zeros(video.shape, np.uint8), []
    for class_name in ("a", "b"):
        options = {"normalise": np.float32, "names": NAMES, "answer": answer, "class_name": class_name}
        assert explain_clip(TracedLinear(), linear[1], frames, **options).class_name == class_name
        counts.append(len(traced))
    assert counts[0] == counts[1] > 0


@pytest.mark.parametrize(("clips", "crops", "middle"), [(1, 1, 0), (3, 3, 4), (4, 1, 2), (1, 3, 1)])
def test_of_a_file_the_middle_view_is_read(tmp_path, clips, crops, middle):
    frames = np.random.default_rng(0).integers(0, 255, (24, 16, 32, 3), np.uint8)
    (tmp_path / "clip.mp4").write_bytes(encode_video(frames))
    data = Data(
        Folder(str(tmp_path)), num_frames=2, frame_stride=1, image_size=(16, 16), eval_clips=clips, eval_crops=crops
    )
    views = data.read_views({"video": (tmp_path / "clip.mp4").read_bytes()})
    assert len(np.unique(views.reshape(len(views), -1), axis=0)) == len(views) == clips * crops
    np.testing.assert_array_equal(read_clip(tmp_path / "clip.mp4", data), views[middle])
