"""`vitx explain`: which parts of a video speak for a class."""

import argparse
from pathlib import Path
from typing import Any

from vitx.cli_settings import load_parts
from vitx.console import print_json, print_text
from vitx.errors import UserError
from vitx.storage import as_path, local_path

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
    explain.add_argument("--method", help="of explanation; default: the first that works for the model")
    explain.add_argument("--label", help="to explain, of several; default: the first")
    explain.add_argument("--class", dest="class_name", metavar="NAME", help="to explain; default: the most probable")
    explain.add_argument("--output", type=local_path, default=Path("explanations"), help="folder of the pictures")
    explain.add_argument("--formats", nargs="+", default=["png", "gif"], metavar="FORMAT", help="png, gif, mp4, npz")
    explain.add_argument("--checkpoint", choices=("best", "last"), default="best", help="which one (default: best)")
    explain.add_argument("--experiment", type=local_path, help="file that defines your own parts; it is executed")
    explain.add_argument("--json", action="store_true", help="print one JSON object on standard output")
    explain.set_defaults(command=_explain)


def _explain(options: argparse.Namespace, _: list[str]) -> None:
    if missing := [str(file) for file in options.files if not file.is_file()]:
        raise UserError(f"there is no video file {', '.join(missing)}")
    from vitx.explain.explanation import WRITERS
    from vitx.run import load_run

    if unknown := [name for name in options.formats if f".{name}" not in WRITERS]:
        raise UserError(f"--formats has {unknown[0]}; expected some of {', '.join(name[1:] for name in WRITERS)}")
    load_parts(options.experiment)
    run, answers = load_run(options.run, options.checkpoint), {}
    settings = {name: getattr(options, name) for name in ("method", "label", "class_name")}
    for file in options.files:
        explanation = run.explain(file, **settings)
        options.output.mkdir(parents=True, exist_ok=True)
        paths = [options.output / f"{file.stem}_{explanation.method}.{name}" for name in options.formats]
        for path in paths:
            explanation.save(path)
        over_time = explanation.over_time
        answers[str(file)] = {
            "method": explanation.method,
            explanation.label: explanation.class_name,
            "probability": explanation.probability,
            "importance_over_time": over_time.tolist(),
            "files": [str(path) for path in paths],
        }
        print_text(f"{file}: {explanation.title}; see {', '.join(map(str, paths))}", error=True)
        if not options.json:
            most = sorted(over_time.argsort()[::-1][:MOST_FRAMES].tolist())
            print_text("  most important frames: " + ", ".join(f"{i} ({100 * over_time[i]:.0f} %)" for i in most))
    if options.json:
        print_json(answers)
