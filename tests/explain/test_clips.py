"""From a clip to its explanation."""

import numpy as np

from tests.explain.conftest import Linear
from vitx.explain.clips import explain_clip

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
