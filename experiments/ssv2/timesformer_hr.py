"""TimeSformer-HR: 16 frames of 448 pixels, divided attention, on Something-Something V2.

    vitx train experiments/ssv2/timesformer_hr.py --workdir runs/ssv2_timesformer_hr
    experiments/launch/tpu_vm.sh run experiments/ssv2/timesformer_hr.py --workdir gs://BUCKET/ssv2_timesformer_hr

Expected: top-1 62.5 %, 1x3 views (arXiv:2102.05095, table 3). Not run here.

Follows: the repository's configuration; its released weights reach 61.8 %. Start: ImageNet-21k; 62.2 % with
ImageNet-1k. Everything else is as in timesformer_b_16_divided.py.
Data: videos have 240 rows of pixels, and are enlarged.
Hardware: not stated.
"""

from vitx import load_experiment
from vitx.models import create_model

experiment = load_experiment("timesformer_b_16_divided.py").override(
    {
        "model": create_model("timesformer_hr", num_classes=174, drop_path_rate=0.1),
        "data.num_frames": 16,
        "data.image_size": (448, 448),
        "data.augmentation.short_side": (448, 512),
    }
)
