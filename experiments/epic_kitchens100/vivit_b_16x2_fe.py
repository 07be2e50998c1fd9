"""ViViT-B/16x2, factorised encoder with four temporal layers, on EPIC-KITCHENS-100: a verb and a noun.

    vitx train experiments/epic_kitchens100/vivit_b_16x2_fe.py --workdir runs/epic_vivit_b_16x2_fe
    experiments/launch/tpu_vm.sh run experiments/epic_kitchens100/vivit_b_16x2_fe.py --workdir gs://BUCKET/RUN

Expected: action top-1 43.7 %, 4x1 views (arXiv:2103.15691v2, table 2). Not run here.

Data: docs/recipes.md has the commands; 67,217 training segments. The validation split stands for the test split, whose
labels are not public; nothing is chosen by it. An action is right where both of its labels are.
Start: the model of Kinetics-400, which must be trained first (../kinetics400/vivit_b_16x2_fe.py).
Follows: table 7 of the paper, and scenic's configuration of the large model: the loss is the mean of both heads; no
colours, although the first row of table 4 names colour jitter.
Differs: scenic's stochastic depth does not divide by the probability of keeping a branch. Its operations of RandAugment
are applied with probabilities of 0.2 to 0.8, here of 0.5. The rate of the authors' frames is not stated; here they are
the video's own.
Hardware: not stated.
"""

from vitx import load_experiment
from vitx.data.augmentation import Augmentation
from vitx.data.prepared import Prepared
from vitx.data.rand_augment import RandAugment
from vitx.tasks.classification import Classification
from vitx.tasks.mixing import Mixing

experiment = load_experiment("../kinetics400/vivit_b_16x2_fe.py").override(
    {
        "model.num_classes": (("verb", 97), ("noun", 300)),
        "model.drop_path_rate": 0.2,
        "data.dataset": Prepared("data/epic_kitchens100", test="validation"),
        "data.frame_stride": 1,
        "data.augmentation": Augmentation(
            short_side=(256, 256),
            stretch=(0.9, 1.33),
            flip=0.5,
            rand_augment=RandAugment(layers=2, magnitude=15.0, increasing=False),
        ),
        "task": Classification(action=("verb", "noun"), label_smoothing=0.2, mixing=Mixing(mixup=0.1)),
        "optimizer.peak_lr": 0.5,
        "optimizer.schedule.warmup": 2.5 / 50,
        "training.steps": 50 * (67_217 // 64),
        "training.initialise_from": "runs/vivit_b_16x2_fe",
        "training.monitor": "action/top1",
        "training.evaluate_every": 0,
    }
)
