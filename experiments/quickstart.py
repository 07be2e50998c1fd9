"""Quickstart: ViViT's factorised encoder (model 2) learns eight motions from short videos of handwritten digits.

    vitx train experiments/quickstart.py --workdir runs/quickstart

Data: moving digits, 12 frames of 48x48 pixels, H.264; built on this machine in half a minute at the first run.
Motions come in time-reversed pairs, so no single frame and no unordered set of frames shows the label. No flips and
no time reversal: both would change it.

Why tubelets of 4x8x8 and batches of 16: experiments/benchmarks/quickstart.md. The same recipe with a second label,
the digit: experiments/moving_digits/two_labels.py.

Result: motion top-1 100.0 % (test split, 1,000 clips of unseen handwriting, 1x1 views) in 3 min 7 s with installation
and building the dataset. Two cores of an Intel Xeon beside other jobs, Python 3.13, JAX 0.12.0, 2026-11-26, seed 0.
"""

from vitx.data.pipeline import Data
from vitx.data.sources import MovingDigits
from vitx.experiment import Experiment
from vitx.models.vivit import FactorisedEncoder
from vitx.tasks.classification import Classification
from vitx.training.loop import Training
from vitx.training.optimizers import AdamW

experiment = Experiment(
    model=FactorisedEncoder(
        num_classes=8,
        num_frames=12,
        image_size=48,
        tubelet_size=(4, 8, 8),
        hidden_size=96,
        num_layers=4,
        num_temporal_layers=2,
        num_heads=3,
        mlp_dim=192,
        pooling="mean",
    ),
    data=Data(
        dataset=MovingDigits(),
        num_frames=12,
        frame_stride=1,
        image_size=(48, 48),
        batch_size=16,
        eval_batch_size=48,
    ),
    task=Classification(label="motion", mean=(0.2, 0.2, 0.2), std=(0.2, 0.2, 0.2)),
    optimizer=AdamW(peak_lr=1e-3, weight_decay=0.05),
    training=Training(steps=1000, log_every=50, evaluate_every=500, checkpoint_every=250),
)
