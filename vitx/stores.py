"""Kinds of bucket: what opens them, and what their refusals and those of a disk mean for a user."""

import contextlib
import errno
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePath

from vitx.errors import UserError


@dataclass(frozen=True)
class Store:
    """One kind of bucket.

    Attributes:
        module: Python package that opens it.
        install: command that installs the package.
        credentials: what to set so that requests are allowed.
    """

    module: str
    install: str
    credentials: str


STORES = {
    "gs": Store(
        "gcsfs",
        "pip install 'vitx[gcs]'",
        "run `gcloud auth application-default login`, or set GOOGLE_APPLICATION_CREDENTIALS to a key file",
    ),
    "s3": Store(
        "s3fs",
        "pip install 'vitx[s3]'",
        "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or AWS_PROFILE, and AWS_ENDPOINT_URL for a store that is "
        "not Amazon's",
    ),
    # epath opens this one too, but no emulator installs with pip: it is untested here.
    "az": Store("adlfs", "pip install adlfs", "set AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY"),
}
ALIASES = {"gcs": "gs", "s3a": "s3", "s3n": "s3"}


def is_bucket(path: PurePath) -> bool:
    """Returns whether a path of `vitx.storage.as_path` lies in a bucket."""
    return not isinstance(path, Path)


def scheme_of(path: PurePath) -> str:
    """Returns the scheme of a path in a bucket: "gs" of gs://bucket/run."""
    return str(path).partition("://")[0]


def bucket_of(path: PurePath) -> str:
    """Returns the bucket of a path: gs://bucket of gs://bucket/run."""
    return "/".join(str(path).split("/")[:3])


@contextlib.contextmanager
def report_io_errors(path: PurePath) -> Iterator[None]:
    """Raises UserError in place of a disk's or a store's refusal: full, not permitted, not reachable."""
    try:
        yield
    except Exception as error:
        message = None if isinstance(error, UserError) else _explain(path, error)
        if message is None:
            raise
        raise UserError(message) from error


# What clients raise, by the names of the exceptions: importing them would import the clients. TensorStore, which writes
# arrays for Orbax, has only texts.
_NO_CREDENTIALS = re.compile(
    r"NoCredentialsError|PartialCredentialsError|DefaultCredentialsError|RefreshError|NoAuthTokenError|ProfileNotFound"
    r"|Anonymous caller|Invalid Credentials|InvalidAccessKeyId|SignatureDoesNotMatch|ExpiredToken|UNAUTHENTICATED"
)
_DENIED = re.compile(r"PermissionError|Forbidden|AccessDenied|PERMISSION_DENIED")
_UNREACHABLE = re.compile(
    r"EndpointConnectionError|ConnectTimeoutError|ReadTimeoutError|ClientConnector|ServerDisconnected|FSTimeoutError"
    r"|ConnectionRefused|NewConnectionError|gaierror|ConnectionError|ServerTimeoutError|UNAVAILABLE|DEADLINE_EXCEEDED"
)


def _explain(path: PurePath, error: BaseException) -> str | None:
    """Returns a message about a refusal of the disk or the store, None where the error is another."""
    number = getattr(error, "errno", None)
    if number in (errno.ENOSPC, errno.EDQUOT) or "No space left" in str(error):
        return full_disk(path)
    if not is_bucket(path):
        denied = number in (errno.EACCES, errno.EPERM, errno.EROFS)
        return f"{path} may not be written: {error.strerror}; choose another folder" if denied else None
    texts = " ".join(f"{type(cause).__name__} {cause}" for cause in _chain(error))
    store, reason = STORES[scheme_of(path)], (str(error).strip().splitlines() or [""])[0][:200]
    if _NO_CREDENTIALS.search(texts) or getattr(error, "code", None) in (401, "401"):
        return f"{path} was refused without valid credentials: {store.credentials} ({reason})"
    if _DENIED.search(texts):
        return f"{path} was refused: the credentials in use may not read or write it; {store.credentials} ({reason})"
    if _UNREACHABLE.search(texts):
        reason = reason or "no answer"
        return f"{bucket_of(path)} cannot be reached: {reason}; check the network and the endpoint, then run it again"
    return None


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yields an error and what caused it: clients wrap the reason several times."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def full_disk(path: PurePath, why: str = "") -> str:
    """Returns the message about a disk without space."""
    return (
        f"the disk is full: {path} could not be written{why}; free some space and run the same command again, "
        "which resumes from the last complete checkpoint"
    )
