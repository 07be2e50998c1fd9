"""TimeSformer-HR: 16 frames of 448 pixels, divided attention, on Kinetics-400.

    vitx train experiments/kinetics400/timesformer_hr.py --workdir runs/timesformer_hr
    experiments/launch/tpu_vm.sh run experiments/kinetics400/timesformer_hr.py --workdir gs://BUCKET/timesformer_hr

Expected: top-1 79.7 %, 1x3 views (arXiv:2102.05095, table 5). Not run here.

Data: frames are scaled to 448 to 512 pixels, so prepare the videos with `--short_side 512` into a folder of their own.
Follows: the repository's configuration, 16 frames, every 16th at 30 a second; its released weights reach 79.6 %.
Everything else is as in timesformer_b_16_divided.py. `--model.remat_policy nothing_saveable` saves memory.
Hardware: not stated; inference on the validation split takes 1.06 hours of eight V100 (section 4.5).
"""

from vitx import load_experiment
from vitx.models import create_model

experiment = load_experiment("timesformer_b_16_divided.py").override(
    {
        "model": create_model("timesformer_hr", num_classes=400, drop_path_rate=0.1),
        "data.dataset.path": "data/kinetics400_512",
        "data.num_frames": 16,
        "data.image_size": (448, 448),
        "data.frame_rate": 30 / 16,
        "data.augmentation.short_side": (448, 512),
    }
)
