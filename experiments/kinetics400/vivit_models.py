"""ViViT on Kinetics-400: which factorisation is most accurate at its cost?

    vitx ablate experiments/kinetics400/vivit_models.py --workdir runs/vivit_models

The five models of table 2, each with its own recipe of this folder, one seed. `--dry_run` estimates each cell; on a pod
start the same command on several slices, which share the rows.

Compare with arXiv:2103.15691v2, table 2, 4x1 views: model 1 80.0 %, model 2 78.8 %, model 3 77.4 %, model 4 76.3 %,
average pool 75.8 %. The paper's numbers are of one run each.

Result: not measured yet.
"""

from vitx import Ablation, Row, load_experiment

base = load_experiment("vivit_b_16x2.py")
MODELS = {"model 1": "", "model 2": "_fe", "model 3": "_fsa", "model 4": "_fdp", "average pool": "_avg"}
experiments = {name: load_experiment(f"vivit_b_16x2{suffix}.py") for name, suffix in MODELS.items()}
ablation = Ablation(
    base,
    tuple(
        Row(name, {"model": experiment.model, "optimizer": experiment.optimizer})
        for name, experiment in experiments.items()
    ),
    seeds=(0,),
    columns=("class/top1", "class/top5", "params", "gmacs", "clips_per_second", "peak_memory_mib"),
)
