"""VideoMAE-B: masked pre-training on UCF101 alone, without labels.

    vitx train experiments/ucf101/videomae_b_16x2_pretrain.py --workdir runs/ucf101_videomae_b_16x2_pretrain
    experiments/launch/tpu_vm.sh run experiments/ucf101/videomae_b_16x2_pretrain.py --workdir gs://BUCKET/RUN

Expected: the start of videomae_b_16x2.py, top-1 91.3 % (arXiv:2203.12602, table 13). Not run here.

Data: docs/recipes.md has the commands; 9,537 training videos of the first split, of which a part is kept for
validation.
Follows: the authors' script: 3,200 epochs, batches of 192, three quarters of the places masked, no mirroring.
Everything else is as in ../kinetics400/videomae_b_16x2_pretrain.py.
Hardware: 8 GPUs; the paper states no time.
"""

from vitx import load_experiment

experiment = load_experiment("../kinetics400/videomae_b_16x2_pretrain.py").override(
    {
        "model.mask_ratio": 0.75,
        "data.dataset.path": "data/ucf101",
        "data.dataset.test": "test",
        "data.augmentation.flip": 0.0,
        "data.frame_stride": 4,
        "data.batch_size": 192,
        "optimizer.peak_lr": 3e-4 * 192 / 256,
        "optimizer.schedule.warmup": 40 / 3200,
        "optimizer.schedule.end_factor": 1e-5 / 3e-4,
        "training.steps": 3200 * 9_537 // 192,
        "training.evaluate_every": 100 * 9_537 // 192,
    }
)
