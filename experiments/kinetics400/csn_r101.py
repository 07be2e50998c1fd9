"""CSN of 101 layers, interaction-reduced, on Kinetics-400, from scratch.

    vitx train experiments/kinetics400/csn_r101.py --workdir runs/csn_r101
    experiments/launch/tpu_vm.sh run experiments/kinetics400/csn_r101.py --workdir gs://BUCKET/csn_r101

Expected: top-1 77.0 %, 10x3 views (facebookresearch/pytorchvideo, docs/source/model_zoo.md). Not run here.

Follows: configs/Kinetics/pytorchvideo/CSN_32x2_R101.yaml of facebookresearch/SlowFast, dropout of 0.5 included;
everything else is as in slowfast_r50_8x8.py. The paper (arXiv:1904.02811) trains its networks of 152 layers in another
way.
Hardware: not stated for this network.
"""

from vitx import load_experiment
from vitx.models import create_model

experiment = load_experiment("slowfast_r50_8x8.py").override(
    {
        "model": create_model("csn_r101", num_classes=400, dropout_rate=0.5, norm_groups=8),
    }
)
