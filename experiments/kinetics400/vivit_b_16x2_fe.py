"""ViViT-B/16x2, model 2: factorised encoder with four temporal layers, on Kinetics-400.

    vitx train experiments/kinetics400/vivit_b_16x2_fe.py --workdir runs/vivit_b_16x2_fe
    experiments/launch/tpu_vm.sh run experiments/kinetics400/vivit_b_16x2_fe.py --workdir gs://BUCKET/vivit_b_16x2_fe

Expected: top-1 78.8 %, 4x1 views (arXiv:2103.15691v2, table 2). Not run here.

Follows: scenic's configuration, whose learning rate is 0.05; table 7 of the paper has 0.1 for all models. The released
weights reach 78.4 % with 4x3 views. Everything else is as in vivit_b_16x2.py.
Hardware: no training time is stated; a view takes 17.4 ms on a TPU v3.
"""

from vitx import load_experiment
from vitx.models import create_model

experiment = load_experiment("vivit_b_16x2.py").override(
    {"model": create_model("vivit_b_16x2_fe", num_classes=400), "optimizer.peak_lr": 0.05}
)
