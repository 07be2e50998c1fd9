"""Pre-training against training from scratch, on 5 % of the labels of moving digits, three seeds each.

    python experiments/moving_digits/few_labels.py runs/few_labels

Trains masked_pretraining.py, then masked_finetuning.py from it and from scratch, one run after another; resumes where
it was stopped, and writes the table to few_labels.md in that folder. masked_finetuning.py has the result. A seed takes
about 7 minutes on two idle cores of an AMD EPYC (2026-11-29).
"""

import sys
from pathlib import Path

from vitx.experiment import load_experiment
from vitx.run import Run, train

SEEDS = (0, 1, 2)
HERE = Path(__file__).parent


def main(folder: Path) -> None:
    pretraining = load_experiment(HERE / "masked_pretraining.py")
    finetuning = load_experiment(HERE / "masked_finetuning.py")
    lines = ["| seed | pre-trained | from scratch |", "| ---: | ---: | ---: |"]
    for seed in SEEDS:
        start = folder / f"pretrained_{seed}"
        train(pretraining.override({"training.seed": seed}), start)
        cells = [str(seed)]
        for name, source in {"finetuned": str(start), "scratch": None}.items():
            changes = {"training.seed": seed, "training.initialise_from": source}
            cells.append(accuracy(train(finetuning.override(changes), folder / f"{name}_{seed}")))
        lines.append(f"| {' | '.join(cells)} |")
        (folder / "few_labels.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


def accuracy(run: Run) -> str:
    """Returns the accuracy of a run on the test split as text."""
    (test,) = (row for row in run.metrics() if row["split"] == "test")
    return f"{test['motion/top1']:.1f} %"


if __name__ == "__main__":
    main(Path(sys.argv[1]))
