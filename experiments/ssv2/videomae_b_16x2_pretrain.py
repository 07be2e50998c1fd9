"""VideoMAE-B: masked pre-training on Something-Something V2, without labels.

    vitx train experiments/ssv2/videomae_b_16x2_pretrain.py --workdir runs/ssv2_videomae_b_16x2_pretrain
    experiments/launch/tpu_vm.sh run experiments/ssv2/videomae_b_16x2_pretrain.py --workdir gs://BUCKET/RUN

Expected: the start of videomae_b_16x2.py, top-1 70.8 % (arXiv:2203.12602, table 6). Not run here.

Data: docs/recipes.md has the commands; 168,913 training videos.
Follows: the authors' script: 2,400 epochs, every second frame, no mirroring. Everything else is as in
../kinetics400/videomae_b_16x2_pretrain.py.
Hardware: 64 V100; 800 epochs take 19.5 hours (table 3).
"""

from vitx import load_experiment

experiment = load_experiment("../kinetics400/videomae_b_16x2_pretrain.py").override(
    {
        "data.dataset.path": "data/ssv2",
        "data.frame_stride": 2,
        "data.augmentation.flip": 0.0,
        "optimizer.schedule.warmup": 40 / 2400,
        "training.steps": 2400 * 168_913 // 2048,
        "training.evaluate_every": 20 * 168_913 // 2048,
    }
)
