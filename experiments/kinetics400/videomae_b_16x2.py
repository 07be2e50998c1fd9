"""VideoMAE-B, fine-tuned on Kinetics-400. The base of all recipes of VideoMAE with labels.

    vitx train experiments/kinetics400/videomae_b_16x2.py --workdir runs/videomae_b_16x2
    experiments/launch/tpu_vm.sh run experiments/kinetics400/videomae_b_16x2.py --workdir gs://BUCKET/RUN

Expected: top-1 81.5 %, 5x3 views (arXiv:2203.12602, table 7). Not run here.

Data: as in videomae_b_16x2_pretrain.py. Accuracy is that of the validation split, which stands for the test split
here; nothing is chosen by it.
Start: the run of videomae_b_16x2_pretrain.py; its decoder is left out.
Follows: the authors' script (MCG-NJU/VideoMAE, scripts/kinetics): batches of 384 videos, two clips of each, and a
rate of 5e-4 for 256 videos, where the paper has 512 and 1e-3; RandAugment of their code, where the paper writes (9,
0.5).
Differs: only kernels decay; the mask of random erasing is one for all clips of an example in the authors' code.
Hardware: 64 V100; the paper states no time.
"""

from vitx.data.augmentation import Augmentation
from vitx.data.pipeline import Data
from vitx.data.prepared import Prepared
from vitx.data.rand_augment import RandAugment
from vitx.experiment import Experiment
from vitx.models import create_model
from vitx.tasks.classification import Classification
from vitx.tasks.mixing import Mixing
from vitx.training.loop import Training
from vitx.training.optimizers import AdamW
from vitx.training.schedules import Cosine

VIDEOS = 384  # of a batch
PEAK_LR = 5e-4 * VIDEOS / 256

experiment = Experiment(
    model=create_model("videomae_b_16x2", num_classes=400, drop_path_rate=0.1),
    data=Data(
        dataset=Prepared("data/kinetics400", test="validation"),
        frame_stride=4,
        augmentation=Augmentation(
            crop_area=(0.08, 1.0),
            flip=0.5,
            rand_augment=RandAugment(layers=4, magnitude=7.0, deviation=0.5),
            erase=0.25,
        ),
        num_repeats=2,
        batch_size=2 * VIDEOS,
        eval_clips=5,
        eval_crops=3,
        eval_short_side=224,
        num_threads=16,
    ),
    task=Classification(
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
        label_smoothing=0.1,
        mixing=Mixing(mixup=0.8, cutmix=1.0),
    ),
    optimizer=AdamW(
        peak_lr=PEAK_LR,
        schedule=Cosine(warmup=5 / 75, end_factor=1e-6 / 5e-4),
        weight_decay=0.05,
        layer_decay=0.75,
        clip_norm=None,
    ),
    training=Training(
        steps=75 * 240_000 // VIDEOS,
        initialise_from="runs/videomae_b_16x2_pretrain",
        monitor="class/top1",
        log_every=100,
        checkpoint_every=1000,
    ),
)
