"""One writer for a folder: `flock` on a local disk, a lease with a heartbeat in a bucket.

A lease is a numbered object, `.lock/00000003.json`, and the highest number holds the folder. Its owner writes a new
`beat` into it every few seconds. Whoever wants the folder creates the next number, which a store lets succeed for one
of many contenders only, and may do so when the highest was released, when its owner's process is known to be dead, or
when its beat has stood still for a whole lease. No clocks are compared.
"""

import contextlib
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path, PurePath
from typing import Any

import filelock

from vitx import storage, strict_json
from vitx.console import print_text
from vitx.errors import RunError, UserError
from vitx.stores import is_bucket

LEASE_SECONDS = 60.0  # longer than a machine or a network ever stalls a process
BEATS = 6  # heartbeats in LEASE_SECONDS


class BusyError(UserError):
    """Another process holds the folder."""


class FolderLock:
    """A lock that this process has on a folder; this one never breaks."""

    def check(self) -> None:
        """Raises RunError where another process has taken the folder over, or it was removed."""


class LocalLock(FolderLock):
    """A lock on a local folder: a locked file in it."""

    def __init__(self, file: PurePath):
        self._file = file

    def check(self) -> None:
        # A write into a removed folder fails with another error, or creates a new folder without config.json.
        if not self._file.exists():
            raise RunError(
                f"{self._file.parent} or its .lock was removed while this process used it; nothing more is written. "
                "Run the same command again, or put back the folder first to continue it"
            )


@contextlib.contextmanager
def lock_folder(folder: PurePath, *, busy: str) -> Iterator[FolderLock]:
    """Creates a folder if it is missing, and locks it: two processes must not write into one.

    Args:
        folder: path of the folder.
        busy: message where another process holds the folder.

    Raises:
        BusyError: another process holds the folder.
        UserError: the folder cannot be written.
    """
    if is_bucket(folder):
        lease = Lease(folder, busy)
        try:
            yield lease
        finally:
            lease.release()
        return
    file_lock = filelock.FileLock(folder / ".lock")
    storage.create_folder(folder)
    try:
        file_lock.acquire(timeout=0)
    except filelock.Timeout:
        raise BusyError(busy) from None
    except OSError as error:
        raise UserError(f"{folder} cannot be written: {error.strerror or error}; choose another folder") from error
    try:
        storage.remove_drafts(folder)
        lock = LocalLock(folder / ".lock")
        try:
            yield lock
        finally:  # before the error of a missing file, which does not say that the whole folder is missing
            lock.check()
    finally:
        file_lock.release()


class Lease(FolderLock):
    """A lock on a folder of a bucket, kept by a heartbeat in a thread."""

    def __init__(self, folder: PurePath, busy: str):
        self._folder, self._busy = folder / ".lock", busy
        self._owner = {"id": secrets.token_hex(8), "host": socket.gethostname(), "pid": os.getpid()}
        self._owner["machine"] = _machine()
        self._beat, self._lost, self._ended = 0, "", threading.Event()
        self._number = self._acquire()
        self._beaten_at = time.monotonic()
        self._thread = threading.Thread(target=self._keep_alive, name="lease", daemon=True)
        self._thread.start()

    def check(self) -> None:
        if self._lost or time.monotonic() - self._beaten_at > LEASE_SECONDS:
            raise RunError(
                f"{self._folder.parent} is no longer held by this process: {self._lost or 'no heartbeat was stored'}; "
                "nothing more is written. If no other process continues it, run the same command again"
            )

    def release(self) -> None:
        """Gives the folder back, if it is still held."""
        self._ended.set()
        self._thread.join()
        if not self._lost:
            # The store may be gone: that must not replace the error that ended the `with`.
            with contextlib.suppress(UserError):
                self._write(released=True)

    def _acquire(self) -> int:
        newest = self._newest()
        if newest and not _is_over(record := self._read(newest)) and self._is_beating(newest, record):
            raise BusyError(f"{self._busy} ({_describe_owner(record)})")
        number = newest + 1
        if not storage.create_file(self._path(number), self._content()):
            raise BusyError(self._busy)
        if self._newest() > number:  # this process slept through a whole tenure of another, which removed `number`
            storage.remove(self._path(number))
            raise BusyError(self._busy)
        for old in self._numbers():
            if old < number:
                storage.remove(self._path(old))
        return number

    def _is_beating(self, number: int, record: dict[str, Any]) -> bool:
        """Returns whether an owner's beat changes within a lease."""
        owner = _describe_owner(record)
        print_text(f"{self._folder.parent} was held by {owner}; waiting for its heartbeat", error=True)
        deadline = time.monotonic() + LEASE_SECONDS
        while time.monotonic() < deadline:
            time.sleep(LEASE_SECONDS / BEATS / 2)
            now = self._read(number)
            if _is_over(now):
                return False
            if now.get("beat") != record.get("beat"):
                return True
        return False

    def _keep_alive(self) -> None:
        while not self._ended.wait(LEASE_SECONDS / BEATS):
            try:
                if (newest := self._newest()) > self._number:
                    owner = self._read(newest)
                    self._lost = f"{_describe_owner(owner)} took it over"
                    return
                self._beat += 1
                self._write()
                self._beaten_at = time.monotonic()
            except Exception:
                continue  # `check` reports a heartbeat that stays out too long

    def _write(self, **more: Any) -> None:
        storage.write_bytes(self._path(self._number), self._content(**more))

    def _content(self, **more: Any) -> bytes:
        return strict_json.dumps({**self._owner, "beat": self._beat, **more}).encode()

    def _read(self, number: int) -> dict[str, Any]:
        try:
            record = json.loads(storage.read_bytes(self._path(number)))
        except FileNotFoundError:
            return {"released": True}  # a successor has removed it
        except ValueError:
            return {}
        return record if isinstance(record, dict) else {}

    def _numbers(self) -> list[int]:
        stems = [name.removesuffix(".json") for name in storage.names_in(self._folder)]
        return sorted(int(stem) for stem in stems if stem.isdecimal())

    def _newest(self) -> int:
        return max(self._numbers(), default=0)

    def _path(self, number: int) -> PurePath:
        return self._folder / f"{number:08}.json"


def _describe_owner(record: dict[str, Any]) -> str:
    return f"process {record.get('pid')} on {record.get('host')}"


def _is_over(record: dict[str, Any]) -> bool:
    """Returns whether a lease was given back, or belongs to a process of this machine that is dead."""
    if record.get("released"):
        return True
    if _machine() is None or record.get("machine") != _machine() or not isinstance(record.get("pid"), int):
        return False
    try:
        os.kill(record["pid"], 0)
    except ProcessLookupError:
        return True
    except (PermissionError, OverflowError):
        return False
    return _is_zombie(record["pid"])


def _is_zombie(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    return False


def _machine() -> str | None:
    """Names the space in which process numbers are unique: containers may share a host's name and not its processes."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip() + os.readlink("/proc/self/ns/pid")
    except OSError:
        return None
