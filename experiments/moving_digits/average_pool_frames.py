"""The average-pool baseline on single frames: it recognises digits and is blind to motion."""

from vitx import load_experiment

experiment = load_experiment("../quickstart.py").override(
    {"model.num_temporal_layers": 0, "model.tubelet_size": (1, 8, 8)}
)
