"""VideoMAE-B, fine-tuned on Something-Something V2.

    vitx train experiments/ssv2/videomae_b_16x2.py --workdir runs/ssv2_videomae_b_16x2
    experiments/launch/tpu_vm.sh run experiments/ssv2/videomae_b_16x2.py --workdir gs://BUCKET/RUN

Expected: top-1 70.8 %, 2x3 views (arXiv:2203.12602, table 6). Not run here.

Data: docs/recipes.md has the commands. The labels of the test split are not public: the validation split stands for
it, and nothing is chosen by it.
Start: the run of videomae_b_16x2_pretrain.py.
Follows: the authors' script: 30 epochs, where the paper has 40, frames of equal segments, no mirroring. Everything
else is as in ../kinetics400/videomae_b_16x2.py.
Hardware: not stated.
"""

from vitx import load_experiment

experiment = load_experiment("../kinetics400/videomae_b_16x2.py").override(
    {
        "model.num_classes": 174,
        "data.dataset.path": "data/ssv2",
        "data.temporal": "segments",
        "data.augmentation.flip": 0.0,
        "data.eval_clips": 2,
        "optimizer.schedule.warmup": 5 / 30,
        "training.steps": 30 * 168_913 // 384,
        "training.initialise_from": "runs/ssv2_videomae_b_16x2_pretrain",
    }
)
