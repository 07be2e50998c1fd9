"""Videos that benchmarks decode: drawn and encoded here, so that nothing has to be downloaded."""

import numpy as np
from scipy.ndimage import gaussian_filter

from vitx.data.encoding import encode_video

RATE, LENGTH = 30, 300


def encode_scene(seed: int) -> bytes:
    """Returns ten seconds of a textured scene under a panning camera, with two moving boxes and a little grain."""
    rng = np.random.default_rng(seed)
    scene = gaussian_filter(rng.normal(0, 1, (500, 700, 1)), (6, 6, 0)) * 500
    scene = scene + gaussian_filter(rng.normal(0, 1, (500, 700, 3)), (25, 25, 0)) * 1200 + 120
    speed, frames = rng.uniform(0.2, 1.1, 2), np.empty((LENGTH, 256, 340, 3), np.uint8)
    for t in range(LENGTH):
        top, left = int(60 + 60 * np.sin(t * speed[0] / 20)), int(t * speed[1])
        frame = scene[top : top + 256, left : left + 340] + rng.normal(0, 2.5, (256, 340, 1))
        for box in (1, 2):
            y, x = int(100 + 70 * np.sin(t * box / 31)), int(150 + 120 * np.cos(t * box / 23))
            frame[y : y + 50, x : x + 40] = scene[box * 90 : box * 90 + 50, box * 70 : box * 70 + 40] + 60
        frames[t] = frame.clip(0, 255)
    return encode_video(frames, fps=RATE)
