"""ViViT-L/16x2, factorised encoder with 24 temporal layers, on Kinetics-400.

    vitx train experiments/kinetics400/vivit_l_16x2_fe.py --workdir runs/vivit_l_16x2_fe
    experiments/launch/tpu_vm.sh run experiments/kinetics400/vivit_l_16x2_fe.py --workdir gs://BUCKET/vivit_l_16x2_fe

Expected: top-1 80.3 %, 4x3 views (google-research/scenic, projects/vivit/README.md). Not run here.

Start: ViT-L/16 of ImageNet-21k, https://storage.googleapis.com/vit_models/imagenet21k/ViT-L_16.npz.
Follows: scenic's configuration, which has 24 temporal layers and a learning rate of 0.1. The paper has four layers, but
the 995 GFLOPs that it prints for this model are those of 24. Its table 6 has 128 frames in one view: 80.6 % with 1x1
views, 81.7 % with 1x3. Everything else is as in vivit_b_16x2.py.
Hardware: not stated.
"""

from vitx import load_experiment
from vitx.models import create_model

experiment = load_experiment("vivit_b_16x2.py").override(
    {
        "model": create_model("vivit_l_16x2_fe", num_classes=400, num_temporal_layers=24),
        "data.eval_crops": 3,
        "training.initialise_from": "weights/ViT-L_16.npz",
    }
)
