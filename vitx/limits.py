"""Limits on files of other people: only regular files are opened, and memory is checked before it is allocated."""

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path, PurePath
from typing import IO

from vitx.errors import UserError

MAX_EXCESS = 2**28
"""Bytes that a file may unpack to beyond its own size: enough for weights that compress well, little for a machine."""

_CGROUP = Path("/sys/fs/cgroup")


@contextlib.contextmanager
def open_regular(path: str | os.PathLike[str]) -> Iterator[IO[bytes]]:
    """Opens a regular file to read; pipes and devices, which could be read without end, are refused.

    Raises:
        UserError: the path is that of a pipe, a device or a socket.
        OSError: the file cannot be opened.
    """
    # Without O_NONBLOCK, opening a pipe waits for somebody to write into it.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        mode = os.fstat(descriptor).st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), os.fspath(path))
        if not stat.S_ISREG(mode):
            raise UserError(f"found a pipe or a device at {os.fspath(path)}; expected a regular file")
        file = os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise
    with file:
        yield file


def check_unpacked(path: PurePath, needed: int, size: int | None = None) -> None:
    """Raises UserError where a file claims more bytes than its own size allows, or than this machine has.

    Args:
        path: path of the file.
        needed: bytes of all arrays that the file claims to hold.
        size: bytes of the file; None asks the disk.
    """
    size = os.path.getsize(path) if size is None else size
    if needed > size + MAX_EXCESS:
        raise UserError(
            f"{path} has {size:,} bytes and claims arrays of {needed:,}; expected at most {MAX_EXCESS:,} more than its "
            "size: save it without compression, and its tensors dense and not expanded"
        )
    check_memory(needed, str(path))


def check_memory(needed: int, what: str, advice: str = "") -> None:
    """Raises UserError where something needs more memory than is free.

    Args:
        needed: bytes that are about to be allocated.
        what: what needs them; begins the message.
        advice: what to do; ends the message.
    """
    free = available_memory()
    if free is not None and needed > free:
        raise UserError(f"{what} needs {needed:,} bytes of memory and {free:,} are free{advice}")


def available_memory() -> int | None:
    """Returns the bytes of memory that can be allocated here, None where that is not known."""
    known = [_meminfo(), _cgroup_room()]
    return min((free for free in known if free is not None), default=None)


def _meminfo() -> int | None:
    """Returns the free bytes of this machine."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration, ValueError):
        return None


def _cgroup_room() -> int | None:
    """Returns the free bytes of this container: of a cgroup of version 2, where "max" means that there is no limit."""
    try:
        limit = int((_CGROUP / "memory.max").read_text())
        return max(limit - int((_CGROUP / "memory.current").read_text()), 0)
    except (OSError, ValueError):
        return None
