"""ViViT on Something-Something V2: what does the regularisation of EPIC-KITCHENS bring?

    vitx ablate experiments/ssv2/vivit_regularisation.py --workdir runs/ssv2_vivit_regularisation

Model 2; each row has everything of the row before it and one thing more, in the order of the paper's table 4. One seed.
The last row is vivit_b_16x2_fe.py.

Compare with arXiv:2103.15691v2, section 4.2: from 60.4 % to 65.4 % with all of them; the steps in between are not
printed.

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
    columns=("class/top1", "class/top5", "params", "gmacs", "clips_per_second", "peak_memory_mib"),
)
