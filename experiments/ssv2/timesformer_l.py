"""TimeSformer-L: 64 frames, divided attention, on Something-Something V2.

    vitx train experiments/ssv2/timesformer_l.py --workdir runs/ssv2_timesformer_l
    experiments/launch/tpu_vm.sh run experiments/ssv2/timesformer_l.py --workdir gs://BUCKET/ssv2_timesformer_l

Expected: top-1 62.3 %, 1x3 views (arXiv:2102.05095, table 3). Not run here.

Follows: the repository's configuration, which has 64 frames here and not 96; its released weights reach 62.0 %.
Everything else is as in timesformer_b_16_divided.py.
Hardware: not stated.
"""

from vitx import load_experiment
from vitx.models import create_model

experiment = load_experiment("timesformer_b_16_divided.py").override(
    {
        "model": create_model("timesformer_l", num_classes=174, num_frames=64, drop_path_rate=0.1),
        "data.num_frames": 64,
    }
)
