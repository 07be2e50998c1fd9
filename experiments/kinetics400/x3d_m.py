"""X3D-M: 16 frames of 224 pixels, on Kinetics-400, from scratch. The base of the other sizes.

    vitx train experiments/kinetics400/x3d_m.py --workdir runs/x3d_m
    experiments/launch/tpu_vm.sh run experiments/kinetics400/x3d_m.py --workdir gs://BUCKET/x3d_m

Expected: top-1 75.9 %, 10x3 views (facebookresearch/pytorchvideo, docs/source/model_zoo.md). Not run here.

Follows: configs/Kinetics/pytorchvideo/X3D_M.yaml of facebookresearch/SlowFast, on one machine; on several its learning
rate and batch grow with their number. The paper (arXiv:2004.04730) has 76.0 %. Everything else is as in
slowfast_r50_8x8.py.
Hardware: not stated.
"""

from vitx import load_experiment
from vitx.models import create_model

experiment = load_experiment("slowfast_r50_8x8.py").override(
    {
        "model": create_model("x3d_m", num_classes=400, norm_groups=8),
        "data.num_frames": 16,
        "data.frame_rate": 30 / 5,
        "data.batch_size": 128,
        "optimizer.schedule.warmup": 35 / 300,
        "optimizer.weight_decay": 5e-5,
        "training.steps": 300 * 240_000 // 128,
    }
)
