"""Augmentation of training clips: one draw for all frames of a clip, a function of (seed, epoch, index, repeat)."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Literal

import numpy as np

from vitx.configuration import register
from vitx.data import operations
from vitx.data.operations import Clip
from vitx.data.rand_augment import RandAugment
from vitx.data.sampling import Box, crop_box
from vitx.errors import UserError, did_you_mean

Names = Mapping[str, tuple[str, ...]]
COLOURS = ("brightness", "contrast", "saturation", "hue")


@register
@dataclasses.dataclass(frozen=True)
class Augmentation:
    """Random changes of a clip; none by default, when a clip is the centre of its frames.

    Cropping comes first, then colours, RandAugment, erasing and mirroring.

    Attributes:
        crop_area: (least, greatest) fraction of a frame's area that is cropped and scaled to the clip's size (Szegedy
            et al. 2015, section 6); None takes the centre, as evaluation does.
        crop_ratio: (least, greatest) width over height of that crop.
        short_side: (least, greatest) length in pixels that the shorter side of the frames is scaled to before a crop at
            a random place ((256, 320) in SlowFast); an alternative to crop_area.
        stretch: (least, greatest) factor of height and of width after short_side, drawn independently ((0.9, 1.33)
            with a short_side of (256, 256) in ViViT).
        flip: probability that a clip is mirrored, left and right.
        flip_labels: pairs of classes that change places when a clip is mirrored: (("pull left", "pull right"),).
        flip_never: classes whose clips are never mirrored.
        brightness: greatest deviation from 1 of the factor of all pixels.
        contrast: greatest deviation from 1 of the factor of differences from the clip's mean luma.
        saturation: greatest deviation from 1 of the factor of differences from each pixel's luma.
        hue: greatest turn of the hues, as a fraction of the circle, at most 0.5.
        lightness: greatest number that is added to all pixels, as a fraction of the range (32 / 255 in DMVR, which
            ViViT uses).
        colour: probability that brightness, contrast, saturation, hue and lightness are changed.
        colour_order: order of these changes; lightness follows brightness.
        grey: probability that colours are dropped.
        rand_augment: operations drawn at random; none with 0 layers.
        erase: probability that boxes are filled in all frames (Zhong et al. 2017: a fiftieth to a third of the area in
            all, ratio 0.3 to 3.3).
        erase_boxes: greatest number of boxes.
        erase_fill: content of the boxes: "noise" in every pixel, one random "colour", or mid-"grey".
    """

    crop_area: tuple[float, float] | None = None
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    short_side: tuple[int, int] | None = None
    stretch: tuple[float, float] = (1.0, 1.0)
    flip: float = 0.0
    flip_labels: tuple[tuple[str, str], ...] = ()
    flip_never: tuple[str, ...] = ()
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    lightness: float = 0.0
    colour: float = 1.0
    colour_order: tuple[Literal["brightness", "contrast", "saturation", "hue"], ...] = COLOURS
    grey: float = 0.0
    rand_augment: RandAugment = RandAugment(layers=0)
    erase: float = 0.0
    erase_boxes: int = 1
    erase_fill: Literal["noise", "colour", "grey"] = "noise"

    def __post_init__(self):
        if self.crop_area is not None and not 0 < self.crop_area[0] <= self.crop_area[1] <= 1:
            raise ValueError(f"crop_area is {self.crop_area}; expected two fractions of an area in order, above 0 to 1")
        if self.crop_area is not None and self.short_side is not None:
            raise ValueError("crop_area and short_side are both given; expected one of them")
        if self.stretch != (1.0, 1.0) and self.short_side is None:
            raise ValueError(f"stretch is {self.stretch} and short_side None; expected short_side too")
        for name in ("crop_ratio", "stretch", "short_side"):
            low, high = getattr(self, name) or (1, 1)
            if not 0 < low <= high:
                raise ValueError(f"{name} is {(low, high)}; expected two positive numbers in order")
        for name in ("flip", "brightness", "contrast", "saturation", "lightness", "colour", "grey", "erase"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected 0 to 1")
        if not 0 <= self.hue <= 0.5:
            raise ValueError(f"hue is {self.hue}; expected 0 to 0.5")
        if sorted(self.colour_order) != sorted(COLOURS):
            raise ValueError(f"colour_order is {self.colour_order}; expected {', '.join(COLOURS)} in any order")
        if self.erase_boxes < 1:
            raise ValueError(f"erase_boxes is {self.erase_boxes}; expected at least 1")

    def check(self, label_names: Names) -> None:
        """Raises UserError where the data lacks a class of flip_labels or flip_never, or a pair is of two labels."""
        known = {name for names in label_names.values() for name in names}
        for name in (*self.flip_never, *(name for pair in self.flip_labels for name in pair)):
            if name not in known:
                raise UserError(
                    f"data.augmentation names the class {name!r}, which the data lacks{did_you_mean(name, known)}"
                )
        for pair in self.flip_labels:
            if not any(set(pair) <= set(names) for names in label_names.values()):
                raise UserError(
                    f"data.augmentation.flip_labels pairs {' and '.join(pair)}; expected two classes of one label"
                )

    def draw_box(self, rng: np.random.Generator, height: int, width: int, size: tuple[int, int]) -> Box:
        """Returns the box that is cut out of all frames of a clip, to be scaled to `size`.

        Args:
            rng: generator of the draws.
            height: pixels of an upright frame.
            width: pixels of an upright frame.
            size: (height, width) of the clip.
        """
        if self.crop_area is not None:
            return random_box(rng, height, width, self.crop_area, self.crop_ratio)
        if self.short_side is None:
            return crop_box(height, width, size, 0.5)
        scale = rng.uniform(*self.short_side) / min(height, width)
        box_height, box_width = (
            side / scale / stretch for side, stretch in zip(size, rng.uniform(*self.stretch, 2), strict=True)
        )
        # A box that does not fit into the frame is scaled down and keeps its shape.
        too_large = max(box_height / height, box_width / width, 1.0)
        # At most the frame: rounding may leave the quotient a little above it.
        box_height, box_width = min(box_height / too_large, height), min(box_width / too_large, width)
        return np.array([rng.uniform(0, height - box_height), rng.uniform(0, width - box_width), box_height, box_width])

    def vary(self, rng: np.random.Generator, clip: Clip) -> Clip:
        """Returns the clip with other colours, RandAugment's operations and erased boxes, all drawn at random.

        A fourth channel, motion, moves and is erased with the pixels.
        """
        if rng.uniform() < self.colour:
            for name in self.colour_order:
                strength = getattr(self, name)
                if strength:
                    middle = 0.0 if name == "hue" else 1.0
                    clip = getattr(operations, name)(clip, middle + strength * rng.uniform(-1, 1))
                if name == "brightness" and self.lightness:
                    clip = operations.lightness(clip, self.lightness * rng.uniform(-1, 1))
        if rng.uniform() < self.grey:
            clip = operations.grey(clip)
        clip = self.rand_augment(rng, clip)
        if rng.uniform() < self.erase:
            clip = erase(rng, clip, self.erase_boxes, self.erase_fill)
        return clip

    def mirror(
        self, rng: np.random.Generator, clip: Clip, labels: Mapping[str, np.ndarray], label_names: Names
    ) -> tuple[Clip, dict[str, np.ndarray]]:
        """Returns the clip and its labels, both mirrored or neither.

        Args:
            rng: generator of the draws.
            clip: clip of an example.
            labels: labels of the example by name: int of a class, or float32 [classes].
            label_names: {label: names of its classes}.
        """
        never = any(
            name in self.flip_never
            for label, value in labels.items()
            for name in _class_names(label_names.get(label, ()), value)
        )
        # Drawn for every clip, whatever its class, so that later draws do not depend on the label.
        if rng.uniform() >= self.flip or never:
            return clip, dict(labels)
        labels = {label: self._mirror_label(value, label_names.get(label, ())) for label, value in labels.items()}
        # Channel by channel: NumPy 2.4 (2026-11) reverses single bytes several times faster than triples.
        return np.stack([clip[:, :, ::-1, channel] for channel in range(clip.shape[-1])], axis=-1), labels

    def _mirror_label(self, label: np.ndarray, names: tuple[str, ...]) -> np.ndarray:
        for one, other in self.flip_labels:
            if one in names and other in names:
                pair = [names.index(one), names.index(other)]
                if label.ndim:
                    label = label.copy()
                    label[pair] = label[pair[::-1]]
                elif label in pair:
                    return np.asarray(sum(pair) - label, label.dtype)
        return label


def _class_names(names: tuple[str, ...], label: np.ndarray) -> list[str]:
    """Returns the names of an example's classes."""
    if label.ndim:
        return [name for name, value in zip(names, label, strict=True) if value > 0]
    return [names[label]] if 0 <= label < len(names) else []


def random_box(
    rng: np.random.Generator, height: int, width: int, area: tuple[float, float], ratio: tuple[float, float]
) -> Box:
    """Draws a box inside a frame; after ten tries that do not fit, takes the largest one at the centre.

    Args:
        rng: generator of the draws.
        height: pixels of the frame.
        width: pixels of the frame.
        area: (least, greatest) fraction of the frame's area, drawn uniformly.
        ratio: (least, greatest) width over height, drawn uniformly in the logarithm.
    """
    for _ in range(10):
        pixels = height * width * rng.uniform(*area)
        shape = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
        box_height, box_width = math.sqrt(pixels / shape), math.sqrt(pixels * shape)
        if box_height <= height and box_width <= width:
            return np.array(
                [rng.uniform(0, height - box_height), rng.uniform(0, width - box_width), box_height, box_width]
            )
    shape = min(max(width / height, ratio[0]), ratio[1])
    box_height, box_width = min(height, width / shape), min(width, height * shape)
    return np.array([(height - box_height) / 2, (width - box_width) / 2, box_height, box_width])


def erase(
    rng: np.random.Generator, clip: Clip, max_boxes: int = 1, fill: Literal["noise", "colour", "grey"] = "noise"
) -> Clip:
    """Returns the clip with one to `max_boxes` boxes filled, the same in every frame; more boxes are smaller."""
    clip = clip.copy()
    boxes = int(rng.integers(1, max_boxes + 1))
    for _ in range(boxes):
        area = 0.02 / boxes, 1 / 3 / boxes
        top, left, box_height, box_width = map(int, random_box(rng, *clip.shape[1:3], area, (0.3, 3.3)))
        shape = {"noise": (box_height, box_width, 3), "colour": (3,), "grey": (0,)}[fill]
        pixels = rng.integers(0, 256, shape, np.uint8) if fill != "grey" else operations.FILL
        box = clip[:, top : top + box_height, left : left + box_width]
        box[..., :3], box[..., 3:] = pixels, 0  # what is filled does not move
    return clip
