"""Your own videos: one folder for each class becomes a trained model that names the classes.

    vitx train experiments/folder.py --workdir runs/folder --data.dataset.path videos

Expects `videos/CLASS/*.mp4`, or `videos/{train,validation,test}/CLASS/*.mp4`; the model has as many
classes. A clip is 16 frames, 4 apart: 2.5 seconds at 25 frames per second (`--data.frame_stride`).
Nothing is flipped, so labels with a direction stay correct. For a list with labels, segments or groups, use
`vitx.data.files.Table` in place of `Folder`; see docs/own_videos.md.

Tried on two cores of an AMD EPYC, shared with another job, JAX 0.10.2, 2026-11-24, seed 0: 240 videos of 64 frames of
96x96 pixels, digits that move left or right, rendered by `vitx.data.moving_digits.render_clip`. 2 min 40 s, input wait
0.2 % of the time; top-1 100.0 % on the 36 videos of the test split, 2x1 views.
"""

from vitx.data.augmentation import Augmentation
from vitx.data.files import Folder
from vitx.data.pipeline import Data
from vitx.experiment import Experiment
from vitx.models.vivit import FactorisedEncoder
from vitx.tasks.classification import Classification
from vitx.training.loop import Training
from vitx.training.optimizers import AdamW

experiment = Experiment(
    model=FactorisedEncoder(
        num_classes=None,  # as many as there are folders
        num_frames=16,
        image_size=112,
        tubelet_size=(4, 16, 16),
        hidden_size=192,
        num_layers=4,
        num_temporal_layers=2,
        num_heads=3,
        mlp_dim=384,
        pooling="mean",
    ),
    data=Data(
        dataset=Folder("videos"),
        num_frames=16,
        frame_stride=4,
        image_size=(112, 112),
        augmentation=Augmentation(crop_area=(0.4, 1.0), brightness=0.2, contrast=0.2, saturation=0.2),
        batch_size=8,
        eval_batch_size=8,
        eval_clips=2,
    ),
    task=Classification(mean=(0.45, 0.45, 0.45), std=(0.225, 0.225, 0.225)),
    optimizer=AdamW(peak_lr=5e-4, weight_decay=0.05),
    training=Training(steps=400, log_every=20, evaluate_every=100, checkpoint_every=100),
)
