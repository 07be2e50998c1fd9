"""Moving Digits as a TFDS dataset: built once, in parallel, safely; read at random, without TensorFlow."""

import contextlib
import io
import itertools
import os
import pickle
import subprocess
import sys
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import filelock
import numpy as np
import tensorflow_datasets as tfds
from absl import logging

from vitx.console import print_text, progress_bar
from vitx.data.moving_digits import APPEARANCES, CONFIGS, DIGITS, MOTIONS, ClipConfig, encode_clip
from vitx.data.sources import check_split
from vitx.errors import UserError

CLIPS_PER_WORKER = 1000  # for fewer clips, starting another process takes longer than it saves


@dataclass(eq=False)
class MovingDigitsConfig(tfds.core.BuilderConfig):
    """A named configuration of the dataset."""

    clips: ClipConfig = ClipConfig()


class MovingDigitsBuilder(tfds.core.GeneratorBasedBuilder):
    """TFDS builder; `load` builds and opens the dataset in one call."""

    name: ClassVar[str] = "moving_digits"
    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS: ClassVar[list[MovingDigitsConfig]] = [
        MovingDigitsConfig(name=name, clips=clips) for name, clips in CONFIGS.items()
    ]

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=(
                "Short all-intra H.264 videos of the 1,797 handwritten digits of scikit-learn's load_digits (UCI "
                "Optical Recognition of Handwritten Digits), moving on a torus in eight ways. load_digits is ordered "
                "by writer: the splits are contiguous blocks of it, so that they hardly share writers; a random "
                "split would."
            ),
            features=tfds.features.FeaturesDict(
                {
                    "video": tfds.features.Tensor(shape=(), dtype=np.object_),
                    "appearance": tfds.features.ClassLabel(names=APPEARANCES),
                    "motion": tfds.features.ClassLabel(names=MOTIONS),
                    "index": np.int64,
                }
            ),
            # Record i is clip i.
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator]:
        num_clips = dict(zip(DIGITS, self.builder_config.clips.num_clips, strict=True))
        clips = [(split, index) for split in DIGITS for index in range(num_clips[split])]
        # TFDS writes one split after the other: they share the stream of records.
        records = _encode_clips(self.builder_config.clips, clips)
        return {split: self._generate_examples(split, records, num_clips[split]) for split in DIGITS}

    def _generate_examples(self, split: str, records: Iterator[dict], num_clips: int) -> Iterator[tuple[int, dict]]:
        with progress_bar(desc=split, total=num_clips) as progress:
            for index, record in enumerate(itertools.islice(records, num_clips)):
                yield index, record
                progress.update()


def _encode_clips(config: ClipConfig, clips: list[tuple[str, int]]) -> Iterator[dict[str, bytes | int]]:
    """Yields the records of (split, index) pairs in order, encoded by as many processes as pay for their start.

    Processes, because a clip is many steps too short for threads to take turns at. Plain pipes in place of
    `concurrent.futures`: spawned workers of a `ProcessPoolExecutor` (Python 3.11 to 3.14) import the caller's script
    again, which starts the training once more where it has no `if __name__ == "__main__"`, and live on when the caller
    is killed, since each holds both ends of the queue. These import this module alone and end with their reader.
    """
    num_workers = min(os.cpu_count() or 1, 1 + len(clips) // CLIPS_PER_WORKER)
    if num_workers == 1:
        yield from (encode_clip(config, split, index) for split, index in clips)
        return
    command = [sys.executable, "-c", f"from {__name__} import serve_clips; serve_clips()"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with contextlib.ExitStack() as stack:
        workers = []
        for first in range(num_workers):
            worker = subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            stack.enter_context(worker)
            stack.callback(worker.terminate)
            pickle.dump((config, clips[first::num_workers]), worker.stdin)
            worker.stdin.flush()
            workers.append(worker)
        for i in range(len(clips)):
            yield pickle.load(workers[i % num_workers].stdout)


def serve_clips() -> None:
    """Runs a worker of `_encode_clips`: reads its clips from standard input and writes records to standard output."""
    config, clips = pickle.load(sys.stdin.buffer)
    # A worker whose reader is gone ends in silence.
    with contextlib.suppress(BrokenPipeError):
        for split, index in clips:
            pickle.dump(encode_clip(config, split, index), sys.stdout.buffer)
            sys.stdout.buffer.flush()


@dataclass(frozen=True)
class DigitClips:
    """Random access to the clips of one split.

    Example i is `{"video": mp4 bytes, "labels": {"appearance": int, "motion": int}}`, which is clip i of `render_clip`.
    Files are opened at the first read, in each process: a fresh or unpickled source costs nothing.

    Attributes:
        directory: TFDS's folder of this version of the dataset.
        split: "train", "validation" or "test".
    """

    directory: str
    split: str

    label_names: ClassVar[dict[str, tuple[str, ...]]] = {"appearance": APPEARANCES, "motion": MOTIONS}

    @cached_property
    def _records(self) -> Sequence[dict]:
        return tfds.builder_from_directory(self.directory).as_data_source(self.split)

    def __len__(self) -> int:
        return len(self._records)

    def name(self, index: int) -> str:
        """Returns the name of a clip."""
        return f"moving digits, {self.split}, clip {index}"

    def __getitem__(self, index: int) -> dict[str, bytes | dict[str, int]]:
        record = self._records[index]
        return {
            "video": record["video"],
            "labels": {name: int(record[name]) for name in self.label_names},
        }

    def __getstate__(self) -> dict[str, str]:
        return {"directory": self.directory, "split": self.split}


def load(
    split: str, clips: ClipConfig = CONFIGS["standard"], *, data_dir: str | os.PathLike | None = None
) -> DigitClips:
    """Opens a split of Moving Digits; builds the dataset first where it is missing.

    Safe to call from several processes at once: one builds, the others wait. A build that was cut short starts anew.
    Never touches the network.

    Args:
        split: "train", "validation" or "test".
        clips: one of `CONFIGS`, or other settings, which get a name that is a hash of them.
        data_dir: TFDS's folder of datasets; None is TFDS_DATA_DIR, or else TFDS's own default.

    Raises:
        UserError: the split is unknown, or the folder cannot be written.
    """
    check_split(split)
    return DigitClips(build(clips, data_dir=data_dir).data_dir, split)


def config_of(clips: ClipConfig) -> MovingDigitsConfig:
    """Returns the named configuration with these settings, or one whose name is a hash of them."""
    custom = MovingDigitsConfig(name=f"custom_{zlib.crc32(repr(clips).encode()):08x}", clips=clips)
    return next((config for config in MovingDigitsBuilder.BUILDER_CONFIGS if config.clips == clips), custom)


def build(clips: ClipConfig, *, data_dir: str | os.PathLike | None = None) -> MovingDigitsBuilder:
    """Returns the prepared TFDS builder; see `load`."""
    config = config_of(clips)
    with _silence_tfds():
        builder = MovingDigitsBuilder(config=config, data_dir=data_dir, file_format="array_record")
        if not builder.data_path.exists():
            try:
                builder.data_dir_root.mkdir(parents=True, exist_ok=True)
                with _wait_for_lock(builder.data_dir_root / f"{builder.name}.{config.name}.lock"):
                    for leftover in builder.data_path.parent.glob("incomplete.*"):
                        leftover.rmtree()
                    if not builder.data_path.exists():
                        print_text(f"building {builder.name}/{config.name} in {builder.data_dir_root}", error=True)
                    builder.download_and_prepare()
            except OSError as error:
                raise UserError(
                    f"{builder.name} cannot be built in {builder.data_dir_root}: {error.strerror or error}; "
                    "free some space there, or set data.dataset.data_dir (or TFDS_DATA_DIR) to another folder"
                ) from error
            # Reopened: where another process has built the dataset meanwhile, this builder lacks its splits.
            builder = MovingDigitsBuilder(config=config, data_dir=data_dir, file_format="array_record")
    return builder


@contextlib.contextmanager
def _silence_tfds() -> Iterator[None]:
    """Keeps TFDS from announcing itself on stdout, from drawing its own bars and from logging."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    tfds.disable_progress_bar()
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        tfds.enable_progress_bar()
        logging.set_verbosity(verbosity)


@contextlib.contextmanager
def _wait_for_lock(path: os.PathLike) -> Iterator[None]:
    lock = filelock.FileLock(path)
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        print_text(f"waiting for another process that is building this dataset ({path})", error=True)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()
