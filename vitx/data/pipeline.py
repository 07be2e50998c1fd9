"""From encoded videos to batches: a `grain.MapDataset` from end to end.

Global batch k of a run is a pure function of (seed, k), whatever the number of threads, workers and processes; the
position in the data is the step, and resuming is slicing. A batch is

    {"video": uint8[b, t, h, w, c], "labels": {name: int32[b] | float32[b, k]}, "weight": float32[b],
     "index": int32[b], "unreadable_index": int32[b], "error": uint8[b, 256], "decode_seconds": float32[b]}

with weight 0 for padding. "unreadable_index" is that of the example that could not be read (-1: none), "error" has the
reason (`decode_error`). In training another example replaces it; in evaluation the row has weight 0. "decode_seconds",
the processor time of an example, stays on the host. In evaluation "video" has an axis of views after the first, and
"views": int32[b] counts those that a video has; the others are zeros.

Letters in shapes: b batch, v views, t frames of a clip, h height, w width, c channels: RGB and, with `motion`, motion.
"""

import contextlib
import dataclasses
import functools
import math
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, Int, UInt8

from vitx.configuration import mutable_on_resume, register, setting
from vitx.data import sampling
from vitx.data.augmentation import Augmentation
from vitx.data.batches import Batch, read_batches
from vitx.data.container import DEFAULT_OPTIONS, MAX_SECONDS, ReadOptions, VideoSource
from vitx.data.decoding import Decoder, VideoError, open_video
from vitx.data.labels import check_example
from vitx.data.order import Order, class_weights
from vitx.data.pyav_video import PyAVVideo
from vitx.data.sources import Dataset, Source, example_name, label_arrays, label_columns
from vitx.errors import UserError
from vitx.limits import check_memory

Times = Float[np.ndarray, " frames"]  # the time of every frame of a video in seconds
FrameNumbers = Int[np.ndarray, " s"]  # numbers of the frames that an example may use
MAX_BUFFER = 2**30  # bytes of an evaluation batch, and of the prefetched batches, unless one video needs more
MAX_ATTEMPTS = 20  # clips in a row that are tried in place of one that cannot be read
HOST_ENTRIES = ("decode_seconds",)  # entries of a batch that never reach the devices
ERROR_BYTES = 256  # length of the message that travels with an example: arrays of a batch have one shape


@register
@dataclasses.dataclass(frozen=True)
class Data:
    """Settings that turn a dataset into batches.

    Attributes:
        dataset: dataset of the clips.
        num_frames: frames of a clip; None takes the model's.
        frame_stride: distance between neighbouring frames of a clip, in frames of the video.
        frame_rate: frames per second of a clip, an alternative to the stride; None takes the stride.
        stride_jitter: greatest deviation from 1 of the factor of the stride (or the rate) in training.
        temporal: frames of a clip: "dense" neighbours; one of each of num_frames equal "segments" of the video (TSN);
            or "uniform", evenly spread from its first frame to its last.
        short_videos: what fills a clip that is longer than its video: the video again ("loop"), or its last frame
            ("pad").
        image_size: (height, width) of a clip in pixels; frames are scaled to cover it and cropped; None
            takes the model's.
        augmentation: random changes of the clips in training.
        num_repeats: clips of each example in a training batch, each with its own augmentation (Hoffer et al. 2020).
        class_power: exponent of resampling: a class of n examples is drawn in proportion to n to this power. 1 leaves
            classes as frequent as they are, 0.5 is square-root resampling, 0 draws all equally often (Kang et al.
            2020). An epoch always has as many draws as the source has examples.
        class_label: label whose classes are resampled, where the data has several labels.
        batch_size: clips of a training batch, over all devices and processes.
        eval_batch_size: videos of an evaluation batch, over all devices and processes, rounded up to a multiple of the
            devices; fewer if their views exceed MAX_BUFFER. Results do not depend on it.
        max_unreadable: greatest fraction of the training videos that may be unreadable, and are replaced; above it the
            run stops.
        eval_clips: evenly spaced clips of each video in evaluation; "all" takes as many as cover the video.
        max_eval_clips: greatest number of clips that "all" takes.
        eval_crops: crops of each of those clips: 1 is the centre; 3 are both ends and the centre of the longer side.
        eval_size: (height, width) of the crops in pixels; None takes image_size. A model without positions may be
            evaluated on larger clips than it is trained on.
        eval_short_side: length in pixels that the shorter side of frames is scaled to before crops are cut out; None
            scales frames to cover a crop, and so does a length that is less than its shorter side.
        reading: which stream of a file is read, whether its pixels become square, and whether damaged frames are
            accepted or make a video unreadable.
        motion: whether clips have a fourth channel, the motion that the codec has measured
            (docs/fewer_tokens.md#codec-tokens); None takes what the model needs.
        decoder: library that decodes; torchcodec is a package of its own (`pip install torchcodec`).
        num_threads: decoding threads of each process.
        num_workers: worker processes; 0 decodes in threads of this process.
        prefetch_batches: batches that are prepared before they are asked for.
    """

    dataset: Dataset
    num_frames: int | None = None
    frame_stride: int = 2
    frame_rate: float | None = None
    stride_jitter: float = setting(0.0, training_only=True)
    temporal: Literal["dense", "segments", "uniform"] = "dense"
    short_videos: sampling.Short = "loop"
    image_size: tuple[int, int] | None = None
    augmentation: Augmentation = setting(Augmentation(), training_only=True)
    num_repeats: int = setting(1, training_only=True)
    class_power: float = setting(1.0, training_only=True)
    class_label: str | None = setting(None, training_only=True)
    batch_size: int = setting(64, training_only=True)
    eval_batch_size: int = mutable_on_resume(64)
    max_unreadable: float = setting(0.01, mutable_on_resume=True, training_only=True)
    eval_clips: int | Literal["all"] = 1
    max_eval_clips: int = 30
    eval_crops: Literal[1, 3] = 1
    eval_size: tuple[int, int] | None = None
    eval_short_side: int | None = None
    reading: ReadOptions = DEFAULT_OPTIONS
    motion: bool | None = None
    decoder: Decoder = "pyav"
    num_threads: int = mutable_on_resume(2)
    num_workers: int = mutable_on_resume(0)
    prefetch_batches: int = mutable_on_resume(4)

    def __post_init__(self):
        bounds = {"num_frames": 1, "frame_stride": 1, "batch_size": 1, "eval_batch_size": 1, "max_eval_clips": 1}
        bounds |= {"num_repeats": 1, "num_threads": 1, "num_workers": 0, "eval_short_side": 1}
        bounds |= {} if self.eval_clips == "all" else {"eval_clips": 1}
        for name, bound in bounds.items():
            if getattr(self, name) is not None and getattr(self, name) < bound:
                raise ValueError(f"{name} is {getattr(self, name)}; expected at least {bound}")
        if self.eval_clips != 1 and self.temporal == "uniform":
            raise ValueError(
                f"eval_clips is {self.eval_clips} with temporal 'uniform', whose one clip spans the video; expected 1"
            )
        if self.eval_clips == "all" and self.temporal != "dense":
            raise ValueError(
                f"eval_clips is 'all' with temporal {self.temporal!r}; expected a number, or temporal 'dense'"
            )
        if self.batch_size % self.num_repeats:
            raise ValueError(f"batch_size is {self.batch_size}; expected a multiple of num_repeats, {self.num_repeats}")
        if not 0 <= self.class_power <= 1:
            raise ValueError(f"class_power is {self.class_power}; expected 0 to 1")
        if not 0 <= self.stride_jitter < 1:
            raise ValueError(f"stride_jitter is {self.stride_jitter}; expected a fraction, 0 to below 1")
        if not 0 <= self.max_unreadable <= 1:
            raise ValueError(f"max_unreadable is {self.max_unreadable}; expected a fraction, 0 to 1")
        if self.frame_rate is not None and not self.frame_rate > 0:
            raise ValueError(f"frame_rate is {self.frame_rate}; expected frames per second, above 0, or None")
        for name in ("image_size", "eval_size"):
            if min(getattr(self, name) or (1,)) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected at least 1 pixel, or None")
        if self.motion and self.decoder != "pyav":
            raise ValueError(
                f"decoder is {self.decoder!r} with motion True, which only PyAV's decoders export; set data.decoder to "
                "'pyav'"
            )

    @property
    def channels(self) -> int:
        """Channels of a clip."""
        return 4 if self.motion else 3

    def for_devices(self, num_devices: int) -> "Data":
        """Returns these settings with an evaluation batch that divides over the devices; padding fills it.

        Videos of many views make it smaller than `eval_batch_size`: at most MAX_BUFFER bytes of pixels, or one video
        for each device.
        """
        size = min(self.eval_batch_size, max(MAX_BUFFER // self._bytes_per_video, 1))
        return dataclasses.replace(self, eval_batch_size=-(-size // num_devices) * num_devices)

    def train_batches(
        self, source: Source, seed: int, steps: range, *, process: int = 0, processes: int = 1
    ) -> Iterator[Batch]:
        """Yields this process's rows of the global batches with numbers in `steps`, in order.

        Raises:
            UserError: settings name labels or classes that the source lacks.
        """
        self.augmentation.check(source.label_names)
        rows = self.batch_size // processes
        self._check_memory(rows, "data.batch_size", 1, self.image_size)
        read_row = _TrainRows(self, source, self._order(source, seed), process * rows, rows)
        numbers = range(steps.start * rows, steps.stop * rows)
        return read_batches(read_row, numbers, rows, prefetch=max(self.prefetch_batches, 1), **self._worker_counts)

    def eval_batches(self, source: Source, *, process: int = 0, processes: int = 1) -> Iterator[Batch]:
        """Yields this process's rows of every example once, in order; the last batch is padded with weight 0."""
        rows = self.eval_batch_size // processes
        self._check_memory(rows, "data.eval_batch_size", self.max_views, self.crop_size)
        read_row = _EvalRows(self, source, process * rows, rows)
        prefetch = max(min(self.prefetch_batches, MAX_BUFFER // (rows * self._bytes_per_video)), 1)
        numbers = range(self.num_eval_batches(source) * rows)
        return read_batches(read_row, numbers, rows, prefetch=prefetch, **self._worker_counts)

    @property
    def _worker_counts(self) -> dict[str, int]:
        return {"num_workers": self.num_workers, "num_threads": self.num_threads}

    def num_eval_batches(self, source: Source) -> int:
        """Returns the number of evaluation batches that cover the source: the same number in every process."""
        return -(-len(source) // self.eval_batch_size)

    @property
    def crop_size(self) -> tuple[int, int]:
        """The (height, width) of the crops of evaluation in pixels."""
        return self.eval_size or self.image_size

    @property
    def views(self) -> str:
        """Clips x crops of a video in evaluation, as text: "4x3"."""
        clips = f"all (at most {self.max_eval_clips}) " if self.eval_clips == "all" else self.eval_clips
        return f"{clips}x{self.eval_crops}"

    @property
    def max_views(self) -> int:
        """The largest number of views that a video may have."""
        return self.eval_crops * (self.max_eval_clips if self.eval_clips == "all" else self.eval_clips)

    @property
    def _bytes_per_video(self) -> int:
        """Size of all views of a video in bytes."""
        return self.max_views * self.num_frames * math.prod(self.crop_size) * self.channels

    def _check_memory(self, rows: int, setting_path: str, views: int, size: tuple[int, int]) -> None:
        """Raises UserError where a batch would take more memory than is free.

        Args:
            rows: videos of the batch.
            setting_path: dotted path of the setting to name in the message.
            views: clips of a video.
            size: (height, width) of a clip in pixels.
        """
        check_memory(
            rows * views * self.num_frames * math.prod(size) * self.channels,
            f"a batch of {rows} ({setting_path}) of {views} clips of {self.num_frames} frames of {size[0]} x {size[1]}",
            "; lower data.batch_size, data.eval_batch_size, data.eval_clips or data.image_size",
        )

    def open_video(
        self, source: VideoSource, seconds: float = MAX_SECONDS
    ) -> contextlib.AbstractContextManager[PyAVVideo]:
        """Opens a video as these settings say; see `open_video`."""
        options = {"decoder": self.decoder, "options": self.reading, "motion": bool(self.motion)}
        return open_video(source, seconds=seconds, **options)

    def read_views(self, example: Mapping[str, Any]) -> UInt8[np.ndarray, "v t h w c"]:
        """Returns the clips that evaluation averages over, the crops of a clip in a row; decodes the video once.

        Raises:
            VideoError: the video, or the segment of it that the example is, cannot be read.
        """
        self._check_memory(1, "data.eval_clips", self.max_views, self.crop_size)
        with self.open_video(example["video"]) as video:
            frames = self.plan_views(video.times, _segment_frames(video.times, example))
            crops = video.read(frames, self.eval_boxes(video.upright_size(frames)), self.crop_size)
        return self.order_views(crops)

    def eval_boxes(self, frame_size: tuple[int, int]) -> Float[np.ndarray, "crops 4"]:
        """Returns the boxes of the crops of evaluation in frames of this (height, width)."""
        positions = (0.5,) if self.eval_crops == 1 else (0.0, 0.5, 1.0)
        size, short_side = self.crop_size, self.eval_short_side
        return np.stack([sampling.crop_box(*frame_size, size, position, short_side) for position in positions])

    def order_views(self, crops: UInt8[np.ndarray, "crops clips_t h w c"]) -> UInt8[np.ndarray, "v t h w c"]:
        """Cuts the crops, whose frames are those of all clips, into views; the crops of a clip come in a row."""
        # [crops, clips * t, ...] to [clips * crops, t, ...]
        clips = crops.reshape(len(crops), -1, self.num_frames, *crops.shape[2:])
        return clips.swapaxes(0, 1).reshape(-1, *clips.shape[2:])

    def read_clip(
        self, example: Mapping[str, Any], start: float, rng: np.random.Generator | None = None
    ) -> UInt8[np.ndarray, "t h w c"]:
        """Returns one clip of a video.

        Args:
            example: an example of a source.
            start: position of the clip among those possible, in [0, 1].
            rng: generator of the augmentation in training; None augments nothing.

        Raises:
            VideoError: the video, or the segment of it that the example is, cannot be read.
        """
        with self.open_video(example["video"]) as video:
            frames = self._plan_clip(video.times, _segment_frames(video.times, example), start, rng)
            frame_size = video.upright_size(frames)
            if rng is None:
                box = sampling.crop_box(*frame_size, self.image_size, 0.5)
            else:
                box = self.augmentation.draw_box(rng, *frame_size, self.image_size)
            (clip,) = video.read(frames, box[None], self.image_size)
        return clip if rng is None else self.augmentation.vary(rng, clip)

    def plan_views(self, times: Times, segment: FrameNumbers) -> Int[np.ndarray, " clips_t"]:
        """Returns the frame numbers of all clips of evaluation in a segment, one clip after the other."""
        if self.eval_clips == "all":
            rate = (len(segment) - 1) / max(np.ptp(times[segment]), 1e-9)  # a video of one frame lasts 0 s
            stride = rate / self.frame_rate if self.frame_rate else self.frame_stride
            starts = sampling.covering_starts(len(segment), self.num_frames, stride, self.max_eval_clips)
        else:
            starts = (np.arange(self.eval_clips) + 0.5) / self.eval_clips
        return np.concatenate([self._plan_clip(times, segment, start) for start in starts])

    def _plan_clip(
        self, times: Times, segment: FrameNumbers, start: float, rng: np.random.Generator | None = None
    ) -> Int[np.ndarray, " t"]:
        """Returns the frame numbers of a clip.

        Args:
            times: time of each frame of the video in seconds.
            segment: frame numbers that the clip may have.
            start: in [0, 1]: position of the clip among those possible; with temporal "segments" that of each frame in
                its part, with "uniform" unused.
            rng: generator of the random choices in training; None takes none.
        """
        if self.temporal == "uniform":
            return segment[sampling.sample_uniform(len(segment), self.num_frames)]
        if self.temporal == "segments":
            positions = start if rng is None else rng.uniform(size=self.num_frames)
            return segment[sampling.sample_segments(len(segment), self.num_frames, positions)]
        # Without jitter nothing is drawn here, so that a seed draws the same boxes as before that setting existed.
        jitter = 1.0 if rng is None or not self.stride_jitter else 1 + self.stride_jitter * rng.uniform(-1, 1)
        if self.frame_rate is not None:
            rate = self.frame_rate / jitter
            return segment[sampling.sample_at_rate(times[segment], self.num_frames, rate, start, self.short_videos)]
        return segment[
            sampling.sample_dense(len(segment), self.num_frames, self.frame_stride * jitter, start, self.short_videos)
        ]

    def train_example(self, source: Source, seed: int, epoch: int, index: int, repeat: int) -> Batch:
        """Returns an example as training sees it: a pure function of these numbers.

        Args:
            source: examples of the split.
            seed: seed of the run.
            epoch: number of the pass through the data.
            index: index of the example.
            repeat: occurrence index of the example in that epoch, from 0; above 0 where examples are repeated or
                resampled.

        Raises:
            VideoError: the clip cannot be read.
        """
        # No state is carried from clip to clip, so that any clip can be read again, alone and in any process.
        rng = np.random.default_rng((seed, epoch, index, repeat))
        example = _load_row(source, index, functools.partial(self.read_clip, start=rng.uniform(), rng=rng))
        video, labels = self.augmentation.mirror(rng, example["video"], example["labels"], source.label_names)
        return example | {"video": video, "labels": labels}

    def _order(self, source: Source, seed: int) -> Order:
        """Returns the order of the training clips of a run."""
        return Order(seed, len(source), self.num_repeats, self._weights(source))

    def _weights(self, source: Source) -> Float[np.ndarray, " size"] | None:
        """Returns the sampling weight of each example, or None where every example comes once an epoch."""
        if self.class_power == 1:
            return None
        label = self.class_label or next(iter(source.label_names), None)
        if label not in source.label_names or (self.class_label is None and len(source.label_names) > 1):
            known = ", ".join(source.label_names)
            raise UserError(f"data.class_label is {self.class_label!r}; expected the label to resample by: {known}")
        column = label_columns(source)[label]
        if column.ndim > 1:
            raise UserError(
                f"{label} has several classes or values for each video; data.class_power below 1 needs a label of one "
                "class (data.class_label)"
            )
        return class_weights(column, self.class_power)


@dataclasses.dataclass(frozen=True)
class _EvalRows:
    """Maps a process's row number to an evaluation example: all its views."""

    data: Data
    source: Source
    first_row: int
    rows: int

    def __call__(self, row: int) -> Batch:
        batch, offset = divmod(int(row), self.rows)
        index = batch * self.data.eval_batch_size + self.first_row + offset
        # Padding fills the last batch: every process runs the same number of steps of one shape.
        if index >= len(self.source):
            return _padding_row(self.data, self.source, index)
        try:
            example = _load_row(self.source, index, self.data.read_views)
        except VideoError as error:
            failure = {
                "unreadable_index": np.int32(index),
                "error": encode_error(_name_error(self.source, index, error)),
            }
            return _padding_row(self.data, self.source, index) | failure
        views, max_views = len(example["video"]), self.data.max_views
        # All videos of a batch have as many views as the longest may have; the step skips the empty ones.
        if views < max_views:
            rest = np.zeros((max_views - views, *example["video"].shape[1:]), np.uint8)
            example["video"] = np.concatenate([example["video"], rest])
        return example | {"views": np.int32(views)}


@dataclasses.dataclass(frozen=True)
class _TrainRows:
    """Maps a process's row number to a training example, in the order of the run."""

    data: Data
    source: Source
    order: Order
    first_row: int
    rows: int

    def __call__(self, row: int) -> Batch:
        batch, offset = divmod(int(row), self.rows)
        epoch, index, repeat = self.order[batch * self.data.batch_size + self.first_row + offset]
        size, failure = self.order.size, {}
        for attempt in range(MAX_ATTEMPTS):
            # The replacement depends on the index alone, so that it is the same after a resume and in any process.
            try:
                example = self.data.train_example(self.source, self.order.seed, epoch, (index + attempt) % size, repeat)
            except VideoError as error:
                # the first failure is the one that is reported: later ones have their own turn in the order
                failure = failure or {
                    "unreadable_index": np.int32(index),
                    "error": encode_error(_name_error(self.source, index, error)),
                }
            else:
                return example | failure
        raise UserError(
            f"{MAX_ATTEMPTS} clips in a row cannot be read, from number {index} of {size}; the data is damaged or not "
            f"video: {decode_error(failure['error'])}"
        )


def device_entries(batch: Batch) -> Batch:
    """Returns the entries of a batch that go to the devices."""
    return {name: rows for name, rows in batch.items() if name not in HOST_ENTRIES}


def encode_error(message: str) -> UInt8[np.ndarray, "256"]:
    """Returns a message as the batch carries it: UTF-8, padded with zeros; of a long one, the middle is left out."""
    data = message.encode("utf-8", "backslashreplace")
    if len(data) > ERROR_BYTES:
        # The file's name comes first and the reason last. Cut characters are dropped; the ellipsis takes three bytes.
        half = (ERROR_BYTES - 3) // 2
        first, last = (part.decode("utf-8", "ignore") for part in (data[:half], data[-half:]))
        data = f"{first}…{last}".encode()
    return np.frombuffer(data.ljust(ERROR_BYTES, b"\0"), np.uint8)


def decode_error(row: UInt8[np.ndarray, "256"]) -> str | None:
    """Returns the message of one row of a batch's "error", or None where the example could be read."""
    return np.asarray(row).tobytes().rstrip(b"\0").decode() or None


def _name_error(source: Source, index: int, error: VideoError) -> str:
    """Returns an error's message with the example's name before it, once."""
    name = example_name(source, index)
    return str(error) if str(error).startswith(name) else f"{name}: {error}"


def _segment_frames(times: Times, example: Mapping[str, Any]) -> FrameNumbers:
    """Returns the frame numbers of an example: those of its segment, where it has one."""
    frames = sampling.frames_between(times, *example.get("segment", (0.0, np.inf)))
    if not len(frames):
        raise VideoError(f"it ends after {times[-1]:.1f} s, before the segment {example['segment']} begins")
    return frames


def _load_row(source: Source, index: int, read: Callable[[Mapping[str, Any]], np.ndarray]) -> Batch:
    """Returns one row of a batch: an example read by `read`, with its labels, index and decoding time."""
    # This thread's processor time: wall time would count the other threads, too.
    began = time.thread_time()
    example = source[index]
    check_example(source, index, example["labels"])
    video = read(example)
    return {
        "video": video,
        "labels": label_arrays(example),
        "weight": np.float32(1),
        "index": np.int32(index),
        "unreadable_index": np.int32(-1),
        "error": encode_error(""),
        "decode_seconds": np.float32(time.thread_time() - began),
    }


def _padding_row(data: Data, source: Source, index: int) -> Batch:
    """Returns a row of an evaluation batch without an example."""
    return {
        "video": np.zeros((data.max_views, data.num_frames, *data.crop_size, data.channels), np.uint8),
        "views": np.int32(1),
        "labels": {name: np.zeros_like(label) for name, label in label_arrays(source[0]).items()},
        "weight": np.float32(0),
        "index": np.int32(index),
        "unreadable_index": np.int32(-1),
        "error": encode_error(""),
        "decode_seconds": np.float32(0),
    }
