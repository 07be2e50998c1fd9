"""Space-time factorisation: which layouts see motion, and which digits, with single frames and with tubelets?

    vitx ablate experiments/ablations/factorisation.py --workdir runs/factorisation

Ten layouts with tubelets of one and of four frames, both labels of moving digits, three seeds: 60 short runs. All share
the recipe of moving_digits/two_labels.py with fewer steps, frames of half the size and the models of
moving_digits/layouts.py, narrower. `--dry_run` prints what each cell costs; the table and its pictures are written into
the folder, and a killed command resumes.

Compare with ViViT (Arnab et al. 2021, table 2), top-1 on Kinetics-400 and on Epic-Kitchens' actions: model 1 80.0 and
43.1 %, model 2 78.8 and 43.7 %, model 3 77.4 and 39.1 %, model 4 76.3 and 39.5 %, average pool 75.8 and 38.8 %; and
with TimeSformer (Bertasius et al. 2021, table 1), on Kinetics-400 and on Something-Something V2, where motion
decides: space 76.9 and 36.6 %, joint 77.4 and 58.5 %, divided 78.0 and 59.5 %, local-global 75.9 and 56.3 %, axial
73.5 and 56.2 %.

Result (table and pictures in results/factorisation): two cores of an AMD EPYC, JAX 0.10.2, 2026-11-28, 88 min beside
other jobs (37 min on an Intel Xeon, 2026-11-26, killed twice; means within 2 points of these). Test split, 1x1 views,
mean of three seeds in %; chance is 12.5 for motion, 10 for appearance:

                                             frames        tubelets
                                          motion  appear  motion  appear
    ViViT 1, joint                         33.2    47.6    98.6    10.5
    ViViT 2, factorised encoder            40.6    36.1    98.9    13.1
    ViViT 3, factorised self-attention     50.9    12.6   100.0    10.8
    ViViT 4, factorised dot-product        50.6    14.7    99.9    11.4
    ViViT, average pool                    13.4    58.1    99.8    10.9
    TimeSformer, space                     15.4    63.7    99.9    14.0
    TimeSformer, joint                     40.6    52.4    94.3    14.6
    TimeSformer, divided                   51.2    31.2    98.8    12.7
    TimeSformer, local-global              50.0    14.0    89.9    10.5
    TimeSformer, axial                     49.4    16.9    99.1    17.1

On single frames, by motion: as on Something-Something, models without attention along time (average pool, space) are at
chance. Where time has an attention of its own inside a block (ViViT 3 and 4, divided, local-global, axial) it is 50 %,
which a model reaches that knows the kind of a motion and guesses its direction; model 2 and joint attention have 33 to
41 %. So divided attention is ahead of joint by mean, as in TimeSformer's table. The tests over seeds and clips confirm
it for ViViT 3 and 4 alone (18 and 17 points, p 0.039 and 0.045 with Holm's correction): the seeds of joint attention
deviate by 6 points, and 16 to 18 points of divided, local-global and axial have p 0.1. Tubelets of four frames hold the
motion themselves: every layout sees it, the average-pool baseline too, local-global least (90 %); each of these
differences from joint attention on frames is significant. Digits are learnt in the opposite order: a model that has
found the motion learns few of them in 800 steps. Longer training was not tried.
"""

import runpy
from pathlib import Path

from vitx import Ablation, Row, load_experiment
from vitx.configuration import override
from vitx.data.moving_digits import ClipConfig
from vitx.data.sources import MovingDigits

MODELS = runpy.run_path(str(Path(__file__).parents[1] / "moving_digits" / "layouts.py"))["MODELS"]
SIZE = {
    "num_classes": (("appearance", 10), ("motion", 8)),
    "num_frames": 8,
    "image_size": 24,
    "hidden_size": 64,
    "num_layers": 2,
    "num_heads": 4,
    "mlp_dim": 128,
}
# Half of the default side, speed, size and radius: the same motions on a quarter of the pixels.
CLIPS = ClipConfig(
    num_frames=8,
    side=24,
    speed=(1.0, 1.75),
    radius=(3.5, 4.5),
    period=(7.0, 9.0),
    size=(10.0, 17.0),
    num_clips=(4000, 500, 1000),
)

base = load_experiment("../moving_digits/two_labels.py").override(
    {
        "model": override(MODELS["ViViT 1, joint"], {**SIZE, "tubelet_size": (1, 8, 8)}),
        "data.dataset": MovingDigits(CLIPS),
        "data.num_frames": 8,
        "data.image_size": (24, 24),
        "data.eval_batch_size": 100,
        "training.steps": 800,
        "training.evaluate_every": 200,
        "training.checkpoint_every": 400,
    }
)
rows = tuple(
    Row(f"{name}, {kind}", {"model": override(model, {**SIZE, "tubelet_size": (frames, 8, 8)})})
    for kind, frames in (("frames", 1), ("tubelets", 4))
    for name, model in MODELS.items()
)
ablation = Ablation(
    base,
    rows,
    seeds=(0, 1, 2),
    columns=("motion/top1", "appearance/top1", "params", "gmacs", "clips_per_second", "peak_memory_mib"),
    reference="ViViT 1, joint, frames",
)
