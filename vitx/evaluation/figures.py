"""What pictures of several curves share: colours, axes of costs, legends, files."""

import io
import math
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from vitx import storage
from vitx.console import escape
from vitx.fonts import add_fallback_fonts

COLOURS = matplotlib.colormaps["tab10"].colors


def choose_style(number: int) -> dict[str, Any]:
    """Returns colour, line and marker of a curve: ten colours, then the same with dashed lines and triangles."""
    repeat, colour = divmod(number, len(COLOURS))
    return {"color": COLOURS[colour], "linestyle": ("-", "--")[repeat % 2], "marker": ("o", "^")[repeat % 2]}


def plain_text(text: str) -> str:
    """Returns a text that matplotlib draws as it is: $ begins no formula, _ at the start hides no legend."""
    text = escape(text).replace("$", r"\$")
    return f"\u200b{text}" if text.startswith("_") else text  # a space without width


def count_columns(text: str) -> int:
    """Returns the width of a text in letters; a Chinese, Japanese or Korean character or an emoji takes two."""
    return sum(2 if unicodedata.east_asian_width(character) in "WF" else 1 for character in text)


def metric_title(metric: str, split: str, units: Mapping[str, str]) -> str:
    """Returns the title of a panel: metric, split, and the unit by the last component of the metric's name."""
    unit = units.get(metric.split("/")[-1], "")
    return f"{metric}, {split}{unit and ' '}{unit}"


def scale_costs(axes: Axes, costs: Sequence[float]) -> None:
    """Sets a logarithmic horizontal axis where costs differ enough, and labels it."""
    if max(costs) < 3 * min(costs):
        axes.locator_params(axis="x", nbins=6)  # a logarithmic axis this short has one label or none
    else:
        axes.set_xscale("log")
        has_few_powers = max(costs) < 100 * min(costs)
        axes.xaxis.set_minor_formatter(_label_some if has_few_powers else NullFormatter())
    axes.xaxis.set_major_formatter("{x:g}")
    axes.grid(alpha=0.25, which="both")


def _label_some(value: float, _: int) -> str:
    """Returns the label of a tick between powers of ten: all nine would run into one another."""
    leading = round(value / 10 ** math.floor(math.log10(value)))
    return f"{value:g}" if leading in (2, 3, 5) else ""


def add_legend(figure: Figure) -> None:
    """Adds one legend for all axes below them, in as many columns as the width has room for."""
    pairs = (axes.get_legend_handles_labels() for axes in figure.axes)
    entries = {label: handle for pair in pairs for handle, label in zip(*pair, strict=True)}
    if not entries:
        return
    # a character of this size takes about 0.062 inches, the line before it half an inch
    columns = int(figure.get_figwidth() / (0.062 * max(map(count_columns, entries)) + 0.5))
    columns = min(max(columns, 1), len(entries), 4)
    figure.set_figheight(figure.get_figheight() + 0.18 * math.ceil(len(entries) / columns))
    figure.legend(
        entries.values(), entries.keys(), loc="outside lower center", ncols=columns, frameon=False, fontsize=8
    )


def save_figure(figure: Figure, path: PurePath) -> None:
    """Writes a figure as PATH.png and PATH.svg."""
    add_fallback_fonts(figure)
    for suffix in ("png", "svg"):
        file = io.BytesIO()
        # Fixed identifiers and no date: the same results give the same file.
        with matplotlib.rc_context({"svg.hashsalt": "vitx"}):
            figure.savefig(file, format=suffix, dpi=110, metadata={"Date": None} if suffix == "svg" else None)
        storage.write_bytes(path.with_name(f"{path.name}.{suffix}"), file.getvalue())
