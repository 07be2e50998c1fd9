"""Slow 8x8 of 50 layers, the slow pathway of SlowFast alone, on Kinetics-400, from scratch.

    vitx train experiments/kinetics400/slow_r50.py --workdir runs/slow_r50
    experiments/launch/tpu_vm.sh run experiments/kinetics400/slow_r50.py --workdir gs://BUCKET/slow_r50

Expected: top-1 74.6 %, 10x3 views (facebookresearch/pytorchvideo, docs/source/model_zoo.md). Not run here.

Follows: configs/Kinetics/pytorchvideo/SLOW_8x8_R50.yaml of facebookresearch/SlowFast; everything else is as in
slowfast_r50_8x8.py.
Hardware: not stated for this network.
"""

from vitx import load_experiment
from vitx.models import create_model

experiment = load_experiment("slowfast_r50_8x8.py").override(
    {
        "model": create_model("slow_r50", num_classes=400, norm_groups=8),
        "data.num_frames": 8,
        "data.frame_rate": 30 / 8,
    }
)
