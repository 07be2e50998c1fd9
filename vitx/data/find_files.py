"""Videos that a command line names: files, folders with all that is below them, and lists."""

import dataclasses
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from vitx.data.file_kinds import find_videos, is_sequence
from vitx.data.folders import list_folder
from vitx.data.lists import is_list, read_list
from vitx.errors import UserError, did_you_mean

MAX_NAMED = 3  # missing videos in a message


@dataclasses.dataclass(frozen=True)
class FoundVideos:
    """Videos that were found.

    Attributes:
        files: paths of videos, each once, in the order in which they were named.
        errors: {path: reason why it cannot be used}.
        notes: notes for users, a line each.
    """

    files: tuple[str, ...]
    errors: dict[str, str]
    notes: tuple[str, ...]


def find_files(paths: Sequence[Path]) -> FoundVideos:
    """Returns the videos that paths stand for.

    Args:
        paths: videos; folders, which stand for all videos below them; lists (.csv, .tsv, .jsonl, .ndjson) with a column
            `path`, relative to the list's folder.

    Raises:
        UserError: a list cannot be read, lists nothing, or none of its videos exists.
    """
    files: list[str] = []
    errors: dict[str, str] = {}
    notes: list[str] = []
    for path in paths:
        if not path.exists():
            errors[str(path)] = f"there is no {path}"
        elif path.is_dir() and not is_sequence(path):
            listing = list_folder(path)
            found = list(map(str, find_videos(listing)))
            notes += [f"not used: {problem}" for problem in listing.skipped]
            errors |= {problem.partition(" cannot be read")[0]: problem for problem in listing.unreadable}
            if not found and not listing.unreadable:
                errors[str(path)] = f"{path} is a folder without videos; expected files such as {path}/clip.mp4"
            files += found
        elif is_list(path):
            listed = _read_paths(path)
            missing = [file for file in listed if not os.path.exists(file)]
            errors |= {file: f"there is no {file}" for file in missing}
            if missing:
                notes.append(_describe_missing(path, missing, len(listed)))
            gone = set(missing)
            files += [file for file in listed if file not in gone]
        else:
            files.append(str(path))
    return FoundVideos(tuple(dict.fromkeys(files)), errors, tuple(notes))


def name_outputs(files: Sequence[str], folder: Path, ending: str) -> dict[str, Path]:
    """Returns {video: path of a file about it}, in a folder, with sub-folders that distinguish the videos.

    Args:
        files: paths of videos.
        folder: folder of the new files.
        ending: what follows the name of the video, such as "_timeline.png".

    Raises:
        UserError: a new file would replace one of the videos, or be that of two videos.
    """
    if not files:
        return {}
    absolute = [Path(os.path.abspath(file)) for file in files]
    root = os.path.commonpath([path.parent for path in absolute])
    relative = [Path(os.path.relpath(path, root)) for path in absolute]
    counts = Counter(path.with_suffix("") for path in relative)
    # Of clip.mp4 and clip.mkv, both names keep their endings.
    stems = [path.stem if counts[path.with_suffix("")] == 1 else path.name for path in relative]
    named = [folder / path.with_name(f"{stem}{ending}") for path, stem in zip(relative, stems, strict=True)]
    if replaced := {os.path.abspath(path) for path in named} & set(map(str, absolute)):
        raise UserError(f"{min(replaced)} is a video that would be replaced; expected another folder than {folder}")
    if doubled := [path for path, count in Counter(named).items() if count > 1]:
        raise UserError(f"{doubled[0]} would be written for two videos; expected videos whose names differ more")
    return dict(zip(files, named, strict=True))


def _read_paths(file: Path) -> list[str]:
    """Returns the paths in a list, each once."""
    paths = []
    for where, fields in read_list(file, ("path",), "path"):
        if "path" not in fields:
            columns = ", ".join(map(str, fields))
            raise UserError(f"{where} has no 'path'{did_you_mean('path', map(str, fields))} It has {columns}")
        if not isinstance(fields["path"], str) or not fields["path"].strip():
            raise UserError(f"{where}: path is {fields['path']!r}; expected the path of a video")
        paths.append(str(file.parent / fields["path"]))
    if not paths:
        raise UserError(f"{file} lists no videos; expected a column path, and a row for each video")
    return list(dict.fromkeys(paths))


def _describe_missing(file: Path, missing: Sequence[str], total: int) -> str:
    """Returns a line about the videos of a list that do not exist.

    Raises:
        UserError: none exists.
    """
    named = ", ".join(missing[:MAX_NAMED]) + (", ..." if len(missing) > MAX_NAMED else "")
    text = f"{len(missing)} of {total} videos in {file} do not exist: {named}; paths are relative to {file.parent}"
    if len(missing) == total:
        raise UserError(f"{text}: correct the list, or move it")
    return text
