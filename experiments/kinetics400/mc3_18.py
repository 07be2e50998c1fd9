"""MC3-18, three-dimensional kernels in the first stage alone, on Kinetics-400, as torchvision trains it.

    vitx train experiments/kinetics400/mc3_18.py --workdir runs/mc3_18
    experiments/launch/tpu_vm.sh run experiments/kinetics400/mc3_18.py --workdir gs://BUCKET/mc3_18

Expected: top-1 64.0 %, 5x1 views (pytorch/vision, MC3_18_Weights.KINETICS400_V1). Not run here.

Follows: the recipe of r2plus1d_18.py.
Hardware: 64 V100 for 24 hours (references/video_classification/README.md).
"""

from vitx import load_experiment
from vitx.models import create_model

experiment = load_experiment("r2plus1d_18.py").override(
    {
        "model": create_model("mc3_18", num_classes=400, norm_groups=64),
    }
)
