"""Which explanations of models of moving digits are true? Every method on each run, against the digit's own mask.

    python experiments/moving_digits/explanations.py RUN ... [--methods kernel_shap lime] [--clips 16]

Prints a table; explanations.md beside this file has the results. Runs are of experiments on moving digits, such as
quickstart.py and cnn_frames.py. A run with two labels is measured on the one that it has learnt better.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np

from vitx.data.moving_digits import APPEARANCES, MOTIONS, digit_coverage, render_clip
from vitx.explain.clips import read_clip
from vitx.explain.faithfulness import (
    deletion_and_insertion,
    localisation,
    order_dependence,
    random_like,
    randomisation_check,
)
from vitx.explain.methods import methods_for, relevance
from vitx.explain.score import Target
from vitx.models import resolve_implementation
from vitx.run import Run, load_run

COLUMNS = ("localisation", "deletion", "insertion", "randomised")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", metavar="RUN")
    parser.add_argument("--methods", nargs="+", help="methods to measure; default: all that work for the model")
    parser.add_argument("--clips", type=int, default=16, help="clips of the test split (default: 16)")
    options = parser.parse_args()
    print("| run | label | shuffled frames | method | " + " | ".join(COLUMNS) + " |")
    print("| --- | --- | ---: | --- | " + " | ".join("---:" for _ in COLUMNS) + " |")
    for workdir in options.runs:
        label, order, rows = measure(load_run(workdir), options.clips, options.methods)
        for method, row in rows.items():
            cells = [Path(workdir).name, label, f"{round(100 * order)} %", f"`{method}`", *(f"{x:.2f}" for x in row)]
            print(f"| {' | '.join(cells)} |", flush=True)


def measure(run: Run, clips: int, methods: Sequence[str] | None = None) -> tuple[str, float, dict[str, np.ndarray]]:
    """Returns (label, probability that shuffling the frames costs, {method: mean over clips of each column})."""
    model, variables = resolve_implementation(run.experiment.model, jax.devices()[0]), run.variables
    tested = next(row for row in reversed(run.metrics()) if row["split"] == "test" and "num_tokens" not in row)
    label = max(run.output_names, key=lambda name: tested[f"{name}/top1"])
    others = random_like(variables, jax.random.key(clips))
    config, rows, orders = run.experiment.data.dataset.clips, {}, []
    for index in range(clips):
        frames, digit, motion = render_clip(config, "test", index)
        clip = read_clip(frames, run.experiment.data)
        video = run.experiment.task.normalise(clip)
        true = run.output_names[label].index({"motion": MOTIONS[motion], "appearance": APPEARANCES[digit]}[label])
        target = Target(true, label if isinstance(model.num_classes, tuple) else None)
        orders.append(order_dependence(model, variables, video, target, jax.random.key(index)))
        mask = shrink(digit_coverage(config, "test", index), clip.shape[1:3]) > 0.5
        for method in methods or methods_for(model, video):
            _, values = relevance(model, variables, video, target, method)
            curves = deletion_and_insertion(model, variables, video, target, values)
            check = randomisation_check(model, variables, others, video, target, method)
            row = localisation(values, mask), curves.deletion_area, curves.insertion_area, check
            rows.setdefault(method, []).append(row)
    return label, float(np.mean(orders)), {method: np.mean(of_method, axis=0) for method, of_method in rows.items()}


def shrink(coverage: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Returns averages over equal squares, [t, *size]."""
    t, height, width = coverage.shape
    return coverage.reshape(t, size[0], height // size[0], size[1], width // size[1]).mean(axis=(2, 4))


if __name__ == "__main__":
    main()
