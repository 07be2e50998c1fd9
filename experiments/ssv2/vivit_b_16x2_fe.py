"""ViViT-B/16x2, factorised encoder with four temporal layers, on Something-Something V2.

    vitx train experiments/ssv2/vivit_b_16x2_fe.py --workdir runs/ssv2_vivit_b_16x2_fe
    experiments/launch/tpu_vm.sh run experiments/ssv2/vivit_b_16x2_fe.py --workdir gs://BUCKET/ssv2_vivit_b_16x2_fe

Expected: top-1 65.4 % (arXiv:2103.15691v2, section 4.2). Not run here.

Data: docs/recipes.md has the commands, here with `--short_side 288`; 168,913 training videos. The validation split
stands for the test split, whose labels are not public; nothing is chosen by it.
Start: the model of Kinetics-400, which must be trained first (../kinetics400/vivit_b_16x2_fe.py); positions are resized
to crops of 256 pixels.
Follows: table 7 of the paper (learning rate 0.5) and scenic's configuration of the large model (crops of 256 out of 288
pixels; its rate is 0.4). Without regularisation the paper has 60.4 %. It does not state the size and views of this
model; 4x3 are those of table 6.
Differs: as in ../epic_kitchens100/vivit_b_16x2_fe.py. scenic mirrors half of the clips although classes name
directions, and so does this file; `--data.augmentation.flip 0` is better practice.
Hardware: not stated.
"""

from vitx import load_experiment
from vitx.models import create_model
from vitx.tasks.classification import Classification
from vitx.tasks.mixing import Mixing

experiment = load_experiment("../epic_kitchens100/vivit_b_16x2_fe.py").override(
    {
        "model": create_model("vivit_b_16x2_fe", num_classes=174, image_size=256, drop_path_rate=0.3),
        "data.dataset.path": "data/ssv2_288",
        "data.image_size": (256, 256),
        "data.augmentation.short_side": (288, 288),
        "data.augmentation.rand_augment.magnitude": 20.0,
        "data.eval_crops": 3,
        "data.eval_short_side": 288,
        "task": Classification(label_smoothing=0.3, mixing=Mixing(mixup=0.3)),
        "optimizer.schedule.warmup": 2.5 / 35,
        "training.steps": 35 * (168_913 // 64),
        "training.monitor": "class/top1",
    }
)
