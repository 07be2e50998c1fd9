"""Moving Digits: short videos of real handwritten digits, rendered on this machine in seconds.

One digit says *what* (appearance, 10 classes), its path says *how* (motion, 8 classes in time-reversed pairs). The
two labels are independent, and no frame reveals the motion: position and size in a random frame follow one distribution
for all motions, and the unordered set of frames follows one distribution for both motions of a pair. Only the order of
the frames distinguishes, say, growing from shrinking.

A clip is a pure function of (config, split, index). Space is a torus: a digit that leaves on one side enters on the
other. Letters in shapes: t frames, h height, w width.
"""

from dataclasses import dataclass
from functools import cache
from types import MappingProxyType

import numpy as np
from jaxtyping import Float, UInt8

from vitx.configuration import register
from vitx.data.encoding import encode_video

APPEARANCES = tuple("0123456789")
MOTIONS = ("left", "right", "up", "down", "growing", "shrinking", "clockwise", "anticlockwise")
"""Motion `2 k + 1` is motion `2 k` played backwards."""

DIGITS = {"train": range(0, 1287), "validation": range(1287, 1545), "test": range(1545, 1797)}
"""Images of `load_digits` that each split draws from."""

ALL_INTRA = MappingProxyType({"preset": "ultrafast", "x264-params": "keyint=1:qp=20:scenecut=0"})
"""Every frame a keyframe at one quantiser.

Frames predicted from earlier ones are coded differently from them: with x264's defaults the unordered set of decoded
frames distinguishes growing from shrinking.
"""


@register
@dataclass(frozen=True)
class ClipConfig:
    """Difficulty and number of the clips.

    Attributes:
        num_frames: frames per clip.
        side: height and width of a frame, and period of the torus, in pixels.
        speed: (least, greatest) length of a straight step between two frames, in pixels.
        radius: (least, greatest) radius of the circles, in pixels.
        period: (least, greatest) number of frames that a circle takes.
        size: (least, greatest) side of the digit's 8x8 image as drawn, in pixels.
        growth: (least, greatest) fraction of the logarithmic range of sizes that a growing digit covers.
        texture: greatest brightness of the still background, 0 to 255.
        noise: standard deviation of the pixel noise, drawn independently for each frame, on the scale 0 to 255.
        distractor: brightness of a second digit with its own motion, relative to the first; 0 for none.
        occluder: width in pixels of an opaque still bar across the frame; 0 for none.
        num_clips: clips for training, validation and test.
    """

    num_frames: int = 12
    side: int = 48
    speed: tuple[float, float] = (2.0, 3.5)
    radius: tuple[float, float] = (7.0, 9.0)
    period: tuple[float, float] = (10.0, 13.0)
    size: tuple[float, float] = (20.0, 34.0)
    growth: tuple[float, float] = (0.7, 1.0)
    texture: float = 60.0
    noise: float = 5.0
    distractor: float = 0.0
    occluder: float = 0.0
    num_clips: tuple[int, int, int] = (4000, 1000, 1000)

    def __post_init__(self):
        if self.side < 2 or self.side % 2 or self.num_frames < 1 or min(self.num_clips) < 1:
            raise ValueError(
                f"side is {self.side}, num_frames {self.num_frames}, num_clips {self.num_clips}; expected an even side "
                "of at least 2 and at least one frame and clip"
            )
        for name in ("speed", "radius", "period", "size", "growth"):
            low, high = map(float, getattr(self, name))
            object.__setattr__(self, name, (low, high))  # (8, 14) is the same dataset as (8.0, 14.0)
            if not 0 < low <= high:
                raise ValueError(f"{name} is {(low, high)}; expected two positive numbers in order")
        if max(self.speed[1], 2 * np.pi * self.radius[1] / self.period[0]) >= self.side / 2:
            raise ValueError(
                f"with speed {self.speed}, radius {self.radius} and period {self.period} a digit moves by half the "
                "side or more between two frames, which has no direction; expected smaller steps"
            )


CONFIGS = MappingProxyType(
    {
        "standard": ClipConfig(),
        "harder": ClipConfig(distractor=0.55, occluder=8.0),
        "forecast": ClipConfig(num_frames=20, texture=0.0, noise=0.0),
    }
)
"""One digit on a still texture; with a dimmer second digit and a still bar in front; on black, without noise."""


@dataclass(frozen=True)
class Trajectory:
    """Position and size of a digit in each frame.

    Attributes:
        centre: (x, y) in pixels, x to the right and y down, in [0, side).
        size: side of the drawn 8x8 image in pixels.
    """

    centre: Float[np.ndarray, "t 2"]
    size: Float[np.ndarray, " t"]


def sample_trajectory(config: ClipConfig, motion: int, rng: np.random.Generator) -> Trajectory:
    """Draws a path of the motion `MOTIONS[motion]`.

    The second motion of each pair is drawn as the first and played backwards. The start is uniform on the torus, so
    the centre is uniform in every frame. Motions of constant size take the size that a growing digit has in a frame
    drawn at random.
    """
    time = np.arange(config.num_frames)
    start, speed = rng.uniform(0, config.side, 2), rng.uniform(*config.speed)
    radius, phase = rng.uniform(*config.radius), rng.uniform(0, 2 * np.pi)
    turn = 2 * np.pi / rng.uniform(*config.period)
    growth, offset, frame = rng.uniform(*config.growth), rng.uniform(), rng.integers(config.num_frames)

    progress = (1 - growth) * offset + growth * time / max(config.num_frames - 1, 1)
    size = config.size[0] * (config.size[1] / config.size[0]) ** progress
    angle = phase + turn * time
    path = {
        "left": np.stack([-speed * time, 0 * time], axis=1),
        "up": np.stack([0 * time, -speed * time], axis=1),
        "growing": np.zeros((config.num_frames, 2)),
        # With y pointing down, an increasing angle turns clockwise as the viewer sees it.
        "clockwise": radius * np.stack([np.cos(angle), np.sin(angle)], axis=1),
    }
    forward = MOTIONS[motion - motion % 2]
    centre = (start + path[forward]) % config.side
    if forward != "growing":
        size = np.full(config.num_frames, size[frame])
    return Trajectory(centre[::-1], size[::-1]) if motion % 2 else Trajectory(centre, size)


def clip_labels(split: str, index: int) -> tuple[int, int]:
    """Returns the number of the image of `load_digits` that clip `index` shows, and its motion.

    Each block of eight clips has the eight motions, and each pass through the split's digits shows every digit once.
    Indices may exceed the size of the split.
    """
    digits, code = DIGITS[split], list(DIGITS).index(split)
    epoch, position = divmod(index, len(digits))
    block, turn = divmod(index, len(MOTIONS))
    motion = np.random.default_rng([code, 1, block]).permutation(len(MOTIONS))[turn]
    return digits[_digit_order(split, epoch)[position]], int(motion)


def render_clip(config: ClipConfig, split: str, index: int) -> tuple[UInt8[np.ndarray, "t h w 3"], int, int]:
    """Draws clip `index` of a split.

    Returns:
        RGB frames, 0 to 255; the appearance; the motion.
    """
    rng = np.random.default_rng([list(DIGITS).index(split), 2, index])
    background, ink = _draw_digit(config, split, index, rng)
    frames = _paint(background, ink, _draw_bright_colour(rng))
    if config.occluder:
        bar = _offset(rng.uniform(0, config.side), config.side)
        bar = (np.abs(bar) < config.occluder / 2).astype(np.float32)
        bar = bar[None, :, None] if rng.integers(2) else bar[None, None, :]
        frames = _paint(frames, bar, rng.uniform(40, 120, 3).astype(np.float32))
    if config.noise:
        noise = rng.standard_normal((config.num_frames, config.side, config.side, 1), np.float32)
        frames = frames + config.noise * noise
    digit, motion = clip_labels(split, index)
    return np.clip(frames + 0.5, 0, 255).astype(np.uint8), int(_digits()[1][digit]), motion


def digit_coverage(config: ClipConfig, split: str, index: int) -> Float[np.ndarray, "t h w"]:
    """Returns how much of every pixel of clip `index` the digit covers, 0 to 1: the ground truth of explanations."""
    rng = np.random.default_rng([list(DIGITS).index(split), 2, index])
    return _draw_digit(config, split, index, rng)[1]


def encode_clip(config: ClipConfig, split: str, index: int) -> dict[str, bytes | int]:
    """Returns a record of the dataset: the video as an mp4 of keyframes alone, its labels and its index."""
    frames, appearance, motion = render_clip(config, split, index)
    video = encode_video(frames, options=ALL_INTRA)
    return {"video": video, "appearance": appearance, "motion": motion, "index": index}


def _draw_digit(
    config: ClipConfig, split: str, index: int, rng: np.random.Generator
) -> tuple[Float[np.ndarray, "_ h w 3"], Float[np.ndarray, "t h w"]]:
    """Returns (what is behind the digit, the digit's coverage)."""
    images, _ = _digits()
    digit, motion = clip_labels(split, index)
    frames = _draw_texture(config.texture, config.side, rng)[None]
    if config.distractor:
        other = rng.choice(DIGITS[split])
        trajectory = sample_trajectory(config, int(rng.integers(len(MOTIONS))), rng)
        ink = _draw_ink(images[other], trajectory, config.side)
        frames = _paint(frames, ink, config.distractor * _draw_bright_colour(rng))
    return frames, _draw_ink(images[digit], sample_trajectory(config, motion, rng), config.side)


@cache
def _digits() -> tuple[np.ndarray, np.ndarray]:
    """Returns the images `[1797, 8, 8]`, scaled to 0 to 1, and the digits that they show."""
    from sklearn.datasets import load_digits  # slow to import, and other datasets do without

    digits = load_digits()
    return (digits.images / 16).astype(np.float32), digits.target


@cache
def _digit_order(split: str, epoch: int) -> np.ndarray:
    return np.random.default_rng([list(DIGITS).index(split), 0, epoch]).permutation(len(DIGITS[split]))


def _offset(centre: np.ndarray | float, side: int) -> np.ndarray:
    """Returns the signed distance of every pixel from a centre, the short way round the torus, `[..., side]`."""
    return (np.arange(side) - np.asarray(centre)[..., None] + side / 2) % side - side / 2


def _draw_ink(image: np.ndarray, trajectory: Trajectory, side: int) -> np.ndarray:
    """Draws an 8x8 image along a path, bilinearly; returns the coverage `[frames, side, side]`, 0 to 1."""
    cells = len(image)
    position = _offset(trajectory.centre, side) * (cells / trajectory.size[:, None, None]) + (cells - 1) / 2
    # Bilinear sampling is separable: one matrix of hat functions for the columns, one for the rows.
    hats = np.maximum(0, 1 - np.abs(position[..., None] - np.arange(cells))).astype(np.float32)
    return hats[:, 1] @ image @ hats[:, 0].swapaxes(1, 2)


def _draw_texture(brightness: float, side: int, rng: np.random.Generator, cells: int = 6) -> np.ndarray:
    """Returns smooth random colours on the torus, `[side, side, 3]`."""
    grid = rng.uniform(0, 1, (cells, cells, 1)) * rng.uniform(0.6, 1, 3)
    position = (np.arange(side)[:, None] * cells / side - np.arange(cells) + cells / 2) % cells - cells / 2
    smooth = np.cos(np.pi / 2 * np.clip(position, -1, 1)) ** 2
    return np.moveaxis(brightness * (smooth @ np.moveaxis(grid, 2, 0) @ smooth.T), 0, 2).astype(np.float32)


def _draw_bright_colour(rng: np.random.Generator) -> np.ndarray:
    return rng.uniform(205, 255, 3).astype(np.float32)


def _paint(frames: np.ndarray, coverage: np.ndarray, colour: np.ndarray) -> np.ndarray:
    return frames + coverage[..., None] * (colour - frames)
