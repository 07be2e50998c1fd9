"""Files and folders of a run, on a local disk or in a bucket: paths, atomic files, folders, errors of the store.

Local paths are `pathlib.Path`, paths in a bucket are `etils.epath.Path`: Orbax and its users speak epath, which keeps
both slashes of `gs://` where `pathlib` collapses them. epath opens buckets through fsspec (gcsfs, s3fs), and so does
this module, which adds what epath lacks: exclusive creation, bounded time, and actionable errors.
"""

import contextlib
import functools
import importlib.util
import json
import logging
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePath
from typing import Any

from vitx import strict_json
from vitx.errors import UserError
from vitx.limits import open_regular
from vitx.stores import ALIASES, STORES, bucket_of, is_bucket, report_io_errors, scheme_of

REQUEST_SECONDS = 60.0  # limit of one small request, its retries included
PROBE_SECONDS = 15.0  # limit of the first request to a bucket
PARALLEL_REQUESTS = 8  # files copied at once: most of the time of a small copy is waiting for the store
COMMITTED = "commit_success.txt"  # Orbax's name for the file that it writes last into a folder of a bucket

_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/(/?)")  # one letter is a drive of Windows
_DRAFT = re.compile(r"\.tmp-[0-9a-f]{16}-")


def as_path(path: str | PurePath) -> PurePath:
    """Returns the path of a local file or folder, or of one in a bucket.

    Args:
        path: a local path, `gs://bucket/...`, `s3://bucket/...`, or a path that this function returned.

    Returns:
        A `pathlib.Path`, or an `epath.Path` in a bucket. Both have `/`, `name`, `parent` and `suffix`; open them with
        the functions of this module.

    Raises:
        UserError: a scheme that cannot be opened here, or a URL without a bucket or with one slash.
    """
    text = os.fspath(path)
    found = _URL.match(text)
    if found is None:
        return path if isinstance(path, Path) else Path(text)
    scheme = ALIASES.get(found[1].lower(), found[1].lower())
    rest = text[found.end() :]
    if not found[2]:
        raise UserError(f"found {text}; expected two slashes after {found[1]}: for a bucket, or ./{text} for a folder")
    if scheme == "file":
        return Path(rest)
    if not rest.split("/")[0]:
        raise UserError(f"found {text}; expected the name of a bucket after {scheme}://")
    _require_store(scheme, text)
    from etils import epath

    _configure_clients()
    return epath.Path(f"{scheme}://{rest.rstrip('/')}")


def local_path(path: str | PurePath) -> Path:
    """Returns a local path, where nothing else can be used.

    Raises:
        UserError: the path lies in a bucket.
    """
    path = as_path(path)
    if is_bucket(path):
        raise UserError(
            f"found {path}; expected a local path here: copy it first, or write it locally and copy it then"
        )
    return path


def absolute(path: PurePath) -> PurePath:
    """Returns an absolute path; a path in a bucket is always absolute."""
    return path if is_bucket(path) else path.absolute()


def _require_store(scheme: str, text: str) -> None:
    """Raises UserError where a scheme is not known or its package is not installed."""
    if scheme not in STORES:
        kinds = ", ".join(f"{name}:// ({store.install})" for name, store in STORES.items())
        raise UserError(f"{text}: {scheme}:// is not supported; expected a local folder or one of {kinds}")
    store = STORES[scheme]
    if importlib.util.find_spec(store.module) is None:
        raise UserError(
            f"{text}: {scheme}:// needs {store.module}, which is not installed: {store.install}; "
            f"then {store.credentials}"
        )


@functools.cache
def _configure_clients() -> None:
    """Sets the defaults of fsspec's clients, those that Orbax opens through epath included."""
    import fsspec

    # epath 1.15 (2026-11) would take TensorFlow's file system wherever TensorFlow is installed; it has no s3://.
    os.environ.setdefault("EPATH_USE_TF", "false")
    for protocol in ("gs", "s3", "abfs"):
        # A cached listing hides what TensorStore or another process has written since.
        fsspec.config.conf.setdefault(protocol, {}).setdefault("use_listings_cache", False)
    # gcsfs 2026.10 logs every refusal with its traceback, and a warning for accounts that may not ask for the type of a
    # bucket; what matters of it is raised too.
    logging.getLogger("gcsfs").setLevel(logging.CRITICAL)


@functools.cache
def _open_filesystem(scheme: str, process: int) -> Any:
    import fsspec

    return fsspec.filesystem(scheme)


@functools.cache
def _probe(bucket: str, process: int) -> None:
    """Asks a bucket once for a file that need not exist: the clients' own retries take minutes where none answers."""
    with contextlib.suppress(FileNotFoundError):
        _request(as_path(bucket), "info", f"{bucket}/vitx", timeout=PROBE_SECONDS)


def _request(
    path: PurePath, operation: str, *args: Any, timeout: float | None = REQUEST_SECONDS, **options: Any
) -> Any:
    """Runs one operation of fsspec within a bounded time, with errors for the user."""
    from fsspec.asyn import AsyncFileSystem, sync

    with report_io_errors(path):
        filesystem = _open_filesystem(scheme_of(path), os.getpid())
        if isinstance(filesystem, AsyncFileSystem):
            return sync(filesystem.loop, getattr(filesystem, f"_{operation}"), *args, timeout=timeout, **options)
        return getattr(filesystem, operation)(*args, **options)


def _call(path: PurePath, operation: str, *args: Any, **options: Any) -> Any:
    _probe(bucket_of(path), os.getpid())
    return _request(path, operation, *args, **options)


def file_info(path: PurePath) -> dict[str, Any]:
    """Returns the metadata of a file in a bucket: "size" in bytes; "generation", "ETag" or "etag"."""
    return _call(path, "info", str(path))


def file_size(path: PurePath) -> int:
    """Returns the size of a file in bytes."""
    return file_info(path)["size"] if is_bucket(path) else path.stat().st_size


def exists(path: PurePath) -> bool:
    """Returns whether there is a file or folder."""
    return _call(path, "exists", str(path)) if is_bucket(path) else path.exists()


def is_folder(path: PurePath) -> bool:
    """Returns whether there is a folder; in a bucket, whether there is something under the path."""
    return _call(path, "isdir", str(path)) if is_bucket(path) else path.is_dir()


def is_file(path: PurePath) -> bool:
    """Returns whether there is a file."""
    return exists(path) and not is_folder(path) if is_bucket(path) else path.is_file()


def names_in(folder: PurePath) -> list[str]:
    """Returns the sorted names of the files and folders in a folder, [] where there is no folder."""
    try:
        if not is_bucket(folder):
            return sorted(os.listdir(folder))
        paths = _call(folder, "ls", str(folder), detail=False)
    except FileNotFoundError:
        return []
    folder_path = str(folder).partition("://")[2]
    return sorted({path.rstrip("/").rpartition("/")[2] for path in paths if path.rstrip("/") != folder_path})


def create_folder(folder: PurePath) -> None:
    """Creates a local folder and its parents; a bucket needs none."""
    if not is_bucket(folder):
        with report_io_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)


def read_bytes(path: PurePath) -> bytes:
    """Returns the content of a file."""
    return _call(path, "cat_file", str(path)) if is_bucket(path) else _read_local(path)


def _read_local(path: Path) -> bytes:
    with open_regular(path) as file:
        return file.read()


def read_text(path: PurePath) -> str:
    """Returns the content of a UTF-8 file.

    Raises:
        UserError: it is not UTF-8.
    """
    try:
        return read_bytes(path).decode()
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text: byte {error.start} is {error.object[error.start]:#04x}") from error


def read_json(path: PurePath) -> Any:
    """Returns the data of a JSON file.

    Raises:
        UserError: no such file, or not JSON.
    """
    try:
        return json.loads(read_text(path))
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or 'there is no such file'}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON: {error}") from error


@contextlib.contextmanager
def atomic_path(path: PurePath) -> Iterator[Path]:
    """Yields a new, empty local file to fill, which becomes `path` when the block ends.

    A reader sees the old file or the new one, never a part of it. Where the block raises, `path` stays as it was. A
    link at `path` is replaced, never followed.
    """
    with report_io_errors(path):
        if is_bucket(path):
            with tempfile.TemporaryDirectory() as folder:
                draft = Path(folder) / path.name
                draft.touch()
                yield draft
                upload_file(draft, path)
            return
        draft = _create_beside(path)
        try:
            yield draft
            _sync_file(draft)
            draft.replace(path)
        except BaseException:
            draft.unlink(missing_ok=True)
            raise
        _sync_file(path.parent)  # the name too must outlive a power cut


def check_ending(path: PurePath, endings: Iterable[str]) -> str:
    """Returns the ending of a path, in lower case; raises UserError unless it is one of `endings`."""
    ending = path.suffix.lower()
    if ending not in (known := tuple(endings)):
        raise UserError(f"{path} ends in {path.suffix!r}; expected one of {', '.join(known)}")
    return ending


def check_writable(path: PurePath) -> None:
    """Raises UserError where a file could not be written, before the work whose result it is to hold."""
    if not is_bucket(path):
        with report_io_errors(path):
            _create_beside(path).unlink()


def write_bytes(path: PurePath, data: bytes) -> None:
    """Writes a file in one piece, see `atomic_path`."""
    if is_bucket(path):
        _write_object(path, data)
        return
    with atomic_path(path) as draft:
        draft.write_bytes(data)


def write_text(path: PurePath, text: str) -> None:
    """Writes a UTF-8 file in one piece, see `atomic_path`."""
    write_bytes(path, text.encode())


def write_json(path: PurePath, data: Any) -> None:
    """Writes a JSON file in one piece, see `atomic_path`."""
    write_text(path, strict_json.dumps(data, indent=2) + "\n")


def create_file(path: PurePath, data: bytes) -> bool:
    """Creates a file atomically unless it exists; returns whether it was created.

    Google's and Amazon's stores check this themselves (If-None-Match); so do moto 5.2 and fake-gcs-server.
    """
    try:
        if is_bucket(path):
            _write_object(path, data, mode="create")
        else:
            draft = _create_beside(path)
            try:
                draft.write_bytes(data)
                os.link(draft, path)  # in one piece, and unlike a renamed file never over another
            except FileExistsError:
                raise
            except OSError:  # file systems without hard links
                with os.fdopen(_open_new(path), "wb") as file:
                    file.write(data)
            finally:
                draft.unlink()
    except FileExistsError:
        # A retried request can find the file that its first attempt has created.
        return is_bucket(path) and read_bytes(path) == data
    return True


def remove(path: PurePath) -> None:
    """Removes a file or a link; a missing one is no error."""
    with contextlib.suppress(FileNotFoundError):
        if is_bucket(path):
            _call(path, "rm_file", str(path))
        else:
            with report_io_errors(path):
                path.unlink()


def remove_folder(folder: PurePath) -> None:
    """Removes a folder with everything in it; a missing one is no error."""
    if is_bucket(folder):
        # COMMITTED is removed first: a kill must not leave a part of the folder that passes for the whole.
        remove(folder / COMMITTED)
        _in_parallel(remove, files_under(folder))
        return
    with report_io_errors(folder), contextlib.suppress(FileNotFoundError):
        shutil.rmtree(folder)


def move_folder(folder: PurePath, destination: PurePath) -> None:
    """Renames a folder; in a bucket copies its files, the mark of completeness last, and removes the old ones."""
    if not is_bucket(folder):
        with report_io_errors(folder):
            folder.rename(destination)
        return
    names = [str(path)[len(str(folder)) + 1 :] for path in files_under(folder)]

    def copy(name: str) -> None:
        _call(destination, "cp_file", str(folder / name), str(destination / name), timeout=None)

    _in_parallel(copy, [name for name in names if name != COMMITTED])
    if COMMITTED in names:
        copy(COMMITTED)
    remove_folder(folder)


def upload_file(source: Path, destination: PurePath) -> None:
    """Copies a local file into a bucket."""
    _call(destination, "put_file", str(source), str(destination), timeout=None)


def download_file(source: PurePath, destination: Path) -> None:
    """Copies a file of a bucket to a local path."""
    _call(source, "get_file", str(source), str(destination), timeout=None)


def upload_folder(source: Path, destination: PurePath) -> None:
    """Copies a local folder into a bucket, and marks it as complete last."""
    # Orbax 0.12.8 writes the mark into local folders too: among the others it would come too early.
    paths = [path for path in source.rglob("*") if path.is_file() and path != source / COMMITTED]
    _in_parallel(lambda path: upload_file(path, destination / path.relative_to(source).as_posix()), paths)
    write_bytes(destination / COMMITTED, b"")


def download_folder(source: PurePath, destination: Path) -> None:
    """Copies a folder of a bucket to a new local folder, which appears when it is complete."""
    with tempfile.TemporaryDirectory(dir=destination.parent) as draft:
        folder = Path(draft) / "folder"
        folder.mkdir()
        names = [str(path)[len(str(source)) + 1 :] for path in files_under(source)]
        for name in names:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
        _in_parallel(lambda name: download_file(source / name, folder / name), [n for n in names if n != COMMITTED])
        folder.rename(destination)


def files_under(folder: PurePath) -> list[PurePath]:
    """Returns the files in a folder of a bucket and in its sub-folders."""
    paths = _call(folder, "find", str(folder))
    return [as_path(f"{scheme_of(folder)}://{path}") for path in paths]


def remove_drafts(folder: PurePath) -> None:
    """Removes unfinished files that killed processes left; the caller holds the folder's lock."""
    if not is_bucket(folder):
        for name in names_in(folder):
            if _DRAFT.match(name):
                remove(folder / name)


def _write_object(path: PurePath, data: bytes, **options: Any) -> None:
    try:
        _call(path, "pipe_file", str(path), data, **options)
    except FileNotFoundError as error:
        raise UserError(f"{path}: there is no bucket {bucket_of(path)}; create it, or choose another") from error


def _in_parallel(function: Callable[[Any], None], items: Sequence[Any]) -> None:
    """Calls a function for each item in threads, since most of its time is waiting for the store."""
    with ThreadPoolExecutor(PARALLEL_REQUESTS) as pool:
        for future in [pool.submit(function, item) for item in items]:
            future.result()


def _create_beside(path: Path) -> Path:
    """Creates an empty file in the folder of `path`, of a name that nobody can guess and prepare a link at."""
    ending = os.fsencode(path.name)[-150:].decode("utf-8", "ignore")  # names have at most 255 bytes
    draft = path.with_name(f".tmp-{secrets.token_hex(8)}-{ending}")
    try:
        os.close(_open_new(draft))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UserError(f"{path} cannot be written: there is no folder {path.parent}; create it first") from error
    return draft


def _open_new(path: Path) -> int:
    # O_EXCL follows no link, not even one that leads nowhere.
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)


def _sync_file(path: Path) -> None:
    file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        os.fsync(file)
    finally:
        os.close(file)
