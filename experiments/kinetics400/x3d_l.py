"""X3D-L: 16 frames of 312 pixels, on Kinetics-400, from scratch.

    vitx train experiments/kinetics400/x3d_l.py --workdir runs/x3d_l
    experiments/launch/tpu_vm.sh run experiments/kinetics400/x3d_l.py --workdir gs://BUCKET/x3d_l

Expected: top-1 77.4 %, 10x3 views (facebookresearch/pytorchvideo, docs/source/model_zoo.md). Not run here.

Follows: configs/Kinetics/pytorchvideo/X3D_L.yaml of facebookresearch/SlowFast; everything else is as in x3d_m.py.
Prepare the videos with `--short_side 446` into a folder of their own.
Hardware: not stated.
"""

from vitx import load_experiment
from vitx.models import create_model

experiment = load_experiment("x3d_m.py").override(
    {
        "model": create_model("x3d_l", num_classes=400, norm_groups=8),
        "data.dataset.path": "data/kinetics400_446",
        "data.image_size": (312, 312),
        "data.augmentation.short_side": (356, 446),
        "data.eval_size": (356, 356),
        "data.batch_size": 64,
        "optimizer.peak_lr": 0.05,
        "optimizer.schedule.warmup": 35 / 256,
        "training.steps": 256 * 240_000 // 64,
    }
)
