"""Which files count as videos: by their ending, or a folder of numbered pictures; and why others do not."""

import contextlib
import io
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import IO

from vitx.data.container import VideoError
from vitx.data.encoding import mux_images
from vitx.data.folders import Listing
from vitx.errors import UserError
from vitx.limits import open_regular
from vitx.storage import read_bytes

ENDINGS = (
    *(".264", ".265", ".3g2", ".3gp", ".apng", ".asf", ".avi", ".avifs", ".divx", ".f4v", ".flv", ".gif", ".h264"),
    *(".h265", ".hevc", ".ivf", ".m2ts", ".m2v", ".m4v", ".mkv", ".mov", ".mp4", ".mpe", ".mpeg", ".mpg", ".mts"),
    *(".mxf", ".nut", ".ogv", ".qt", ".ts", ".vob", ".webm", ".wmv"),
)
"""Endings of files that are read as videos."""

FRAME_KINDS: Mapping[str, str] = MappingProxyType({".jpeg": "JPEG", ".jpg": "JPEG", ".png": "PNG"})
"""Endings, and their kind, of pictures that are frames of a video where a folder below the class's holds only them."""

SYSTEM_FILES = ("desktop.ini", "thumbs.db")
"""Files, in lower case, that an operating system puts beside pictures."""

_STILL = "a still picture; put the frames of each video, all .png or all .jpg, into a folder of its own below its class"
_OTHER_STILL = "a picture of a kind that is not read; convert it to .png or .jpg, a folder for the frames of each video"
_UNKNOWN = "no container that is read; convert it, for example with `ffmpeg -i FILE FILE.mp4`"
UNREAD: Mapping[str, str] = MappingProxyType(
    dict.fromkeys((".jpeg", ".jpg"), _STILL)
    | dict.fromkeys((".avif", ".bmp", ".heic", ".tif", ".tiff"), _OTHER_STILL)
    | {".png": f"{_STILL}; an animated PNG is read where its name ends in .apng"}
    | {".webp": "a picture, or an animation that FFmpeg (8, 2026-11) does not decode; convert it to .gif or .apng"}
    | dict.fromkeys((".bik", ".rm", ".rmvb", ".swf", ".y4m"), _UNKNOWN)
)
"""Endings of files that look like the videos of a class and are not read, and the reason."""


def find_videos(listing: Listing) -> Iterator[Path]:
    """Yields the videos below the folder of a class: files, and folders that hold the frames of one, sorted."""
    files = {path for path in listing.files if path.suffix.lower() in ENDINGS}
    beside = {path.parent for path in files}
    for path in sorted((*files, *listing.folders)):
        if path in files:
            yield path
        # Pictures in a folder beside videos, or below the frames of one, are thumbnails more often than videos.
        elif path.parent not in beside and is_sequence(path):
            beside.add(path)
            yield path


def is_sequence(folder: Path) -> bool:
    """Returns whether the files of a folder are several pictures of one kind and nothing else: frames of a video."""
    kinds = [FRAME_KINDS.get(Path(name).suffix.lower()) for name in _file_names(folder)]
    return len(kinds) > 1 and len(set(kinds)) == 1 and kinds[0] is not None


def _file_names(folder: str | Path) -> list[str]:
    """Returns the names of the files in a folder, without hidden files and those of operating systems."""
    with os.scandir(folder) as entries:
        names = [entry.name for entry in entries if not entry.is_dir()]
    return [name for name in names if not name.startswith(".") and name.lower() not in SYSTEM_FILES]


def read_video(path: str) -> str | bytes:
    """Returns a video's path, or the content of a video that is built from a folder of pictures.

    Raises:
        VideoError: a folder cannot be read, or has other files than PNG or JPEG.
    """
    if not os.path.isdir(path):
        return path
    try:
        names = sorted(_file_names(path), key=_natural_key)
        # Before anything is read: a folder may hold a whole dataset.
        if videos := [name for name in names if Path(name).suffix.lower() in ENDINGS]:
            raise VideoError(
                f"found a folder with {videos[0]}; expected a video, or a folder of PNG or JPEG frames alone"
            )
        return mux_images([read_bytes(Path(path, name)) for name in names])
    except (OSError, UserError, VideoError) as error:
        raise VideoError(f"{path}: {getattr(error, 'strerror', None) or error}") from error


@contextlib.contextmanager
def open_bytes(video: bytes | str | os.PathLike) -> Iterator[IO[bytes]]:
    """Opens the content of a video file that is in memory or on disk.

    Raises:
        VideoError: the file cannot be opened.
    """
    if isinstance(video, bytes):
        yield io.BytesIO(video)
        return
    try:
        with open_regular(video) as file:
            yield file
    except (OSError, UserError) as error:
        raise VideoError(f"{video}: {getattr(error, 'strerror', None) or error}") from error


def check_classes_have_videos(listings: Iterable[tuple[Path, Listing]]) -> None:
    """Checks that no class would vanish because none of its files is read as a video.

    Args:
        listings: (folder, what is below it) of each class without a video.

    Raises:
        UserError: a class has pictures or videos, and none that is read. Folders of texts and tables are no classes.
    """
    for folder, listing in listings:
        counts = Counter(file.suffix.lower() for file in listing.files)
        if unread := [ending for ending in counts if ending in UNREAD]:
            found = "; ".join(f"{counts[ending]} of {ending} ({UNREAD[ending]})" for ending in sorted(unread))
            raise UserError(f"{folder} is a class without a video: found {found}; expected {', '.join(ENDINGS)}")


def _natural_key(name: str) -> list[tuple[int, str]]:
    """Returns a key that sorts frame_2 before frame_10."""
    return [(int(part) if part.isdecimal() else -1, part) for part in re.split(r"(\d+)", name)]
