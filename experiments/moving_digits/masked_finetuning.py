"""Fine-tuning on 5 % of the labels of moving digits: the encoder of masked_pretraining.py, or one from scratch.

    vitx train experiments/moving_digits/masked_finetuning.py --workdir runs/masked_finetuning
    vitx train experiments/moving_digits/masked_finetuning.py --workdir runs/few_labels \
        --training.initialise_from None

The 200 first training clips keep their labels; validation and test stay whole. few_labels.py trains both with three
seeds.

No gain by pre-training, on two busy cores of an AMD EPYC, 2026-11-29, seed 0, test split, 1,000 clips, 1x1 views:
motion 28.3 % and appearance 35.8 % from 2,000 steps of masked_pretraining.py, 30.0 % and 41.7 % from scratch; 31.5 %
and 34.9 % from its step 872. A linear probe of the frozen encoder's mean tokens, at step 1,000, is no better than one
of random parameters (26.8 % and 28.5 % against 31.1 % and 27.9 %). With a learning rate of 2e-4 (1e-3 is eight times
what the authors' rule gives for batches of 32): 30.5 % and 27.3 %. A prototype had a gain for motion (two busy cores of
an Intel Xeon, 2026-11-27, seed 0): 43.1 % and 41.9 % against 23.4 % and 47.2 %; what differed is not known.

Tried on digits of 48 pixels with 12 frames, 200 steps: motion 84.7 % and appearance 18.4 % from 700 steps of
pre-training, 85.4 % and 15.1 % from scratch.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from vitx.configuration import register
from vitx.data.sources import Dataset, MovingDigits, Source
from vitx.experiment import load_experiment
from vitx.models.videomae import VideoMAE


@register
@dataclasses.dataclass(frozen=True)
class FewLabels:
    """A dataset whose training split keeps its first examples alone.

    Attributes:
        dataset: dataset to reduce.
        fraction: fraction of the training examples that are kept.
    """

    dataset: Dataset = MovingDigits()
    fraction: float = 0.05

    def open(self, split: str) -> Source:
        source = self.dataset.open(split)
        return First(source, round(self.fraction * len(source))) if split == "train" else source


@dataclasses.dataclass(frozen=True)
class First:
    """The first examples of a source."""

    source: Source
    number: int

    @property
    def label_names(self) -> Mapping[str, tuple[str, ...]]:
        """See `Source`."""
        return self.source.label_names

    def __len__(self) -> int:
        return self.number

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        return self.source[index]


pretraining = load_experiment("masked_pretraining.py")
two_labels = load_experiment("two_labels.py")
SHARED = ("num_frames", "image_size", "tubelet_size", "hidden_size", "num_layers", "num_heads", "mlp_dim")
encoder = {name: getattr(pretraining.model, name) for name in SHARED}
experiment = two_labels.override(
    {
        "model": VideoMAE(num_classes=8, drop_path_rate=0.1, **encoder),
        "data": pretraining.data,
        "data.dataset": FewLabels(pretraining.data.dataset),
        "data.batch_size": 32,
        "task.label": "motion",
        "training.steps": 400,
        "training.evaluate_every": 0,
        "training.initialise_from": "runs/masked_pretraining",
    }
)
