"""TimeSformer on Something-Something V2: which of five attentions sees motion?

    vitx ablate experiments/ssv2/timesformer_attention.py --workdir runs/ssv2_timesformer_attention

The five attentions of table 1, each with its own recipe of this folder, one seed. Attention in space alone cannot know
the order of frames.

Compare with arXiv:2102.05095, table 1, 1x3 views: space 36.6 %, joint 58.5 %, divided 59.5 %, local-global 56.3 %,
axial 56.2 %.

Result: not measured yet.
"""

from vitx import Ablation, Row, load_experiment

base = load_experiment("timesformer_b_16_divided.py")
ATTENTIONS = ("space", "joint", "divided", "local_global", "axial")
ablation = Ablation(
    base,
    tuple(Row(name, {"model": load_experiment(f"timesformer_b_16_{name}.py").model}) for name in ATTENTIONS),
    seeds=(0,),
    columns=("class/top1", "class/top5", "params", "gmacs", "clips_per_second", "peak_memory_mib"),
    reference="divided",
)
