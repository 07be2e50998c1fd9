"""Clips of a run's dataset as small videos, kept in memory within a bound.

Letters in shapes: t frames, h height, w width.
"""

import collections
import functools
import threading
from collections.abc import Callable, Hashable, Mapping
from typing import Any

import numpy as np
from jaxtyping import UInt8

from vitx.data.aligned import open_split
from vitx.data.decoding import VideoError
from vitx.data.encoding import encode_video
from vitx.data.pipeline import Data
from vitx.data.sources import Source, example_name, label_arrays
from vitx.errors import UserError
from vitx.evaluation.evaluate import Predictions

MIN_SIDE = 128  # pixels that small clips are enlarged to: video stores colours of two by two pixels
FRAMES_PER_SECOND = 8
ENCODER = {"preset": "veryfast", "crf": "18"}


class BoundedCache:
    """Bytes by key; the entries that were used longest ago go when all together are larger than a bound.

    Attributes:
        size: bytes of all entries.
    """

    def __init__(self, max_bytes: int, max_workers: int = 2) -> None:
        """Begins empty.

        Args:
            max_bytes: bytes of all entries together. A larger entry is returned and not kept.
            max_workers: entries that are created at the same time.
        """
        self.size = 0
        self._max_bytes = max_bytes
        self._entries: collections.OrderedDict[Hashable, bytes] = collections.OrderedDict()
        self._lock, self._workers = threading.Lock(), threading.Semaphore(max_workers)

    def get(self, key: Hashable, create: Callable[[], bytes]) -> bytes:
        """Returns the entry of a key, created where it is missing."""
        if (known := self._find(key)) is not None:
            return known
        with self._workers:
            if (known := self._find(key)) is not None:  # another request has created it meanwhile
                return known
            entry = create()
        with self._lock:
            if key not in self._entries and len(entry) <= self._max_bytes:
                self._entries[key] = entry
                self.size += len(entry)
            while self.size > self._max_bytes:
                self.size -= len(self._entries.popitem(last=False)[1])
        return entry

    def _find(self, key: Hashable) -> bytes | None:
        with self._lock:
            if key in self._entries:
                self._entries.move_to_end(key)
            return self._entries.get(key)


class SplitClips:
    """The clips of one split of a run's dataset, opened when the first is asked for."""

    def __init__(self, data: Data, split: str, predictions: Predictions, learnt: Any, model: str) -> None:
        """Opens nothing yet.

        Args:
            data: settings of the run's data.
            split: name of the split.
            predictions: predictions for it; clips that are none of theirs are refused.
            learnt: {label: names of its classes} that the run has learnt.
            model: name of the run in messages.
        """
        self._data, self._split, self._predictions = data, split, predictions
        self._learnt, self._model, self._lock = learnt, model, threading.Lock()

    @functools.cached_property
    def _opened(self) -> Source:
        source = open_split(self._data.dataset, self._split, self._learnt, self._model)
        known = len(self._predictions.index) + len(self._predictions.unreadable)
        if len(source) != known:
            raise UserError(
                f"the {self._split} split has {len(source)} clips here and had {known} when it was evaluated; put back "
                f"the videos, or evaluate again: vitx evaluate {self._model} --split {self._split}"
            )
        return source

    def source(self) -> Source:
        """Returns the examples of the split.

        Raises:
            UserError: the dataset is not on this machine, or is another one than that of the predictions.
        """
        with self._lock:  # opening may build a dataset, which two requests must not do at once
            return self._opened

    def name(self, index: int) -> str:
        """Returns the name of an example: its file where it has one."""
        return example_name(self.source(), index)

    def example(self, index: int) -> Mapping[str, Any]:
        """Returns an example; nothing is decoded.

        Raises:
            UserError: the dataset is not here, or the example has another label than when it was evaluated.
        """
        example = self.source()[index]
        row, labels = np.searchsorted(self._predictions.index, index), label_arrays(example)
        for label, column in self._predictions.labels.items():
            if not np.array_equal(labels.get(label), column[row], equal_nan=column.dtype.kind == "f"):
                raise UserError(
                    f"{self.name(index)} has another {label} here than when it was evaluated: the dataset has changed. "
                    f"Evaluate again: vitx evaluate {self._model} --split {self._split}"
                )
        return example

    def frames(self, index: int) -> UInt8[np.ndarray, "t h w c"]:
        """Returns the first view of an example, as the model gets it.

        Raises:
            UserError: the video cannot be read; see also `example`.
        """
        example = self.example(index)
        try:
            return self._data.read_views(example)[0]
        except (VideoError, OSError) as error:
            raise UserError(f"{self.name(index)}: {error}") from error


def encode_clip(frames: UInt8[np.ndarray, "t h w c"]) -> bytes:
    """Returns the RGB frames of a clip as an MP4 file: small ones enlarged pixel by pixel, with even sides."""
    factor = -(-MIN_SIDE // min(frames.shape[1:3]))
    large = frames[..., :3].repeat(factor, axis=1).repeat(factor, axis=2)
    even = np.pad(large, [(0, 0), (0, large.shape[1] % 2), (0, large.shape[2] % 2), (0, 0)], mode="edge")
    return encode_video(even, fps=FRAMES_PER_SECOND, options=ENCODER)
