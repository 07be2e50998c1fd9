"""Tubelet length and frames: what do longer tubelets save, and do more frames help?

    vitx ablate experiments/ablations/tubelets.py --workdir runs/tubelets

ViViT's model 2 on eight frames of a clip, on every second of them, and on half of the clip, with tubelets of one to
eight frames. The base is that of factorisation.py. Eight rows, three seeds.

Compare with ViViT (Arnab et al. 2021, section 4.2): shorter tubelets, so more tokens, are better at every model size,
and more frames help until a single view covers the video (no numbers are printed). Here motion may need the opposite: a
tubelet that contains a bend is the quickest way to see the direction of a circle.

Result: not measured yet.
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
