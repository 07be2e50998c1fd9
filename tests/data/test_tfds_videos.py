"""TFDS's videos: nothing is downloaded unasked; a small builder's frames and labels arrive (needs TensorFlow)."""

import importlib.util
import pickle

import numpy as np
import pytest

from vitx.configuration import from_dict, to_dict
from vitx.data.decoding import decode_frames
from vitx.data.pipeline import Data
from vitx.data.tfds_videos import TFDS
from vitx.errors import UserError

WITH_TENSORFLOW = importlib.util.find_spec("tensorflow") is not None


def test_settings_survive_a_round_trip_and_are_checked():
    assert from_dict(to_dict(TFDS("ucf101", labels=("label",)))) == TFDS("ucf101", labels=("label",))
    for fields in ({"validation": -0.1}, {"test": 1.0}, {"fps": 0}):
        with pytest.raises(ValueError, match="expected"):
            TFDS("ucf101", **fields)


@pytest.mark.skipif(WITH_TENSORFLOW, reason="TensorFlow is installed")
def test_a_missing_tensorflow_is_an_error_that_names_the_extra(tmp_path):
    with pytest.raises(UserError, match=r"pip install 'vitx\[tf\]'"):
        TFDS("ucf101", data_dir=str(tmp_path)).open("train")


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    tfds = pytest.importorskip("tensorflow_datasets")

    class TinyVideos(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            features = {
                "clip": tfds.features.Video(shape=(None, 32, 24, 3)),
                "label": tfds.features.ClassLabel(names=["fall", "walk"]),
                "acts": tfds.features.Sequence(tfds.features.ClassLabel(names=["x", "y", "z"])),
                "speed": tfds.features.Scalar(np.float32),
                "title": tfds.features.Text(),
            }
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

        def _split_generators(self, _):
            return {"train": self._generate_examples(20), "test": self._generate_examples(3)}

        def _generate_examples(self, count):
            for i in range(count):
                clip = np.full((6, 32, 24, 3), 10 * i, np.uint8) + np.arange(6, dtype=np.uint8)[:, None, None, None]
                acts = ["x", "z"][: i % 3]
                yield i, {"clip": clip, "label": i % 2, "acts": acts, "speed": i / 2, "title": "t"}

    return tmp_path_factory.mktemp("tfds")


@pytest.mark.peers
@pytest.mark.skipif(not WITH_TENSORFLOW, reason="needs TensorFlow")
@pytest.mark.filterwarnings("ignore")
def test_frames_and_labels_of_a_small_builder_arrive(built):
    with pytest.raises(UserError, match="tfds build tiny_videos --file_format array_record"):
        TFDS("tiny_videos", data_dir=str(built)).open("train")
    assert not list(built.rglob("*.array_record*"))
    dataset = TFDS("tiny_videos", ("label", "acts", "speed"), data_dir=str(built), download=True, fps=10)
    splits = {split: dataset.open(split) for split in ("train", "validation", "test")}
    assert [len(source) for source in splits.values()] == [17, 3, 3]
    seen = set()
    for source in splits.values():
        assert source.label_names == {"label": ("fall", "walk"), "acts": ("x", "y", "z"), "speed": ("speed",)}
        for i in range(len(source)):
            example = pickle.loads(pickle.dumps(source))[i]
            frames = decode_frames(example["video"], [5, 0])
            number = int(frames[1].mean()) // 10
            assert frames.shape == (2, 32, 24, 3) and abs(frames[0].astype(int) - 10 * number - 5).max() == 0
            assert example["labels"]["label"] == number % 2 and example["labels"]["speed"] == np.float32([number / 2])
            np.testing.assert_array_equal(example["labels"]["acts"], [[0, 0, 0], [1, 0, 0], [1, 0, 1]][number % 3])
            seen.add((source is splits["test"], number))
    assert len(seen) == 23
    assert set(TFDS(splits["train"].directory).open("test").label_names) == {"label"}
    data = Data(dataset, num_frames=2, frame_stride=1, image_size=(16, 16), batch_size=4, eval_batch_size=4)
    batch = next(iter(data.train_batches(splits["train"], 0, range(1))))
    assert batch["labels"]["acts"].shape == (4, 3) and batch["video"].shape == (4, 2, 16, 16, 3)
    for name, labels, message in (
        ("tiny_video", (), "TFDS knows no dataset tiny_video"),
        ("tiny_videos", ("title",), "has no label"),
        ("mnist", (), "is not in"),
    ):
        with pytest.raises(UserError, match=message):
            TFDS(name, labels, data_dir=str(built)).open("train")
