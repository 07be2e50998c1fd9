"""`vitx predict`: the classes of videos, on the terminal or in a file that a killed command leaves resumable."""

import argparse
import contextlib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from vitx.cli_settings import load_parts, parse_settings
from vitx.console import print_json, print_message, print_text, progress_bar, report_unreadable
from vitx.errors import UserError
from vitx.storage import as_path, exists, local_path

SHOWN = 5  # classes of each label on the terminal
IN_WINDOWS = ("stride", "thresholds", "segments", "timelines")  # options that need --windows
PICTURES = ("timelines", "overlay")  # options that name folders with a file for each video
WRITTEN = ("out", "segments", *PICTURES)  # options that name what is written


def add_options(predict: argparse.ArgumentParser) -> None:
    """Adds the options of the command to its parser."""
    predict.add_argument(
        "files", nargs="+", type=local_path, metavar="VIDEO", help="files, folders of them, lists with a column path"
    )
    predict.add_argument("--model", help="NAME of the model, if RUN is a bare file of weights")
    predict.add_argument("--top", type=int, help=f"classes of each label (default: {SHOWN}; all of them in a file)")
    predict.add_argument("--out", type=as_path, metavar="FILE", help="write rows: .csv, .json, .jsonl or .parquet")
    predict.add_argument("--overwrite", action="store_true", help="replace a FILE that exists")
    predict.add_argument("--batch_size", type=int, help="videos that are computed at once for a FILE (default: 16)")
    predict.add_argument("--windows", metavar="LENGTH", help="predict sliding windows: 4s, or 32f for frames")
    predict.add_argument("--stride", help="distance from one window to the next (default: half a window)")
    predict.add_argument(
        "--thresholds", nargs=2, type=float, metavar=("LOW", "HIGH"), help="of segments (default: 0.4 0.6)"
    )
    predict.add_argument(
        "--segments", type=as_path, metavar="FILE", help="write segments: .csv, .json, .jsonl, .parquet"
    )
    predict.add_argument("--timelines", type=local_path, metavar="FOLDER", help="draw probabilities over time (PNG)")
    predict.add_argument("--overlay", type=local_path, metavar="FOLDER", help="write videos with their labels (MP4)")
    predict.set_defaults(command=_predict)


def _predict(options: argparse.Namespace, settings: list[str]) -> int:
    _check_options(options)
    from vitx.data.find_files import find_files

    found = find_files(options.files)
    for note in found.notes:
        print_text(f"vitx: {note}", error=True)
    if any(getattr(options, name) is not None for name in (*WRITTEN, "windows")):
        return _predict_in_batches(options, settings, found)
    return _predict_to_terminal(options, settings, found)


def _check_options(options: argparse.Namespace) -> None:
    """Raises UserError where options do not fit together; before slow imports."""
    if options.top is not None and options.top < 1:
        raise UserError(f"--top is {options.top}; expected at least 1")
    for name in IN_WINDOWS if options.windows is None else ():
        if getattr(options, name) is not None:
            raise UserError(f"found --{name} without --windows; expected --windows LENGTH, such as --windows 4s")
    if options.out is not None and options.out == options.segments:
        raise UserError(f"--out and --segments are both {options.out}; expected two files")
    if not exists(options.run):
        raise UserError(f"there is no {options.run}")
    for name in PICTURES:
        _check_outside(name, getattr(options, name), options.files)


def _check_outside(name: str, folder: Path | None, sources: Sequence[Any]) -> None:
    """Raises UserError where pictures would be written among the videos: a command that resumes would predict them."""
    for source in sources if folder is not None else ():
        if isinstance(source, Path) and source.is_dir() and folder.resolve().is_relative_to(source.resolve()):
            raise UserError(f"--{name} is {folder}, inside {source}, whose videos are predicted; choose another folder")


def _predict_to_terminal(options: argparse.Namespace, settings: list[str], found: Any) -> int:
    """Prints the answer for each video as soon as it is known."""
    from vitx.evaluation.predictor import predict_videos

    answers, errors = {}, dict(found.errors)
    if found.files:
        predictor, _ = _load_predictor(options, settings)
        presenter, top, frames = predictor.presenter, SHOWN if options.top is None else options.top, []
        for video in predict_videos(predictor, found.files, batch_size=1):
            if video.error is not None:
                errors[video.path] = video.error
                continue
            outputs = {label: values[0] for label, values in video.outputs.items()}
            answer = answers[video.path] = presenter.answer(outputs, predictor.names, top)
            frames.append((video.path, video.frames))
            if not options.json:
                print_text(video.path)
                for label, classes in answer.items():
                    print_text(f"  {label}: {presenter.format_answer(classes)}")
        _report_short(frames, predictor.reader.num_frames)
    if options.json:
        print_json(answers | {file: {"error": error} for file, error in errors.items()})
    return report_unreadable(errors, len(answers) + len(errors))


def _predict_in_batches(options: argparse.Namespace, settings: list[str], found: Any) -> int:
    """Predicts all videos in batches, writes what the options ask for, and resumes what a killed command has left."""
    from vitx.evaluation.prediction_file import check_target, open_predictions
    from vitx.evaluation.predictor import BATCH_SIZE, VideoPrediction, predict_videos

    batch_size = BATCH_SIZE if options.batch_size is None else options.batch_size
    outputs = _plan_outputs(options, found.files)
    if options.out is not None:
        check_target(options.out, overwrite=options.overwrite)
    if options.segments is not None:  # whether it exists does not matter to a command that resumes
        check_target(options.segments, overwrite=True)
    if not found.files:
        raise UserError("found no videos:", found.errors.values())
    videos = [*found.files, *found.errors]
    predictor, dependencies = _load_predictor(options, settings)
    outputs.check_task(predictor, options.segments)
    dependencies |= {"windows": None if outputs.windows is None else str(outputs.windows)}
    dependencies |= {"thresholds": [outputs.thresholds.low, outputs.thresholds.high]}
    # Videos that are done get no pictures later, and other segments might replace a file.
    chosen = {name: getattr(options, name) for name in (*PICTURES, "segments")}
    dependencies |= {name: None if path is None else str(path) for name, path in chosen.items()}
    with open_predictions(options.out, videos, dependencies, overwrite=options.overwrite) as target:
        if target.done:
            print_text(f"{len(target.done)} of {len(videos)} videos are done already; resuming", error=True)
        if target.is_new and not options.overwrite:
            outputs.check_free(options.segments)
        unreadable = [VideoPrediction(path, error=error) for path, error in found.errors.items()]
        waiting = [file for file in found.files if file not in target.done]
        bar = progress_bar(total=len(videos), initial=len(target.done), unit=" videos")
        predicted = predict_videos(predictor, waiting, outputs.windows, batch_size=batch_size)
        with bar, _how_to_resume(options):
            for prediction in itertools.chain(predicted, (one for one in unreadable if one.path not in target.done)):
                # Pictures and videos come first: where the journal has a video, everything about it is there.
                target.add(prediction.path, **outputs.write(prediction, predictor, options.top))
                bar.update()
        outputs.write_segments(options.segments, [target.done[path] for path in videos])
    _report_short([(path, target.done[path]["frames"]) for path in videos], predictor.reader.num_frames)
    return _report(options, {path: target.done[path] for path in videos})


def _plan_outputs(options: argparse.Namespace, files: Sequence[str]) -> Any:
    """Returns what is to be written about each video.

    Raises:
        UserError: thresholds or windows that cannot be.
    """
    from vitx.data.windows import SlidingWindows
    from vitx.evaluation.prediction_outputs import Outputs
    from vitx.evaluation.segments import Thresholds

    windows = None if options.windows is None else SlidingWindows.parse(options.windows, options.stride)
    thresholds = Thresholds() if options.thresholds is None else Thresholds(*options.thresholds)
    return Outputs.plan(files, windows, thresholds, options.timelines, options.overlay)


def _report_short(frames: Sequence[tuple[str, int]], needed: int) -> None:
    """Prints which videos have fewer frames than a clip: they are repeated, and predictions of them may mean little."""
    if short := [(path, count) for path, count in frames if 0 < count < needed]:
        path, count = short[0]
        print_text(
            f"videos with fewer frames than the {needed} of a clip are repeated to fill it: {len(short)}, such as "
            f"{path} with {count}; check their predictions, or use a model of shorter clips",
            error=True,
        )


def _report(options: argparse.Namespace, done: Mapping[str, Mapping[str, Any]]) -> int:
    """Prints what was predicted and written; returns the exit status."""
    errors = {path: row["error"] for path, line in done.items() if (row := line["rows"][0])["error"] is not None}
    written = {name: str(path) for name in WRITTEN if (path := getattr(options, name)) is not None}
    if options.json:
        summary = {"videos": len(done), "unreadable": len(errors), **written}
        print_json(summary if options.out else summary | {"predictions": done})
    elif options.out is None:
        for path, line in done.items():
            if path not in errors:
                print_text(path)
                for shown in line["shown"]:
                    print_text(f"  {shown}")
    more = f"; see {', '.join(written.values())}" if written else ""
    print_text(f"{len(done) - len(errors)} of {len(done)} videos predicted{more}", error=True)
    unwritten = {path: line["unwritten"] for path, line in done.items() if line["unwritten"] is not None}
    return max(report_unreadable(errors, len(done)), report_unreadable(unwritten, len(done), "drawn to their end"))


@contextlib.contextmanager
def _how_to_resume(options: argparse.Namespace) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        if options.out is not None:
            print_message(f"the videos that are done lie in {options.out}.partial; the same command resumes")
        raise


def _load_predictor(options: argparse.Namespace, settings: list[str]) -> tuple[Any, dict[str, Any]]:
    """Returns (predictor of a run or of weights, what its rows depend on: a command that resumes must repeat it)."""
    dependencies = {"run": str(options.run), "model": options.model, "top": options.top, "settings": settings}
    run = _load_run(options, settings)
    if run is not None:
        predictor = run.predictor()
        return predictor, dependencies | {"step": run.step, "temperatures": dict(predictor.temperatures)}
    from vitx.evaluation.weights_predictor import weights_predictor
    from vitx.pretrained import load_pretrained

    return weights_predictor(load_pretrained(options.run, options.model)), dependencies


def _load_run(options: argparse.Namespace, settings: list[str]) -> Any:
    """Returns the run that the command names, or None where it names weights.

    Raises:
        UserError: options that do not fit the one or the other.
    """
    from vitx.compiled_programs import keep_own_programs, keep_programs
    from vitx.run import load_run
    from vitx.run_folder import is_run

    if is_run(options.run):
        if options.model is not None:
            raise UserError(f"--model is {options.model}; {options.run} is a run, which names its model; leave it out")
        load_parts(options.experiment)
        run = load_run(options.run, options.checkpoint, parse_settings(settings))
        keep_own_programs(run.experiment.training.compilation_cache)
        return run
    if settings:
        raise UserError(f"found {settings[0]}; {options.run} is no run, whose settings could be replaced; leave it out")
    keep_programs()
    return None
