"""Pre-training against training from scratch, on 5 % of the labels of moving digits, three seeds each.

    python experiments/moving_digits/few_labels.py runs/few_labels

Trains masked_pretraining.py, then masked_finetuning.py from it and from scratch, one run after another; resumes where
it was stopped, and writes the table to few_labels.md in that folder. Seed 0 alone has been run, without a gain: see
masked_finetuning.py. A seed takes half an hour on two busy cores of an AMD EPYC (2026-11-29).
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
    lines = ["| start | seed | motion | appearance |", "| --- | ---: | ---: | ---: |"]
    for seed in SEEDS:
        start = folder / f"pretrained_{seed}"
        train(pretraining.override({"training.seed": seed}), start)
        for name, source in {"pre-trained": str(start), "from scratch": None}.items():
            changes = {"training.seed": seed, "training.initialise_from": source}
            if source is None:
                changes["optimizer.layer_decay"] = None  # all layers have as much to learn
            run = train(finetuning.override(changes), folder / f"{name.replace(' ', '_')}_{seed}")
            lines.append(f"| {name} | {seed} | {' | '.join(accuracies(run))} |")
            (folder / "few_labels.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


def accuracies(run: Run) -> list[str]:
    """Returns the accuracies of a run on the test split as text."""
    (test,) = (row for row in run.metrics() if row["split"] == "test")
    return [f"{test[f'{label}/top1']:.1f} %" for label in ("motion", "appearance")]


if __name__ == "__main__":
    main(Path(sys.argv[1]))
