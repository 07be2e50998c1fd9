"""ViViT on Kinetics-400: how much accuracy do longer tubelets cost?

    vitx ablate experiments/kinetics400/vivit_tokens.py --workdir runs/vivit_tokens

Model 1, base, and the factorised encoder, base and large, with tubelets of 2, 4 and 8 frames, one seed: the token sweep
of section 4.2. Longer tubelets give fewer tokens and fewer GMACs.

Compare with arXiv:2103.15691v2, figure 8, which prints no numbers: more tokens are better at every size, and cost most
in model 1.

Result: not measured yet.
"""

from vitx import Ablation, Row, load_experiment

base = load_experiment("vivit_b_16x2.py")
EXPERIMENTS = {
    "B, model 1": base,
    "B, model 2": load_experiment("vivit_b_16x2_fe.py"),
    "L, model 2": load_experiment("vivit_l_16x2_fe.py").override({"data.eval_crops": 1}),
}
rows = tuple(
    Row(
        f"{name}, 16x{frames}",
        {
            "model": experiment.override({"model.tubelet_size": (frames, 16, 16)}).model,
            "optimizer": experiment.optimizer,
            "training.initialise_from": experiment.training.initialise_from,
        },
    )
    for name, experiment in EXPERIMENTS.items()
    for frames in (2, 4, 8)
)
ablation = Ablation(
    base,
    rows,
    seeds=(0,),
    columns=("class/top1", "class/top5", "params", "gmacs", "clips_per_second", "peak_memory_mib"),
)
