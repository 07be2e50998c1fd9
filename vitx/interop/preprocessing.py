"""Preprocessing of pixels, as it is stored with weights."""

import dataclasses
import math
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from vitx.configuration import register

Pair = tuple[int, int]
PerChannel = tuple[float, float, float]


@register
@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """From decoded frames to a model's input.

    Attributes:
        mean: mean of each channel, subtracted from pixels in [0, 1].
        std: standard deviation of each channel, by which pixels are divided.
        size: (height, width) of the crop in pixels.
        short_side: length in pixels to which a frame's shorter side is scaled; None scales frames to cover `size`.
        num_frames: frames of a clip.
        frame_stride: distance of the clip's frames in the video; None spreads them evenly over the whole video.
        note: what users should know, printed when weights are loaded.
    """

    mean: PerChannel
    std: PerChannel
    size: Pair
    short_side: int | None
    num_frames: int
    frame_stride: int | None = None
    note: str = ""

    def __post_init__(self):
        if not all(map(math.isfinite, (*self.mean, *self.std))) or min(self.std) <= 0:
            raise ValueError(f"mean is {self.mean} and std {self.std}; expected finite numbers, std above 0")
        numbers = {"num_frames": self.num_frames, "height": self.size[0], "width": self.size[1]}
        numbers |= {"short_side": self.short_side or 1, "frame_stride": self.frame_stride or 1}
        numbers |= {name: 0 for name in ("short_side", "frame_stride") if getattr(self, name) == 0}
        for name, number in numbers.items():
            if not 1 <= number <= LARGEST:
                raise ValueError(f"{name} is {number}; expected 1 to {LARGEST}")

    @property
    def value_range(self) -> tuple[float, float]:
        """Smallest and largest value that a pixel can take."""
        ends = [(end - mean) / std for mean, std in zip(self.mean, self.std, strict=True) for end in (0, 1)]
        return min(ends), max(ends)

    def indices(self, num_frames: int) -> np.ndarray:
        """Returns the indices of the clip's frames: at the video's centre, or over all of it without a stride.

        A video shorter than the clip is repeated from its start.
        """
        if self.frame_stride is None:
            return ((np.arange(self.num_frames) + 0.5) * num_frames / self.num_frames).astype(int)
        room = max(num_frames - (self.num_frames - 1) * self.frame_stride, 1)
        return (room // 2 + self.frame_stride * np.arange(self.num_frames)) % num_frames

    def fit(self, frames: UInt8[np.ndarray, "t _ _ 3"]) -> UInt8[np.ndarray, "t h w 3"]:
        """Scales (bilinear, antialiased, as Pillow does) and crops the centre."""
        height, width = frames.shape[1:3]
        scale = max(self.size[0] / height, self.size[1] / width)
        if self.short_side is not None:
            scale = max(scale, self.short_side / min(height, width))
        new = max(int(height * scale + 1e-6), self.size[0]), max(int(width * scale + 1e-6), self.size[1])
        if new != (height, width):
            images = [Image.fromarray(frame).resize(new[::-1], Image.Resampling.BILINEAR) for frame in frames]
            frames = np.stack([np.asarray(image) for image in images])
        top, left = (new[0] - self.size[0]) // 2, (new[1] - self.size[1]) // 2
        return frames[:, top : top + self.size[0], left : left + self.size[1]]

    def resize(self, num_frames: int, size: Pair) -> "Preprocessing":
        """Returns the preprocessing for clips of another shape; the short side keeps its ratio to the crop."""
        short_side = self.short_side and round(self.short_side * min(size) / min(self.size))
        return dataclasses.replace(self, num_frames=num_frames, size=size, short_side=short_side)

    def normalise(self, frames: UInt8[np.ndarray, "*b 3"]) -> Float[np.ndarray, "*b 3"]:
        """Returns (frames / 255 - mean) / std, float32."""
        return ((frames / np.float32(255) - np.float32(self.mean)) / np.float32(self.std)).astype(np.float32)

    def to_huggingface(self, processor: str) -> dict[str, Any]:
        """Returns the content of preprocessor_config.json."""
        return {
            "image_processor_type": processor,
            "do_resize": True,
            "size": {"shortest_edge": self.short_side or max(self.size)},
            "resample": 2,
            "do_center_crop": True,
            "crop_size": {"height": self.size[0], "width": self.size[1]},
            "do_rescale": True,
            "rescale_factor": 1 / 255,
            "offset": False,
            "do_normalize": True,
            "image_mean": list(self.mean),
            "image_std": list(self.std),
            "frame_stride": self.frame_stride,
        }

    @classmethod
    def from_huggingface(cls, config: dict[str, Any], num_frames: int, size: Pair) -> "Preprocessing":
        """Returns exactly what a preprocessor_config.json asks for, with its processor's defaults for absent entries.

        The files of the released ViViT models shift pixels to [-1, 1] (`offset`) and then normalise again, which
        gives [-3, 1], although the models were trained on [-1, 1]. Users of transformers get [-3, 1], and so do ours.

        Raises:
            ValueError: the file asks for something that is not supported.
        """
        if not isinstance(config, dict):
            raise ValueError(f"found a {type(config).__name__}, expected an object")
        kind = config.get("image_processor_type") or config.get("feature_extractor_type") or ""
        config = DEFAULTS | (VIVIT_DEFAULTS if str(kind).startswith("Vivit") else {}) | config
        for name, known in KNOWN.items():
            if config[name] not in known:
                raise ValueError(f"{name} is {config[name]!r}; supported is {' or '.join(map(repr, known))}")
        sides = config["size"]
        short_side = sides.get("shortest_edge") if isinstance(sides, dict) else sides
        if type(short_side) is not int:
            raise ValueError(f"size is {sides!r}; expected the length of the shortest edge")
        scale = float(config["rescale_factor"]) if config["do_rescale"] else 1.0
        shift = 1.0 if config["offset"] and config["do_rescale"] else 0.0
        mean, std = config["image_mean"], config["image_std"]
        if not config["do_normalize"]:
            mean, std = [0.0] * 3, [1.0] * 3
        if len(mean) != 3 or len(std) != 3 or scale <= 0:
            raise ValueError(
                f"image_mean is {mean}, image_std {std} and rescale_factor {scale}; expected three, three, > 0"
            )
        stride = config["frame_stride"]
        if stride is not None and type(stride) is not int:
            raise ValueError(f"frame_stride is {stride!r}; expected a number of frames")
        # ((255 x scale - shift) - mean) / std, in the form (x - our mean) / our std
        unit = 255 * scale
        twice = shift and config["do_normalize"] and (list(mean), list(std)) != ([0] * 3, [1] * 3)
        return cls(
            mean=tuple((shift + float(x)) / unit for x in mean),
            std=tuple(float(x) / unit for x in std),
            size=size,
            short_side=short_side,
            num_frames=num_frames,
            frame_stride=stride,
            note=TWICE if twice else "",
        )


LARGEST = 1_000_000
DEFAULTS = {
    "do_resize": True,
    "size": {"shortest_edge": 224},
    "resample": 2,
    "do_center_crop": True,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "offset": False,
    "do_normalize": True,
    "image_mean": [0.5] * 3,
    "image_std": [0.5] * 3,
    "frame_stride": None,
}
VIVIT_DEFAULTS = {"size": {"shortest_edge": 256}, "rescale_factor": 1 / 127.5, "offset": True}
KNOWN = {
    "do_resize": (True,),
    "resample": (2,),  # bilinear
    "do_center_crop": (True,),
    "do_rescale": (True, False),
    "do_normalize": (True, False),
    "offset": (True, False),
}
TWICE = (
    "preprocessor_config.json shifts pixels to [-1, 1] and normalises them again, to [-3, 1]; transformers does so, "
    "and so does vitx. ViViT was trained on [-1, 1], which is mean = std = (0.5, 0.5, 0.5)"
)
