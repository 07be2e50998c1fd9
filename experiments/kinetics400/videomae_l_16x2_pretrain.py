"""VideoMAE-L: masked pre-training on Kinetics-400, without labels.

    vitx train experiments/kinetics400/videomae_l_16x2_pretrain.py --workdir runs/videomae_l_16x2_pretrain
    experiments/launch/tpu_vm.sh run experiments/kinetics400/videomae_l_16x2_pretrain.py --workdir gs://BUCKET/RUN

Expected: the start of videomae_l_16x2.py, top-1 85.2 % (arXiv:2203.12602, table 7). Not run here.

Follows: the authors' script: a decoder of 12 blocks, batches of 512. Everything else is as in
videomae_b_16x2_pretrain.py.
Hardware: not stated.
"""

from vitx import load_experiment
from vitx.models import create_model

CLIPS = 512  # of a batch

experiment = load_experiment("videomae_b_16x2_pretrain.py").override(
    {
        "model": create_model("videomae_l_16x2_pretrain", mask_ratio=0.9, encoder_norm=True),
        "data.batch_size": CLIPS,
        "optimizer.peak_lr": 1.5e-4 * CLIPS / 256,
        "training.steps": 1600 * 240_000 // CLIPS,
        "training.evaluate_every": 20 * 240_000 // CLIPS,
    }
)
