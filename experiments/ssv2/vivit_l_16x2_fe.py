"""ViViT-L/16x2, factorised encoder with four temporal layers, on Something-Something V2.

    vitx train experiments/ssv2/vivit_l_16x2_fe.py --workdir runs/ssv2_vivit_l_16x2_fe
    experiments/launch/tpu_vm.sh run experiments/ssv2/vivit_l_16x2_fe.py --workdir gs://BUCKET/ssv2_vivit_l_16x2_fe

Expected: top-1 65.9 %, 4x3 views (arXiv:2103.15691v2, table 6e). Not run here.

Start: the large model of Kinetics-400 with four temporal layers, as in ../epic_kitchens100/vivit_l_16x2_fe.py.
Follows: scenic's configuration, whose learning rate is 0.4; table 7 of the paper has 0.5. Everything else is as in
vivit_b_16x2_fe.py.
Hardware: not stated.
"""

from vitx import load_experiment
from vitx.models import create_model

experiment = load_experiment("vivit_b_16x2_fe.py").override(
    {
        "model": create_model("vivit_l_16x2_fe", num_classes=174, image_size=256, drop_path_rate=0.3),
        "optimizer.peak_lr": 0.4,
        "training.initialise_from": "runs/vivit_l_16x2_fe_4",
    }
)
