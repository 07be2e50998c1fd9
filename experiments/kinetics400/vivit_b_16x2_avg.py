"""ViViT-B/16x2, the average-pool baseline: frames are encoded alone and averaged, on Kinetics-400.

    vitx train experiments/kinetics400/vivit_b_16x2_avg.py --workdir runs/vivit_b_16x2_avg
    experiments/launch/tpu_vm.sh run experiments/kinetics400/vivit_b_16x2_avg.py --workdir gs://BUCKET/vivit_b_16x2_avg

Expected: top-1 75.8 %, 4x1 views (arXiv:2103.15691v2, table 2). Not run here.

Follows: the recipe of the factorised encoder, vivit_b_16x2_fe.py, of which this is the one without temporal layers.
Hardware: no training time is stated; a view takes 17.3 ms on a TPU v3.
"""

from vitx import load_experiment

experiment = load_experiment("vivit_b_16x2_fe.py").override({"model.num_temporal_layers": 0})
