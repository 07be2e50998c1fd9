"""Average-pool baseline on tubelets of two frames: the embedding spans time, so the model does see motion.

    vitx train experiments/moving_digits/average_pool_tubelets.py --workdir runs/average_pool_tubelets

The recipe of average_pool_frames.py. Two cores of an AMD EPYC, JAX 0.10.2, 2026-11-23, seed 0, 8 minutes. Test split,
1,000 clips, 1x1 views: motion top-1 87.4 %, appearance top-1 50.9 % (validation 87.4 % and 54.8 %).

Two frames show where a digit moves and whether it grows: these six classes are all recognised. The direction of a
circle takes two velocities, so two tubelets in their order. The average ignores order, and the model guesses.
"""

from vitx import load_experiment

experiment = load_experiment("average_pool_frames.py").override({"model.tubelet_size": (2, 8, 8)})
