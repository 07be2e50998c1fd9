"""`vitx models`, `cost` and `convert`: named models, what they cost, their weights."""

import argparse
from typing import Any

from vitx.cli_settings import load_parts, parse_settings
from vitx.console import print_json, print_text
from vitx.errors import UserError, as_user_error
from vitx.storage import as_path, check_writable, local_path

UNITS = {
    "params": ("params M", 1e6),
    "macs": ("GMACs", 1e9),
    "flops_xla": ("XLA GFLOPs", 1e9),
    "activation_bytes": ("activations MiB", 2**20),
}


def add_commands(commands: Any) -> None:
    """Adds the commands to the parser of `vitx`."""
    convert = commands.add_parser(
        "convert",
        help="convert weights into one file of vitx, or into a Hugging Face directory",
        usage="vitx convert SOURCE DESTINATION [--model NAME] [--json] [--SETTING VALUE ...]",
        description="SOURCE is a run, a Hugging Face directory (Vivit, Timesformer) or a bare .safetensors, .npz, "
        ".msgpack or .pth file. A DESTINATION that ends in .safetensors becomes one file with vitx's names; any other "
        "becomes a Hugging Face directory. --SETTING VALUE is a field of the model, such as --num_frames 16, to which "
        "positions are resized.",
    )
    convert.add_argument("source", type=as_path, metavar="SOURCE")
    convert.add_argument("destination", type=local_path, metavar="DESTINATION")
    convert.add_argument("--model", help="NAME of the model, if SOURCE is a bare file of weights")
    convert.add_argument("--experiment", type=local_path, help="file that defines your own parts; it is executed")
    convert.add_argument("--inflation", choices=("central", "average"), default="central", help="of image kernels")
    convert.add_argument("--other_attention", choices=("copy", "zero"), default="copy", help="where an image has one")
    convert.add_argument("--grid", type=int, nargs=2, metavar=("ROWS", "COLUMNS"), help="of an image's patches")
    convert.add_argument("--allow_missing", action="append", default=[], metavar="PATTERN", help="may stay fresh")
    convert.add_argument("--allow_unexpected", action="append", default=[], metavar="PATTERN", help="may be left over")
    convert.add_argument("--json", action="store_true", help="print one JSON object: what became of every tensor")
    convert.set_defaults(command=_convert, takes_settings=True)

    models = commands.add_parser("models", help="list the named models")
    models.add_argument("patterns", nargs="*", metavar="PATTERN", help="such as 'vivit_b_*'")
    models.add_argument("--table", action="store_true", help="with paper, cost, published accuracies and weights")
    models.add_argument("--json", action="store_true", help="print one JSON object: settings by name")
    models.set_defaults(command=_models)

    cost = commands.add_parser(
        "cost",
        help="count parameters, multiply-accumulates and memory of named models",
        usage="vitx cost NAME ... [--published] [--plot FILE.png] [--json] [--SETTING VALUE ...]",
        description="Counts parameters, multiply-accumulates (MACs, which papers print as FLOPs) and the activations "
        "that a training step keeps for one clip; runs nothing. --SETTING VALUE is a field of the model, such as "
        "--num_frames 64; --clip 64 192 320 sets frames, height and width of any model.",
    )
    cost.add_argument("names", nargs="*", metavar="NAME", help="names or patterns, such as 'vivit_b_16x2*'")
    cost.add_argument("--published", action="store_true", help="compare with the numbers that papers print")
    cost.add_argument(
        "--plot", type=local_path, metavar="FILE.png", help="draw GMACs and memory against 8 to 128 frames"
    )
    cost.add_argument("--json", action="store_true", help="print one JSON object on standard output")
    cost.set_defaults(command=_cost, takes_settings=True)


def _convert(options: argparse.Namespace, settings: list[str]) -> None:
    import dataclasses

    from vitx.interop.images import FromImage
    from vitx.pretrained import convert

    load_parts(options.experiment)
    from_image = FromImage(options.inflation, options.other_attention, options.grid and tuple(options.grid))
    allowed = {"allow_missing": options.allow_missing, "allow_unexpected": options.allow_unexpected}
    pretrained = convert(
        options.source,
        options.destination,
        options.model,
        fields=parse_settings(settings),
        from_image=from_image,
        **allowed,
    )
    if options.json:
        print_json(dataclasses.asdict(pretrained.report))


def _models(options: argparse.Namespace, _: list[str]) -> None:
    from vitx.models import VARIANTS

    names = _matching_names(options.patterns or ["*"])
    if options.table:
        from vitx.analysis.model_index import format_index, model_index

        rows = model_index(names)
        if options.json:
            print_json({"models": rows})
        else:
            print_text("\n".join(format_index(rows)), lines=True)
    elif options.json:
        from vitx.configuration import to_dict

        print_json({name: to_dict(VARIANTS[name]) for name in names})
    else:
        for name in names:
            print_text(name)


def _matching_names(patterns: list[str]) -> list[str]:
    from vitx.errors import did_you_mean
    from vitx.models import list_models

    for pattern in patterns:
        if not list_models(pattern):
            raise UserError(
                f"no model matches {pattern!r}{did_you_mean(pattern, list_models())} `vitx models` lists all"
            )
    return list(dict.fromkeys(name for pattern in patterns for name in list_models(pattern)))


def create_models(patterns: list[str], changes: dict[str, Any], frames: int | None) -> dict[str, Any]:
    """Returns models by name with fields replaced; --clip and --num_frames set the shape of their clips."""
    from vitx.configuration import read_words
    from vitx.models import VARIANTS

    clip = read_words(tuple[int, int, int], changes.pop("clip"), "--clip") if "clip" in changes else None
    if clip and (frames is not None or "image_size" in changes):
        raise UserError("--clip sets frames, height and width; leave out --num_frames and --image_size")
    shape = (clip[0], clip[1:]) if clip else (frames, None)
    models = {}
    for name in _matching_names(patterns):
        with as_user_error(of=name):
            models[name] = VARIANTS[name].with_input_shape(*shape, **changes)
    return models


def _cost(options: argparse.Namespace, settings: list[str]) -> None:
    from vitx.analysis import growth, published
    from vitx.analysis.cost import count_cost
    from vitx.configuration import read_words
    from vitx.console import progress_bar

    changes = parse_settings(settings)
    if options.plot and {"num_frames", "sampled_frames", "clip"} & changes.keys():
        raise UserError("--plot varies the number of frames itself; leave out num_frames, sampled_frames and clip")
    if options.published:
        if settings or options.plot:
            raise UserError("--published compares models as papers describe them; leave out --plot and settings")
        rows = list(published.published_rows(_matching_names(options.names or ["*"])))
        rows = [row for row in rows if row.params_m or row.gmacs]
        if not rows:
            raise UserError(f"no published numbers are known for {' '.join(options.names)}")
        bar = progress_bar(rows, desc="counting", unit=" models")
        print_rows([published.compare_row(row) for row in bar], options.json)
        return
    if not options.names:
        raise UserError("vitx cost needs the NAME of a model (`vitx models` lists them), or --published")
    frames = read_words(int, changes.pop("num_frames"), "--num_frames") if "num_frames" in changes else None
    models = create_models(options.names, changes, frames)
    if options.plot:
        check_writable(options.plot)
        rows = growth.count_growth(models)
        growth.draw_growth(rows, options.plot)
        print_rows(rows, options.json)
        return
    counted = {}
    for name, model in progress_bar(models.items(), desc="counting"):
        with as_user_error(of=name):
            counted[name] = count_cost(model, model.input_shape)
    print_rows([{"model": name} | cost.counts() for name, cost in counted.items()], options.json)


def print_rows(rows: list[dict[str, Any]], as_json: bool) -> None:
    """Prints rows as an aligned table with units, or as one JSON object."""
    if as_json:
        print_json({"models": rows})
        return
    cells = [[UNITS.get(name, (name.replace("_", " "), 1))[0] for name in rows[0]]]
    for row in rows:
        scaled = [
            value / UNITS[name][1] if name in UNITS and value is not None else value for name, value in row.items()
        ]
        cells.append(["" if x is None else f"{x:,.2f}" if isinstance(x, float) else str(x) for x in scaled])
    widths = [max(len(line[column]) for line in cells) for column in range(len(cells[0]))]
    for line in cells:
        aligned = [
            cell.ljust(width) if isinstance(value, str) else cell.rjust(width)
            for cell, width, value in zip(line, widths, rows[0].values(), strict=True)
        ]
        print_text("  ".join(aligned).rstrip())
