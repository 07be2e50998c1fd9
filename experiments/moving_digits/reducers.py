r"""Accuracy against measured throughput of each reducer on moving digits.

    vitx train experiments/moving_digits/any_budget.py --workdir runs/any_budget
    for n in 8 4 1; do
        vitx train experiments/moving_digits/any_budget.py --workdir runs/token_learner_$n --training.budgets "()" \
            --model.reducer TokenLearner --model.reducer.num_tokens $n --model.reducer.after_layer 1
    done
    python experiments/moving_digits/reducers.py runs/any_budget --trained runs/token_learner_{8,4,1}

One run is measured with all reducers that need no training; those of `--trained` with their own. The test split is
encoded again with predicted frames, as `vitx data prepare` does, since moving digits come as keyframes alone, in which
nothing moves; every reducer sees these videos. Throughput is that of the compiled forward pass on 50 clips in memory,
each setting in turn, medians of the rounds. Writes reducers.png and prints a table; the picture here was drawn again
from the numbers below when its labels changed.

Two cores of an AMD EPYC beside other jobs (load 5 to 7), JAX 0.10.2, 2026-11-27, seed 0; motion top-1 on the test
split, 1,000 clips, 1x1 views; in brackets the budget, r of TokenMerging, num_tokens of TokenLearner:

    reducer            top-1 % at clips per second
    all tokens         87.5 at 490
    CodecTokens        87.5 at 962 (108), 87.3 at 2090 (54), 86.2 at 3596 (27), 71.7 at 4750 (12), 55.6 at 5652 (6)
    DynamicTokens      87.5 at 804 (108), 87.5 at 1234 (54), 87.5 at 1390 (27), 83.9 at 1715 (12), 70.9 at 1701 (6)
    RunLengthTokens    87.5 at 799 (108), 87.5 at 996 (72), 87.5 at 1128 (54), 75.0 at 1301 (36)
    TokenMerging       87.5 at 313 (20), 87.5 at 395 (36), 87.5 at 604 (48), 87.5 at 838 (72)
    TokenLearner       87.8 at 1279 (8), 87.1 at 1490 (4), 87.3 at 1680 (1), trained for each

The run was trained with DynamicTokens, whose choice is better for the same budget. CodecTokens compares no pixels in
the forward pass, and is faster at about the same accuracy; it pays in decoding, which is not counted here
(docs/fewer_tokens.md).
"""

import argparse
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from matplotlib.figure import Figure
from tqdm import tqdm

import vitx
from vitx.data.encoding import transcode
from vitx.data.preparation import Preparation
from vitx.data.sources import Source
from vitx.evaluation.evaluate import evaluate
from vitx.evaluation.figures import COLOURS, scale_costs
from vitx.evaluation.report import table
from vitx.layers.codec_tokens import CodecTokens
from vitx.layers.dynamic_tokens import DynamicTokens
from vitx.layers.run_length import RunLengthTokens
from vitx.layers.token_merging import TokenMerging
from vitx.models import resolve_implementation

BATCH = 50
REDUCERS = [
    None,
    *(DynamicTokens(n) for n in (108, 54, 27, 12, 6)),
    *(CodecTokens(n) for n in (108, 54, 27, 12, 6)),
    *(RunLengthTokens(budget=n) for n in (108, 72, 54, 36)),
    *(TokenMerging(r=r) for r in (20, 36, 48, 72)),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--trained", type=Path, nargs="*", default=())
    parser.add_argument("--rounds", type=int, default=20)
    options = parser.parse_args()
    source = Predicted(vitx.load_run(options.run).experiment.data.dataset.open("test"))
    cases = [(options.run, {"model.reducer": reducer}) for reducer in REDUCERS]
    cases += [(run, {}) for run in options.trained]
    runs = [vitx.load_run(run, settings=settings) for run, settings in cases]
    rows, programs = zip(*(measure_accuracy(run, source) for run in tqdm(runs, desc="accuracy")), strict=True)
    seconds = [[] for _ in programs]
    for number in tqdm(range(options.rounds + 1), desc="throughput"):
        for spent, program in zip(seconds, programs, strict=True):
            began = time.perf_counter()
            jax.block_until_ready(program())
            if number:  # the first round compiles
                spent.append(time.perf_counter() - began)
    for row, spent in zip(rows, seconds, strict=True):
        row["clips"] = BATCH / statistics.median(spent)
    cells = [
        (r["name"], r["setting"], f"{r['top1']:.1f}", f"{r['clips']:.0f}", f"{r['clips'] / rows[0]['clips']:.2f}")
        for r in rows
    ]
    print("\n".join(table(("reducer", "setting", "top-1 %", "clips per second", "times all tokens"), cells)))
    draw(rows).savefig(Path(__file__).with_suffix(".png"), dpi=120)


class Predicted:
    """The videos of a source, encoded with frames that are predicted from others; a `vitx.data.sources.Source`."""

    def __init__(self, source: Source) -> None:
        how = {name: getattr(Preparation(), name) for name in ("short_side", "codec", "crf", "keyint")}
        self.label_names = source.label_names
        self._examples = [
            {**(example := source[index]), "video": transcode(example["video"], **how)}
            for index in tqdm(range(len(source)), desc="encode videos")
        ]

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        return self._examples[index]


def measure_accuracy(run: vitx.Run, source: Source) -> tuple[dict[str, Any], Callable[[], Any]]:
    """Returns (name, setting and accuracy of a run's reducer; a function that predicts a batch in memory)."""
    experiment, reducer = run.experiment, run.experiment.model.reducer
    predictions = evaluate(
        experiment.model, experiment.task, run.variables, experiment.data, source, run.sharding, split="test"
    )
    top1 = experiment.task.metrics(predictions)["motion/top1"]
    views = [experiment.data.read_views(source[index])[0] for index in range(BATCH)]
    clips = jax.device_put(np.stack(views))
    model = resolve_implementation(experiment.model, jax.devices()[0])
    predict = jax.jit(lambda variables, clips: experiment.task.predict(model, variables, clips))
    name = "all tokens" if reducer is None else type(reducer).__name__
    number = next((getattr(reducer, field) for field in ("budget", "r", "num_tokens") if hasattr(reducer, field)), "")
    row = {"name": name, "setting": str(number), "top1": top1}
    return row, lambda: predict(run.variables, clips)


def draw(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Returns the picture of accuracy against throughput, a line for each reducer."""
    figure = Figure(figsize=(6.5, 4.0), layout="constrained")
    axes = figure.subplots()
    # Points of several reducers lie side by side at the same accuracy, so each reducer writes at a height of its own.
    heights = (5, -11, 5, -19, -27, 13)
    names = dict.fromkeys(row["name"] for row in rows)
    for colour, height, name in zip(COLOURS, heights, names, strict=False):
        own = [row for row in rows if row["name"] == name]
        x, y = ([row[key] for row in own] for key in ("clips", "top1"))
        marker = {"marker": "*", "markersize": 14, "zorder": 3} if name == "all tokens" else {"marker": "o"}
        axes.plot(x, y, color=colour, label=name, **marker)
        for row in own:
            place = {"textcoords": "offset points", "xytext": (0, height), "fontsize": 7, "ha": "center"}
            axes.annotate(row["setting"], (row["clips"], row["top1"]), color=colour, **place)
    axes.set(xlabel="clips per second (points: budget, r or num_tokens)", ylabel="motion top-1, %")
    axes.margins(y=0.12)
    scale_costs(axes, [row["clips"] for row in rows])
    axes.legend(loc="lower left", fontsize=8)
    return figure


if __name__ == "__main__":
    main()
