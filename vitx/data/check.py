"""Contents of a dataset of files, and what is wrong with them, before training finds out."""

import hashlib
import io
import math
import statistics
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from vitx.console import escape, progress_bar
from vitx.data.container import DEFAULT_OPTIONS, ReadOptions
from vitx.data.decoding import VideoError, VideoInfo, describe, open_video
from vitx.data.same_files import Example, find_repeats
from vitx.data.sources import Source, label_columns
from vitx.errors import UserError
from vitx.limits import open_regular
from vitx.storage import atomic_path

TINY = (2, 2)  # size of a frame that is decoded only to test whether it can be decoded
MIN_EVALUATED = 5  # videos of a split; of 4 that are all classified correctly, the 95 % interval begins at 51 %
MAX_LINES = 20  # lines for each kind of problem on the terminal


def check(
    splits: Mapping[str, Source],
    *,
    whole: bool = False,
    threads: int = 2,
    ignored: Sequence[str] = (),
    reading: ReadOptions = DEFAULT_OPTIONS,
    errors: Sequence[str] = (),
    notes: Sequence[str] = (),
) -> dict[str, Any]:
    """Opens every video and decodes its first, middle and last frame.

    Args:
        splits: videos of each split; their sources have `name(index)`, which the report uses.
        whole: decode every frame.
        threads: videos that are checked at once.
        ignored: files among the videos that no split has.
        reading: what is read of each file.
        errors: what is wrong with the dataset, beside its videos.
        notes: what else a user should know about the dataset.

    Returns:
        JSON data: {"videos": number of files, "ignored", "notes", "problems": what else than a broken video is wrong, a
        line each, "broken": [{"path", "problem"}], "duplicates": [[paths of the same content]], "leaks": [paths of the
        same content] in more than one split, "codecs", "sizes", "pixel_aspects", "fps": {value: videos},
        "seconds": {"shortest", "median", "longest", "sum"}, "classes": {label: {class: {split: examples}}}, "values":
        {name: {split: {"least", "median", "most"}}}}.
    """
    split_of: dict[str, set[str]] = defaultdict(set)
    example_of: dict[str, tuple[Source, int]] = {}
    for split, source in splits.items():
        for index in range(len(source)):
            name = source.name(index)
            split_of[name].add(split)
            example_of[name] = (source, index)
    # A file may be listed for several segments: it is checked once.
    paths = sorted(split_of)
    with ThreadPoolExecutor(threads) as pool, progress_bar(desc="checking", total=len(paths), unit=" videos") as bar:
        found = []
        for result in pool.map(lambda path: _check_video(path, *example_of[path], whole, reading), paths):
            found.append(result)
            bar.update()
    infos = [info for info, _, _ in found if info is not None]
    paths_of = defaultdict(list)
    for path, (_, digest, _) in zip(paths, found, strict=True):
        if digest is not None:
            paths_of[digest].append(path)
    duplicates = [group for group in paths_of.values() if len(group) > 1]
    file_of = {path: digest or path for path, (_, digest, _) in zip(paths, found, strict=True)}
    repeats = find_repeats(_list_examples(splits, file_of))
    problems = [*errors, *repeats.contradictions, *repeats.describe_leaks(), *_find_weaknesses(splits)]
    seconds = sorted(info.duration for info in infos) or [0.0]
    return {
        "videos": len(paths),
        "ignored": list(ignored),
        "notes": [*notes, *repeats.describe_repeated()],
        "problems": problems,
        "broken": [
            {"path": path, "problem": problem} for path, (_, _, problem) in zip(paths, found, strict=True) if problem
        ],
        "duplicates": duplicates,
        "leaks": [list(names) for names, _ in repeats.leaks],
        "codecs": _count_values(info.codec for info in infos),
        "sizes": _count_values(f"{info.height}x{info.width}" for info in infos),
        "pixel_aspects": _count_values(
            f"{info.pixel_aspect.numerator}:{info.pixel_aspect.denominator}" for info in infos
        ),
        "fps": _count_values(f"{info.fps:.5g}" for info in infos),
        "seconds": {
            "shortest": seconds[0],
            "median": statistics.median(seconds),
            "longest": seconds[-1],
            "sum": sum(seconds),
        },
        **_summarise_labels(splits),
    }


def format_report(report: Mapping[str, Any]) -> str:
    """Returns the report of `check` as text."""
    seconds = report["seconds"]
    lines = [
        f"{report['videos']} videos, {len(report['broken'])} broken; {len(report['duplicates'])} groups of identical "
        f"files, {len(report['leaks'])} of them in more than one split",
        *(
            f"{name}: " + ", ".join(f"{value} ({count})" for value, count in list(report[name].items())[:8])
            for name in ("codecs", "sizes", "pixel_aspects", "fps")
            if name != "pixel_aspects" or set(report[name]) - {"1:1"}
        ),
        f"seconds: {seconds['shortest']:.2f} to {seconds['longest']:.2f}, median {seconds['median']:.2f}, "
        f"{seconds['sum'] / 3600:.2f} hours in total",
    ]
    for label, classes in report["classes"].items():
        columns = list(next(iter(classes.values())))
        lines += ["", f"{label:24} " + " ".join(f"{column:>10}" for column in columns)]
        lines += [
            f"  {escape(name):22} " + " ".join(f"{row[column]:10}" for column in columns)
            for name, row in classes.items()
        ]
    for name, row in report["values"].items():
        lines += [
            "",
            *(
                f"{name}, {split}: {spread['least']:g} to {spread['most']:g}, median {spread['median']:g}"
                for split, spread in row.items()
            ),
        ]
    for title, problems in (
        ("broken", [video["problem"] for video in report["broken"]]),
        ("not read, because it is in no folder of a class or not named as a video", report["ignored"]),
        ("wrong with the dataset", report["problems"]),
        ("to know", report["notes"]),
    ):
        if problems:
            lines += ["", f"{title}:", *(f"  {problem}" for problem in problems[:MAX_LINES])]
            lines += [f"  and {len(problems) - MAX_LINES} more (--json lists all)"] if len(problems) > MAX_LINES else []
    return "\n".join(map(escape, lines))


def draw_sheet(
    splits: Mapping[str, Source],
    broken: set[str],
    file: Path,
    *,
    rows: int = 24,
    columns: int = 6,
    reading: ReadOptions = DEFAULT_OPTIONS,
) -> None:
    """Draws the middle frame of some videos, with a row for each class of the first label.

    Args:
        splits: videos of each split, as `check` takes them.
        broken: paths to leave out.
        file: path of the picture, .png.
        rows: greatest number of classes.
        columns: greatest number of videos of a class.
        reading: what is read of each file.

    Raises:
        UserError: the picture cannot be written.
    """
    from matplotlib.figure import Figure

    from vitx.fonts import add_fallback_fonts

    chosen: dict[str, list[tuple[str, Source, int]]] = defaultdict(list)
    for source in splits.values():
        label, column = next(iter(label_columns(source).items()))
        for index, value in enumerate(column):
            for name in _classes_of(value, source.label_names[label]):
                if (path := source.name(index)) not in broken and len(chosen[name]) < columns:
                    chosen[name].append((path, source, index))
    chosen = dict(sorted(chosen.items())[:rows])
    if not chosen:
        raise UserError("no video can be read; there is nothing to draw")
    figure = Figure(figsize=(1.5 * columns + 1.5, 1.5 * len(chosen)), layout="constrained")
    grid = figure.subplots(len(chosen), columns, squeeze=False)
    for axes_of_class, (name, members) in zip(grid, chosen.items(), strict=True):
        for axes in axes_of_class:
            axes.set(xticks=[], yticks=[], frame_on=False)
        axes_of_class[0].set_ylabel(escape(name), parse_math=False)
        for axes, (path, source, index) in zip(axes_of_class, members, strict=False):
            with open_video(source[index]["video"], options=reading) as video:
                axes.imshow(video.read([len(video.times) // 2], size=(128, 128))[0, 0])
            axes.set_title(escape(Path(path).name[:20]), fontsize=7, parse_math=False)
    add_fallback_fonts(figure)
    try:
        with atomic_path(file) as draft:
            figure.savefig(draft, dpi=110)
    except (OSError, ValueError) as error:
        raise UserError(f"{file} cannot be written: {error}") from error


def _check_video(
    path: str, source: Source, index: int, whole: bool, reading: ReadOptions
) -> tuple[VideoInfo | None, bytes | None, str | None]:
    """Returns (header, digest of the content, what is wrong) of a video."""
    try:
        video = source[index]["video"]
        with io.BytesIO(video) if isinstance(video, bytes) else open_regular(video) as file:
            digest = hashlib.file_digest(file, "sha256").digest()
    except (UserError, VideoError) as error:
        return None, None, str(error)
    except OSError as error:
        return None, None, f"{path}: {error.strerror}"

    try:
        with open_video(video, options=reading) as opened:
            info, count = describe(opened), len(opened.times)
            opened.read(range(count) if whole else [0, count // 2, count - 1], size=TINY)
    except VideoError as error:
        return None, digest, f"{path}: {error}" if isinstance(video, bytes) else str(error)
    return info, digest, None


def _list_examples(splits: Mapping[str, Source], file_of: Mapping[str, Hashable]) -> Iterator[Example]:
    """Yields all examples; `file_of` gives files of the same content equal keys."""
    for split, source in splits.items():
        columns, segments = label_columns(source), getattr(source, "segments", ())
        for index in range(len(source)):
            name = source.name(index)
            labels = {label: column[index] for label, column in columns.items()}
            shown = ", ".join(_show_label(value, source.label_names[label]) for label, value in labels.items())
            segment = tuple(segments[index]) if segments else (0.0, math.inf)
            values = tuple((label, value.tobytes()) for label, value in labels.items())
            yield Example(name, file_of[name], split, segment, values, shown)


def _show_label(value: np.ndarray | np.int32, names: Sequence[str]) -> str:
    is_value = value.ndim and not np.isin(value, (0, 1)).all()
    return ";".join(map(str, value.tolist()) if is_value else _classes_of(value, names)) or "none"


def _find_weaknesses(splits: Mapping[str, Source]) -> list[str]:
    """Returns why metrics of a dataset mean little: a line for each label of one class, and each tiny split."""
    lines = []
    for label, column in label_columns(splits["train"]).items() if "train" in splits else ():
        names = splits["train"].label_names[label]
        if column.ndim == 1 and len(names) == 1:
            lines.append(f"{label} has one class, {names[0]}; a classifier needs at least two")
    for split in ("validation", "test"):
        if (count := len(splits.get(split, ()))) < MIN_EVALUATED:
            lines.append(f"the {split} split has {count} videos; an accuracy of fewer than {MIN_EVALUATED} says little")
    return lines


def _count_values(values: Any) -> dict[str, int]:
    return dict(Counter(values).most_common())


def _classes_of(label: np.ndarray | np.int32, names: Sequence[str]) -> list[str]:
    """Returns the names of the classes of one example's label; any value of a regression target counts as one class."""
    if label.ndim == 0:
        return [names[label]] if label >= 0 else []
    return [names[i] for i in np.flatnonzero(label == 1)] if np.isin(label, (0, 1)).all() else ["any"]


def _summarise_labels(splits: Mapping[str, Source]) -> dict[str, Any]:
    """Returns the examples of each class, and the spread of each value, by split."""
    classes: dict[str, dict[str, dict[str, int]]] = {}
    values: dict[str, dict[str, dict[str, float]]] = {}
    for split, source in splits.items():
        for label, column in label_columns(source).items():
            names = source.label_names[label]
            if column.ndim == 1:
                counts = np.bincount(column[column >= 0], minlength=len(names))
            elif np.isin(column, (0, 1)).all():
                counts = column.sum(axis=0)
            else:
                for name, numbers in zip(names, column.T, strict=True):
                    least, median, most = np.nanquantile(numbers, (0, 0.5, 1)).tolist()
                    values.setdefault(name, {})[split] = {"least": least, "median": median, "most": most}
                continue
            for name, count in zip(names, counts, strict=True):
                classes.setdefault(label, {}).setdefault(name, {})[split] = int(count)
    return {"classes": classes, "values": values}
