"""ViViT on EPIC-KITCHENS-100: which factorisation is most accurate at its cost?

    vitx ablate experiments/epic_kitchens100/vivit_models.py --workdir runs/epic_vivit_models

The five models of table 2 with the recipe of vivit_b_16x2_fe.py, one seed. Each starts from the run of its own recipe
on Kinetics-400 (../kinetics400/vivit_b_16x2*.py), trained before.

Compare with arXiv:2103.15691v2, table 2, top-1 of actions, 4x1 views: model 1 43.1 %, model 2 43.7 %, model 3 39.1 %,
model 4 39.5 %, average pool 38.8 %.

Result: not measured yet.
"""

from vitx import Ablation, Row, load_experiment

base = load_experiment("vivit_b_16x2_fe.py")
MODELS = {"model 1": "", "model 2": "_fe", "model 3": "_fsa", "model 4": "_fdp", "average pool": "_avg"}


def changes(suffix: str) -> dict[str, object]:
    """Returns the settings of one model."""
    pretrained = load_experiment(f"../kinetics400/vivit_b_16x2{suffix}.py")
    heads = {"model.num_classes": base.model.num_classes, "model.drop_path_rate": base.model.drop_path_rate}
    return {
        "model": pretrained.override(heads).model,
        "training.initialise_from": f"runs/vivit_b_16x2{suffix}",
    }


ablation = Ablation(
    base,
    tuple(Row(name, changes(suffix)) for name, suffix in MODELS.items()),
    seeds=(0,),
    columns=("action/top1", "verb/top1", "noun/top1", "params", "gmacs", "clips_per_second", "peak_memory_mib"),
    reference="model 2",
)
