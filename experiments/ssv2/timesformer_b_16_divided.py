"""TimeSformer, divided space-time attention, on Something-Something V2.

    vitx train experiments/ssv2/timesformer_b_16_divided.py --workdir runs/ssv2_timesformer_b_16_divided
    experiments/launch/tpu_vm.sh run experiments/ssv2/timesformer_b_16_divided.py --workdir gs://BUCKET/RUN

Expected: top-1 59.5 %, 1x3 views (arXiv:2102.05095, table 1). Not run here.

Data: docs/recipes.md has the commands; 168,913 training videos. The labels of the test split are not public: the
validation split stands for it, and nothing is chosen by it.
Follows: the authors' repository: one frame of each of eight equal parts of the video, no mirroring. Its released
weights reach 59.1 %. Everything else is as in ../kinetics400/timesformer_b_16_divided.py.
Differs: the repository feeds blue, green and red in this order; here channels stay as they are, as in the image model.
Hardware: not stated.
"""

from vitx import load_experiment

experiment = load_experiment("../kinetics400/timesformer_b_16_divided.py").override(
    {
        "model.num_classes": 174,
        "data.dataset.path": "data/ssv2",
        "data.temporal": "segments",
        "data.augmentation.flip": 0.0,
        "training.steps": 15 * 168_913 // 64,
    }
)
