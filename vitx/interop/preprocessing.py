"""Preprocessing of pixels, as it is stored with weights."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Literal, get_args

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from vitx.configuration import register
from vitx.data.container import MAX_PIXELS
from vitx.errors import UserError

Pair = tuple[int, int]
PerChannel = tuple[float, float, float]
Resampling = Literal["nearest", "lanczos", "bilinear", "bicubic", "box", "hamming"]
RESAMPLINGS: tuple[Resampling, ...] = get_args(Resampling)  # in the order of Pillow's numbers


@register
@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """From decoded frames to a model's input.

    Attributes:
        mean: mean of each channel, subtracted from pixels in [0, 1].
        std: standard deviation of each channel, by which pixels are divided.
        size: (height, width) of the model's input in pixels: frames are scaled, then cropped at the centre or padded
            with black.
        short_side: length in pixels to which a frame's shorter side is scaled; None scales frames to cover `size`.
        num_frames: frames of a clip.
        frame_stride: distance of the clip's frames in the video; None spreads them evenly over the whole video.
        note: what users should know, printed when weights are loaded.
        scaled_to: (height, width) to which frames are scaled whatever their shape, in place of `short_side`.
        long_side: length in pixels to which a frame's longer side is scaled, in place of `short_side`.
        scale: whether frames are scaled at all.
        resampling: Pillow's filter of scaling.
    """

    mean: PerChannel
    std: PerChannel
    size: Pair
    short_side: int | None
    num_frames: int
    frame_stride: int | None = None
    note: str = ""
    scaled_to: tuple[int, int] | None = None
    long_side: int | None = None
    scale: bool = True
    resampling: Resampling = "bilinear"

    def __post_init__(self):
        if not all(map(math.isfinite, (*self.mean, *self.std))) or min(self.std) <= 0:
            raise ValueError(f"mean is {self.mean} and std {self.std}; expected finite numbers, std above 0")
        numbers = {"num_frames": self.num_frames, "height": self.size[0], "width": self.size[1]}
        numbers |= {
            name: x for name in ("short_side", "long_side", "frame_stride") if (x := getattr(self, name)) is not None
        }
        if self.scaled_to is not None:
            numbers |= {"scaled height": self.scaled_to[0], "scaled width": self.scaled_to[1]}
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
        """Scales (antialiased, as Pillow does), crops the centre, and pads with black what is smaller."""
        new = self._scaled_size(*frames.shape[1:3])
        if math.prod(new) > MAX_PIXELS:
            raise UserError(
                f"preprocessing scales frames of {frames.shape[1]} x {frames.shape[2]} to {new[0]} x {new[1]} pixels; "
                f"expected at most {MAX_PIXELS:,}: correct the size in preprocessor_config.json"
            )
        top, left = (max(old - wanted, 0) // 2 for old, wanted in zip(new, self.size, strict=True))
        inner = slice(top, top + self.size[0]), slice(left, left + self.size[1])
        if new != frames.shape[1:3]:
            how = Image.Resampling[self.resampling.upper()]
            # Cropped one by one: all frames at the scaled size could take thousands of times the clip's memory.
            scaled = (Image.fromarray(frame).resize(new[::-1], how) for frame in frames)
            frames = np.stack([np.asarray(image)[inner].copy() for image in scaled])
        else:
            frames = frames[:, *inner]
        # transformers puts the odd row of padding before the frame
        gaps = [wanted - found for wanted, found in zip(self.size, frames.shape[1:3], strict=True)]
        return np.pad(frames, [(0, 0), *((-(-gap // 2), gap // 2) for gap in gaps), (0, 0)]) if any(gaps) else frames

    def _scaled_size(self, height: int, width: int) -> Pair:
        """Returns the (height, width) to which frames of a size are scaled."""
        if not self.scale:
            return height, width
        if self.scaled_to is not None:
            return self.scaled_to
        if self.long_side is not None:
            scale = self.long_side / max(height, width)
            return max(int(height * scale + 1e-6), 1), max(int(width * scale + 1e-6), 1)
        scale = max(self.size[0] / height, self.size[1] / width)
        if self.short_side is not None:
            scale = max(scale, self.short_side / min(height, width))
        return max(int(height * scale + 1e-6), self.size[0]), max(int(width * scale + 1e-6), self.size[1])

    def resize(self, num_frames: int, size: Pair) -> "Preprocessing":
        """Returns the preprocessing for clips of another shape; lengths keep their ratio to the input's."""
        ratio = min(size) / min(self.size)
        short_side, long_side = (x and max(round(x * ratio), 1) for x in (self.short_side, self.long_side))
        ratios = [new / old for new, old in zip(size, self.size, strict=True)]
        scaled_to = self.scaled_to and tuple(max(round(x * r), 1) for x, r in zip(self.scaled_to, ratios, strict=True))
        changes = {"short_side": short_side, "long_side": long_side, "scaled_to": scaled_to}
        return dataclasses.replace(self, num_frames=num_frames, size=size, **changes)

    def normalise(self, frames: UInt8[np.ndarray, "*b 3"]) -> Float[np.ndarray, "*b 3"]:
        """Returns (frames / 255 - mean) / std, float32."""
        return ((frames / np.float32(255) - np.float32(self.mean)) / np.float32(self.std)).astype(np.float32)

    def to_huggingface(self, processor: str) -> dict[str, Any]:
        """Returns the content of preprocessor_config.json."""
        return {
            "image_processor_type": processor,
            "do_resize": self.scale,
            "size": self._size_for_huggingface(),
            "resample": RESAMPLINGS.index(self.resampling),
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

    def _size_for_huggingface(self) -> dict[str, int]:
        if self.scaled_to is not None:
            return {"height": self.scaled_to[0], "width": self.scaled_to[1]}
        if self.long_side is not None:
            return {"longest_edge": self.long_side}
        return {"shortest_edge": self.short_side or max(self.size)}

    @classmethod
    def from_huggingface(cls, config: dict[str, Any], num_frames: int, size: Pair) -> "Preprocessing":
        """Returns the preprocessing of a preprocessor_config.json, with its processor's defaults for absent entries.

        What cannot be done here is left out and named in the note. The files of the released ViViT models shift pixels
        to [-1, 1] (`offset`) and then normalise again, which gives [-3, 1], although the models were trained on
        [-1, 1]. Users of transformers get [-3, 1], and so do ours.

        Raises:
            ValueError: an entry is no number, flag or size where one is expected.
        """
        if not isinstance(config, dict):
            raise ValueError(f"found a {type(config).__name__}, expected an object")
        kind = config.get("image_processor_type") or config.get("feature_extractor_type") or ""
        config = DEFAULTS | (VIVIT_DEFAULTS if str(kind).startswith("Vivit") else {}) | config
        if wrong := [name for name in FLAGS if type(config[name]) is not bool]:
            raise ValueError(f"{wrong[0]} is {config[wrong[0]]!r}; expected true or false")
        scaling, notes = _scaling_from(config, size)
        others = [name for name in config if str(name).startswith("do_") and name not in (*FLAGS, "do_convert_rgb")]
        notes += [f"preprocessor_config.json has {name}, which is not applied" for name in others if config[name]]
        scale = float(config["rescale_factor"]) if config["do_rescale"] else 1.0
        shift = 1.0 if config["offset"] and config["do_rescale"] else 0.0
        mean, std = ([x] * 3 if isinstance(x, int | float) else x for x in (config["image_mean"], config["image_std"]))
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
        notes += [TWICE] if twice else []
        return cls(
            mean=tuple((shift + float(x)) / unit for x in mean),
            std=tuple(float(x) / unit for x in std),
            size=size,
            num_frames=num_frames,
            frame_stride=stride,
            note="; ".join(notes),
            **scaling,
        )


def _scaling_from(config: Mapping[str, Any], size: Pair) -> tuple[dict[str, Any], list[str]]:
    """Returns (fields of scaling, notes about differences from transformers) for a preprocessor_config.json.

    Raises:
        ValueError: its size is no side, edge or (height, width).
    """
    if not config["do_resize"]:
        return {"short_side": None, "scale": False}, _crop_notes(config, size, None)
    sides, notes, number = config["size"], [], config["resample"]
    if type(number) is not int or not 0 <= number < len(RESAMPLINGS):
        notes.append(
            f"preprocessor_config.json has resample {number!r}, which is no filter of Pillow; bilinear is taken"
        )
        number = RESAMPLINGS.index("bilinear")
    fields: dict[str, Any] = {"short_side": None, "resampling": RESAMPLINGS[number]}
    # transformers reads a pair as height and width, and one number as the shorter side
    if isinstance(sides, list | tuple) and len(sides) == 2:
        sides = {"height": sides[0], "width": sides[1]}
    edges = sides if isinstance(sides, Mapping) else {"shortest_edge": sides}
    known = [
        names for names in (("shortest_edge",), ("longest_edge",), ("height", "width")) if set(names) <= set(edges)
    ]
    if not known or any(type(edges[name]) is not int for name in known[0]):
        raise ValueError(f"size is {sides!r}; expected the shortest_edge, the longest_edge, or height and width")
    lengths = tuple(edges[name] for name in known[0])
    field, value = {
        "shortest_edge": ("short_side", lengths[0]),
        "longest_edge": ("long_side", lengths[0]),
        "height": ("scaled_to", lengths),
    }[known[0][0]]
    if unused := sorted(set(edges) - set(known[0])):
        notes.append(f"preprocessor_config.json has a size with {', '.join(unused)}, too, which is not applied")
    return fields | {field: value}, notes + _crop_notes(config, size, lengths if field == "scaled_to" else None)


def _crop_notes(config: Mapping[str, Any], size: Pair, scaled_to: tuple[int, ...] | None) -> list[str]:
    """Returns a note if the file's crop does not have the size of the model's input."""
    if not config["do_center_crop"]:
        if scaled_to == size:
            return []
        return [
            f"preprocessor_config.json crops nothing; the model takes {size[0]}x{size[1]}, the centre of each frame"
        ]
    crop = config["crop_size"]
    sides = (crop.get("height"), crop.get("width")) if isinstance(crop, Mapping) else (crop, crop)
    if crop is None or sides == size:
        return []
    return [f"preprocessor_config.json crops {crop!r}; the model takes {size[0]}x{size[1]}, which is cropped"]


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
    "crop_size": None,
}
VIVIT_DEFAULTS = {"size": {"shortest_edge": 256}, "rescale_factor": 1 / 127.5, "offset": True}
FLAGS = tuple(name for name, value in DEFAULTS.items() if isinstance(value, bool))
TWICE = (
    "preprocessor_config.json shifts pixels to [-1, 1] and normalises them again, to [-3, 1]; transformers does so, "
    "and so does vitx. ViViT was trained on [-1, 1], which is mean = std = (0.5, 0.5, 0.5)"
)
