"""Moving MNIST from a small build that TFDS stores alike: lossless frames, parts, and what is missing."""

import io
import pickle

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

import vitx
from vitx.data.moving_mnist import MovingMNIST
from vitx.data.pipeline import Data
from vitx.models.forecaster import NextFrameForecaster
from vitx.run import train
from vitx.tasks.frame_prediction import FramePrediction
from vitx.training.logs import read_metrics

PARTS = {"train": "test[:8]", "validation": "test[8:10]", "test": "test[10:]"}


def sequence(index):
    frames = np.zeros((20, 64, 64, 1), np.uint8)
    for t in range(20):
        frames[t, index : index + 20, t : t + 20] = np.random.default_rng(index).integers(0, 256, (20, 20, 1))
    return frames


def png(frame):
    file = io.BytesIO()
    Image.fromarray(frame[..., 0]).save(file, "PNG")
    file.seek(0)
    return file


class MovingMnist(tfds.core.GeneratorBasedBuilder):
    """A dozen sequences, stored as TFDS's own are: its Video is a Sequence of PNG images that wants TensorFlow."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        image = tfds.features.Image(shape=(64, 64, 1), encoding_format="png")
        video = tfds.features.Sequence(image, length=20)
        return self.dataset_info_from_configs(features=tfds.features.FeaturesDict({"image_sequence": video}))

    def _split_generators(self, dl_manager):
        return {"test": ((i, {"image_sequence": [png(frame) for frame in sequence(i)]}) for i in range(12))}

    def _generate_examples(self):
        raise NotImplementedError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("tfds")
    MovingMnist(data_dir=path, file_format="array_record").download_and_prepare()
    return str(path)


def test_frames_are_lossless_and_parts_are_disjoint(folder):
    data = Data(MovingMNIST(**PARTS, data_dir=folder), num_frames=20, frame_stride=1, image_size=(64, 64))
    found = []
    for split, size in (("train", 8), ("validation", 2), ("test", 2)):
        source = pickle.loads(pickle.dumps(data.dataset.open(split)))
        assert len(source) == size and source[0]["labels"] == {}
        found += [data.read_clip(source[i], 0.5) for i in range(size)]
    wanted = {sequence(i).tobytes() for i in range(12)}
    assert {clip[..., :1].tobytes() for clip in found} == wanted
    assert all((clip == clip[..., :1]).all() for clip in found)


def test_a_forecaster_trains_on_it(folder, small, tmp_path):
    model = NextFrameForecaster(widths=(2,), input_kernel=1, state_kernel=1, patch=16, horizon=10)
    changes = {"data.dataset": MovingMNIST(**PARTS, data_dir=folder), "data.num_frames": 20, "training.steps": 1}
    changes |= {"data.image_size": (64, 64), "model": model, "task": FramePrediction()}
    train(small.override(changes), tmp_path / "run")
    (test,) = (row for row in read_metrics(tmp_path / "run") if row["split"] == "test")
    assert test["examples"] == 2 and test["mse/copy"] > 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"data_dir": "nowhere"}, "there is no moving_mnist in nowhere"),
        ({"train": "train"}, "data.dataset.train is 'train', which moving_mnist does not have"),
        ({"train": "test[12:]"}, "data.dataset.train is 'test[12:]', which has no sequences"),
    ],
)
def test_missing_data_and_parts_are_named(folder, settings, message):
    with pytest.raises(vitx.UserError) as error:
        MovingMNIST(**{"data_dir": folder, **settings}).open("train")
    assert message in str(error.value)
