"""`vitx explain`: which parts of a video speak for a class."""

import argparse
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vitx.cli_settings import load_parts
from vitx.console import print_json, print_text, report_unreadable
from vitx.errors import UserError, did_you_mean
from vitx.storage import as_path, create_folder, local_path

MOST_FRAMES = 5  # frames that the terminal lists as the most important ones


def add_commands(commands: Any) -> None:
    """Adds the command to the parser of `vitx`."""
    explain = commands.add_parser(
        "explain",
        help="show which parts of a video speak for a class",
        description="Writes, for each video, a strip of frames with an overlay and the importance of frames over time "
        "(PNG), animations (GIF, MP4) and the numbers (NPZ).",
    )
    explain.add_argument("run", type=as_path, metavar="RUN", help="folder that `vitx train` filled")
    explain.add_argument("files", nargs="+", type=local_path, metavar="VIDEO")
    explain.add_argument(
        "--method",
        help="gradient_attention, grad_cam, occlusion, integrated_gradients, kernel_shap, lime, attention_rollout, "
        "attention, or one of a plug-in; default: the first that works for the model",
    )
    explain.add_argument(
        "--options",
        nargs="+",
        default=[],
        metavar="NAME=VALUE",
        help="options of the method, such as tubelet=2,8,8 samples=256",
    )
    explain.add_argument("--label", help="to explain, of several; default: the first")
    explain.add_argument("--class", dest="class_name", metavar="NAME", help="to explain; default: the most probable")
    explain.add_argument("--output", type=local_path, default=Path("explanations"), help="folder of the pictures")
    explain.add_argument("--overwrite", action="store_true", help="replace pictures that exist")
    explain.add_argument("--formats", nargs="+", default=["png", "gif"], metavar="FORMAT", help="png, gif, mp4, npz")
    explain.add_argument("--checkpoint", choices=("best", "last"), default="best", help="which one (default: best)")
    explain.add_argument("--experiment", type=local_path, help="file that defines your own parts; it is executed")
    explain.add_argument("--json", action="store_true", help="print one JSON object on standard output")
    explain.set_defaults(command=_explain)


def _explain(options: argparse.Namespace, _: list[str]) -> int:
    if missing := [str(file) for file in options.files if not file.exists()]:
        raise UserError(f"there is no video {', '.join(missing)}")
    from vitx.compiled_programs import keep_own_programs
    from vitx.explain.clips import read_clip
    from vitx.explain.explanation import WRITERS
    from vitx.run import load_run

    if unknown := [name for name in options.formats if f".{name}" not in WRITERS]:
        raise UserError(f"--formats has {unknown[0]}; expected some of {', '.join(name[1:] for name in WRITERS)}")
    load_parts(options.experiment)
    of_method = _parse_options(options.options)
    run = load_run(options.run, options.checkpoint)
    answers: dict[str, Any] = {}
    errors: dict[str, str] = {}
    keep_own_programs(run.experiment.training.compilation_cache)
    settings = {name: getattr(options, name) for name in ("method", "label", "class_name")}
    paths = _name_pictures(options, options.method or run.explanation_methods()[0])
    for file in options.files:
        try:
            clip = read_clip(file, run.experiment.data)
        except UserError as error:
            errors[str(file)] = str(error)
            continue
        explanation = run.explain(clip, **settings, **of_method)
        create_folder(options.output)
        for path in paths[file]:
            explanation.save(path)
        over_time = explanation.over_time
        answers[str(file)] = {
            "method": explanation.method,
            "label": explanation.label,
            "class": explanation.class_name,
            "probability": explanation.probability,
            "importance_over_time": over_time.tolist(),
            "files": [str(path) for path in paths[file]],
        }
        print_text(f"{file}: {explanation.title}; see {', '.join(map(str, paths[file]))}", error=True)
        if not options.json:
            most = sorted(over_time.argsort()[::-1][:MOST_FRAMES].tolist())
            print_text("  most important frames: " + ", ".join(f"{i} ({100 * over_time[i]:.0f} %)" for i in most))
    if options.json:
        print_json(answers | {file: {"error": error} for file, error in errors.items()})
    return report_unreadable(errors, len(options.files))


def _name_pictures(options: argparse.Namespace, method: str) -> dict[Path, list[Path]]:
    """Returns {video: paths of its pictures}.

    Raises:
        UserError: one exists, and may not be overwritten; or two videos would have one name.
    """
    words = [word for word in (method, options.label, options.class_name) if word]
    by_name: dict[str, Path] = {}
    for file in options.files:
        name = re.sub(r"[^\w.-]+", "-", "_".join([file.stem, *words]))  # names of classes may have any characters
        if (other := by_name.setdefault(name, file)) != file:
            raise UserError(
                f"{other} and {file} would both be written to {name}; expected different names: explain them one by "
                "one, each with its own --output"
            )
    paths = {
        file: [options.output / f"{name}.{ending}" for ending in options.formats] for name, file in by_name.items()
    }
    taken = [path for of_file in paths.values() for path in of_file if path.exists()]
    if taken and not options.overwrite:
        raise UserError(f"{taken[0]} exists; expected a new file: choose another --output, or --overwrite")
    return paths


def _parse_options(words: Sequence[str]) -> dict[str, Any]:
    """Returns {name: value} of NAME=VALUE; a value with commas is a tuple, and what is no number is text."""
    from vitx.explain.methods import list_options

    known, parsed = list_options(), {}
    for word in words:
        name, equals, text = word.partition("=")
        if not (equals and text):
            raise UserError(f"--options has {word!r}; expected NAME=VALUE, such as samples=256")
        if name not in known:
            raise UserError(f"--options has {name}; expected one of {', '.join(known)}{did_you_mean(name, known)}")
        values = tuple(map(_parse_value, text.split(",")))
        parsed[name] = values if "," in text else values[0]
    return parsed


def _parse_value(text: str) -> int | float | str:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
