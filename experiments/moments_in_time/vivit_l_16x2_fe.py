"""ViViT-L/16x2, factorised encoder, on Moments in Time.

    vitx train experiments/moments_in_time/vivit_l_16x2_fe.py --workdir runs/mit_vivit_l_16x2_fe
    experiments/launch/tpu_vm.sh run experiments/moments_in_time/vivit_l_16x2_fe.py --workdir gs://BUCKET/RUN

Expected: top-1 38.5 % (arXiv:2103.15691v2, table 6c). Not run here.

Data: docs/recipes.md has the commands; 791,297 training videos of 3 seconds and 339 classes in scenic's list. The
labels of the test split are not public: the validation split stands for it, and nothing is chosen by it.
Follows: table 7 of the paper: a learning rate of 0.25, 10 epochs, colours. scenic has no configuration of this model.
The paper states neither the frame stride, nor the views, nor the number of temporal layers here: stride 2 and 24 layers
are those of Kinetics, and 4x3 views are a guess.
Hardware: not stated.
"""

from vitx import load_experiment
from vitx.data.prepared import Prepared

experiment = load_experiment("../kinetics400/vivit_l_16x2_fe.py").override(
    {
        "model.num_classes": 339,
        "data.dataset": Prepared("data/moments_in_time", test="validation"),
        "optimizer.peak_lr": 0.25,
        "optimizer.schedule.warmup": 2.5 / 10,
        "training.steps": 10 * (791_297 // 64),
        "training.evaluate_every": 0,
    }
)
