"""Operations on the pixels of a clip, the same for every frame, computed by Pillow.

An operation on a clip of one frame equals Pillow's on that image. Where it depends on the content of the image (a mean,
a histogram), the content is the whole clip: a still video stays still. dm_pix has no RandAugment and works on float
images of JAX; training recipes and their published results are Pillow's.

A fourth channel of a clip, motion, moves with the pixels and is left alone by what changes colours.
"""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageEnhance, ImageOps

# Letters in shapes: t frames, h height, w width, c channels.
Clip = UInt8[np.ndarray, "t h w c"]
FILL = (128, 128, 128)
"""Colour of pixels from outside a frame: mid-grey."""


def _keep_motion(operation: Callable[..., Clip]) -> Callable[..., Clip]:
    """Lets an operation on RGB take clips with a fourth channel, which stays as it is."""

    @functools.wraps(operation)
    def apply(clip: Clip, *arguments: Any) -> Clip:
        if clip.shape[-1] == 3:
            return operation(clip, *arguments)
        return np.concatenate([operation(clip[..., :3], *arguments), clip[..., 3:]], axis=-1)

    return apply


def _apply_to_clip(clip: Clip, operation: Callable[[Image.Image], Image.Image]) -> Clip:
    """Applies an operation to one image of all frames above one another.

    For operations that treat each pixel alone, or by statistics of all pixels.
    """
    # One call of Pillow in place of one for each frame, and statistics of all frames.
    tall = Image.fromarray(clip.reshape(-1, *clip.shape[2:]))
    return np.asarray(operation(tall)).reshape(clip.shape)


def _apply_by_frame(clip: Clip, operation: Callable[[Image.Image], Image.Image]) -> Clip:
    # Of Pillow's modes of four channels, RGBA would weight pixels with the fourth.
    mode, size = "RGB" if clip.shape[-1] == 3 else "CMYK", clip.shape[2:0:-1]
    return np.stack([np.asarray(operation(Image.frombytes(mode, size, frame.tobytes()))) for frame in clip])


def _fill(image: Image.Image) -> tuple[int, ...]:
    """Returns the colour of pixels from outside a frame; where there is a channel of motion, it is 0."""
    return FILL if image.mode == "RGB" else (*FILL, 0)


def _look_up(clip: Clip, table: UInt8[np.ndarray, "256"]) -> Clip:
    return np.frombuffer(clip.tobytes().translate(table.tobytes()), np.uint8).reshape(clip.shape)


@_keep_motion
def brightness(clip: Clip, factor: float) -> Clip:
    """Multiplies every pixel."""
    return _apply_to_clip(clip, lambda image: ImageEnhance.Brightness(image).enhance(factor))


@_keep_motion
def lightness(clip: Clip, fraction: float) -> Clip:
    """Adds a fraction of the range, 255."""
    return _look_up(clip, _round(np.arange(256) + 255 * fraction))


@_keep_motion
def contrast(clip: Clip, factor: float) -> Clip:
    """Multiplies the distance from the clip's mean luma (ITU-R BT.601)."""
    return _apply_to_clip(clip, lambda image: ImageEnhance.Contrast(image).enhance(factor))


@_keep_motion
def saturation(clip: Clip, factor: float) -> Clip:
    """Multiplies the distance from each pixel's luma; 0 is grey."""
    return _apply_to_clip(clip, lambda image: ImageEnhance.Color(image).enhance(factor))


@_keep_motion
def hue(clip: Clip, turn: float) -> Clip:
    """Turns hues by a fraction of the circle, -0.5 to 0.5 (in HSV of 8 bits)."""

    def turn_hue(image: Image.Image) -> Image.Image:
        bands = np.array(image.convert("HSV"))
        bands[..., 0] += np.uint8(int(turn * 255) % 256)
        return Image.frombuffer("HSV", image.size, bands, "raw", "HSV", 0, 1).convert("RGB")

    return _apply_to_clip(clip, turn_hue)


@_keep_motion
def grey(clip: Clip) -> Clip:
    """Drops the colours."""
    return _apply_to_clip(clip, lambda image: image.convert("L").convert("RGB"))


@_keep_motion
def sharpness(clip: Clip, factor: float) -> Clip:
    """Multiplies the distance from a smoothed frame; 0 is smooth, 2 sharp."""
    return _apply_by_frame(clip, lambda image: ImageEnhance.Sharpness(image).enhance(factor))


@_keep_motion
def autocontrast(clip: Clip) -> Clip:
    """Stretches each channel to the full range."""
    return _apply_to_clip(clip, ImageOps.autocontrast)


@_keep_motion
def equalize(clip: Clip) -> Clip:
    """Flattens the histogram of each channel."""
    return _apply_to_clip(clip, ImageOps.equalize)


@_keep_motion
def invert(clip: Clip) -> Clip:
    """Returns the negative."""
    return 255 - clip


@_keep_motion
def posterize(clip: Clip, bits: int) -> Clip:
    """Keeps the highest bits of every value, 0 to 8."""
    return clip & np.uint8(255 - 2 ** (8 - bits) + 1)


@_keep_motion
def solarize(clip: Clip, threshold: int) -> Clip:
    """Inverts values from a threshold up, 0 to 256."""
    values = np.arange(256)
    return _look_up(clip, _round(np.where(values < threshold, values, 255 - values)))


@_keep_motion
def solarize_add(clip: Clip, amount: int, threshold: int = 128) -> Clip:
    """Adds to values below a threshold."""
    values = np.arange(256)
    return _look_up(clip, _round(np.where(values < threshold, values + amount, values)))


def rotate(clip: Clip, degrees: float) -> Clip:
    """Turns frames about their centre, counter-clockwise."""
    return _apply_by_frame(clip, lambda image: image.rotate(degrees, Image.Resampling.BILINEAR, fillcolor=_fill(image)))


def shear_x(clip: Clip, slope: float) -> Clip:
    """Moves each row to the left by its number times the slope."""
    return _affine(clip, (1, slope, 0, 0, 1, 0))


def shear_y(clip: Clip, slope: float) -> Clip:
    """Moves each column up by its number times the slope."""
    return _affine(clip, (1, 0, 0, slope, 1, 0))


def translate_x(clip: Clip, fraction: float) -> Clip:
    """Moves frames to the left by a fraction of their width."""
    return _affine(clip, (1, 0, fraction * clip.shape[2], 0, 1, 0))


def translate_y(clip: Clip, fraction: float) -> Clip:
    """Moves frames up by a fraction of their height."""
    return _affine(clip, (1, 0, 0, 0, 1, fraction * clip.shape[1]))


def _affine(clip: Clip, matrix: tuple[int | float, ...]) -> Clip:
    """Takes each pixel (x, y) from (a x + b y + c, d x + e y + f), bilinear, coordinates at the pixels' centres."""

    def transform(image: Image.Image) -> Image.Image:
        kind, how = Image.Transform.AFFINE, Image.Resampling.BILINEAR
        return image.transform(image.size, kind, matrix, how, fillcolor=_fill(image))

    return _apply_by_frame(clip, transform)


def _round(values: np.ndarray) -> UInt8[np.ndarray, "256"]:
    return np.clip(np.floor(values + 0.5), 0, 255).astype(np.uint8)
