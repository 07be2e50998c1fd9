"""A long-tailed split of moving digits, and how each remedy changes the recall of its classes.

    python experiments/moving_digits/long_tail.py runs/long_tail

Trains one short run after another, resumes where it was stopped, and writes the table to long_tail.md in that folder;
long_tail.md beside this file has the results. Of the eight motions the first keeps its 500 training clips and each
next one fewer, down to 5; validation and test stay balanced. All runs share the recipe of two_labels.py with motion as
the only label.
"""

import dataclasses
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vitx.configuration import register
from vitx.data.moving_digits import MOTIONS
from vitx.data.sources import Dataset, MovingDigits, Source, label_columns
from vitx.experiment import load_experiment
from vitx.run import train

REMEDIES = {
    "none": {},
    "weights, inverse of the number": {"task.class_balance": 1.0},
    "weights, effective number (0.99)": {"task.class_balance": 0.99},
    "focal loss (2)": {"task.focal_gamma": 2.0},
    "logit adjustment (1)": {"task.logit_adjustment": 1.0},
    "square-root resampling": {"data.class_power": 0.5},
    "class-balanced resampling": {"data.class_power": 0.0},
}
STEPS = 300


@register
@dataclasses.dataclass(frozen=True)
class LongTail:
    """A dataset whose training split keeps fewer examples of each class than of the one before it.

    Attributes:
        dataset: dataset to reduce.
        label: label whose classes are reduced.
        ratio: examples of the first class divided by those of the last; classes between them fall by equal factors.
    """

    dataset: Dataset = MovingDigits()
    label: str = "motion"
    ratio: float = 100.0

    def open(self, split: str) -> Source:
        source = self.dataset.open(split)
        labels = label_columns(source)[self.label].tolist()
        num_classes = len(source.label_names[self.label])
        limits = [round(labels.count(i) * self.ratio ** (-i / (num_classes - 1))) for i in range(num_classes)]
        indices, counts = [], [0] * num_classes
        for index, label in enumerate(labels):
            counts[label] += 1
            if split != "train" or counts[label] <= limits[label]:
                indices.append(index)
        return _Subset(source, self.label, tuple(indices))


@dataclasses.dataclass(frozen=True)
class _Subset:
    source: Source
    label: str
    indices: tuple[int, ...]

    @property
    def label_names(self) -> Mapping[str, tuple[str, ...]]:
        return {self.label: self.source.label_names[self.label]}

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        example = self.source[self.indices[index]]
        return {**example, "labels": {self.label: example["labels"][self.label]}}


def main(folder: Path) -> None:
    short = load_experiment(Path(__file__).parent / "two_labels.py").override(
        {
            "model.num_classes": len(MOTIONS),
            "data.dataset": LongTail(),
            "training.steps": STEPS,
            "training.evaluate_every": 0,
            "training.monitor": "motion/macro_recall",
        }
    )
    source = LongTail().open("train")
    counts = [label_columns(source)["motion"].tolist().count(number) for number in range(len(MOTIONS))]
    lines = [f"| remedy | {' | '.join(MOTIONS)} | mean |", f"| --- |{' ---: |' * (len(MOTIONS) + 1)}"]
    lines += [f"| training clips | {' | '.join(map(str, counts))} | {sum(counts) / len(counts):.0f} |"]
    for name, changes in REMEDIES.items():
        workdir = folder / name.split(" (")[0].replace(",", "").replace(" ", "_").replace("-", "_")
        metrics = train(short.override(changes), workdir).evaluate()
        recalls = [row["recall"] for row in metrics["per_class"]["motion"].values()]
        lines.append(f"| {name} | {' | '.join(f'{x:.0f}' for x in [*recalls, metrics['motion/macro_recall']])} |")
        (folder / "long_tail.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
