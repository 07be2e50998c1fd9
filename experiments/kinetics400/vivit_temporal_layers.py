"""ViViT on Kinetics-400: how many layers does the temporal encoder of model 2 need?

    vitx ablate experiments/kinetics400/vivit_temporal_layers.py --workdir runs/vivit_temporal_layers

Model 2 with 0 to 12 temporal layers, one seed; the recipe of vivit_b_16x2_fe.py.

Compare with arXiv:2103.15691v2, table 3, 4x1 views: 0 layers 75.8 %, 1 layer 78.6 %, 4 layers 78.8 %, 8 layers 78.8 %,
12 layers 78.9 %.

Result: not measured yet.
"""

from vitx import Ablation, load_experiment
from vitx.ablations.description import grid

ablation = Ablation(
    load_experiment("vivit_b_16x2_fe.py"),
    grid({"model.num_temporal_layers": (0, 1, 4, 8, 12)}),
    seeds=(0,),
    columns=("class/top1", "class/top5", "params", "gmacs", "clips_per_second", "peak_memory_mib"),
)
