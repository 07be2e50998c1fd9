"""X3D-S: 13 frames of 160 pixels, on Kinetics-400, from scratch.

    vitx train experiments/kinetics400/x3d_s.py --workdir runs/x3d_s
    experiments/launch/tpu_vm.sh run experiments/kinetics400/x3d_s.py --workdir gs://BUCKET/x3d_s

Expected: top-1 73.3 %, 10x3 views (facebookresearch/pytorchvideo, docs/source/model_zoo.md). Not run here.

Follows: configs/Kinetics/pytorchvideo/X3D_S.yaml of facebookresearch/SlowFast; everything else is as in x3d_m.py.
Hardware: not stated.
"""

from vitx import load_experiment
from vitx.models import create_model

experiment = load_experiment("x3d_m.py").override(
    {
        "model": create_model("x3d_s", num_classes=400, norm_groups=8),
        "data.num_frames": 13,
        "data.frame_rate": 30 / 6,
        "data.image_size": (160, 160),
        "data.augmentation.short_side": (182, 228),
        "data.eval_size": (182, 182),
    }
)
