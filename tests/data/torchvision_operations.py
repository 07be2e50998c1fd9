"""Operations on one frame by torchvision's own functions (extra `peers`); as a script, writes golden/operations.npz."""

import math
from pathlib import Path

import numpy as np

GOLDEN = Path(__file__).parent / "golden" / "operations.npz"
ARGUMENTS = {
    "brightness": (1.4,),
    "contrast": (0.6,),
    "saturation": (1.7,),
    "hue": (-0.15,),
    "grey": (),
    "sharpness": (1.8,),
    "autocontrast": (),
    "equalize": (),
    "invert": (),
    "posterize": (3,),
    "solarize": (110,),
    "rotate": (20.0,),
    "shear_x": (0.2,),
    "shear_y": (-0.15,),
    "translate_x": (0.25,),
    "translate_y": (-1 / 3,),
}


def frame() -> np.ndarray:
    """A frame of smooth colours, edges and noise."""
    rows, columns = np.mgrid[:18, :24]
    smooth = np.stack([9 * columns, 13 * rows, 120 + 60 * np.sin(rows / 3 + columns / 5)], -1)
    smooth[4:9, 6:15] = (230, 40, 90)
    return np.clip(smooth * 0.9 + 10 + np.random.default_rng(0).normal(0, 6, smooth.shape), 0, 255).astype(np.uint8)


def computed() -> dict[str, np.ndarray]:
    """Returns {operation: pixels}, with the arguments above."""
    from PIL import Image
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms import functional as tv

    image, bilinear = Image.fromarray(frame()), {"interpolation": InterpolationMode.BILINEAR, "fill": [128, 128, 128]}

    def affine(right=0, down=0, shear_x=0.0, shear_y=0.0):
        shear = [math.degrees(math.atan(slope)) for slope in (shear_x, shear_y)]
        return tv.affine(image, angle=0.0, scale=1.0, translate=[right, down], shear=shear, center=[0, 0], **bilinear)

    results = {
        "brightness": tv.adjust_brightness(image, 1.4),
        "contrast": tv.adjust_contrast(image, 0.6),
        "saturation": tv.adjust_saturation(image, 1.7),
        "hue": tv.adjust_hue(image, -0.15),
        "grey": tv.rgb_to_grayscale(image, 3),
        "sharpness": tv.adjust_sharpness(image, 1.8),
        "autocontrast": tv.autocontrast(image),
        "equalize": tv.equalize(image),
        "invert": tv.invert(image),
        "posterize": tv.posterize(image, 3),
        "solarize": tv.solarize(image, 110),
        "rotate": tv.rotate(image, 20.0, **bilinear),
        "shear_x": affine(shear_x=0.2),
        "shear_y": affine(shear_y=-0.15),
        "translate_x": affine(right=-6),
        "translate_y": affine(down=6),
    }
    return {name: np.asarray(pixels) for name, pixels in results.items()}


if __name__ == "__main__":
    np.savez_compressed(GOLDEN, frame=frame(), **computed())
