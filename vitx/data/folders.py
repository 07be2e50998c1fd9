"""Listing of folders: hidden files left out, links followed once, everything that could not be read named."""

import dataclasses
import errno
import os
from pathlib import Path


@dataclasses.dataclass(frozen=True)
class Listing:
    """What is below a folder, without hidden files and folders.

    Attributes:
        files: regular files, sorted.
        folders: folders, sorted.
        unreadable: folders that could not be read, each with the reason.
        skipped: links that were not followed, each with the reason.
    """

    files: tuple[Path, ...]
    folders: tuple[Path, ...]
    unreadable: tuple[str, ...]
    skipped: tuple[str, ...]


def list_folder(folder: Path) -> Listing:
    """Returns everything below a folder; a folder that is reached twice, by links, is listed once.

    A link to a folder that holds the link is not followed: everything beside it would be found below it, too.
    """
    files: list[Path] = []
    folders: list[Path] = []
    unreadable, skipped, seen = [], [], {}
    # Links last: a folder that is reached with and without one is listed under its own path.
    plain, links = [folder], []
    while plain or links:
        path = plain.pop() if plain else links.pop()
        try:
            if os.path.islink(path) and _holds(target := os.path.realpath(path), path):
                skipped.append(f"{path} leads back to {target}, which holds it")
                continue
            status = os.stat(path)
            entries = sorted(os.scandir(path), key=lambda entry: entry.name, reverse=True)
        except OSError as error:
            unreadable.append(f"{path} cannot be read: {error.strerror}")
            continue
        if (first := seen.setdefault((status.st_dev, status.st_ino), path)) is not path:
            skipped.append(f"{path} leads to {first}, which is read already")
            continue
        if path is not folder:
            folders.append(path)
        for entry in entries:
            if entry.name.startswith("."):
                continue
            child = path / entry.name
            try:
                if entry.is_dir():
                    (links if entry.is_symlink() else plain).append(child)
                elif entry.is_file():
                    files.append(child)
                elif entry.is_symlink():
                    skipped.append(f"{child} leads to no regular file or folder")
            except OSError as error:
                if error.errno == errno.ELOOP:
                    skipped.append(f"{child} leads to itself")
                else:
                    unreadable.append(f"{child} cannot be read: {error.strerror}")
    return Listing(tuple(sorted(files)), tuple(sorted(folders)), tuple(sorted(unreadable)), tuple(sorted(skipped)))


def _holds(folder: str, path: Path) -> bool:
    """Returns whether a folder, whose path has no links, is that of a path or one above it."""
    return os.path.commonpath([folder, os.path.realpath(path.parent)]) == folder


def child_folders(folder: Path) -> list[Path]:
    """Returns the folders in a folder, links to folders among them, without hidden ones, sorted.

    Raises:
        OSError: the folder cannot be read.
    """
    with os.scandir(folder) as entries:
        return sorted(folder / entry.name for entry in entries if not entry.name.startswith(".") and _is_folder(entry))


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError as error:
        if error.errno == errno.ELOOP:  # a link that leads to itself
            return False
        raise
