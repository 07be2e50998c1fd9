"""Commands on videos: `vitx data check`, `list`, `prepare`, `bench`."""

import argparse
import dataclasses
from typing import Any

from vitx.console import escape, print_json, print_text
from vitx.errors import UserError
from vitx.storage import as_path, check_writable, exists, local_path
from vitx.stores import is_bucket


def add_source(command: argparse.ArgumentParser, name: str) -> None:
    """Adds the arguments that `dataset_from` reads."""
    command.add_argument(
        "path",
        type=as_path,
        metavar=name,
        help="folder of classes, .csv or .jsonl list, or folder that prepare has written",
    )
    command.add_argument("--labels", nargs="*", help="columns of a list that name a class (default: class)")
    command.add_argument("--multi_label", nargs="*", default=[], help="columns of a list that name several classes")
    command.add_argument("--targets", nargs="*", default=[], help="columns of a list that are numbers")
    command.add_argument(
        "--num_classes",
        nargs="*",
        default=[],
        metavar="LABEL=NUMBER",
        help="labels whose classes are the numbers from 0, and how many, such as verb=97",
    )


def _add_reading(command: argparse.ArgumentParser) -> None:
    """Adds the arguments that `_reading_from` reads."""
    command.add_argument("--stream", type=int, help="number of the video stream to read (default: FFmpeg's best one)")
    command.add_argument("--stored_pixels", action="store_true", help="leave pixels that are not square as they are")
    command.add_argument("--accept_damaged", action="store_true", help="read frames that the decoder finds damaged")


def _reading_from(options: argparse.Namespace) -> Any:
    """Returns the `ReadOptions` of a command."""
    from vitx.data.container import ReadOptions

    try:
        return ReadOptions(options.stream, not options.stored_pixels, options.accept_damaged)
    except ValueError as error:
        raise UserError(f"--{error}") from error


def dataset_from(options: argparse.Namespace) -> Any:
    """Returns the dataset that a command's path and columns name."""
    from vitx.data.files import Folder, Table
    from vitx.data.lists import is_list
    from vitx.data.prepared import MANIFEST, Prepared

    if exists(options.path / MANIFEST):
        return Prepared(str(options.path))
    if is_bucket(options.path):
        raise UserError(
            f"{options.path} holds no {MANIFEST}; expected a folder that `vitx data prepare` has written: copy the "
            "videos to a local disk and prepare them into the bucket"
        )
    if not is_list(options.path):
        columns = ("labels", "multi_label", "targets", "num_classes")
        if given := [name for name in columns if getattr(options, name)]:
            raise UserError(
                f"found --{given[0]}, which names columns of a list; {options.path} is a folder: leave it out"
            )
        return Folder(str(options.path))
    others = {"multi_label": tuple(options.multi_label), "targets": tuple(options.targets)}
    labels = ["class"] if options.labels is None and not any(others.values()) else options.labels or []
    try:
        counts = (word.partition("=") for word in options.num_classes)
        others["num_classes"] = tuple((label, int(count)) for label, _, count in counts)
        return Table(str(options.path), labels=tuple(labels), **others)
    except ValueError as error:
        raise UserError(f"{options.path}: {error}") from error


def add_commands(commands: Any) -> None:
    """Adds `data` and its subcommands to the subparsers of `vitx`; each sets `command`, as those in `vitx.cli` do."""
    data = commands.add_parser("data", help="check, list, prepare and time videos")
    what = data.add_subparsers(metavar="WHAT", required=True)
    listed = what.add_parser(
        "list",
        help="convert official annotations to a list that an experiment reads",
        description="Writes a CSV of the annotated videos that exist: path, labels, and split, group, begin and end "
        "where the annotations have them. `Table` in an experiment file reads it.",
    )
    listed.add_argument("format", metavar="FORMAT", help="kinetics, ucf101, ...; an unknown one lists all")
    listed.add_argument("annotations", type=local_path, metavar="ANNOTATIONS", help="folder of the official files")
    listed.add_argument("videos", type=local_path, metavar="VIDEOS", help="folder under which the videos are")
    listed.add_argument("list", type=local_path, metavar="LIST.csv")
    listed.set_defaults(command=_list)
    check = what.add_parser(
        "check",
        help="find broken, duplicate and odd videos before training does",
        description="Opens every video and decodes its first, middle and last frame; reports broken videos, "
        "duplicates, codecs, sizes, durations and classes. Exit status 1 where a video is broken, in two splits or of "
        "two classes, a folder cannot be read, or classes or test videos are too few.",
    )
    add_source(check, "PATH")
    check.add_argument("--whole", action="store_true", help="decode every frame")
    _add_reading(check)
    check.add_argument("--sheet", type=local_path, metavar="FILE.png", help="draw frames of some videos of every class")
    check.add_argument("--json", action="store_true", help="print one JSON object on standard output")
    check.set_defaults(command=_check)
    speed = what.add_parser(
        "bench",
        help="time the data pipeline, and find its bottleneck",
        description="Times each stage (read, decode, augment, batch, to device) and whole pipelines of several numbers "
        "of threads and workers; with an experiment file (PATH, or --experiment) the model's step, too, and reports "
        "the bottleneck. Without one, clips are 16 frames, 4 apart, of 224x224 pixels.",
    )
    add_source(speed, "PATH")
    speed.add_argument("--experiment", type=local_path, metavar="FILE.py", help="experiment with settings and a model")
    speed.add_argument("--clips", type=int, default=64, help="clips that are timed (default: 64)")
    speed.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="numbers to try (default: 1 2)")
    speed.add_argument("--workers", type=int, nargs="+", default=[0, 2], help="processes to try (default: 0 2)")
    speed.add_argument("--json", action="store_true", help="print one JSON object on standard output")
    speed.set_defaults(command=_bench)
    ready = what.add_parser(
        "prepare",
        help="scale videos once, into a few large files that are read fast",
        description="Scales and re-encodes every video and writes them as ArrayRecord shards with a manifest: "
        "counts, labels, checksums, and the videos that cannot be read. A stopped command resumes when it is repeated. "
        "`Prepared` in an experiment file reads the folder.",
    )
    add_source(ready, "SOURCE")
    ready.add_argument("destination", type=as_path, metavar="DESTINATION", help="folder to fill")
    ready.add_argument("--short_side", type=int, default=256, help="pixels; smaller videos stay (default: 256)")
    ready.add_argument("--codec", default="libx264", help="FFmpeg's encoder, or copy (default: libx264)")
    ready.add_argument("--crf", type=int, default=20, help="quality; less is better (default: 20)")
    ready.add_argument("--keyint", type=int, default=32, help="frames between keyframes (default: 32)")
    ready.add_argument("--shard_size", type=int, default=256, help="videos per file (default: 256)")
    _add_reading(ready)
    ready.add_argument("--workers", type=int, default=2, help="files that are written at once (default: 2)")
    ready.add_argument("--json", action="store_true", help="print one JSON object on standard output")
    ready.set_defaults(command=_prepare)


def _list(options: argparse.Namespace, _: list[str]) -> None:
    from vitx.data.annotations import FORMATS, write_list
    from vitx.errors import did_you_mean

    if options.format not in FORMATS:
        known = ", ".join(FORMATS)
        hint = did_you_mean(options.format, FORMATS)
        raise UserError(f"found the format {options.format}; expected one of {known}{hint}")
    rows, missing = write_list(options.format, options.annotations, options.videos, options.list)
    table = FORMATS[options.format].table(options.list)
    print_text(f"{options.list}: {rows} rows; an experiment file reads it with {table}", error=True)
    if missing:
        print_text(f"{len(missing)} annotated videos are missing, such as {', '.join(missing[:5])}", error=True)


def _check(options: argparse.Namespace, _: list[str]) -> int:
    from vitx.data import check
    from vitx.data.prepared import Prepared

    if options.sheet:
        check_writable(options.sheet)
    dataset = dataset_from(options)
    reading = _reading_from(options)
    if isinstance(dataset, Prepared):
        splits = dataset.splits()
        report = check.check(splits, whole=options.whole, reading=reading)
        report["broken"] += dataset.damaged_shards()
    else:
        contents = dataset.read()
        splits, found = (
            contents.splits,
            {"ignored": contents.ignored, "errors": contents.errors, "notes": contents.notes},
        )
        report = check.check(splits, whole=options.whole, reading=reading, **found)
    if options.sheet:
        check.draw_sheet(splits, {video["path"] for video in report["broken"]}, options.sheet, reading=reading)
    print_json(report) if options.json else print_text(check.format_report(report), lines=True)
    return 1 if report["broken"] or report["problems"] else 0


def _prepare(options: argparse.Namespace, _: list[str]) -> None:
    from vitx.data.preparation import Preparation, prepare

    if options.workers < 1:
        raise UserError(f"--workers is {options.workers}; expected at least 1")
    names = {field.name for field in dataclasses.fields(Preparation)} - {"reading"}
    reading = _reading_from(options)
    try:
        settings = Preparation(**{name: getattr(options, name) for name in names}, reading=reading)
    except ValueError as error:
        raise UserError(str(error)) from error
    splits = dataset_from(options).splits()
    manifest = prepare(splits, options.destination, settings, workers=options.workers)
    counts = {split: len(part["names"]) for split, part in manifest["splits"].items()}
    if options.json:
        print_json({"videos": counts, "broken": manifest["broken"]})
        return
    print_text(f"{options.destination}: " + ", ".join(f"{count} videos of {split}" for split, count in counts.items()))
    print_text(f'an experiment file reads it with Prepared("{options.destination}")', error=True)
    if manifest["broken"]:
        problems = "\n  ".join(escape(video["problem"]) for video in manifest["broken"][:20])
        broken = f"{len(manifest['broken'])} videos cannot be read and are left out:\n  {problems}"
        print_text(broken, lines=True, error=True)


def _bench(options: argparse.Namespace, _: list[str]) -> None:
    import jax

    from vitx.data.bench import bench, format_report
    from vitx.data.pipeline import Data
    from vitx.experiment import load_experiment
    from vitx.training.setup import measure_step_seconds

    if min(options.clips, *options.threads) < 1 or min(options.workers) < 0:
        raise UserError(
            f"found {options.clips} clips, {options.threads} threads and {options.workers} workers to try; expected at "
            "least 1 clip and thread"
        )
    is_experiment = options.path.suffix == ".py"
    file = options.path if is_experiment else options.experiment
    experiment = None if file is None else load_experiment(file.absolute())
    if experiment is None:
        data = Data(dataset_from(options), num_frames=16, frame_stride=4, image_size=(224, 224), batch_size=8)
    else:
        dataset = experiment.data.dataset if is_experiment else dataset_from(options)
        data = dataclasses.replace(experiment.data, dataset=dataset)
    source = data.dataset.open("train")
    seconds = experiment and measure_step_seconds(dataclasses.replace(experiment, data=data), source)
    report = bench(
        data,
        source,
        lambda batch: jax.block_until_ready(jax.device_put(batch)),
        clips=options.clips,
        threads=options.threads,
        workers=options.workers,
        step_seconds=seconds,
    )
    print_json(report) if options.json else print_text(format_report(report), lines=True)
