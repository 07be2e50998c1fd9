"""VideoMAE-L, fine-tuned on Kinetics-400.

    vitx train experiments/kinetics400/videomae_l_16x2.py --workdir runs/videomae_l_16x2
    experiments/launch/tpu_vm.sh run experiments/kinetics400/videomae_l_16x2.py --workdir gs://BUCKET/RUN

Expected: top-1 85.2 %, 5x3 views (arXiv:2203.12602, table 7). Not run here.

Start: the run of videomae_l_16x2_pretrain.py.
Follows: the paper: 50 epochs, batches of 512 videos, a rate of 1e-3 for 256 of them, stochastic depth of 0.2, layer
decay of 0.75. The authors' script has 35 epochs, batches of 128 and a rate of 2e-3. Everything else is as in
videomae_b_16x2.py.
Differs: no dropout before the head, where the paper has 0.5.
Hardware: not stated.
"""

from vitx import load_experiment
from vitx.models import create_model

VIDEOS = 512  # of a batch

experiment = load_experiment("videomae_b_16x2.py").override(
    {
        "model": create_model("videomae_l_16x2", num_classes=400, drop_path_rate=0.2),
        "data.batch_size": 2 * VIDEOS,
        "optimizer.peak_lr": 1e-3 * VIDEOS / 256,
        "optimizer.schedule.warmup": 5 / 50,
        "optimizer.schedule.end_factor": 1e-6 / 1e-3,
        "training.steps": 50 * 240_000 // VIDEOS,
        "training.initialise_from": "runs/videomae_l_16x2_pretrain",
    }
)
