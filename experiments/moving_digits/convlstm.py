"""Two stacked convolutional LSTMs (Shi et al. 2015) on single frames: their states carry the motion.

    vitx train experiments/moving_digits/convlstm.py --workdir runs/convlstm

Two cores of an AMD EPYC, shared with other jobs, JAX 0.10.2, 2026-11-24, seed 0, 5 min 54 s: compile 11 s, train 331 s,
evaluate 11 s. Test split, 1,000 clips of unseen handwriting, 1x1 views: motion top-1 100.0 % (validation 100.0 %).

Motion is the only label, which trains faster. With both labels and a peak learning rate of 3e-3, a run that was
stopped after 400 steps had reached 89.0 % motion and 11.9 % appearance on the validation split.
"""

from vitx import load_experiment
from vitx.models.convlstm import ConvLSTM

experiment = load_experiment("two_labels.py").override(
    {
        "model": ConvLSTM(num_classes=8, widths=(32, 32)),
        "task.label": "motion",
        "optimizer.peak_lr": 4e-3,
        "training.steps": 1000,
        "training.evaluate_every": 500,
    }
)
