"""VideoMAE-B, fine-tuned on HMDB51 after pre-training on the same videos.

    vitx train experiments/hmdb51/videomae_b_16x2.py --workdir runs/hmdb51_videomae_b_16x2
    experiments/launch/tpu_vm.sh run experiments/hmdb51/videomae_b_16x2.py --workdir gs://BUCKET/RUN

Expected: top-1 62.6 %, 10x3 views (arXiv:2203.12602, table 13). Not run here.

Data: as in videomae_b_16x2_pretrain.py.
Start: the run of videomae_b_16x2_pretrain.py.
Follows: the paper: 50 epochs, a rate of 1e-3 for 256 videos; batches, layer decay and stochastic depth as for UCF101,
since it states none. Everything else is as in ../ucf101/videomae_b_16x2.py.
Differs: no dropout before the head, where the authors have 0.5.
Hardware: 8 GPUs; the paper states no time.
"""

from vitx import load_experiment

experiment = load_experiment("../ucf101/videomae_b_16x2.py").override(
    {
        "model.num_classes": 51,
        "data.dataset.path": "data/hmdb51",
        "data.frame_stride": 2,
        "data.eval_clips": 10,
        "optimizer.peak_lr": 1e-3 * 128 / 256,
        "optimizer.schedule.warmup": 5 / 50,
        "optimizer.schedule.end_factor": 1e-5 / 1e-3,
        "training.steps": 50 * 3_570 // 128,
        "training.initialise_from": "runs/hmdb51_videomae_b_16x2_pretrain",
    }
)
