"""cnn_small, a 2D network averaged over frames: it recognises digits and cannot see motion.

    vitx train experiments/moving_digits/cnn_frames.py --workdir runs/cnn_frames

The recipe of two_labels.py with a higher learning rate and frames of half the size. Two cores of an AMD EPYC, shared
with other jobs, JAX 0.10.2, 2026-11-24, seed 0, 2 min 45 s. Test split, 1,000 clips, 1x1 views: motion top-1 12.2 %
(chance is 12.5 %), appearance top-1 92.7 % (validation 96.5 %).
"""

from vitx import load_experiment
from vitx.models import create_model

experiment = load_experiment("two_labels.py").override(
    {
        "model": create_model("cnn_small", num_classes=(("appearance", 10), ("motion", 8))),
        "data.image_size": (24, 24),
        "optimizer.peak_lr": 3e-3,
        "training.steps": 1000,
    }
)
