"""How the cost of models grows with the number of frames, as rows and as a figure."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from flax import linen as nn
from matplotlib.figure import Figure

from vitx.analysis.cost import count_cost
from vitx.console import progress_bar
from vitx.errors import UserError, as_user_error
from vitx.fonts import add_fallback_fonts
from vitx.storage import atomic_path

FRAMES = (8, 16, 32, 64, 128)


def count_growth(models: Mapping[str, nn.Module], frames: Sequence[int] = FRAMES) -> list[dict[str, Any]]:
    """Counts each model at each number of frames; returns rows of "model", "frames", "macs", "activation_bytes".

    Raises:
        UserError: a model cannot be created for so many frames.
    """
    rows = []
    for name, number in progress_bar(
        [(name, number) for name in models for number in frames], desc="counting", unit=" models"
    ):
        with as_user_error(of=name):
            model = models[name].with_input_shape(number)
            cost = count_cost(model, model.input_shape)
        counts = {"frames": number, "macs": cost.macs, "activation_bytes": cost.activation_bytes}
        rows.append({"model": name, **counts})
    return rows


def draw_growth(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draws GMACs and activation memory against frames, a line for each model, both axes logarithmic."""
    figure = Figure(figsize=(12, 4.8), layout="constrained")
    panels = {
        "macs": ("GMACs of one view", 1e9),
        "activation_bytes": ("activations of one clip in a training step, GiB", 2**30),
    }
    names = list(dict.fromkeys(row["model"] for row in rows))
    ticks = sorted({row["frames"] for row in rows})
    styles = [(colour, line) for line in ("-", "--", ":", "-.") for colour in range(6)]
    for axes, (column, (title, unit)) in zip(figure.subplots(1, len(panels)), panels.items(), strict=True):
        for i, name in enumerate(names):
            colour, line = styles[i % len(styles)]
            points = [(row["frames"], row[column] / unit) for row in rows if row["model"] == name]
            style = {"color": f"C{colour}", "linestyle": line, "marker": "o", "markersize": 4}
            axes.plot(*zip(*points, strict=True), label=name, **style)
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_xticks(ticks, [str(tick) for tick in ticks])
        axes.set(xlabel="frames", title=title)
        axes.grid(alpha=0.25)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, frameon=False, fontsize=8, loc="outside right center")
    add_fallback_fonts(figure)
    with atomic_path(path) as draft:
        try:
            figure.savefig(draft, dpi=110)
        except ValueError as error:
            raise UserError(f"the picture {path} cannot be written: {error}") from error
