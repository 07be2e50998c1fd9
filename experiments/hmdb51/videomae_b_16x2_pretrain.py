"""VideoMAE-B: masked pre-training on HMDB51 alone, without labels.

    vitx train experiments/hmdb51/videomae_b_16x2_pretrain.py --workdir runs/hmdb51_videomae_b_16x2_pretrain
    experiments/launch/tpu_vm.sh run experiments/hmdb51/videomae_b_16x2_pretrain.py --workdir gs://BUCKET/RUN

Expected: the start of videomae_b_16x2.py, top-1 62.6 % (arXiv:2203.12602, table 13). Not run here.

Data: docs/recipes.md has the commands; 3,570 training videos of the first split, of which a part is kept for
validation.
Follows: the paper: 4,800 epochs, batches of 192, three quarters of the places masked. Everything else is as in
../ucf101/videomae_b_16x2_pretrain.py.
Hardware: 8 GPUs; the paper states no time.
"""

from vitx import load_experiment

experiment = load_experiment("../ucf101/videomae_b_16x2_pretrain.py").override(
    {
        "data.dataset.path": "data/hmdb51",
        "data.frame_stride": 2,
        "optimizer.schedule.warmup": 40 / 4800,
        "training.steps": 4800 * 3_570 // 192,
        "training.evaluate_every": 100 * 3_570 // 192,
    }
)
