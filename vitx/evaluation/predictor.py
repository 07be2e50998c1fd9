"""Predictions of many videos, whole or in sliding windows: read ahead in threads, computed in batches across files.

Letters in shapes: b batch, v views, t frames of a clip, h height, w width; n windows of a video; _ classes or values.
"""

import collections
import contextlib
import dataclasses
import itertools
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
from flax import linen as nn
from jaxtyping import Float, Int, UInt8

from vitx.console import progress_bar
from vitx.data.container import MAX_SECONDS as MAX_SECONDS_WHOLE
from vitx.data.container import VideoError
from vitx.data.file_kinds import read_video
from vitx.data.pipeline import Data
from vitx.data.windows import (
    MAX_SECONDS,
    ClipReader,
    EvaluationReader,
    SlidingWindows,
    Window,
    read_windows,
    whole_video,
)
from vitx.errors import UserError
from vitx.evaluation.calibration import scale_logits
from vitx.evaluation.evaluate import predict
from vitx.evaluation.presentation import Presenter, presenter_for
from vitx.layers.partition import to_devices
from vitx.limits import check_memory
from vitx.models import resolve_implementation
from vitx.tasks.task import Names, Task

BATCH_SIZE = 16  # videos or windows that are computed at once by default

Views = UInt8[np.ndarray, "v t h w c"]


@dataclasses.dataclass(frozen=True)
class Predictor:
    """What predicts videos: a run, or pretrained weights.

    Attributes:
        reader: how the clips of a video are read.
        compute: returns {label: outputs} of a batch of clips and the number of views of each video.
        names: {label: names of its classes or values}.
        presenter: how outputs become answers.
        max_views: views that a video has at most.
        temperatures: {label: temperature by which its logits are divided}, of a calibrated run.
        devices: number of devices that divide a batch.
        threads: number of threads that read videos.
    """

    reader: ClipReader
    compute: Callable[[UInt8[np.ndarray, "b v t h w c"], Int[np.ndarray, "b"]], Mapping[str, Float[np.ndarray, "b _"]]]
    names: Names
    presenter: Presenter
    max_views: int = 1
    temperatures: Mapping[str, float] = dataclasses.field(default_factory=dict)
    devices: int = 1
    threads: int = 2


@dataclasses.dataclass(frozen=True)
class VideoPrediction:
    """Outputs for one video, or why it has none.

    Attributes:
        path: path of the video.
        outputs: {label: logits (divided by the temperature of a calibrated run) or values of each window}.
        windows: (start, end) of each window in seconds; the whole video is one window.
        frames: number of frames of the video.
        is_windowed: whether sliding windows were asked for.
        error: why the video cannot be read.
    """

    path: str
    outputs: Mapping[str, Float[np.ndarray, "n _"]] = dataclasses.field(default_factory=dict)
    windows: tuple[tuple[float, float], ...] = ()
    frames: int = 0
    is_windowed: bool = False
    error: str | None = None


@dataclasses.dataclass(frozen=True)
class _Unit:
    """A window that is read, or the error of its file, which ends the file."""

    path: str
    window: Window | None = None
    views: Views | None = None
    frames: int = 0
    is_last: bool = True
    error: str | None = None


def predict_videos(
    predictor: Predictor,
    files: Sequence[str],
    windows: SlidingWindows | None = None,
    *,
    batch_size: int = BATCH_SIZE,
) -> Iterator[VideoPrediction]:
    """Yields the prediction of each file, in order; a file that cannot be read is one with an error.

    Args:
        predictor: a run or weights.
        files: paths of videos.
        windows: sliding windows, each of which is predicted; None predicts whole videos.
        batch_size: videos or windows that are computed at once, of several files where they are short.

    Raises:
        UserError: windows that are shorter than a clip, or a batch that needs more memory than is free.
    """
    if batch_size < 1:
        raise UserError(f"batch_size is {batch_size}; expected at least 1")
    needed = predictor.reader.num_frames
    if windows is not None and windows.unit == "frames" and windows.length < needed:
        raise UserError(f"windows have {windows.length:g} frames; expected at least {needed}, which the model needs")
    read = _read_whole(predictor, files) if windows is None else _read_in_windows(predictor, files, windows)
    units: list[_Unit] = []
    rows: list[tuple[_Unit, Mapping[str, np.ndarray]]] = []  # of a file whose windows are not all computed
    with contextlib.closing(read):
        for unit in itertools.chain(read, [None]):
            if unit is not None:
                units.append(unit)
            if unit is None or len(units) == batch_size:
                for done, outputs in _compute(predictor, units, batch_size):
                    # Without its pixels: those of all windows of a long video do not fit into memory.
                    rows.append((dataclasses.replace(done, views=None), outputs))
                    if done.is_last:
                        yield _join(rows, windows is not None)
                        rows = []
                units = []


def predict_views(predictor: Predictor, name: str, views: Views) -> VideoPrediction:
    """Returns the prediction for the views of one video that are in memory."""
    whole = _Unit(name, Window(0.0, 0.0, np.arange(0)), views, views.shape[1])
    return _join(_compute(predictor, [whole], 1), False)


def trained_predictor(
    model: nn.Module,
    variables: Any,
    *,
    task: Task,
    data: Data,
    names: Names,
    sharding: jax.sharding.NamedSharding,
    temperatures: Mapping[str, float] | None = None,
) -> Predictor:
    """Returns what predicts videos with the model of a run, as its evaluation does.

    Args:
        model: the model.
        variables: variables of the model, on the devices of `sharding`.
        task: the task that it has learnt.
        data: settings of decoding and views.
        names: {label: names of its classes or values}.
        sharding: sharding of a batch.
        temperatures: {label: temperature} of a calibrated run.
    """
    mesh = sharding.mesh
    resolved = resolve_implementation(model, mesh.devices.flat[0])

    def compute(
        clips: UInt8[np.ndarray, "b v t h w c"], views: Int[np.ndarray, "b"]
    ) -> dict[str, Float[np.ndarray, "b _"]]:
        rows = to_devices({"video": clips, "views": views}, sharding)
        with jax.set_mesh(mesh):
            outputs = predict(variables, rows["video"], rows["views"], model=resolved, task=task)
        return jax.device_get(task.outputs_by_label(outputs, names))

    return Predictor(
        EvaluationReader(data),
        compute,
        names,
        presenter_for(task),
        max_views=data.max_views,
        temperatures=temperatures or {},
        devices=mesh.size,
        threads=data.num_threads,
    )


def _compute(
    predictor: Predictor, units: Sequence[_Unit], batch_size: int
) -> list[tuple[_Unit, Mapping[str, Float[np.ndarray, "_"]]]]:
    """Returns the units of a batch with their outputs, {} of an error."""
    videos = [unit.views for unit in units if unit.views is not None]
    if not videos:
        return [(unit, {}) for unit in units]
    # Sizes of batches are powers of two, so that the last batches compile few programs and compute little in vain.
    size = min(2 ** math.ceil(math.log2(len(videos))), batch_size)
    size = math.ceil(size / predictor.devices) * predictor.devices
    views = max(predictor.max_views, *map(len, videos))
    shape = (size, views, *videos[0].shape[1:])
    advice = "; lower --batch_size, or the number of views"
    check_memory(math.prod(shape), f"a batch of {size} videos of {views} views", advice)
    batch, counts = np.zeros(shape, np.uint8), np.ones(size, np.int32)
    for row, video in enumerate(videos):
        batch[row, : len(video)], counts[row] = video, len(video)
    outputs = {label: np.asarray(values, np.float32) for label, values in predictor.compute(batch, counts).items()}
    outputs = scale_logits(outputs, predictor.temperatures)
    numbers = iter(range(len(videos)))
    return [(unit, {} if unit.views is None else _select_row(outputs, next(numbers))) for unit in units]


def _select_row(outputs: Mapping[str, Float[np.ndarray, "b _"]], row: int) -> dict[str, Float[np.ndarray, "_"]]:
    return {label: values[row] for label, values in outputs.items()}


def _join(rows: Sequence[tuple[_Unit, Mapping[str, np.ndarray]]], is_windowed: bool) -> VideoPrediction:
    """Returns the prediction of a file from its windows; an error in one of them is that of the file."""
    last, labels = rows[-1][0], rows[0][1]
    if last.error is not None:
        return VideoPrediction(last.path, error=last.error)
    return VideoPrediction(
        last.path,
        {label: np.stack([outputs[label] for _, outputs in rows]) for label in labels},
        tuple((unit.window.start, unit.window.end) for unit, _ in rows),
        last.frames,
        is_windowed,
    )


def _read_whole(predictor: Predictor, files: Sequence[str]) -> Iterator[_Unit]:
    """Yields the whole videos, read ahead by threads."""

    def read(path: str) -> _Unit:
        (unit,) = _read_file(predictor.reader, path, None)
        return unit

    waiting = iter(files)
    with ThreadPoolExecutor(predictor.threads) as pool:
        ahead: collections.deque[Future[_Unit]] = collections.deque()
        try:
            while True:
                # A few are read while others are computed; memory holds no more.
                for path in itertools.islice(waiting, predictor.threads + 1 - len(ahead)):
                    ahead.append(pool.submit(read, path))
                if not ahead:
                    return
                yield ahead.popleft().result()
        finally:
            for future in ahead:
                future.cancel()


def _read_in_windows(predictor: Predictor, files: Sequence[str], windows: SlidingWindows) -> Iterator[_Unit]:
    for path in files:
        yield from _read_file(predictor.reader, path, windows)


def _read_file(reader: ClipReader, path: str, windows: SlidingWindows | None) -> Iterator[_Unit]:
    """Yields the windows of a file; where it cannot be read, its error last."""
    try:
        with reader.open(read_video(path), MAX_SECONDS if windows else MAX_SECONDS_WHOLE) as video:
            planned = windows.plan(video.times) if windows else whole_video(video.times)
            read = zip(planned, read_windows(reader, video, planned), strict=True)
            if windows is not None:
                name = os.path.basename(path)
                read = progress_bar(read, total=len(planned), desc=name, unit=" windows", leave=False)
            for number, (window, views) in enumerate(read, 1):
                yield _Unit(path, window, views, len(video.times), number == len(planned))
    except (VideoError, OSError) as error:
        yield _Unit(path, error=str(error) if str(error).startswith(path) else f"{path}: {error}")
