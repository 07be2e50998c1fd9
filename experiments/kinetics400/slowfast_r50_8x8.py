"""SlowFast 8x8 of 50 layers on Kinetics-400, from scratch. The base of the recipes after PySlowFast.

    vitx train experiments/kinetics400/slowfast_r50_8x8.py --workdir runs/slowfast_r50_8x8
    experiments/launch/tpu_vm.sh run experiments/kinetics400/slowfast_r50_8x8.py --workdir gs://BUCKET/slowfast_r50_8x8

Expected: top-1 76.9 %, 10x3 views (facebookresearch/pytorchvideo, docs/source/model_zoo.md). Not run here.

Data: docs/recipes.md has the commands; about 240,000 training videos. Accuracy is that of the validation split, which
stands for the test split here; nothing is chosen by it. Crops have 224 pixels in training and 256 in evaluation.
Follows: configs/Kinetics/pytorchvideo/SLOWFAST_8x8_R50.yaml of facebookresearch/SlowFast, on one machine of eight GPUs,
each with batch statistics of its own; statistics are averaged over 200 batches before evaluation. Videos are read at 30
frames a second, of which every second one is taken. The same file for the repository's own network has 77.0 %; the
paper (arXiv:1812.03982) trains 196 epochs on 128 GPUs.
Differs: its warm-up starts at a tenth of the rate and ends on the cosine of the whole run; here it starts at zero, and
the cosine follows it. Only kernels decay.
Hardware: 6,336 hours of a V100 in all, as TimeSformer's authors measured (arXiv:2102.05095, table 2).
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

experiment = Experiment(
    model=create_model("slowfast_r50_8x8", num_classes=400, norm_groups=8),
    data=Data(
        dataset=Prepared("data/kinetics400", test="validation"),
        num_frames=32,
        frame_rate=30 / 2,
        image_size=(224, 224),
        augmentation=Augmentation(short_side=(256, 320), flip=0.5),
        batch_size=64,
        eval_clips=10,
        eval_crops=3,
        eval_size=(256, 256),
        num_threads=16,
    ),
    task=Classification(mean=(0.45, 0.45, 0.45), std=(0.225, 0.225, 0.225), average="probabilities"),
    optimizer=SGD(
        peak_lr=0.1,
        schedule=Cosine(warmup=34 / 196),
        weight_decay=1e-4,
        coupled_decay=True,
        nesterov=True,
        clip_norm=None,
    ),
    training=Training(
        steps=196 * 240_000 // 64,
        precise_bn_batches=200,
        monitor="class/top1",
        log_every=100,
        checkpoint_every=1000,
    ),
)
