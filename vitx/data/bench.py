"""Speed of the data pipeline: each stage alone, then whole pipelines with several numbers of threads and workers."""

import contextlib
import dataclasses
import itertools
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from vitx.console import progress_bar
from vitx.data.decoding import VideoError
from vitx.data.file_kinds import open_bytes
from vitx.data.pipeline import Batch, Data
from vitx.data.sources import Source, label_arrays
from vitx.errors import UserError


def bench(
    data: Data,
    source: Source,
    to_device: Callable[[Batch], Any],
    *,
    clips: int = 64,
    threads: Sequence[int] = (1, 2),
    workers: Sequence[int] = (0, 2),
    step_seconds: float | None = None,
) -> dict[str, Any]:
    """Measures each stage alone, one clip after the other, then whole pipelines.

    Args:
        data: settings of the clips.
        source: training examples.
        to_device: puts a batch on the model's devices, and waits for it.
        clips: clips that are timed in each stage and each pipeline.
        threads: numbers of decoding threads to try, without workers.
        workers: numbers of worker processes to try; 0 decodes in threads of this process.
        step_seconds: duration of one training step of the model, on a batch of `data.batch_size`.

    Returns:
        JSON data: {"stages": {"read" (a file's bytes), "decode", "augment" (additional cost of an augmented clip),
        "batch", "to_device": {"ms": median milliseconds per clip, "clips_per_second"}}, "pipelines": [{"threads",
        "workers", "clips_per_second"}], "step": {"ms" per batch, "clips_per_second"} or None, "bottleneck": "model", or
        the slowest stage where the fastest pipeline is slower than the model}.

    Raises:
        UserError: no clip can be read.
    """
    stages = _time_stages(data, source, to_device, clips)
    tried = [(count, 0) for count in threads if 0 in workers or not workers] + [
        (1, count) for count in workers if count
    ]
    pipelines = [
        {
            "threads": count,
            "workers": processes,
            "clips_per_second": _time_pipeline(data, source, count, processes, clips),
        }
        for count, processes in progress_bar(tried, desc="pipelines")
    ]
    fastest = max(pipeline["clips_per_second"] for pipeline in pipelines)
    step = (
        None if step_seconds is None else {"ms": 1e3 * step_seconds, "clips_per_second": data.batch_size / step_seconds}
    )
    is_starved = step is None or fastest < step["clips_per_second"]
    return {
        "stages": {name: {"ms": 1e3 * s, "clips_per_second": 1 / max(s, 1e-9)} for name, s in stages.items()},
        "pipelines": pipelines,
        "step": step,
        "bottleneck": max(stages, key=stages.__getitem__) if is_starved else "model",
    }


def _time_stages(data: Data, source: Source, to_device: Callable[[Batch], Any], clips: int) -> dict[str, float]:
    """Returns the median seconds per clip of each stage, one clip after the other."""
    seconds: dict[str, list[float]] = {name: [] for name in ("read", "decode", "augmented", "batch", "to_device")}
    read_clips, order = [], np.random.default_rng(0).permutation(np.arange(max(clips, len(source))) % len(source))
    for number, index in enumerate(progress_bar(order[:clips], desc="stages", unit=" clips")):
        try:
            with _measure_time(seconds["read"]):
                example = _read_video(source[int(index)])
            # Both of the same part of the video, and each first in turn, since the second finds its file in the cache.
            for stage in ("decode", "augmented")[:: 1 if number % 2 else -1]:
                rng = np.random.default_rng(number)
                with _measure_time(seconds[stage]):
                    clip = data.read_clip(example, float(rng.uniform()), rng if stage == "augmented" else None)
                    if stage == "augmented":
                        data.augmentation.mirror(rng, clip, label_arrays(example), source.label_names)
        except VideoError:
            continue
        read_clips.append(clip)
    if not read_clips:
        raise UserError(f"none of {clips} clips can be read; `vitx data check` lists the reasons")
    rows = (read_clips * data.batch_size)[: data.batch_size]
    for _ in range(10):
        with _measure_time(seconds["batch"], data.batch_size):
            batch = {"video": np.stack(rows)}
        with _measure_time(seconds["to_device"], data.batch_size):
            to_device(batch)
    medians = {name: statistics.median(durations) for name, durations in seconds.items()}
    # Measured by the difference: augmentation also changes which pixels are scaled.
    augment = max(medians["augmented"] - medians["decode"], 0.0)
    return {
        "read": medians["read"],
        "decode": medians["decode"],
        "augment": augment,
        "batch": medians["batch"],
        "to_device": medians["to_device"],
    }


def format_report(report: Mapping[str, Any]) -> str:
    """Returns the report of `bench` as text."""
    lines = [f"{'stage':12} {'ms/clip':>10} {'clips/s':>10}"]
    lines += [
        f"{name:12} {stage['ms']:10.3f} {stage['clips_per_second']:10.1f}" for name, stage in report["stages"].items()
    ]
    lines += ["", f"{'threads':>7} {'workers':>8} {'clips/s':>10}   of {os.cpu_count()} cores"]
    lines += [
        f"{pipeline['threads']:7} {pipeline['workers']:8} {pipeline['clips_per_second']:10.1f}"
        for pipeline in report["pipelines"]
    ]
    if report["step"] is not None:
        lines += [
            "",
            f"model: {report['step']['clips_per_second']:.1f} clips/s ({report['step']['ms']:.1f} ms per step)",
        ]
    return "\n".join([*lines, f"bottleneck: {report['bottleneck']}"])


def _read_video(example: Mapping[str, Any]) -> Mapping[str, Any]:
    """Returns an example with its video in memory."""
    with open_bytes(example["video"]) as file:
        return {**example, "video": file.read()}


@contextlib.contextmanager
def _measure_time(seconds: list[float], clips: int = 1):
    began = time.perf_counter()
    yield
    seconds.append((time.perf_counter() - began) / clips)


def _time_pipeline(data: Data, source: Source, threads: int, workers: int, clips: int) -> float:
    """Returns the clips per second of a pipeline, from its second batch on."""
    data = dataclasses.replace(data, num_threads=threads, num_workers=workers, max_unreadable=1.0)
    batches = data.train_batches(source, 0, range(2**20))
    with contextlib.closing(batches):
        next(batches)
        began, wanted = time.perf_counter(), -(-clips // data.batch_size)
        count = sum(len(batch["video"]) for batch in itertools.islice(batches, wanted))
        return count / (time.perf_counter() - began)
