"""Pictures of explanations: overlays, strips of frames with importance over time, animations.

In shapes: t h w the clip.
"""

import matplotlib
import numpy as np
from jaxtyping import Float, UInt8
from matplotlib.figure import Figure
from PIL import Image

from vitx.evaluation.figures import plain_text
from vitx.fonts import add_fallback_fonts

MAX_COLUMNS = 8  # frames of a strip
MIN_SIDE = 224  # pixels that animations are enlarged to at least
ORANGE, GREY = "#d9641a", "#666666"


def heat(relevance: Float[np.ndarray, "t h w"]) -> Float[np.ndarray, "t h w"]:
    """Returns what speaks for the class, smoothed and scaled to [0, 1]: 1 is the 99.5th percentile of the clip."""
    from scipy.ndimage import gaussian_filter  # training imports this module, and draws nothing

    positive = np.maximum(relevance, 0).astype(np.float64)
    # Tubelets and single pixels alike become spots of about a twentieth of the frame. Time stays as it is.
    smooth = gaussian_filter(positive, (0, positive.shape[1] / 24, positive.shape[2] / 24), mode="nearest")
    low, high = np.percentile(smooth, 50), np.percentile(smooth, 99.5)
    return np.clip((smooth - low) / (high - low), 0, 1) if high > low else np.zeros_like(smooth)


def overlay(
    frames: UInt8[np.ndarray, "t h w 3"], relevance: Float[np.ndarray, "t h w"]
) -> UInt8[np.ndarray, "t h w 3"]:
    """Returns darkened grey frames on which relevant places glow: the more relevant, the more opaque."""
    values = heat(relevance)[..., None]
    glow = matplotlib.colormaps["inferno"](0.4 + 0.5 * values[..., 0])[..., :3]
    grey = (frames.mean(axis=-1, keepdims=True) / 255).repeat(3, axis=-1)
    # a screen of the two: the picture stays visible under the brightest glow
    lit = 1 - (1 - 0.7 * grey) * (1 - glow)
    opacity = 0.9 * values**1.2
    return (255 * (0.8 * grey * (1 - opacity) + lit * opacity)).round().astype(np.uint8)


def strip(
    frames: UInt8[np.ndarray, "t h w 3"],
    overlaid: UInt8[np.ndarray, "t h w 3"],
    over_time: Float[np.ndarray, "t"],
    title: str,
) -> Figure:
    """Draws at most eight frames, their overlays below, and under them the importance of every frame over time."""
    step = -(-len(frames) // MAX_COLUMNS)
    shown = np.minimum(np.arange(step // 2, len(frames) + step // 2, step), len(frames) - 1)
    side = 1.3
    height = side * frames.shape[1] / frames.shape[2]
    figure = Figure(figsize=(side * len(shown) + 0.7, 2 * height + 1.6), layout="constrained")
    figure.suptitle(plain_text(title), fontsize=11)
    figure.get_layout_engine().set(w_pad=0.01, h_pad=0.02, wspace=0.01, hspace=0.02)
    grid = figure.add_gridspec(3, len(shown), height_ratios=[height, height, 0.8])
    for row, clip in enumerate((frames, overlaid)):
        for column, index in enumerate(shown):
            axes = figure.add_subplot(grid[row, column])
            axes.imshow(clip[index], interpolation="nearest" if row == 0 else "bilinear")
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_visible(False)
    axes = figure.add_subplot(grid[2, :])
    axes.bar(np.arange(len(over_time)), 100 * over_time, width=0.86, color=ORANGE)
    axes.axhline(100 / len(over_time), color=GREY, linewidth=0.9, linestyle=":")
    # every picture stands over the bars of its own frames; the last one may have fewer
    axes.set_xlim(-0.5, step * len(shown) - 0.5)
    axes.set_ylim(0, None)
    axes.set_xticks(shown)
    axes.tick_params(labelsize=9, length=2)
    axes.set_xlabel("frame", fontsize=9)
    axes.set_ylabel("importance, %", fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    add_fallback_fonts(figure)
    return figure


def side_by_side(
    frames: UInt8[np.ndarray, "t h w 3"],
    overlaid: UInt8[np.ndarray, "t h w 3"],
    over_time: Float[np.ndarray, "t"],
) -> UInt8[np.ndarray, "t rows columns 3"]:
    """Returns frames beside their overlays, enlarged if small, with bars of importance below; the current one glows."""
    factor = max(1, -(-MIN_SIDE // min(frames.shape[1:3])))
    resampling = (Image.Resampling.NEAREST, Image.Resampling.BICUBIC)
    size = (frames.shape[2] * factor, frames.shape[1] * factor)
    enlarged = (
        np.stack([np.asarray(Image.fromarray(frame).resize(size, how)) for frame in clip])
        for clip, how in zip((frames, overlaid), resampling, strict=True)
    )
    pair = np.concatenate(list(enlarged), axis=2)
    rows, width, count = max(pair.shape[1] // 6, 8), pair.shape[2], len(frames)
    bars = np.full((count, rows, width, 3), 20, np.uint8)
    edges = np.linspace(0, width, count + 1).round().astype(int)
    tops = (over_time / max(over_time.max(), 1e-12) * (rows - 4)).round().astype(int)
    for now in range(count):
        for i, top in enumerate(tops):
            colour = (217, 100, 26) if i == now else (110, 110, 110)
            bars[now, rows - max(top, 1) :, edges[i] + 1 : edges[i + 1] - 1] = colour
    whole = np.concatenate([pair, bars], axis=1)
    # video encoders need even sides
    return whole[:, : whole.shape[1] // 2 * 2, : width // 2 * 2]


def heads(frames: UInt8[np.ndarray, "t h w 3"], maps: Float[np.ndarray, "heads gt gh gw"], title: str) -> Figure:
    """Draws what each head of one attention reads: a row for each head over space, or a line for each over time.

    Args:
        frames: the clip.
        maps: result of `attention_maps`; heads of a temporal encoder have one place, and are drawn over time.
        title: what is drawn.
    """
    if maps.shape[2] * maps.shape[3] == 1:
        figure = Figure(figsize=(7.2, 2.8), layout="constrained")
        axes = figure.subplots()
        for i, head in enumerate(maps[:, :, 0, 0]):
            axes.plot(np.arange(len(head)), 100 * head, marker="o", linewidth=1.6, label=f"head {i}")
        top = 112 * maps.max()  # percent, and room for the markers
        axes.set(xlabel="time index", ylabel="attention, %", ylim=(0, top), xticks=range(maps.shape[1]))
        axes.set_title(plain_text(title))
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=9)
        add_fallback_fonts(figure)
        return figure
    shown = np.linspace(0, maps.shape[1] - 1, min(maps.shape[1], MAX_COLUMNS)).round().astype(int)
    at = (shown + 0.5) * len(frames) / maps.shape[1]  # the frame in the middle of a time index
    height = 1.3 * frames.shape[1] / frames.shape[2]
    size = (1.3 * len(shown) + 0.7, height * (len(maps) + 1) + 0.5)
    figure = Figure(figsize=size, layout="constrained")
    figure.suptitle(plain_text(title), fontsize=11)
    grid = figure.subplots(len(maps) + 1, len(shown), squeeze=False)
    for column, (index, frame) in enumerate(zip(shown, at.astype(int), strict=True)):
        grid[0, column].imshow(frames[frame], interpolation="nearest")
        grid[0, column].set_title(f"frame {frame}", fontsize=9)
        for row, head in enumerate(maps, start=1):
            grid[row, column].imshow(head[index], cmap="inferno", vmin=0, vmax=head.max(), interpolation="nearest")
    for row, axes in enumerate(grid):
        axes[0].set_ylabel("video" if row == 0 else f"head {row - 1}", fontsize=9)
    for axes in grid.flat:
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
    add_fallback_fonts(figure)
    return figure
