"""Local copies of files in buckets, for libraries that read local files only: ArrayRecord, safetensors, PyAV.

Copies lie in $VITX_CACHE (by default ~/.cache/vitx), under a name that changes with a file's size and version, and stay
there: a second run reads no byte of them again. Remove the folder to free the space.
"""

import hashlib
import os
import shutil
from pathlib import Path, PurePath

import filelock

from vitx import storage
from vitx.errors import UserError
from vitx.stores import is_bucket


def local_copy(path: PurePath) -> Path:
    """Returns a local path with the content of a file or folder: itself where it is local, or a copy.

    Raises:
        UserError: the disk of the copies is full.
    """
    if not is_bucket(path):
        return path
    if not storage.is_folder(path):
        return _copy_files(path.parent, [path]) / path.name
    return _copy_files(path, storage.files_under(path))


def cache_folder() -> Path:
    """Returns the folder of the copies."""
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(os.environ.get("VITX_CACHE") or Path(base) / "vitx").expanduser()


def _copy_files(root: PurePath, paths: list[PurePath]) -> Path:
    """Returns a folder with copies of files under `root`; the name of the folder depends on their versions."""
    facts = {str(path): storage.file_info(path) for path in paths}
    versions = [
        (path, *(str(info.get(key)) for key in ("size", "generation", "ETag", "etag"))) for path, info in facts.items()
    ]
    folder = cache_folder() / hashlib.sha256(repr(sorted(versions)).encode()).hexdigest()[:32]
    # Worker processes want the same files at the same time; the first one copies them.
    storage.create_folder(folder)
    with filelock.FileLock(folder / ".lock"):
        _copy_missing(root, paths, folder, {path: info["size"] for path, info in facts.items()})
    return folder


def _copy_missing(root: PurePath, paths: list[PurePath], folder: Path, sizes: dict[str, int]) -> None:
    copies = {path: folder / str(path)[len(str(root)) + 1 :] for path in paths}
    missing = {path: copy for path, copy in copies.items() if not copy.exists()}
    needed, free = sum(sizes[str(path)] for path in missing), shutil.disk_usage(folder).free
    if free < needed:
        raise UserError(
            f"{root}: its copies take {needed:,} bytes and {folder} has {free:,} free; set VITX_CACHE to a larger disk"
        )
    for path, copy in missing.items():
        storage.create_folder(copy.parent)
        with storage.atomic_path(copy) as draft:
            storage.download_file(path, draft)
