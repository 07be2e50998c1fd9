"""Datasets of TFDS (tensorflow_datasets) that have a `Video` feature, such as ucf101, read at random."""

import dataclasses
import importlib.util
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from vitx.configuration import mutable_on_resume, register, setting
from vitx.data.encoding import mux_images
from vitx.data.sources import Source, check_split
from vitx.errors import UserError


@dataclasses.dataclass(frozen=True)
class TFDSVideos:
    """Random access to the records of one split. Files are opened at the first read, in each process.

    Attributes:
        directory: TFDS's folder of this version of the dataset.
        split: TFDS's name of a split or of a part of one, such as "train" or "train[:1000]".
        video: feature with the frames.
        label_names: {feature: names of its classes, or of its value}.
        fps: frames per second, which TFDS does not store.
    """

    directory: str
    split: str
    video: str
    label_names: Mapping[str, tuple[str, ...]]
    fps: int

    @cached_property
    def _records(self) -> tuple[Any, Any]:
        from tensorflow_datasets.core.example_parser import ExampleParserNp

        # TFDS's own data source decodes every frame of an example; its parser leaves images encoded.
        builder = _import_tfds().builder_from_directory(self.directory)
        source = builder.as_data_source(self.split)
        return source.data_source, ExampleParserNp(builder.info.features.get_serialized_info())

    def __len__(self) -> int:
        return len(self._records[0])

    def name(self, index: int) -> str:
        """Returns the name of an example in messages."""
        return f"{self.directory} {self.split} {index}"

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        records, parser = self._records
        # Images stay encoded: only those of the clip are decoded, when it is read.
        example = parser.parse_example(records[index])
        labels = {name: self._to_label(name, example[name]) for name in self.label_names}
        return {"video": mux_images(list(example[self.video]), fps=self.fps), "labels": labels}

    def __getstate__(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    def _to_label(self, name: str, value: Any) -> Any:
        value = np.asarray(value)
        if value.dtype.kind == "f":
            return value.astype(np.float32).reshape(1)
        if value.ndim:
            return np.isin(np.arange(len(self.label_names[name])), value).astype(np.float32)
        return int(value)


@register
@dataclasses.dataclass(frozen=True)
class TFDS:
    """A dataset of TFDS with a `Video` feature (needs TensorFlow: `pip install 'vitx[tf]'`).

    A split that the dataset lacks is the end of its training records, which TFDS has shuffled.

    Attributes:
        name: name of the dataset, such as "ucf101" or "ucf101/ucf101_2", or the folder of one that TFDS has built.
        labels: features that are labels: a class, several classes, or one number; () takes all that are classes.
        data_dir: TFDS's folder of datasets; None is its default (TFDS_DATA_DIR, ~/tensorflow_datasets).
        download: download and build the dataset where it is missing.
        fps: assumed frames per second of the videos; TFDS does not store them.
        validation: fraction of the videos held out for validation where the dataset has no such split.
        test: fraction of the videos held out for the test where the dataset has no such split.
    """

    name: str
    labels: tuple[str, ...] = ()
    data_dir: str | None = setting(None, mutable_on_resume=True, is_path=True)
    download: bool = mutable_on_resume(False)
    fps: int = 25
    validation: float = 0.15
    test: float = 0.15

    def __post_init__(self):
        if min(self.validation, self.test) < 0 or self.validation + self.test >= 1:
            raise ValueError(f"validation is {self.validation} and test {self.test}; expected fractions below 1 in all")
        if self.fps < 1:
            raise ValueError(f"fps is {self.fps}; expected at least 1")

    def open(self, split: str) -> Source:
        """Returns the videos of a split.

        Raises:
            UserError: the dataset does not exist, is not built, is built in another format, or has no videos.
        """
        check_split(split)
        tfds = _import_tfds()
        builder = self._open_builder(tfds)
        features = dict(builder.info.features)
        videos = [name for name, feature in features.items() if isinstance(feature, tfds.features.Video)]
        classes = {name: _list_names(tfds, name, feature) for name, feature in features.items()}
        if not videos:
            raise UserError(f"{self.name} has no Video feature; it has {', '.join(features)}")
        labels = self.labels or tuple(
            name for name, names in classes.items() if names and isinstance(features[name], tfds.features.ClassLabel)
        )
        if wrong := [name for name in labels if not classes.get(name)] or not labels:
            raise UserError(f"{self.name} has no label {wrong} (data.dataset.labels); it has {', '.join(features)}")
        if builder.info.file_format.value != "array_record":
            raise UserError(
                f"{self.name} in {builder.data_path} is built as {builder.info.file_format.value}, which is not "
                f"read at random; build it again: {self._build_command(builder)}"
            )
        names = {label: classes[label] for label in labels}
        return TFDSVideos(str(builder.data_path), self._choose_slice(builder, split), videos[0], names, self.fps)

    def _open_builder(self, tfds: Any) -> Any:
        if (Path(self.name) / "dataset_info.json").is_file():
            return tfds.builder_from_directory(self.name)
        try:
            builder = tfds.builder(self.name, data_dir=self.data_dir, file_format="array_record")
        except (tfds.core.registered.DatasetNotFoundError, ValueError) as error:
            raise UserError(f"TFDS knows no dataset {self.name}: {str(error).splitlines()[0]}") from error
        if not builder.is_prepared():
            if not self.download:
                raise UserError(
                    f"{self.name} is not in {builder.data_path}; download and build it: {self._build_command(builder)} "
                    "(or set data.dataset.download to True)"
                )
            builder.download_and_prepare()
        return builder

    def _build_command(self, builder: Any) -> str:
        return f"tfds build {self.name} --file_format array_record --data_dir {builder.data_dir_root}"

    def _choose_slice(self, builder: Any, split: str) -> str:
        splits = builder.info.splits
        if "train" not in splits:
            raise UserError(f"{self.name} has no train split; it has {', '.join(splits)}")
        stop = splits["train"].num_examples
        ends = {"train": stop}
        # Missing splits are the end of the training split: TFDS shuffles records when it builds a dataset.
        for name, fraction in (("test", self.test), ("validation", self.validation)):
            if name not in splits:
                ends[name], ends["train"] = ends["train"], ends["train"] - round(fraction * stop)
        if split in splits and split != "train":
            return split
        begin = 0 if split == "train" else ends["validation" if split == "test" and "validation" in ends else "train"]
        if begin == ends[split]:
            raise UserError(f"{self.name} leaves none of its {stop} videos for the {split} split")
        return f"train[{begin}:{ends[split]}]"


def _list_names(tfds: Any, name: str, feature: Any) -> tuple[str, ...]:
    """Returns the names of a feature's classes or of its value, or () where it cannot be a label."""
    inner = feature.feature if isinstance(feature, tfds.features.Sequence) else feature
    if isinstance(inner, tfds.features.ClassLabel):
        return tuple(inner.names)
    is_number = isinstance(feature, tfds.features.Scalar | tfds.features.Tensor) and feature.shape == ()
    return (name,) if is_number and np.dtype(feature.np_dtype).kind == "f" else ()


def _import_tfds() -> Any:
    if importlib.util.find_spec("tensorflow") is None:
        raise UserError("TFDS needs TensorFlow for its Video features: pip install 'vitx[tf]'")
    import tensorflow_datasets  # takes seconds, and nothing else needs it

    return tensorflow_datasets
