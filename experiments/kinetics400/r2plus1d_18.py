"""R(2+1)D-18 on Kinetics-400, as torchvision trains it. The base of its three networks of 18 layers.

    vitx train experiments/kinetics400/r2plus1d_18.py --workdir runs/r2plus1d_18
    experiments/launch/tpu_vm.sh run experiments/kinetics400/r2plus1d_18.py --workdir gs://BUCKET/r2plus1d_18

Expected: top-1 67.5 %, 5x1 views (pytorch/vision, R2Plus1D_18_Weights.KINETICS400_V1). Not run here.

Data: docs/recipes.md has the commands; about 240,000 training videos, of which an epoch takes five clips each. Accuracy
is that of the validation split, which stands for the test split here; nothing is chosen by it.
Follows: torchvision/models/video/README.md and references/video_classification. The paper (arXiv:1711.11248) trains
R(2+1)D of 34 layers in another way.
Differs: torchvision scales frames to 128 x 171 pixels whatever their shape; here they keep it. Only kernels decay.
Hardware: 64 V100 for 24 hours, 24 clips each (references/video_classification/README.md). That each had batch
statistics of its own is assumed here (norm_groups).
"""

from vitx.data.augmentation import Augmentation
from vitx.data.pipeline import Data
from vitx.data.prepared import Prepared
from vitx.experiment import Experiment
from vitx.models import create_model
from vitx.tasks.classification import Classification
from vitx.training.loop import Training
from vitx.training.optimizers import SGD
from vitx.training.schedules import Milestones

experiment = Experiment(
    model=create_model("r2plus1d_18", num_classes=400, norm_groups=64),
    data=Data(
        dataset=Prepared("data/kinetics400", test="validation"),
        num_frames=16,
        frame_rate=15.0,
        image_size=(112, 112),
        augmentation=Augmentation(short_side=(128, 128), flip=0.5),
        batch_size=64 * 24,
        eval_clips=5,
        eval_short_side=128,
        num_threads=16,
    ),
    task=Classification(mean=(0.43216, 0.394666, 0.37645), std=(0.22803, 0.22145, 0.216989), average="probabilities"),
    optimizer=SGD(
        peak_lr=64 * 0.01,
        schedule=Milestones(warmup=10 / 45, milestones=(20 / 45, 30 / 45, 40 / 45)),
        weight_decay=1e-4,
        coupled_decay=True,
        clip_norm=None,
    ),
    training=Training(
        steps=45 * (5 * 240_000 // (64 * 24)), monitor="class/top1", log_every=100, checkpoint_every=1000
    ),
)
