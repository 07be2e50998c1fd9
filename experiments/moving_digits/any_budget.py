"""One model for every budget: each step trains on another number of tokens, of frames, or of pixels.

    vitx train experiments/moving_digits/any_budget.py --workdir runs/any_budget
    vitx evaluate runs/any_budget --budgets 6,12,27,54,108,216
    vitx evaluate runs/any_budget --budgets 6,12,27,54,108 --data.num_frames 6 --data.frame_stride 2
    vitx evaluate runs/any_budget --budgets 6,12,24,48,96 --data.image_size "(32, 32)"

ViViT model 1 on tubelets of 2x8x8: 216 tokens of 12 frames of 48x48, 108 of 6 frames, 96 of 32x32 pixels.

One core of an AMD EPYC beside other jobs, JAX 0.10.2, 2026-11-27, seed 0: compile 44 s, train 386 s. Motion top-1, test
split, 1,000 clips, 1x1 views; any_budget.png has the curves against GMACs, drawn from these numbers.

    tokens   12 frames, 48x48           6 frames, 48x48            tokens   12 frames, 32x32
       216   87.5 % at 0.107 GMACs                                     96   87.4 % at 0.039
       108   87.5 % at 0.049            87.5 % at 0.045 GMACs          48   87.4 % at 0.019
        54   87.5 % at 0.026            87.5 % at 0.022                24   87.5 % at 0.011
        27   87.5 % at 0.016            87.4 % at 0.013
        12   83.6 % at 0.012            85.2 % at 0.008                12   82.1 % at 0.007
         6   70.3 % at 0.010            76.0 % at 0.006                 6   63.6 % at 0.005

An eighth of the tokens is enough for what this model has learnt, all motions but the direction of circles. With fewer
tokens than that, half of the frames are better than all of them.
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
