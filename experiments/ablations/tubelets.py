"""Tubelet length and frames: what do longer tubelets save, and do more frames help?

    vitx ablate experiments/ablations/tubelets.py --workdir runs/tubelets

ViViT's model 2 on eight frames of a clip with tubelets of one to eight, and on every second frame and half of the clip
with tubelets of one and four. The base is that of factorisation.py. Eight rows, three seeds.

Compare with ViViT (Arnab et al. 2021, section 4.2): shorter tubelets, so more tokens, are better at every model size,
and more frames help until a single view covers the video (no numbers are printed). Here motion may need the opposite: a
tubelet that contains a bend is the quickest way to see the direction of a circle.

Result (table and pictures in results/tubelets): two cores of an Intel Xeon, JAX 0.10.2, 2026-11-28, 34 min beside other
jobs. Test split, 1x1 views, mean of three seeds in %; chance is 12.5 for motion, 10 for appearance:

                                 tubelets of   motion   appearance   MMACs
    8 frames                               1     40.6         36.0     6.3
                                           2     88.8         18.2     3.6
                                           4     98.9         13.3     2.2
                                           8     98.9         10.5     1.6
    4 frames, every second one             1     39.1         32.7     3.2
                                           4     94.5         11.1     1.1
    4 frames, half of the clip             1     32.0         26.4     3.2
                                           4     87.4         10.2     1.1

For motion it is the opposite of the paper's finding: longer tubelets are better up to four frames, and cheaper. A
tubelet of two frames or more shows a direction before any attention. The single frames' seeds deviate by 12 points, so
with 14 tests and three seeds even 58 points have p = 0.058 after Holm's correction, though the interval of each
difference alone (at least +18) is far from 0. For the digit it is the paper's finding: shorter tubelets are better,
significantly against four and eight. With tubelets of four, every second frame has 7.1 points more motion than half of
the clip at the same cost, and 4.4 less than all frames at half of their cost; these rows were not tested against one
another, and their seeds deviate by 0.7 to 4.3 points. 800 steps are few: models that find the motion first have learnt
little of the digits.
"""

from vitx import Ablation, Row
from vitx.ablations.description import load_ablation

factorisation = load_ablation("factorisation.py")
models = {row.name: row.changes["model"] for row in factorisation.rows}
base = factorisation.base.override({"model": models["ViViT 2, factorised encoder, frames"]})
CLIPS = {"8 frames": (8, 1), "every second frame": (4, 2), "half of the clip": (4, 1)}


def changes(frames: int, stride: int, tubelet: int) -> dict[str, object]:
    """Returns the settings of one row."""
    return {
        "model.num_frames": frames,
        "data.num_frames": frames,
        "data.frame_stride": stride,
        "model.tubelet_size": (tubelet, 8, 8),
    }


ablation = Ablation(
    base,
    tuple(
        Row(f"{name}, tubelets of {tubelet}", changes(*clip, tubelet))
        for name, clip in CLIPS.items()
        for tubelet in (1, 2, 4, 8)
        if tubelet <= clip[0] and (clip[0] == 8 or tubelet in (1, 4))
    ),
    columns=factorisation.columns,
    reference="8 frames, tubelets of 1",
)
