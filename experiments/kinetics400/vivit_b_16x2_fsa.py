"""ViViT-B/16x2, model 3: factorised self-attention, in time and then in space, on Kinetics-400.

    vitx train experiments/kinetics400/vivit_b_16x2_fsa.py --workdir runs/vivit_b_16x2_fsa
    experiments/launch/tpu_vm.sh run experiments/kinetics400/vivit_b_16x2_fsa.py --workdir gs://BUCKET/vivit_b_16x2_fsa

Expected: top-1 77.4 %, 4x1 views (arXiv:2103.15691v2, table 2). Not run here.

Follows: table 7 of the paper; scenic has no configuration of this model. Attention in time starts as a copy of the
image model's. Everything else is as in vivit_b_16x2.py.
Hardware: no training time is stated; a view takes 31.7 ms on a TPU v3.
"""

from vitx import load_experiment
from vitx.models import create_model

experiment = load_experiment("vivit_b_16x2.py").override({"model": create_model("vivit_b_16x2_fsa", num_classes=400)})
