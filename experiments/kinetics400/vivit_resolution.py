"""ViViT on Kinetics-400: does resolution help the large joint model?

    vitx ablate experiments/kinetics400/vivit_resolution.py --workdir runs/vivit_resolution

ViViT-L/16x2, model 1, with crops of 224, 288 and 320 pixels, one seed; the recipe of vivit_b_16x2.py with the image
model of vivit_l_16x2_fe.py. Short sides grow in proportion, to 365 pixels: prepare the videos with `--short_side 365`
into a folder of their own. 320 pixels need `--model.remat_policy nothing_saveable`, or a mesh with `fsdp`.

Compare with arXiv:2103.15691v2, table 5, 4x1 views: 80.3 % (1,446 GFLOPs), 80.7 % (2,919), 81.0 % (3,992).

Result: not measured yet.
"""

from vitx import Ablation, Row, load_experiment
from vitx.models import create_model

base = load_experiment("vivit_b_16x2.py").override(
    {
        "model": create_model("vivit_l_16x2", num_classes=400),
        "data.dataset.path": "data/kinetics400_365",
        "training.initialise_from": "weights/ViT-L_16.npz",
    }
)
ablation = Ablation(
    base,
    tuple(
        Row(
            f"{size} pixels",
            {
                "model.image_size": size,
                "data.image_size": (size, size),
                "data.augmentation.short_side": (size * 8 // 7, size * 8 // 7),
                "data.eval_short_side": size * 8 // 7,
            },
        )
        for size in (224, 288, 320)
    ),
    seeds=(0,),
    columns=("class/top1", "class/top5", "params", "gmacs", "clips_per_second", "peak_memory_mib"),
)
