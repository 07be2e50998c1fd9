"""Conversion of official annotation files to a list that `vitx.data.files.Table` reads.

Each reader yields (stem of the video's file, fields of its row). Fields are the labels, and `split`, `group`, `begin`
and `end` where the annotations have them; a split that they lack is drawn when the list is opened.
"""

import csv
import dataclasses
import io
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from vitx.data.file_kinds import ENDINGS
from vitx.errors import UserError
from vitx.limits import open_regular
from vitx.storage import atomic_path

Rows = Iterator[tuple[str, dict[str, Any]]]


@dataclasses.dataclass(frozen=True)
class Format:
    """Format of a dataset's annotations.

    Attributes:
        read: reader of a folder of official files.
        labels: columns of the list that are labels of one class, see `Table`.
        multi_label: columns of the list that are labels of several classes.
        targets: columns of the list that are numbers.
        num_classes: (label, number of classes) of labels whose classes are numbers from 0.
    """

    read: Callable[[Path], Rows]
    labels: tuple[str, ...] = ("class",)
    multi_label: tuple[str, ...] = ()
    targets: tuple[str, ...] = ()
    num_classes: tuple[tuple[str, int], ...] = ()

    def table(self, file: Path) -> str:
        """Returns the dataset that an experiment file names to read the list."""
        shown = {name: getattr(self, name) for name in ("labels", "multi_label", "targets", "num_classes")}
        given = [f"{name}={value!r}" for name, value in shown.items() if value != getattr(Format, name)]
        return f"Table({', '.join([repr(str(file)), *given])})"


def read_kinetics(annotations: Path) -> Rows:
    """Kinetics-400, 600 and 700: train.csv, val.csv (or validate.csv) and test.csv in one folder.

    Videos are named as the common downloaders do, ID_BEGIN_END with six digits each.
    """
    for file, split in _find_files_of_splits(annotations, train="train.csv", validation="val*.csv", test="test.csv"):
        for row in _read_csv(file, "label", "youtube_id", "time_start", "time_end"):
            begin, end = (_round_seconds(file, row[name]) for name in ("time_start", "time_end"))
            if row["label"]:  # early test lists have none
                yield f"{row['youtube_id']}_{begin:06d}_{end:06d}", {"class": row["label"], "split": split}


def read_something_something_v2(annotations: Path) -> Rows:
    """Something-Something V2: *train.json and *validation.json in one folder; the class is the template."""
    for file, split in _find_files_of_splits(annotations, train="*train.json", validation="*validation.json"):
        for row in _read_objects(file, "id", "template"):
            yield row["id"], {"class": re.sub(r"[\[\]]", "", row["template"]), "split": split}


def read_ucf101(annotations: Path) -> Rows:
    """UCF101's first split: trainlist01.txt and testlist01.txt in one folder; clips of one group stay together."""
    for file, split in _find_files_of_splits(annotations, train="trainlist01.txt", test="testlist01.txt"):
        for line in _read_lines(file):
            found = re.fullmatch(r"(\w+)/(v_\w+_g\d+)_c\d+\.avi( \d+)?", line)
            if found is None:
                raise UserError(f"{file}: found {line[:80]!r}, expected Class/v_Class_g01_c01.avi 1")
            yield Path(line.split()[0]).stem, {"class": found[1], "group": found[2], "split": split}


def read_hmdb51(annotations: Path) -> Rows:
    """HMDB51's first split: CLASS_test_split1.txt for every class in one folder."""
    files = sorted(annotations.glob("*_test_split1.txt"))
    if not files:
        raise UserError(f"{annotations} has no CLASS_test_split1.txt")
    for file in files:
        for line in _read_lines(file):
            stem, _, number = line.rpartition(" ")
            if number not in ("0", "1", "2"):
                raise UserError(f"{file}: found {line[:80]!r}, expected NAME.avi and 0, 1 or 2")
            if number != "0":
                name = file.name.removesuffix("_test_split1.txt")
                yield Path(stem.strip()).stem, {"class": name, "split": "train" if number == "1" else "test"}


def read_epic_kitchens(annotations: Path) -> Rows:
    """EPIC-KITCHENS-100: EPIC_100_train.csv and EPIC_100_validation.csv; verb, noun and the action of both."""
    for file, split in _find_files_of_splits(
        annotations, train="EPIC_100_train.csv", validation="EPIC_100_validation.csv"
    ):
        for row in _read_csv(file, "video_id", "start_timestamp", "stop_timestamp", "verb_class", "noun_class"):
            verb, noun = row["verb_class"], row["noun_class"]
            times = {
                "begin": _parse_clock(file, row["start_timestamp"]),
                "end": _parse_clock(file, row["stop_timestamp"]),
            }
            labels = {"verb": verb, "noun": noun, "action": f"{verb} {noun}"}
            yield row["video_id"], labels | times | {"group": row["video_id"], "split": split}


def read_charades(annotations: Path) -> Rows:
    """Charades: Charades_v1_train.csv and Charades_v1_test.csv; all actions of a video, whenever they happen.

    Charades_v1_classes.txt names them where it exists. Videos of one subject stay together; the actions' times are in
    the column `intervals`.
    """
    classes = annotations / "Charades_v1_classes.txt"
    names = dict(line.split(maxsplit=1) for line in _read_lines(classes) if " " in line) if classes.exists() else {}
    for file, split in _find_files_of_splits(annotations, train="Charades_v1_train.csv", test="Charades_v1_test.csv"):
        for row in _read_csv(file, "id", "subject", "actions"):
            if not re.fullmatch(r"(c\d+( [\d.]+){2}(;|$))*", row["actions"]):
                raise UserError(f"{file}: found the actions {row['actions'][:80]!r}, expected c092 11.90 21.20;...")
            codes = dict.fromkeys(action.split()[0] for action in row["actions"].split(";") if action)
            actions = ";".join(names.get(code, code).replace(";", ",") for code in codes)
            yield (
                row["id"],
                {"actions": actions, "intervals": row["actions"], "group": row["subject"], "split": split},
            )


def read_echonet_dynamic(annotations: Path) -> Rows:
    """EchoNet-Dynamic: FileList.csv; ejection fraction in percent, volumes at end-systole and end-diastole in ml."""
    file, splits = annotations / "FileList.csv", {"TRAIN": "train", "VAL": "validation", "TEST": "test"}
    for row in _read_csv(file, "FileName", "EF", "ESV", "EDV", "Split"):
        if row["Split"] not in splits:
            raise UserError(f"{file}: found the split {row['Split']!r}, expected {', '.join(splits)}")
        values = {name: row[name] for name in ("EF", "ESV", "EDV")}
        yield row["FileName"].removesuffix(".avi"), values | {"split": splits[row["Split"]]}


FORMATS: Mapping[str, Format] = {
    "kinetics": Format(read_kinetics),
    "something_something_v2": Format(read_something_something_v2),
    "ucf101": Format(read_ucf101),
    "hmdb51": Format(read_hmdb51),
    "epic_kitchens": Format(
        read_epic_kitchens, labels=("verb", "noun", "action"), num_classes=(("verb", 97), ("noun", 300))
    ),
    "charades": Format(read_charades, labels=(), multi_label=("actions",)),
    "echonet_dynamic": Format(read_echonet_dynamic, labels=(), targets=("EF", "ESV", "EDV")),
}


def write_list(annotation_format: str, annotations: Path, videos: Path, file: Path) -> tuple[int, list[str]]:
    """Writes a CSV of the annotated videos that exist; returns (rows written, stems of missing videos).

    Args:
        annotation_format: one of `FORMATS`.
        annotations: folder of the official files.
        videos: folder under which the videos are, in any folders.
        file: path of the list, .csv; paths in it are relative to its folder.

    Raises:
        UserError: the annotations have another format, none of their videos exists, or the list exists already.
    """
    if file.suffix != ".csv" or file.exists():
        raise UserError(f"{file} exists already, or does not end in .csv; choose another name for the list")
    rows = list(FORMATS[annotation_format].read(annotations))
    path_of: dict[str, Path] = {}
    annotated = {stem for stem, _ in rows}
    for path in sorted(videos.rglob("*")):
        if path.suffix.lower() not in ENDINGS or path.stem not in annotated:
            continue
        if (other := path_of.setdefault(path.stem, path)) is not path:
            raise UserError(f"{path.stem} exists twice, {other} and {path}; keep one of them under {videos}")
    found = [
        {"path": os.path.relpath(path_of[stem], file.absolute().parent), **row} for stem, row in rows if stem in path_of
    ]
    if not found:
        example = f", such as {rows[0][0]}" if rows else ""
        raise UserError(f"none of the {len(rows)} videos that {annotations} names is in {videos}{example}")
    try:
        with atomic_path(file) as draft, open(draft, "w", newline="", encoding="utf-8") as out:
            writer = csv.DictWriter(out, fieldnames=list(found[0]))
            writer.writeheader()
            writer.writerows(found)
    except OSError as error:
        raise UserError(f"{file} cannot be written: {error.strerror}") from error
    return len(found), sorted(annotated - path_of.keys())


def _find_files_of_splits(folder: Path, **patterns: str) -> Iterator[tuple[Path, str]]:
    """Yields (file, split) of the files that exist; that of the train split must exist."""
    found = [(file, split) for split, pattern in patterns.items() for file in sorted(folder.glob(pattern))[:1]]
    if not any(split == "train" for _, split in found):
        raise UserError(f"{folder} has no {patterns['train']}; expected {', '.join(patterns.values())}")
    yield from found


def _read_lines(file: Path) -> Iterator[str]:
    try:
        with open_regular(file) as content, io.TextIOWrapper(content, "utf-8") as lines:
            yield from (line.strip() for line in lines if line.strip())
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file} cannot be read: {error}") from error


def _read_csv(file: Path, *columns: str) -> Iterator[dict[str, str]]:
    try:
        with open_regular(file) as content, io.TextIOWrapper(content, "utf-8-sig", newline="") as lines:
            reader = csv.DictReader(lines)
            missing = [name for name in columns if name not in (reader.fieldnames or ())]
            if missing:
                raise UserError(
                    f"{file} has no column {', '.join(missing)}; it has {', '.join(reader.fieldnames or ())}"
                )
            for row in reader:
                if None in row.values() or None in row:
                    raise UserError(f"{file}, line {reader.line_num} has another number of cells than the header")
                yield row
    except (OSError, ValueError, csv.Error) as error:
        raise UserError(f"{file} cannot be read: {error}") from error


def _read_objects(file: Path, *keys: str) -> Iterator[dict[str, str]]:
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{file} cannot be read: {error}") from error
    for item in data if isinstance(data, list) else [None]:
        if not isinstance(item, dict) or not all(isinstance(item.get(key), str | int) for key in keys):
            raise UserError(f"{file}: found {str(item)[:80]}, expected a list of objects with {', '.join(keys)}")
        yield {key: str(item[key]) for key in keys}


def _round_seconds(file: Path, number: str) -> int:
    try:
        return round(float(number))
    except (ValueError, OverflowError):
        raise UserError(f"{file}: found the time {number[:80]!r}, expected seconds") from None


def _parse_clock(file: Path, clock: str) -> float:
    try:
        hours, minutes, seconds = clock.split(":")
        return round(3600 * int(hours) + 60 * int(minutes) + float(seconds), 3)
    except ValueError:
        raise UserError(f"{file}: found the time {clock!r}, expected HH:MM:SS.ss") from None
