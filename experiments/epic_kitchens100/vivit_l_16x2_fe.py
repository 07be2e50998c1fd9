"""ViViT-L/16x2, factorised encoder with four temporal layers, on EPIC-KITCHENS-100: a verb and a noun.

    vitx train experiments/epic_kitchens100/vivit_l_16x2_fe.py --workdir runs/epic_vivit_l_16x2_fe
    experiments/launch/tpu_vm.sh run experiments/epic_kitchens100/vivit_l_16x2_fe.py --workdir gs://BUCKET/RUN

Expected: action top-1 44.0 %, 4x1 views (arXiv:2103.15691v2, table 6d). Not run here.

Start: the large model of Kinetics-400, with four temporal layers as here: train ../kinetics400/vivit_l_16x2_fe.py with
`--model.num_temporal_layers 4 --workdir runs/vivit_l_16x2_fe_4`.
Follows: the paper, verbs 66.4 % and nouns 56.8 %; scenic's released weights reach 43.6 % of actions. Its configuration
evaluates 4x3 views, its table and the paper 4x1. Everything else is as in vivit_b_16x2_fe.py.
Hardware: not stated.
"""

from vitx import load_experiment
from vitx.models import create_model

experiment = load_experiment("vivit_b_16x2_fe.py").override(
    {
        "model": create_model("vivit_l_16x2_fe", num_classes=(("verb", 97), ("noun", 300)), drop_path_rate=0.2),
        "training.initialise_from": "runs/vivit_l_16x2_fe_4",
    }
)
