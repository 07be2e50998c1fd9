"""From encoded videos to batches: a `grain.MapDataset` from end to end.

Global batch k of a run is a pure function of (seed, k), whatever the number of threads, workers and processes; the
position in the data is the step, and resuming is slicing. A batch is

    {"video": uint8[b, t, h, w, 3], "labels": {name: int32[b] | float32[b, k]}, "weight": float32[b],
     "index": int32[b], "replaced": bool[b], "failed": int32[b], "decode_seconds": float32[b]}

with weight 0 for padding. The last two stay on the host: the number of the example that could not be read and was
replaced (-1 for none), and the processor time that an example took. In evaluation "video" has an axis of views after
the first.
"""

import dataclasses
import functools
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

import grain
import numpy as np
from absl import flags
from jaxtyping import Float, Int, UInt8

from vitx.configuration import free, register
from vitx.data import sampling
from vitx.data.augmentation import Augmentation
from vitx.data.decoding import VideoError, decode_frames
from vitx.data.sources import Dataset, Source, label_arrays
from vitx.errors import UserError

Batch = dict[str, Any]
ATTEMPTS = 20  # clips tried, one after the other, in the place of one that cannot be read


@register
@dataclasses.dataclass(frozen=True)
class Data:
    """How a dataset becomes batches.

    Attributes:
        dataset: where the clips come from.
        num_frames: frames of a clip.
        frame_stride: distance between them, in frames of the video.
        frame_rate: of a clip, in frames per second, in place of the stride; None takes the stride.
        temporal: "dense" frames, or one of each of num_frames equal "segments" of the video (TSN).
        image_size: (height, width) of a clip in pixels; frames are scaled to cover it and cropped.
        augmentation: what is varied in training.
        batch_size: clips of a training batch, over all devices and processes.
        eval_batch_size: videos of an evaluation batch, likewise.
        max_unreadable: share of the training videos that may be unreadable, and are replaced, before the run stops.
        eval_clips: clips of each video in evaluation, evenly spaced; their logits are averaged.
        eval_crops: crops of each of those clips: 1 is the centre; 3 are both ends and the centre of the longer side.
        num_threads: threads that decode, in each process.
        num_workers: worker processes; 0 decodes in threads of this one.
        prefetch_batches: batches made ahead.
    """

    dataset: Dataset
    num_frames: int = 32
    frame_stride: int = 2
    frame_rate: float | None = None
    temporal: Literal["dense", "segments"] = "dense"
    image_size: tuple[int, int] = (224, 224)
    augmentation: Augmentation = Augmentation()
    batch_size: int = 64
    eval_batch_size: int = free(64)
    max_unreadable: float = free(0.01)
    eval_clips: int = 1
    eval_crops: Literal[1, 3] = 1
    num_threads: int = free(2)
    num_workers: int = free(0)
    prefetch_batches: int = free(4)

    def __post_init__(self):
        for name in ("num_frames", "frame_stride", "batch_size", "eval_batch_size", "eval_clips", "num_threads"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected at least 1")
        if not 0 <= self.max_unreadable <= 1:
            raise ValueError(f"max_unreadable is {self.max_unreadable}; expected a share, 0 to 1")
        if self.frame_rate is not None and not self.frame_rate > 0:
            raise ValueError(f"frame_rate is {self.frame_rate}; expected frames per second, above 0, or None")
        if min(self.image_size) < 1 or self.num_workers < 0:
            raise ValueError(f"image_size is {self.image_size} and num_workers {self.num_workers}; neither can be")

    def for_devices(self, devices: int) -> "Data":
        """Returns these settings with an evaluation batch that divides over the devices; padding fills it."""
        return dataclasses.replace(self, eval_batch_size=-(-self.eval_batch_size // devices) * devices)

    def train_batches(
        self, source: Source, seed: int, steps: range, *, process: int = 0, processes: int = 1
    ) -> Iterator[Batch]:
        """Yields this process's rows of the global batches with numbers in `steps`, in order."""
        rows = self.batch_size // processes
        examples = _Shuffled(self, source, seed, self.batch_size, process * rows, rows)
        return self._read(examples, steps.start * rows, steps.stop * rows, rows)

    def eval_batches(self, source: Source, *, process: int = 0, processes: int = 1) -> Iterator[Batch]:
        """Yields this process's rows of every example once, in order; the last batch is padded with weight 0."""
        rows = self.eval_batch_size // processes
        examples = _InOrder(self, source, self.eval_batch_size, process * rows, rows)
        return self._read(examples, 0, self.num_eval_batches(source) * rows, rows)

    def num_eval_batches(self, source: Source) -> int:
        """Returns how many evaluation batches cover the source: the same number in every process."""
        return -(-len(source) // self.eval_batch_size)

    @property
    def views(self) -> str:
        """Clips x crops of each video in evaluation."""
        return f"{self.eval_clips}x{self.eval_crops}"

    def views_of(self, example: Mapping[str, Any]) -> UInt8[np.ndarray, "views frames height width 3"]:
        """Returns the clips that evaluation looks at."""
        starts = (np.arange(self.eval_clips) + 0.5) / self.eval_clips
        places = (0.5,) if self.eval_crops == 1 else (0.0, 0.5, 1.0)
        return np.stack([self.clip(example, float(start), place=place) for start in starts for place in places])

    def clip(
        self, example: Mapping[str, Any], start: float, rng: np.random.Generator | None = None, place: float = 0.5
    ) -> UInt8[np.ndarray, "frames height width 3"]:
        """Decodes one clip of the set frames and size.

        Args:
            example: of a source.
            start: in [0, 1] as in `sampling.dense`.
            rng: what the augmentation of training draws from; None varies nothing.
            place: of the crop along the longer side, where nothing is varied: 0 is the left or top end, 1 the other.

        Raises:
            VideoError: the video, or the segment of it that the example is, cannot be read.
        """

        def choose(times: Float[np.ndarray, " frames"]) -> Int[np.ndarray, " clip"]:
            there = sampling.within(times, *example.get("segment", (0.0, np.inf)))
            if not len(there):
                raise VideoError(f"it ends after {times[-1]:.1f} s, before the segment {example['segment']} begins")
            if self.temporal == "segments":
                places = start if rng is None else rng.uniform(size=self.num_frames)
                return there[sampling.segments(len(there), self.num_frames, places)]
            if self.frame_rate is not None:
                return there[sampling.at_rate(times[there], self.num_frames, self.frame_rate, start)]
            return there[sampling.dense(len(there), self.num_frames, self.frame_stride, start)]

        if rng is None:
            slid = functools.partial(sampling.slid_box, size=self.image_size, place=place)
            return decode_frames(example["video"], choose, size=self.image_size, box=slid)
        box = functools.partial(self.augmentation.box, rng, size=self.image_size)
        return self.augmentation.vary(rng, decode_frames(example["video"], choose, size=self.image_size, box=box))

    def problem(self, source: Source, index: int) -> str:
        """Returns why an example cannot be read, by reading it again."""
        try:
            for start in (0.0, 0.5, 1.0):
                self.clip(source[index], start)
        except VideoError as error:
            return f"number {index}: {error}"
        return f"number {index}: it can be read now"

    def _read(self, examples: Any, start: int, stop: int, rows: int) -> Iterator[Batch]:
        dataset = grain.MapDataset.range(start, stop).map(examples).batch(rows)
        ahead = max(self.prefetch_batches, 1)
        if not self.num_workers:
            options = grain.ReadOptions(num_threads=min(self.num_threads, ahead), prefetch_buffer_size=ahead)
            return iter(dataset.to_iter_dataset(options))
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()  # grain's workers read absl's flags
        workers = grain.MultiprocessingOptions(self.num_workers, per_worker_buffer_size=ahead)
        options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=1)
        return iter(dataset.to_iter_dataset(options).mp_prefetch(workers))


@dataclasses.dataclass(frozen=True)
class _InOrder:
    """Maps a process's row number to an evaluation example: all its views, nothing replaced."""

    data: Data
    source: Source
    batch_size: int
    first_row: int
    rows: int

    def __call__(self, row: int) -> Batch:
        batch, offset = divmod(int(row), self.rows)
        index = batch * self.batch_size + self.first_row + offset
        if index >= len(self.source):
            return _blank(self.data, self.source, index)
        return _load(self.source, index, self.data.views_of) or _blank(self.data, self.source, index)


@dataclasses.dataclass(frozen=True)
class _Shuffled:
    """Maps a process's row number to a training example: each once an epoch, in an order drawn from the seed."""

    data: Data
    source: Source
    seed: int
    batch_size: int
    first_row: int
    rows: int

    def __call__(self, row: int) -> Batch:
        batch, offset = divmod(int(row), self.rows)
        size = len(self.source)
        epoch, place = divmod(batch * self.batch_size + self.first_row + offset, size)
        index = int(_permutation(self.seed, epoch, size)[place])
        for attempt in range(ATTEMPTS):
            chosen = (index + attempt) % size
            rng = np.random.default_rng((self.seed, epoch, chosen))
            if example := _load(self.source, chosen, functools.partial(self.data.clip, start=rng.uniform(), rng=rng)):
                return example | {"replaced": np.bool_(attempt > 0), "failed": np.int32(index if attempt else -1)}
        raise UserError(
            f"{ATTEMPTS} clips in a row cannot be read, from number {index} of {size}; the data is damaged or not video"
        )


def _load(source: Source, index: int, decode: Callable[[Mapping[str, Any]], np.ndarray]) -> Batch | None:
    began = time.thread_time()
    try:
        example = source[index]
        video = decode(example)
    except VideoError:
        return None
    return {
        "video": video,
        "labels": label_arrays(example),
        "weight": np.float32(1),
        "index": np.int32(index),
        "replaced": np.bool_(False),
        "failed": np.int32(-1),
        "decode_seconds": np.float32(time.thread_time() - began),
    }


def _blank(data: Data, source: Source, index: int) -> Batch:
    return {
        "video": np.zeros((data.eval_clips * data.eval_crops, data.num_frames, *data.image_size, 3), np.uint8),
        "labels": {name: np.zeros_like(label) for name, label in label_arrays(source[0]).items()},
        "weight": np.float32(0),
        "index": np.int32(index),
        "replaced": np.bool_(True),
        "failed": np.int32(index),
        "decode_seconds": np.float32(0),
    }


@functools.lru_cache(maxsize=4)
def _permutation(seed: int, epoch: int, size: int) -> np.ndarray:
    return np.random.default_rng((seed, epoch)).permutation(size)
