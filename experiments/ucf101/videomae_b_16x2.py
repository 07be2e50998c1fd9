"""VideoMAE-B, fine-tuned on UCF101 after pre-training on the same videos.

    vitx train experiments/ucf101/videomae_b_16x2.py --workdir runs/ucf101_videomae_b_16x2
    experiments/launch/tpu_vm.sh run experiments/ucf101/videomae_b_16x2.py --workdir gs://BUCKET/RUN

Expected: top-1 91.3 %, 5x3 views (arXiv:2203.12602, table 13). Not run here.

Data: as in videomae_b_16x2_pretrain.py.
Start: the run of videomae_b_16x2_pretrain.py.
Follows: the authors' script: 100 epochs, batches of 128 videos, stronger layer decay and stochastic depth. Everything
else is as in ../kinetics400/videomae_b_16x2.py.
Differs: no dropout before the head, where the authors have 0.5.
Hardware: 8 GPUs; the paper states no time.
"""

from vitx import load_experiment

experiment = load_experiment("../kinetics400/videomae_b_16x2.py").override(
    {
        "model.num_classes": 101,
        "model.drop_path_rate": 0.2,
        "data.dataset.path": "data/ucf101",
        "data.dataset.test": "test",
        "data.frame_stride": 4,
        "data.batch_size": 2 * 128,
        "data.eval_clips": 5,
        "optimizer.peak_lr": 5e-4 * 128 / 256,
        "optimizer.layer_decay": 0.7,
        "optimizer.schedule.warmup": 5 / 100,
        "optimizer.schedule.end_factor": 1e-5 / 5e-4,
        "training.steps": 100 * 9_537 // 128,
        "training.initialise_from": "runs/ucf101_videomae_b_16x2_pretrain",
    }
)
