"""Initialisation from an image model of single digits: uniform frames, and tubelets inflated in two ways.

    python experiments/ablations/initialisation.py              # trains the image model, in runs/image_digits
    vitx ablate experiments/ablations/initialisation.py --workdir runs/initialisation

An image ViT learns the digit of single frames. ViViT's model 2 then starts from its weights, its temporal encoder from
nothing: with four uniformly sampled frames, whose tokens are those of images, and with four tubelets of two frames,
whose kernel is the image's at the central frame or spread evenly over both (ViViT, section 3.4, equations 8 and 9). All
rows have as many tokens. The base is that of factorisation.py. Five rows, three seeds.

Compare with ViViT (Arnab et al. 2021, table 1), model 1 on Kinetics-400: 78.5 % with uniform frames, tubelets 73.2 %
from nothing, 77.6 % inflated evenly, 79.2 % with the central frame.

Result (table and pictures in results/initialisation): two cores of an Intel Xeon, JAX 0.10.2, 2026-11-27, 24 min for
the image model and 50 min for the rows, at low priority beside benchmarks. Test split, 1x1 views, mean of three seeds
in %; chance is 12.5 for motion, 10 for appearance:

    start                          motion    appearance
    uniform frames, nothing          39.7          25.9
    uniform frames, images           12.6          82.5
    tubelets, nothing                88.8          18.2
    tubelets, central frame          13.5          80.2
    tubelets, average                21.7          74.9

Digits agree with the paper: images help most of all, and the central frame is ahead of the average. Unlike there,
uniform frames are ahead of both. Of motion, which images do not teach, the paper's table says nothing: the more digits
a row ends with, the less motion. Uniform frames from images are at chance, and the average, whose kernel spreads over
both frames, keeps a little more than the central frame. Whether motion comes back after longer training is open.
"""

from pathlib import Path

import jax

from vitx import Ablation, Row
from vitx.ablations.description import load_ablation
from vitx.configuration import override
from vitx.interop.fill import WeightsSource, fill, flatten_variables
from vitx.interop.images import FromImage, inflate
from vitx.interop.own import save_own
from vitx.run import train

WEIGHTS = Path("runs/image_digits")
factorisation = load_ablation(Path(__file__).absolute().parent / "factorisation.py")
models = {row.name: row.changes["model"] for row in factorisation.rows}
uniform = override(models["ViViT 2, factorised encoder, frames"], {"sampled_frames": 4})
tubelets = override(uniform, {"sampled_frames": 0, "tubelet_size": (2, 8, 8)})
image = factorisation.base.override(
    {
        "model.num_frames": 1,
        "model.num_classes": 10,
        "data.num_frames": 1,
        "task.label": "appearance",
        "training.steps": 3000,
        "training.evaluate_every": 1000,
    }
)
STARTS = {
    "uniform frames, from images": (uniform, "central"),
    "tubelets, central frame": (tubelets, "central"),
    "tubelets, average": (tubelets, "average"),
}


def weights_path(name: str) -> Path:
    """Returns the path of the weights that a row starts from."""
    return WEIGHTS / f"{name.replace(',', '').replace(' ', '_')}.safetensors"


def main() -> None:
    """Trains the image model, and writes what each row starts from."""
    run = train(image, WEIGHTS / "image")
    tensors = flatten_variables(jax.device_get(run.variables))
    for name, (model, inflation) in STARTS.items():
        found, _ = inflate(tensors, model, FromImage(inflation))
        source = WeightsSource(found, {}, (), model, may_miss=("head/*", "temporal_*"), inflation=inflation)
        variables, report = fill(source, model, str(run.workdir), swap_head=True)
        print(f"{name}: {report}")
        save_own(model, variables, weights_path(name), preprocessing=None, labels=None)


ablation = Ablation(
    factorisation.base,
    (
        Row("uniform frames, from nothing", {"model": uniform}),
        Row("tubelets, from nothing", {"model": tubelets}),
        *(
            Row(name, {"model": model, "training.initialise_from": str(weights_path(name))})
            for name, (model, _) in STARTS.items()
        ),
    ),
    columns=factorisation.columns[:4],
    reference="tubelets, from nothing",
)

if __name__ == "__main__":
    main()
