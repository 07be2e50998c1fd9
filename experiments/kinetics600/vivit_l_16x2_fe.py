"""ViViT-L/16x2, factorised encoder with 24 temporal layers, on Kinetics-600.

    vitx train experiments/kinetics600/vivit_l_16x2_fe.py --workdir runs/k600_vivit_l_16x2_fe
    experiments/launch/tpu_vm.sh run experiments/kinetics600/vivit_l_16x2_fe.py --workdir gs://BUCKET/RUN

Expected: top-1 81.6 %, 4x3 views (google-research/scenic, projects/vivit/README.md). Not run here.

Data: docs/recipes.md has the commands. The authors had 363,213 training videos.
Follows: scenic's configuration, whose learning rate is 0.05; table 7 of the paper has 0.1. The paper's table 6 prints
82.9 % without its views. Everything else is as in ../kinetics400/vivit_l_16x2_fe.py.
Hardware: not stated.
"""

from vitx import load_experiment

experiment = load_experiment("../kinetics400/vivit_l_16x2_fe.py").override(
    {
        "model.num_classes": 600,
        "data.dataset.path": "data/kinetics600",
        "optimizer.peak_lr": 0.05,
        "training.steps": 30 * (363_213 // 64),
        "training.evaluate_every": 5 * (363_213 // 64),
    }
)
