"""Number of temporal layers: how deep must the second encoder of ViViT's model 2 be?

    vitx ablate experiments/ablations/temporal_layers.py --workdir runs/temporal_layers

Zero, one, two and four temporal layers over single frames and over tubelets of four frames; zero is the average-pool
baseline. The base is that of factorisation.py. Eight rows, three seeds.

Compare with ViViT (Arnab et al. 2021, table 3), top-1 on Kinetics-400: 75.8 % without temporal layers, 78.6 % with one,
78.8 % with four and with eight, 78.9 % with twelve.

Result (table and pictures in results/temporal_layers): two cores of an Intel Xeon, JAX 0.10.2, 2026-11-28, 29 min
beside other jobs. Test split, 1x1 views, mean of three seeds in %; chance is 12.5 for motion, 10 for appearance:

    temporal layers     frames              tubelets
                        motion   appear     motion   appear
    0                     13.3     57.9       99.8     10.9
    1                     40.1     47.2       99.9     17.5
    2                     40.6     36.0       98.9     13.3
    4                     32.6     20.6       99.6     10.7

As in the paper's table one layer brings most of what there is to gain: on single frames motion rises by 27 points from
chance, and neither two nor four layers differ from one by more than seeds do (deviations of 10 to 12 points, with which
three seeds show no difference in motion, not even to none at all). Here they cost something, too: with each further
layer fewer digits are learnt from single frames in the same 800 steps, significantly fewer with two than with none.
Over tubelets no temporal layer is needed: a tubelet holds the motion.
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
