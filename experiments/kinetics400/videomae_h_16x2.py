"""VideoMAE-H, fine-tuned on Kinetics-400.

    vitx train experiments/kinetics400/videomae_h_16x2.py --workdir runs/videomae_h_16x2
    experiments/launch/tpu_vm.sh run experiments/kinetics400/videomae_h_16x2.py --workdir gs://BUCKET/RUN

Expected: top-1 86.6 %, 5x3 views (arXiv:2203.12602, table 7). Not run here.

Start: the run of videomae_h_16x2_pretrain.py.
Follows: the paper: 50 epochs, stochastic depth of 0.2, layer decay of 0.75. Everything else is as in
videomae_b_16x2.py.
Differs: no dropout before the head, where the paper has 0.5.
Hardware: not stated.
"""

from vitx import load_experiment
from vitx.models import create_model

experiment = load_experiment("videomae_b_16x2.py").override(
    {
        "model": create_model("videomae_h_16x2", num_classes=400, drop_path_rate=0.2),
        "optimizer.layer_decay": 0.75,
        "optimizer.schedule.warmup": 5 / 50,
        "training.steps": 50 * 240_000 // 384,
        "training.initialise_from": "runs/videomae_h_16x2_pretrain",
    }
)
