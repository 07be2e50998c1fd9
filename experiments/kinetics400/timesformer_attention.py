"""TimeSformer on Kinetics-400: which of five attentions is most accurate?

    vitx ablate experiments/kinetics400/timesformer_attention.py --workdir runs/timesformer_attention

The five attentions of table 1, each with its own recipe of this folder, one seed. The same on Something-Something V2:
../ssv2/timesformer_attention.py.

Compare with arXiv:2102.05095, table 1, 1x3 views: space 76.9 %, joint 77.4 %, divided 78.0 %, local-global 75.9 %,
axial 73.5 %.

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
