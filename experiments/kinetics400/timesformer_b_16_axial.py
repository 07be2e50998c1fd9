"""TimeSformer, attention along time, width and height, on Kinetics-400.

    vitx train experiments/kinetics400/timesformer_b_16_axial.py --workdir runs/timesformer_b_16_axial
    experiments/launch/tpu_vm.sh run experiments/kinetics400/timesformer_b_16_axial.py --workdir gs://BUCKET/RUN

Expected: top-1 73.5 %, 1x3 views (arXiv:2102.05095, table 1). Not run here.

Follows: the recipe of timesformer_b_16_divided.py. The repository lacks this model; its blocks follow section 3 of the
paper.
Hardware: not stated for this model.
"""

from vitx import load_experiment
from vitx.models import create_model

experiment = load_experiment("timesformer_b_16_divided.py").override(
    {
        "model": create_model("timesformer_b_16_axial", num_classes=400, drop_path_rate=0.1),
    }
)
