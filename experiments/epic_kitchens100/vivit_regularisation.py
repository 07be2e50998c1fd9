"""ViViT on EPIC-KITCHENS-100: which regularisation helps where data is scarce?

    vitx ablate experiments/epic_kitchens100/vivit_regularisation.py --workdir runs/epic_vivit_regularisation

Model 2; each row has everything of the row before it and one thing more, in the order of table 4. One seed. The last
row is vivit_b_16x2_fe.py.

Compare with arXiv:2103.15691v2, table 4, top-1 of actions, 4x1 views: 38.4 % with crops, mirroring and colour jitter,
39.6 % from Kinetics-400, 40.2 % with stochastic depth, 41.1 % with random augmentation, 43.1 % with label smoothing,
43.7 % with mixup. Table 7 and scenic have no colour jitter on this dataset, and neither has this file.

Result: not measured yet.
"""

from vitx import Ablation, load_experiment
from vitx.ablations.description import cumulative
from vitx.data.rand_augment import RandAugment
from vitx.tasks.mixing import Mixing

best = load_experiment("vivit_b_16x2_fe.py")
base = best.override(
    {
        "model.drop_path_rate": 0.0,
        "data.augmentation.rand_augment": RandAugment(layers=0),
        "task.label_smoothing": 0.0,
        "task.mixing": Mixing(),
        "training.initialise_from": "weights/ViT-B_16.npz",
    }
)
ADDITIONS = {
    "crops and mirroring": {},
    "+ Kinetics-400": {"training.initialise_from": best.training.initialise_from},
    "+ stochastic depth": {"model.drop_path_rate": best.model.drop_path_rate},
    "+ random augmentation": {"data.augmentation.rand_augment": best.data.augmentation.rand_augment},
    "+ label smoothing": {"task.label_smoothing": best.task.label_smoothing},
    "+ mixup": {"task.mixing": best.task.mixing},
}
ablation = Ablation(
    base,
    cumulative(ADDITIONS),
    seeds=(0,),
    columns=("action/top1", "verb/top1", "noun/top1", "params", "gmacs", "clips_per_second", "peak_memory_mib"),
)
