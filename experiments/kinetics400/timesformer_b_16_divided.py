"""TimeSformer, divided space-time attention, on Kinetics-400. The base of all recipes of TimeSformer.

    vitx train experiments/kinetics400/timesformer_b_16_divided.py --workdir runs/timesformer_b_16_divided
    experiments/launch/tpu_vm.sh run experiments/kinetics400/timesformer_b_16_divided.py --workdir gs://BUCKET/RUN

Expected: top-1 78.0 %, 1x3 views (arXiv:2102.05095, table 1). Not run here.

Data: docs/recipes.md has the commands; about 240,000 training videos. Accuracy is that of the validation split, which
stands for the test split here; nothing is chosen by it.
Start: ViT-B/16 of ImageNet-21k in timm's names, https://huggingface.co/timm/vit_base_patch16_224.orig_in21k; attention
in time copies it, and the layer behind it starts at zero.
Follows: the authors' repository (facebookresearch/TimeSformer): batches of 64, where the paper has 16; stochastic depth
of 0.1, which the paper does not mention. The head's DROPOUT_RATE of its configurations is left out, since its models do
not read it. Videos are read at 30 frames a second, of which every 32nd is taken. Its released weights reach 77.9 %.
Differs: only kernels decay, not biases and norms.
Hardware: 416 hours of a V100 in all (table 2).
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
    model=create_model("timesformer_b_16_divided", num_classes=400, drop_path_rate=0.1),
    data=Data(
        dataset=Prepared("data/kinetics400", test="validation"),
        frame_rate=30 / 32,
        augmentation=Augmentation(short_side=(256, 320), flip=0.5),
        batch_size=64,
        eval_crops=3,
        num_threads=16,
    ),
    task=Classification(mean=(0.45, 0.45, 0.45), std=(0.225, 0.225, 0.225)),
    optimizer=SGD(
        peak_lr=0.005,
        schedule=Milestones(warmup=0.0, milestones=(11 / 15, 14 / 15)),
        weight_decay=1e-4,
        coupled_decay=True,
        nesterov=True,
        clip_norm=None,
    ),
    training=Training(
        steps=15 * 240_000 // 64,
        initialise_from="weights/vit_base_patch16_224.orig_in21k.safetensors",
        monitor="class/top1",
        log_every=100,
        checkpoint_every=1000,
    ),
)
