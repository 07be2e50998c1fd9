"""A masked autoencoder on moving digits, without labels: the start of masked_finetuning.py.

    vitx train experiments/moving_digits/masked_pretraining.py --workdir runs/masked_pretraining

Digits of half the size on black, four frames. Tokens are patches of 4x4 pixels of single frames, 4 x 6 x 6 of them; the
encoder sees 60 and the decoder predicts 84, the same places in all frames.

Two busy cores of an AMD EPYC, JAX 0.10.2, 2026-11-29, seed 0: test loss 0.0124, 30 % of what predicting the mean has,
and 19.5 dB. The run leaves the mean (0.041) between steps 300 and 500: 0.026 at step 500, 0.018 at 800, 0.016 at 1,000.
A run of 250 steps, whose learning rate falls to zero before that, ends at 0.043 and says nothing of positions or
anything else.

Tried, and not kept: digits of 48 pixels on texture, tubelets of 2x12x12, a decoder of two blocks 48 wide and batches of
16 (14.7 dB after 700 steps, the mean brightness alone); cubes that are normalised one by one, as the task does by
default, since most of the target is then the noise of a still background.
"""

from vitx.data.moving_digits import ClipConfig
from vitx.data.sources import MovingDigits
from vitx.experiment import load_experiment
from vitx.models.videomae import VideoMAEPretraining
from vitx.tasks.masked_prediction import MaskedPrediction
from vitx.training.optimizers import AdamW

digits = ClipConfig(
    num_frames=4,
    side=24,
    speed=(1.2, 2.0),
    radius=(3.5, 4.5),
    period=(7.0, 9.0),
    size=(10.0, 17.0),
    texture=0.0,
    noise=0.0,
)
experiment = load_experiment("two_labels.py").override(
    {
        "model": VideoMAEPretraining(
            num_frames=4,
            image_size=24,
            tubelet_size=(1, 4, 4),
            hidden_size=96,
            num_layers=4,
            num_heads=3,
            mlp_dim=384,
            mask_ratio=0.6,
            encoder_norm=True,
            decoder_hidden_size=96,
            decoder_num_layers=1,
            decoder_num_heads=3,
            decoder_mlp_dim=192,
        ),
        "data.dataset": MovingDigits(digits),
        "data.num_frames": 4,
        "data.image_size": (24, 24),
        "data.batch_size": 64,
        "task": MaskedPrediction(mean=(0.2, 0.2, 0.2), std=(0.2, 0.2, 0.2), normalise_cubes=False),
        "optimizer": AdamW(peak_lr=2e-3, weight_decay=0.05, b2=0.95),
        "training.steps": 2000,
        "training.evaluate_every": 0,
        "training.checkpoint_every": 500,
    }
)
