"""The average-pool baseline on tubelets of two frames: the embedding has looked at time, so it does see motion."""

from vitx import load_experiment

experiment = load_experiment("average_pool_frames.py").override({"model.tubelet_size": (2, 8, 8)})
