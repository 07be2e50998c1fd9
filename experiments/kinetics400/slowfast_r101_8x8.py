"""SlowFast 8x8 of 101 layers on Kinetics-400, from scratch.

    vitx train experiments/kinetics400/slowfast_r101_8x8.py --workdir runs/slowfast_r101_8x8
    experiments/launch/tpu_vm.sh run experiments/kinetics400/slowfast_r101_8x8.py --workdir gs://BUCKET/RUN

Expected: top-1 77.9 %, 10x3 views (facebookresearch/pytorchvideo, docs/source/model_zoo.md). Not run here.

Follows: configs/Kinetics/pytorchvideo/SLOWFAST_8x8_R101.yaml of facebookresearch/SlowFast; everything else is as in
slowfast_r50_8x8.py.
Hardware: not stated for this network.
"""

from vitx import load_experiment
from vitx.models import create_model

experiment = load_experiment("slowfast_r50_8x8.py").override(
    {
        "model": create_model("slowfast_r101_8x8", num_classes=400, norm_groups=8),
    }
)
