"""Number of temporal layers: how deep must the second encoder of ViViT's model 2 be?

    vitx ablate experiments/ablations/temporal_layers.py --workdir runs/temporal_layers

Zero, one, two and four temporal layers over single frames and over tubelets of four frames; zero is the average-pool
baseline. The base is that of factorisation.py. Eight rows, three seeds.

Compare with ViViT (Arnab et al. 2021, table 3), top-1 on Kinetics-400: 75.8 % without temporal layers, 78.6 % with one,
78.8 % with four and with eight, 78.9 % with twelve.

Result: not measured yet.
"""

from vitx import Ablation, Row
from vitx.ablations.description import load_ablation

factorisation = load_ablation("factorisation.py")
models = {row.name: row.changes["model"] for row in factorisation.rows}
base = factorisation.base.override({"model": models["ViViT 2, factorised encoder, frames"]})
ablation = Ablation(
    base,
    tuple(
        Row(f"{layers} layers, {kind}", {"model.num_temporal_layers": layers, "model.tubelet_size": (frames, 8, 8)})
        for kind, frames in (("frames", 1), ("tubelets", 4))
        for layers in (0, 1, 2, 4)
    ),
    columns=factorisation.columns,
    reference="2 layers, frames",
)
