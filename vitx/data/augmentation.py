"""What is varied in a training clip: the same in all its frames, drawn once for (seed, epoch, index)."""

import dataclasses
import math

import numpy as np
from jaxtyping import UInt8

from vitx.configuration import register
from vitx.data.sampling import slid_box

LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601
Box = tuple[float, float, float, float]
"""(top, left, height, width) of a part of a frame, in its pixels."""


@register
@dataclasses.dataclass(frozen=True)
class Augmentation:
    """Nothing by default: a clip is the centre of its frames.

    Attributes:
        crop_area: (least, most) share of a frame's area that is cut out and scaled to the clip's size (Szegedy et al.
            2015, section 6); None takes the centre, as evaluation does.
        crop_ratio: (least, most) width over height of what is cut out.
        flip: probability that a clip is mirrored, left and right; 0 where a label has a direction ("pull left").
        brightness: pixels are multiplied by 1 ± up to this.
        contrast: differences from the clip's mean luma are multiplied by 1 ± up to this.
        saturation: differences from each pixel's luma are multiplied by 1 ± up to this.
        grey: probability that colours are dropped.
        erase: probability that one box is filled with noise in all frames (Zhong et al. 2017: a fiftieth to a third of
            the area, ratio 0.3 to 3.3).
    """

    crop_area: tuple[float, float] | None = None
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.0
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    grey: float = 0.0
    erase: float = 0.0

    def __post_init__(self):
        if self.crop_area is not None and not 0 < self.crop_area[0] <= self.crop_area[1] <= 1:
            raise ValueError(f"crop_area is {self.crop_area}; expected two shares of an area in order, above 0 to 1")
        if not 0 < self.crop_ratio[0] <= self.crop_ratio[1]:
            raise ValueError(f"crop_ratio is {self.crop_ratio}; expected two positive numbers in order")
        for name in ("flip", "brightness", "contrast", "saturation", "grey", "erase"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected 0 to 1")

    def box(self, rng: np.random.Generator, height: int, width: int, size: tuple[int, int]) -> Box:
        """Draws what is cut out of frames of this size, to be scaled to `size`."""
        if self.crop_area is None:
            return slid_box(height, width, size, 0.5)
        return random_box(rng, height, width, self.crop_area, self.crop_ratio)

    def vary(
        self, rng: np.random.Generator, clip: UInt8[np.ndarray, "frames height width 3"]
    ) -> UInt8[np.ndarray, "frames height width 3"]:
        """Returns the clip mirrored, recoloured and erased, as drawn."""
        if rng.uniform() < self.flip:
            clip = clip[:, :, ::-1]
        if self.brightness or self.contrast or self.saturation or self.grey:
            bright, contrast, saturation = (
                1 + strength * rng.uniform(-1, 1) for strength in (self.brightness, self.contrast, self.saturation)
            )
            clip = recoloured(clip, bright, contrast, 0.0 if rng.uniform() < self.grey else saturation)
        if rng.uniform() < self.erase:
            clip = erased(rng, clip)
        return np.ascontiguousarray(clip)


def random_box(
    rng: np.random.Generator, height: int, width: int, area: tuple[float, float], ratio: tuple[float, float]
) -> Box:
    """Draws a box inside a frame: its share of the area uniformly, its ratio uniformly in the logarithm, its place
    uniformly. Ten tries; then the largest box at the centre whose ratio is allowed."""
    for _ in range(10):
        pixels = height * width * rng.uniform(*area)
        shape = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
        tall, wide = math.sqrt(pixels / shape), math.sqrt(pixels * shape)
        if tall <= height and wide <= width:
            return rng.uniform(0, height - tall), rng.uniform(0, width - wide), tall, wide
    shape = min(max(width / height, ratio[0]), ratio[1])
    tall, wide = min(height, width / shape), min(width, height * shape)
    return (height - tall) / 2, (width - wide) / 2, float(tall), float(wide)


def recoloured(
    clip: UInt8[np.ndarray, "frames height width 3"], brightness: float, contrast: float, saturation: float
) -> UInt8[np.ndarray, "frames height width 3"]:
    """Returns the clip with brightness, then contrast around its mean luma, then saturation multiplied; 1 changes
    nothing, saturation 0 is grey."""
    pixels = clip.astype(np.float32) * np.float32(brightness)
    mean = (pixels.reshape(-1, 3).mean(0) * LUMA).sum()
    pixels = mean + np.float32(contrast) * (pixels - mean)
    luma = (pixels @ LUMA)[..., None]
    pixels = luma + np.float32(saturation) * (pixels - luma)
    return np.clip(pixels + 0.5, 0, 255).astype(np.uint8)


def erased(
    rng: np.random.Generator, clip: UInt8[np.ndarray, "frames height width 3"]
) -> UInt8[np.ndarray, "frames height width 3"]:
    """Returns the clip with one box full of noise, the same in every frame."""
    top, left, tall, wide = map(int, random_box(rng, *clip.shape[1:3], (0.02, 1 / 3), (0.3, 3.3)))
    clip = clip.copy()
    clip[:, top : top + tall, left : left + wide] = rng.integers(0, 256, (max(tall, 0), max(wide, 0), 3), np.uint8)
    return clip
