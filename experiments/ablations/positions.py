"""Positions: learned, fixed sinusoids, or none at all?

    vitx ablate experiments/ablations/positions.py --workdir runs/positions

Joint attention (ViViT's model 1) over single frames and over tubelets of four frames. Without positions joint attention
ignores the order of tokens, so on single frames it cannot tell a motion from its reverse; tubelets carry some order
themselves. The base is that of factorisation.py. Six rows, three seeds.

Compare with TimeSformer (Bertasius et al. 2021, table 4), top-1 on Kinetics-400 and on Something-Something V2: none
75.4 and 45.8 %, in space alone 77.8 and 52.5 %, in space and time 78.0 and 59.5 %.

Result (table and pictures in results/positions): two cores of an Intel Xeon, JAX 0.10.2, 2026-11-28, 19 min beside
small jobs. Test split, 1x1 views, mean of three seeds in %; chance is 12.5 for motion, 10 for appearance:

    positions       frames              tubelets
                    motion   appear     motion   appear
    learned           33.6     47.5       98.6     10.5
    sinusoidal        33.6     46.2       95.6     10.9
    none              33.1     46.1       97.8     10.0

On single frames no kind differs significantly from learned positions, other than on Something-Something: joint
attention tells a third of the motions, which the set of tokens without any order allows as well, and has not begun to
use their order after 800 steps. Tubelets carry the order themselves; among them the seeds differ more (deviations up
to 6 points) than the kinds. Whether positions matter after longer training is open.
"""

from collections.abc import Callable

import jax

from vitx import Ablation, Row
from vitx.ablations.description import load_ablation
from vitx.configuration import override, register, settings
from vitx.models.transformer import VideoTransformer
from vitx.models.vivit import ViViT


@register
class ViViTWithoutPositions(ViViT):
    """ViViT that adds no positions; without a class token, as pooling="mean" has none."""

    def setup(self):
        VideoTransformer.setup(self)
        self.positions: Callable[[jax.Array], jax.Array] = lambda x: x
        self.encoder = self.new_encoder(self.num_layers, self.layouts)

    def position_tables(self) -> dict:
        """See `VideoModel`."""
        return {}


factorisation = load_ablation("factorisation.py")
joint = factorisation.base.model
MODELS = {
    "learned": joint,
    "sinusoidal": override(joint, {"position_kind": "sinusoidal"}),
    "none": ViViTWithoutPositions(**settings(joint)),
}
ablation = Ablation(
    factorisation.base,
    tuple(
        Row(f"{name}, {kind}", {"model": override(model, {"tubelet_size": (frames, 8, 8)})})
        for kind, frames in (("frames", 1), ("tubelets", 4))
        for name, model in MODELS.items()
    ),
    columns=factorisation.columns,
    reference="learned, frames",
)
