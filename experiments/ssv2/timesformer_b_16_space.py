"""TimeSformer, attention in space alone, on Something-Something V2.

    vitx train experiments/ssv2/timesformer_b_16_space.py --workdir runs/ssv2_timesformer_b_16_space
    experiments/launch/tpu_vm.sh run experiments/ssv2/timesformer_b_16_space.py --workdir gs://BUCKET/RUN

Expected: top-1 36.6 %, 1x3 views (arXiv:2102.05095, table 1). Not run here.

Follows: the recipe of timesformer_b_16_divided.py; the repository has no configuration of this model on this dataset.
Hardware: not stated.
"""

from vitx import load_experiment
from vitx.models import create_model

experiment = load_experiment("timesformer_b_16_divided.py").override(
    {
        "model": create_model("timesformer_b_16_space", num_classes=174, drop_path_rate=0.1),
    }
)
