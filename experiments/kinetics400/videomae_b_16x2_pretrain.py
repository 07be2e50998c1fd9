"""VideoMAE-B: masked pre-training on Kinetics-400, without labels. The base of all recipes of VideoMAE.

    vitx train experiments/kinetics400/videomae_b_16x2_pretrain.py --workdir runs/videomae_b_16x2_pretrain
    experiments/launch/tpu_vm.sh run experiments/kinetics400/videomae_b_16x2_pretrain.py --workdir gs://BUCKET/RUN

Expected: the start of videomae_b_16x2.py, top-1 81.5 % (arXiv:2203.12602, table 7). Not run here.

Data: docs/recipes.md has the commands; about 240,000 training videos.
Follows: the authors' script (MCG-NJU/VideoMAE, scripts/kinetics, 1,600 epochs): batches of 2,048 and a rate of 1.5e-4
for 256 clips, where the paper has batches of 1,024; but the paper's mirroring, which the authors' code lacks.
Differs: crops have any size from 0.44 of the frame on, where the authors' have sides of 1, 0.875, 0.75 or 0.66 of it.
Hardware: 64 V100; 800 epochs on Something-Something V2 take 19.5 hours (table 3).
"""

from vitx.data.augmentation import Augmentation
from vitx.data.pipeline import Data
from vitx.data.prepared import Prepared
from vitx.experiment import Experiment
from vitx.models import create_model
from vitx.tasks.masked_prediction import MaskedPrediction
from vitx.training.loop import Training
from vitx.training.optimizers import AdamW
from vitx.training.schedules import Cosine

CLIPS = 2048  # of a batch

experiment = Experiment(
    model=create_model("videomae_b_16x2_pretrain", mask_ratio=0.9, encoder_norm=True),
    data=Data(
        dataset=Prepared("data/kinetics400", test="validation"),
        frame_stride=4,
        augmentation=Augmentation(crop_area=(0.44, 1.0), flip=0.5),
        batch_size=CLIPS,
        num_threads=16,
    ),
    task=MaskedPrediction(),
    optimizer=AdamW(
        peak_lr=1.5e-4 * CLIPS / 256,
        schedule=Cosine(warmup=40 / 1600, end_factor=1e-5 / 1.5e-4),
        weight_decay=0.05,
        b2=0.95,
        clip_norm=None,
    ),
    training=Training(
        steps=1600 * 240_000 // CLIPS,
        log_every=100,
        evaluate_every=20 * 240_000 // CLIPS,
        checkpoint_every=1000,
    ),
)
