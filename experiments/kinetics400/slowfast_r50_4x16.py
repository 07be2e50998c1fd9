"""SlowFast 4x16 of 50 layers on Kinetics-400, from scratch.

    vitx train experiments/kinetics400/slowfast_r50_4x16.py --workdir runs/slowfast_r50_4x16
    experiments/launch/tpu_vm.sh run experiments/kinetics400/slowfast_r50_4x16.py --workdir gs://BUCKET/RUN

Expected: top-1 75.3 %, 10x3 views (facebookresearch/pytorchvideo, docs/source/model_zoo.md). Not run here.

Follows: configs/Kinetics/pytorchvideo/SLOWFAST_4x16_R50.yaml of facebookresearch/SlowFast; everything else is as in
slowfast_r50_8x8.py.
Hardware: not stated for this network.
"""

from vitx import load_experiment
from vitx.models import create_model

experiment = load_experiment("slowfast_r50_8x8.py").override(
    {
        "model": create_model("slowfast_r50_4x16", num_classes=400, norm_groups=8),
    }
)
