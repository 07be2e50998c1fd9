"""TimeSformer, joint space-time attention, on Kinetics-400.

    vitx train experiments/kinetics400/timesformer_b_16_joint.py --workdir runs/timesformer_b_16_joint
    experiments/launch/tpu_vm.sh run experiments/kinetics400/timesformer_b_16_joint.py --workdir gs://BUCKET/RUN

Expected: top-1 77.4 %, 1x3 views (arXiv:2102.05095, table 1). Not run here.

Follows: the recipe of timesformer_b_16_divided.py. The repository has a configuration of this model; mmaction2 repeats
it with 76.95 %.
Hardware: not stated for this model.
"""

from vitx import load_experiment
from vitx.models import create_model

experiment = load_experiment("timesformer_b_16_divided.py").override(
    {
        "model": create_model("timesformer_b_16_joint", num_classes=400, drop_path_rate=0.1),
    }
)
