"""`vitx data ...`: what looks after videos."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from vitx.errors import UserError


def add_source(command: argparse.ArgumentParser, name: str) -> None:
    """Adds the arguments that `dataset_of` reads."""
    command.add_argument("path", type=Path, metavar=name, help="a folder of classes, a .csv or a .jsonl")
    command.add_argument("--labels", nargs="*", help="a list's columns that name a class (default: class)")
    command.add_argument("--multi_label", nargs="*", default=[], help="a list's columns that name several")
    command.add_argument("--targets", nargs="*", default=[], help="a list's columns that are numbers")


def dataset_of(options: argparse.Namespace) -> Any:
    """Returns the dataset that a command's path and columns name."""
    from vitx.data.files import Folder, Table

    if options.path.suffix not in (".csv", ".jsonl"):
        return Folder(str(options.path))
    others = {"multi_label": tuple(options.multi_label), "targets": tuple(options.targets)}
    labels = ["class"] if options.labels is None and not any(others.values()) else options.labels or []
    try:
        return Table(str(options.path), labels=tuple(labels), **others)
    except ValueError as error:
        raise UserError(f"{options.path}: {error}") from error


def add_commands(commands: Any) -> None:
    """Adds `data` and its subcommands to the subparsers of `vitx`; each sets `command`, as those in `vitx.cli` do."""
    data = commands.add_parser("data", help="look after videos: `vitx data check`, `vitx data list`")
    what = data.add_subparsers(metavar="WHAT", required=True)
    listed = what.add_parser(
        "list",
        help="official annotations into one list that an experiment reads",
        description="Writes a CSV of the videos that are annotated and there: path, labels, and split, group, begin "
        "and end where the annotations have them. `Table` in an experiment file reads it.",
    )
    listed.add_argument("format", metavar="FORMAT", help="kinetics, ucf101, ...: a wrong one lists all")
    listed.add_argument("annotations", type=Path, metavar="ANNOTATIONS", help="the folder of the official files")
    listed.add_argument("videos", type=Path, metavar="VIDEOS", help="the folder under which the videos lie")
    listed.add_argument("list", type=Path, metavar="LIST.csv")
    listed.set_defaults(command=_list)
    check = what.add_parser(
        "check",
        help="find broken, doubled and odd videos before training does",
        description="Opens every video and decodes its first, middle and last frame; says which are broken, which are "
        "there twice, and what codecs, sizes, durations and classes there are. Exit status 1 when one is broken.",
    )
    add_source(check, "PATH")
    check.add_argument("--whole", action="store_true", help="decode every frame")
    check.add_argument("--sheet", type=Path, metavar="FILE.png", help="draw frames of some videos of every class")
    check.add_argument("--json", action="store_true", help="print one JSON object on standard output")
    check.set_defaults(command=_check)


def _list(options: argparse.Namespace, _: list[str]) -> None:
    from vitx.data.annotations import FORMATS, write_list
    from vitx.errors import closest

    if options.format not in FORMATS:
        known = ", ".join(FORMATS)
        raise UserError(f"there is no format {options.format}{closest(options.format, FORMATS)} Known are {known}")
    rows, missing = write_list(options.format, options.annotations, options.videos, options.list)
    table = FORMATS[options.format].table(options.list)
    print(f"{options.list}: {rows} rows; an experiment file reads it with {table}", file=sys.stderr)
    if missing:
        print(f"{len(missing)} annotated videos are not there, first {', '.join(missing[:5])}", file=sys.stderr)


def _check(options: argparse.Namespace, _: list[str]) -> int:
    from vitx.data import check

    dataset = dataset_of(options)
    splits = dataset.splits()
    report = check.check(splits, whole=options.whole)
    if options.sheet:
        check.draw_sheet(splits, {each["path"] for each in report["broken"]}, options.sheet)
    print(json.dumps(report) if options.json else check.described(report))
    return 1 if report["broken"] else 0
