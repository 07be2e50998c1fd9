"""Average-pool baseline on single frames: it recognises digits and cannot see motion.

    vitx train experiments/moving_digits/average_pool_frames.py --workdir runs/average_pool_frames

The recipe of two_labels.py with twice the steps, which favours this baseline. Two cores of an AMD EPYC, JAX 0.10.2,
2026-11-22, seed 0, 11 minutes. Test split, 1,000 clips, 1x1 views: motion top-1 12.6 % (chance is 12.5 %), appearance
top-1 83.1 % (validation 92.7 %). For comparison, a support vector machine on the clean 8x8 images of the same split
reaches 93.7 % (validation 98.8 %).
"""

from vitx import load_experiment

experiment = load_experiment("two_labels.py").override(
    {
        "model.num_temporal_layers": 0,
        "model.tubelet_size": (1, 8, 8),
        "training.steps": 2000,
        "training.evaluate_every": 1000,
    }
)
