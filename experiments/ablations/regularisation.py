"""Regularisation, added one at a time: which parts help where data is scarce?

    vitx ablate experiments/ablations/regularisation.py --workdir runs/regularisation

ViViT's model 2 with tubelets of two frames on 800 training clips, which it sees sixteen times. Each row has everything
of the row before it and one thing more, in the order of ViViT's table 4. No flips and no time reversal: both would
change the motion. Seven rows, three seeds.

Compare with ViViT (Arnab et al. 2021, table 4), top-1 on Epic-Kitchens' actions: from 38.4 % with crops, flips and
colour jitter to 43.7 % with everything, initialisation from Kinetics-400 included.

Result: not measured yet.
"""

import dataclasses

from vitx import Ablation
from vitx.ablations.description import cumulative, load_ablation
from vitx.data.rand_augment import RandAugment

factorisation = load_ablation("factorisation.py")
models = {row.name: row.changes["model"] for row in factorisation.rows}
dataset = factorisation.base.data.dataset
few = dataclasses.replace(dataset, clips=dataclasses.replace(dataset.clips, num_clips=(800, 500, 1000)))
base = factorisation.base.override({"model": models["ViViT 2, factorised encoder, frames"], "data.dataset": few})
base = base.override({"model.tubelet_size": (2, 8, 8), "optimizer.weight_decay": 0.0})
ADDITIONS = {
    "none": {},
    "+ weight decay": {"optimizer.weight_decay": 0.05},
    "+ colour jitter": {
        "data.augmentation.brightness": 0.3,
        "data.augmentation.contrast": 0.3,
        "data.augmentation.saturation": 0.3,
    },
    "+ stochastic depth": {"model.drop_path_rate": 0.1},
    "+ random augmentation": {"data.augmentation.rand_augment": RandAugment(layers=1, magnitude=3.0)},
    "+ label smoothing": {"task.label_smoothing": 0.1},
    "+ mixup": {"task.mixing.mixup": 0.1},
}
ablation = Ablation(base, cumulative(ADDITIONS), columns=factorisation.columns[:2] + ("loss",), reference="none")
