"""One model for every budget: each step trains on another number of tokens, of frames, or of pixels.

    vitx train experiments/moving_digits/any_budget.py --workdir runs/any_budget
    vitx evaluate runs/any_budget --budgets 12,27,54,108,216
    vitx evaluate runs/any_budget --budgets 12,27,54,108 --data.num_frames 6 --data.frame_stride 2
    vitx evaluate runs/any_budget --budgets 12,24,48,96 --data.image_size "(32, 32)"

ViViT model 1 on tubelets of 2x8x8: 216 tokens of 12 frames of 48x48, 108 of 6 frames, 96 of 32x32 pixels.
"""

from vitx.experiment import load_experiment
from vitx.models.budgets import Budget
from vitx.models.vivit import ViViT

experiment = load_experiment("two_labels.py").override(
    {
        "model": ViViT(
            num_classes=8,
            num_frames=12,
            image_size=48,
            tubelet_size=(2, 8, 8),
            hidden_size=96,
            num_layers=4,
            num_heads=3,
            mlp_dim=192,
            pooling="mean",
        ),
        "task.label": "motion",
        "training.budgets": (
            Budget(),
            Budget(num_tokens=108),
            Budget(num_tokens=54),
            Budget(num_tokens=27),
            Budget(num_tokens=54, num_frames=6),
            Budget(num_tokens=48, image_size=32),
        ),
    }
)
"""Settings of the run."""
