"""Every layout on moving digits, with single frames and with tubelets of four frames.

    python experiments/moving_digits/layouts.py runs/layouts

Trains one short run after another, resumes where it was stopped, and writes the table to layouts.md in that folder;
layouts.md beside this file has the results. All runs share the recipe of two_labels.py with fewer steps, patches of
16x16 pixels and four heads (model 4 halves them).
"""

import sys
from pathlib import Path

from vitx.configuration import override
from vitx.experiment import load_experiment
from vitx.models.timesformer import ATTENTIONS, TimeSformer, TimeSformerSpace
from vitx.models.vivit import FactorisedEncoder, ViViT
from vitx.run import train

MODELS = {
    "ViViT 1, joint": ViViT(pooling="mean"),
    "ViViT 2, factorised encoder": FactorisedEncoder(pooling="mean", num_temporal_layers=2),
    "ViViT 3, factorised self-attention": ViViT(pooling="mean", layouts=("time", "space")),
    "ViViT 4, factorised dot-product": ViViT(pooling="mean", layouts=("time_and_space",)),
    "ViViT, average pool": FactorisedEncoder(pooling="mean", num_temporal_layers=0),
    "TimeSformer, space": TimeSformerSpace(),
    **{f"TimeSformer, {name.replace('_', '-')}": TimeSformer(layouts=layouts) for name, layouts in ATTENTIONS.items()},
}
SIZE = {
    "num_classes": (("appearance", 10), ("motion", 8)),
    "num_frames": 12,
    "image_size": 48,
    "hidden_size": 96,
    "num_layers": 4,
    "num_heads": 4,
    "mlp_dim": 192,
}
STEPS = 600


def main(folder: Path) -> None:
    two_labels = load_experiment(Path(__file__).parent / "two_labels.py")
    short = two_labels.override({"training.steps": STEPS, "training.evaluate_every": 0})
    lines = ["| model | motion, frames | appearance, frames | motion, tubelets | appearance, tubelets |"]
    lines += ["| --- | ---: | ---: | ---: | ---: |"]
    for name, model in MODELS.items():
        cells = [name]
        for frames in (1, 4):
            workdir = folder / f"{name.replace(',', '').replace(' ', '_').lower()}_{frames}x16x16"
            sized = override(model, {**SIZE, "tubelet_size": (frames, 16, 16)})
            run = train(short.override({"model": sized}), workdir)
            (test,) = (row for row in run.metrics() if row["split"] == "test")
            cells += [f"{test['motion/top1']:.1f} %", f"{test['appearance/top1']:.1f} %"]
        lines.append(f"| {' | '.join(cells)} |")
        (folder / "layouts.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
