"""Moving MNIST (Srivastava et al. 2015, arXiv:1502.04681) as TFDS prepares it: 10,000 sequences of 20 grey frames.

TFDS's videos need TensorFlow (the extra `tf`), which is imported when a split is opened and not before.
"""

import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import ClassVar

import numpy as np

from vitx.configuration import register, setting
from vitx.data.encoding import encode_video
from vitx.data.sources import check_split
from vitx.errors import UserError

PREPARE = "pip install 'vitx[tf]' && tfds build moving_mnist --file_format=array_record"


@dataclass(frozen=True)
class Sequences:
    """Random access to some of the sequences.

    Example i is {"video": a losslessly encoded file of frames of 64 x 64 pixels, "labels": {}}.

    Attributes:
        directory: TFDS's folder of this version of the dataset.
        part: TFDS's name of the sequences, such as "test[:8000]".
    """

    directory: str
    part: str

    label_names: ClassVar[dict[str, tuple[str, ...]]] = {}

    @cached_property
    def _records(self):
        import tensorflow_datasets as tfds

        return tfds.builder_from_directory(self.directory).as_data_source(self.part)

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> dict[str, bytes | dict]:
        grey = np.asarray(self._records[index]["image_sequence"])
        # A file like any other dataset's, so that one reader serves all; PNG keeps every pixel.
        frames = np.broadcast_to(grey, (*grey.shape[:3], 3))
        return {"video": encode_video(frames, codec="png", pixel_format="rgb24"), "labels": {}}

    def __getstate__(self) -> dict[str, str]:
        return {"directory": self.directory, "part": self.part}


@register
@dataclass(frozen=True)
class MovingMNIST:
    """TFDS's `moving_mnist`, whose only split is the test set of the published tables; nothing is downloaded.

    Training takes one part of it, validation and test take others. Published numbers are of all 10,000 sequences after
    training on other data: to compare with them, evaluate a model that never saw these with `--data.dataset.test test`.

    Attributes:
        train: TFDS's name of the training part.
        validation: TFDS's name of the validation part.
        test: TFDS's name of the test part.
        data_dir: folder in which TFDS prepared it; None is TFDS's own (TFDS_DATA_DIR, ~/tensorflow_datasets).
    """

    train: str = "test[:8000]"
    validation: str = "test[8000:9000]"
    test: str = "test[9000:]"
    data_dir: str | None = setting(None, mutable_on_resume=True, is_path=True)

    def open(self, split: str) -> Sequences:
        """Returns the sequences of "train", "validation" or "test".

        Raises:
            UserError: the dataset is missing, is stored without random access, or lacks the part; or TensorFlow is
                missing.
        """
        check_split(split)
        import tensorflow_datasets as tfds

        root = Path(self.data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()
        versions = sorted(path.parent for path in root.glob("moving_mnist/*/dataset_info.json"))
        if not versions:
            raise UserError(
                f"there is no moving_mnist in {root}; prepare it once with `{PREPARE}`, or set data.dataset.data_dir"
            )
        try:
            builder = tfds.builder_from_directory(versions[-1])
        except ModuleNotFoundError as error:
            raise UserError(f"reading moving_mnist needs TensorFlow (pip install 'vitx[tf]'): {error}") from error
        if builder.info.file_format.value != "array_record":
            raise UserError(
                f"{versions[-1]} is stored as {builder.info.file_format.value}, which has no random access; prepare it "
                f"again with `{PREPARE}`"
            )
        part = getattr(self, split)
        try:
            size = builder.info.splits[part].num_examples
        except (KeyError, ValueError) as error:
            raise UserError(f"data.dataset.{split} is {part!r}, which moving_mnist does not have: {error}") from error
        if not size:
            raise UserError(f"data.dataset.{split} is {part!r}, which has no sequences; expected at least one")
        return Sequences(str(versions[-1]), part)
