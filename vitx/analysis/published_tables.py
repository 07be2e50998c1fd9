"""The literature's cost tables as Markdown: what is printed, what we count, and how far they are apart."""

from collections.abc import Mapping, Sequence

from vitx.analysis.published import Count, Key, PublishedRow, deviation, is_rounded, list_deviations

COLUMNS = ("row", "source", "model", "settings", "view", "params M", "printed", "deviation", "GMACs", "printed")
COLUMNS += ("deviation", "dataset", "views", "top-1 printed", "top-1 here", "note")
NUMBERS = ("params M", "printed", "deviation", "GMACs", "top-1 printed", "top-1 here")
TITLES = {
    "vivit": "What does ViViT print, and what do we count?",
    "timesformer": "What does TimeSformer print, and what do we count?",
    "cnn": "What do papers print of 2D and 3D convolutional networks, and what do we count?",
    "videomae": "What do papers on masked autoencoders print, and what do we count?",
    "convlstm": "What do papers print of ConvLSTMs, and what do we count?",
}


def render(table: str, rows: Sequence[PublishedRow], counts: Mapping[Key, Count]) -> str:
    """Returns the page of one table as Markdown.

    Args:
        table: a key of `TITLES`.
        rows: its rows.
        counts: our counts by the keys of rows.
    """
    recomputed = [row for row in rows if row.params_m or row.gmacs]
    num_deviating = sum(bool(list_deviations(row, counts[row.key])) for row in rows)
    lines = [
        f"# {TITLES[table]}",
        "",
        f"{len(rows)} printed rows; {len(recomputed)} print parameters or operations, of which {num_deviating} "
        "differ and say why.",
        "[How to read and make these tables](README.md).",
        "",
        f"| {' | '.join(COLUMNS)} |",
        f"| {' | '.join('---:' if name in NUMBERS else '---' for name in COLUMNS)} |",
    ]
    return "\n".join([*lines, *(f"| {' | '.join(_format_cells(row, counts[row.key]))} |" for row in rows), ""])


def _format_cells(row: PublishedRow, counted: Count) -> list[str]:
    shape = f"{row.frames} x {row.size}" if row.frames and row.size else "own"
    params, gmacs = counted.params / 1e6, counted.macs / 1e9
    cells = [
        *(row.name, row.source, f"`{row.model}`", row.fields.replace(" ", ", "), shape),
        *(f"{params:,.3f}", row.params_m, _format_deviation(params, row.params_m)),
        *(f"{gmacs:,.2f}", row.gmacs, _format_deviation(gmacs, row.gmacs)),
        *(row.dataset, row.views, row.top1, "", "; ".join(filter(None, (row.reason, row.note)))),
    ]
    return [cell.replace("|", r"\|") for cell in cells]


def _format_deviation(counted: float, printed: str) -> str:
    if not printed:
        return ""
    return "rounded" if is_rounded(counted, printed) else f"{deviation(counted, printed):+.2f} %"
