"""The persistent cache of compiled programs: commands that compile keep them in the user's cache folder.

JAX's own key holds the program, the versions of jaxlib and of the platform, XLA's flags, compile options and the kind
of device. What a CPU program assumes of its host besides is in the name of a folder, `host_key`.
"""

import contextlib
import errno
import hashlib
import importlib.metadata
import os
import platform
import shutil
import stat
import tempfile
from pathlib import Path

import jax
from jax.experimental.compilation_cache import compilation_cache

from vitx.console import print_message

OFF = "off"
MAX_BYTES = 4 * 2**30
MIN_FREE_BYTES = 2**30  # a disk with less is left to the checkpoints
# Libraries whose kernels, or whose choice of kernels, become part of a program.
LIBRARIES = (
    *("jax", "jaxlib", "libtpu", "jax-cuda12-plugin", "jax-cuda13-plugin"),
    *("nvidia-cudnn-cu12", "nvidia-cudnn-cu13", "nvidia-cublas-cu12", "nvidia-cublas"),
)
CPU_FACTS = ("model name", "flags", "Features", "CPU implementer", "CPU part")  # lines of /proc/cpuinfo


def keep_programs(setting: str | None = None) -> None:
    """Lets JAX keep compiled programs on disk, and reuse those that are there. Never fails.

    JAX_COMPILATION_CACHE_DIR and JAX_ENABLE_COMPILATION_CACHE=false keep their meaning where `setting` is None.

    Args:
        setting: `training.compilation_cache`: a folder, also in a bucket; "off"; or None for `vitx/compiled` in the
            user's cache folder, whose size is limited.
    """
    if setting is not None:
        _switch_to(None if setting == OFF else os.path.join(os.path.expanduser(setting), host_key()))
        return
    # Processes that train together compile together on GPUs: one that reads its program would leave the others waiting.
    is_multi_process = jax.distributed.is_initialized()
    is_chosen = jax.config.jax_compilation_cache_dir is not None or not jax.config.jax_enable_compilation_cache
    if is_multi_process or is_chosen:
        return
    try:
        folder = default_folder()
        prepare(folder)
    except OSError as error:
        print_message(
            f"compiled programs are not kept for later: {error}; JAX_COMPILATION_CACHE_DIR names another folder"
        )
        return
    _switch_to(str(folder / host_key()))


def keep_own_programs(setting: str | None) -> None:
    """Lets JAX keep compiled programs where a run is used and not trained: in the user's cache folder.

    A folder that config.json names is not read: of a run of somebody else it may hold programs of theirs, which would
    run here.

    Args:
        setting: `training.compilation_cache` of the run, of which "off" is obeyed.
    """
    keep_programs(OFF if setting == OFF else None)


def default_folder() -> Path:
    """Returns the folder in the user's cache folder.

    Raises:
        OSError: the user has no home folder.
    """
    base = os.environ.get("XDG_CACHE_HOME", "")
    if not os.path.isabs(base):  # a relative one is to be ignored, says the XDG specification
        base = os.path.join(os.path.expanduser("~"), ".cache")
    if not os.path.isabs(base):
        raise OSError("the user has no home folder")
    return Path(base) / "vitx" / "compiled"


def prepare(folder: Path, max_bytes: int = MAX_BYTES, min_free: int = MIN_FREE_BYTES) -> None:
    """Creates the folder, removes what exceeds the size limit, and checks that programs can be kept there.

    Raises:
        OSError: the folder cannot be written, others may write into it, or its disk is nearly full.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    info = folder.stat()
    # Whoever writes programs there runs code here.
    if hasattr(os, "geteuid") and (info.st_uid != os.geteuid() or info.st_mode & (stat.S_IWGRP | stat.S_IWOTH)):
        raise PermissionError(errno.EPERM, "others may write there", str(folder))
    remove_oldest(folder, max_bytes)
    if shutil.disk_usage(folder).free < min_free:
        raise OSError(errno.ENOSPC, f"less than {min_free / 2**20:.0f} MiB are free", str(folder))
    with tempfile.TemporaryFile(dir=folder) as file:
        file.write(b"0")


def remove_oldest(folder: Path, max_bytes: int) -> None:
    """Removes files below the folder until the rest has at most `max_bytes`; those used last stay.

    Not `jax_compilation_cache_max_size`: a process that ends between the two files of an entry leaves a folder whose
    eviction fails ever after (JAX 0.10.2, 2026-11), and its lock stops on network disks.
    """
    files = []
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):  # another process may have removed it
            info = path.stat()
            if stat.S_ISREG(info.st_mode):
                files.append((max(info.st_atime, info.st_mtime), info.st_size, path))
    total = 0
    for _, size, path in sorted(files, reverse=True):
        total += size
        if total > max_bytes:
            with contextlib.suppress(OSError):
                path.unlink()


def host_key(cpuinfo: str = "/proc/cpuinfo") -> str:
    """Returns a name for what a program assumes of its host: CPU and number of cores, and versions of libraries.

    Args:
        cpuinfo: file in which the system describes its CPUs.
    """
    facts = {platform.system(), platform.machine()}
    try:
        with open(cpuinfo) as file:
            lines = [line.partition(":") for line in file]
        facts |= {f"{name.strip()}:{value}" for name, _, value in lines if name.strip() in CPU_FACTS}
    except OSError:
        facts.add(platform.node())  # elsewhere the CPU's features are not known, so each host has its own folder
    # XLA divides loops among the cores when it compiles.
    facts.add(str(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()))
    for name in LIBRARIES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            facts.add(f"{name} {importlib.metadata.version(name)}")
    return hashlib.sha256("\n".join(sorted(facts)).encode()).hexdigest()[:16]


def _switch_to(folder: str | None) -> None:
    if folder != jax.config.jax_compilation_cache_dir:
        jax.config.update("jax_compilation_cache_dir", folder)
        compilation_cache.reset_cache()  # JAX asks for the folder once, when it first compiles
