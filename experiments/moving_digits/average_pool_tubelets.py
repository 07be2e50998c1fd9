"""The average-pool baseline on tubelets of two frames: the embedding has looked at time, so it should see motion.

    vitx train experiments/moving_digits/average_pool_tubelets.py --workdir runs/average_pool_tubelets

Not run to its end yet.
"""

from vitx import load_experiment

experiment = load_experiment("average_pool_frames.py").override({"model.tubelet_size": (2, 8, 8)})
