"""Fine-tuning on 5 % of the labels of moving digits: the encoder of masked_pretraining.py, or one from scratch.

    vitx train experiments/moving_digits/masked_finetuning.py --workdir runs/masked_finetuning
    vitx train experiments/moving_digits/masked_finetuning.py --workdir runs/few_labels --training.initialise_from None

The 200 first training clips keep their labels; validation and test stay whole. few_labels.py trains both with three
seeds.

Not shown yet: a gain by pre-training. Two busy cores of an AMD EPYC, JAX 0.10.2, 2026-11-26, seed 0, 200 steps, test
split, 1x1 views:

    start                                                        motion    appearance
    from scratch                                                 85.4 %    15.1 %
    700 steps of masked_pretraining.py                           84.7 %    18.4 %
    1,200 steps of normalised cubes, layer_decay 0.75            28.8 %    23.2 %

On digits of half the size without background (8 frames of 24x24, tubelets of 2x4x4; texture and noise 0), 2026-11-27,
one seed, 3,000 steps of pre-training with 32 clips, then 400 steps: 85.4 and 26.6 % from it, 84.7 and 21.2 % from
scratch; another run from scratch reached 87.1 and 24.4 %, so no difference was shown.
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
        "model": VideoMAE(num_classes=two_labels.model.num_classes, drop_path_rate=0.1, **encoder),
        "data.dataset": FewLabels(),
        "training.steps": 200,
        "training.evaluate_every": 0,
        "training.initialise_from": "runs/masked_pretraining",
    }
)
