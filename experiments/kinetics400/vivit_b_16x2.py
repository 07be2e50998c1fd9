"""ViViT-B/16x2, model 1: joint space-time attention, on Kinetics-400. The base of all recipes of ViViT.

    vitx train experiments/kinetics400/vivit_b_16x2.py --workdir runs/vivit_b_16x2
    experiments/launch/tpu_vm.sh run experiments/kinetics400/vivit_b_16x2.py --workdir gs://BUCKET/vivit_b_16x2

Expected: top-1 80.0 %, 4x1 views (arXiv:2103.15691v2, table 2). Not run here.

Data: the official lists and videos, scaled once; docs/recipes.md has the commands. The authors had 214,834 videos.
Start: ViT-B/16 of ImageNet-21k, https://storage.googleapis.com/vit_models/imagenet21k/ViT-B_16.npz, with the kernel at
the central frame and positions repeated over time.
Follows: table 7 of the paper, and scenic's configuration where the paper has no value (colours dropped in a tenth of
the clips; many views of the test split, 34,579 videos). The released weights reach 79.9 % with 4x3 views.
Differs: scenic multiplies its cosine with the warm-up, where here it begins after it.
Hardware: the paper states no training time; a view takes 58.9 ms on a TPU v3.
"""

from vitx.data.augmentation import Augmentation
from vitx.data.pipeline import Data
from vitx.data.prepared import Prepared
from vitx.experiment import Experiment
from vitx.models import create_model
from vitx.tasks.classification import Classification
from vitx.training.loop import Training
from vitx.training.optimizers import SGD
from vitx.training.schedules import Cosine

EPOCH = 214_834 // 64  # steps

experiment = Experiment(
    model=create_model("vivit_b_16x2", num_classes=400),
    data=Data(
        dataset=Prepared("data/kinetics400"),
        frame_stride=2,
        augmentation=Augmentation(
            short_side=(256, 256),
            stretch=(0.9, 1.33),
            flip=0.5,
            lightness=32 / 255,
            saturation=0.4,
            contrast=0.4,
            hue=0.2,
            colour=0.8,
            colour_order=("brightness", "saturation", "contrast", "hue"),
            grey=0.1,
        ),
        batch_size=64,
        eval_clips=4,
        eval_short_side=256,
        num_threads=16,
    ),
    task=Classification(),
    optimizer=SGD(peak_lr=0.1, schedule=Cosine(warmup=2.5 / 30), clip_norm=1.0),
    training=Training(
        steps=30 * EPOCH,
        initialise_from="weights/ViT-B_16.npz",
        monitor="class/top1",
        log_every=100,
        evaluate_every=5 * EPOCH,
        checkpoint_every=1000,
    ),
)
