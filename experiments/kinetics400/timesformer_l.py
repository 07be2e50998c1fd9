"""TimeSformer-L: 96 frames, divided attention, on Kinetics-400.

    vitx train experiments/kinetics400/timesformer_l.py --workdir runs/timesformer_l
    experiments/launch/tpu_vm.sh run experiments/kinetics400/timesformer_l.py --workdir gs://BUCKET/timesformer_l

Expected: top-1 80.7 %, 1x3 views (arXiv:2102.05095, table 5). Not run here.

Follows: the repository's configuration, 96 frames, every 4th at 30 a second; its released weights reach 80.6 %.
Everything else is as in timesformer_b_16_divided.py. `--model.remat_policy nothing_saveable` saves memory.
Hardware: not stated; inference on the validation split takes 2.6 hours of eight V100 (section 4.5).
"""

from vitx import load_experiment
from vitx.models import create_model

experiment = load_experiment("timesformer_b_16_divided.py").override(
    {
        "model": create_model("timesformer_l", num_classes=400, drop_path_rate=0.1),
        "data.num_frames": 96,
        "data.frame_rate": 30 / 4,
    }
)
