"""R3D-18, kernels of 3x3x3 throughout, on Kinetics-400, as torchvision trains it.

    vitx train experiments/kinetics400/r3d_18.py --workdir runs/r3d_18
    experiments/launch/tpu_vm.sh run experiments/kinetics400/r3d_18.py --workdir gs://BUCKET/r3d_18

Expected: top-1 63.2 %, 5x1 views (pytorch/vision, R3D_18_Weights.KINETICS400_V1). Not run here.

Follows: the recipe of r2plus1d_18.py.
Hardware: 64 V100 for 24 hours (references/video_classification/README.md).
"""

from vitx import load_experiment
from vitx.models import create_model

experiment = load_experiment("r2plus1d_18.py").override(
    {
        "model": create_model("r3d_18", num_classes=400, norm_groups=64),
    }
)
