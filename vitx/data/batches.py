"""Batches that are read ahead, by threads of this process or by worker processes."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import grain
import numpy as np
from absl import flags

from vitx.limits import check_memory
from vitx.worker_processes import end_with_parent

Batch = dict[str, Any]
WORKER_BYTES = 300 * 2**20  # memory of one decoding worker process


def read_batches(
    read_row: Callable[[int], Batch], rows: range, batch_size: int, *, prefetch: int, num_workers: int, num_threads: int
) -> Iterator[Batch]:
    """Yields batches of rows, in order; closing it stops what reads ahead.

    Args:
        read_row: returns a row by its number.
        rows: numbers of the rows.
        batch_size: rows of a batch.
        prefetch: batches that are prepared before they are asked for.
        num_workers: worker processes; 0 reads in threads of this process.
        num_threads: threads, where there are no worker processes.

    Raises:
        UserError: the worker processes need more memory than is free.
    """
    # Batched inside the MapDataset: Grain 0.2 (2026-11) gives other batches with another number of workers if the
    # iterator is batched.
    dataset = grain.MapDataset.range(rows.start, rows.stop).map(read_row).batch(batch_size)
    if not num_workers:
        # Grain's defaults (16 threads, 500 elements) would keep 500 batches in memory.
        options = grain.ReadOptions(num_threads=min(num_threads, prefetch), prefetch_buffer_size=prefetch)
        return iter(dataset.to_iter_dataset(options))
    check_memory(
        num_workers * WORKER_BYTES,
        f"data.num_workers is {num_workers}; so many processes",
        "; choose a lower data.num_workers, or 0 for threads",
    )
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()  # the workers of Grain 0.2 (2026-11) read absl's flags
    workers = grain.MultiprocessingOptions(num_workers, per_worker_buffer_size=prefetch)
    options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=1)
    return _copy_batches(iter(dataset.to_iter_dataset(options).mp_prefetch(workers, end_with_parent)))


def _copy_batches(batches: Iterator[Batch]) -> Iterator[Batch]:
    """Yields copies of batches that lie in shared memory."""
    # Grain 0.2 (2026-11) frees shared memory in a finaliser that takes a lock. JAX would drop the arrays in a garbage
    # collection, which comes in any thread and inside any lock, so that a thread may wait for itself.
    with contextlib.closing(batches):
        yield from map(_copy_entry, batches)


def _copy_entry(entry: Any) -> Any:
    return {name: _copy_entry(e) for name, e in entry.items()} if isinstance(entry, dict) else np.array(entry)
