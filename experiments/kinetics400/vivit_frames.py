"""ViViT on Kinetics-400: do more frames in one view replace many views?

    vitx ablate experiments/kinetics400/vivit_frames.py --workdir runs/vivit_frames

The large factorised encoder with 32, 64 and 128 frames, which are 2 apart: 128 of them cover a video of 250 frames. One
seed, one view for each video.

Compare with arXiv:2103.15691v2, section 4.2: 995.3 and 3,980.4 GFLOPs with 32 and 128 frames; with 128 frames 80.6 %
with 1x1 views and 81.7 % with 1x3 (table 6a).

Result: not measured yet.
"""

from vitx import Ablation, Row, load_experiment

base = load_experiment("vivit_l_16x2_fe.py").override({"data.eval_clips": 1, "data.eval_crops": 1})
ablation = Ablation(
    base,
    tuple(Row(f"{frames} frames", {"model.num_frames": frames, "data.num_frames": frames}) for frames in (32, 64, 128)),
    seeds=(0,),
    columns=("class/top1", "class/top5", "params", "gmacs", "clips_per_second", "peak_memory_mib"),
)
