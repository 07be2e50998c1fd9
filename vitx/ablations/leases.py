"""Leases of cells: several processes and machines share an ablation's folder, and no cell is trained twice."""

import time
from pathlib import PurePath
from typing import Any

from vitx import locks, storage
from vitx.locks import BusyError, Lease


class Leases:
    """The leases in one folder, on a disk or in a bucket, as this process has seen them.

    A lease is released, or expires when its heartbeat has stood still for `locks.LEASE_SECONDS` since this process
    first saw it; asking never waits.
    """

    def __init__(self, folder: PurePath):
        self._folder = folder
        self._beats: dict[str, tuple[Any, float]] = {}

    def take(self, name: str) -> Lease | None:
        """Returns a lease with a heartbeat, to be released by the caller; None while another process holds it."""
        folder = self._folder / name
        storage.create_folder(folder / ".lock")
        try:
            return _WatchedLease(folder, name, self._beats)
        except BusyError:
            return None


class _WatchedLease(Lease):
    """A lease that compares the heartbeat of another owner with the one it read at earlier attempts."""

    def __init__(self, folder: PurePath, name: str, beats: dict[str, tuple[Any, float]]):
        self._name, self._seen = name, beats
        super().__init__(folder, f"{folder} is leased to another process")

    def _is_beating(self, number: int, record: dict[str, Any]) -> bool:
        beat, now = (number, record.get("beat")), time.monotonic()
        known, since = self._seen.get(self._name, (None, now))
        if beat != known:
            self._seen[self._name] = beat, now
            return True
        return now - since < locks.LEASE_SECONDS
