"""Families at equal cost: Transformer, 3D CNN, 2D CNN, LRCN and ConvLSTM at about seven million MACs a view.

    vitx ablate experiments/ablations/families.py --workdir runs/families

Widths are chosen so that every model costs within a tenth of joint attention over single frames, the base of
factorisation.py. Learning rates are those of moving_digits/*.py, where each family was tuned on larger frames. Six
rows, three seeds.

Compare with ViViT (Arnab et al. 2021, table 6), where Transformers, pre-trained on images, beat 3D CNNs; nothing is
pre-trained here.

Result: not measured yet.
"""

from vitx import Ablation, Row
from vitx.ablations.description import load_ablation
from vitx.models.convlstm import ConvLSTM
from vitx.models.frames import LRCN, FrameCNN, PlainTrunk
from vitx.models.resnet3d import ResNet3D

factorisation = load_ablation("factorisation.py")
models = {row.name: row.changes["model"] for row in factorisation.rows}
CLASSES = factorisation.base.model.num_classes
PARTS = {"trunk": PlainTrunk(2), "grid": (6, 6)}
ROWS = {
    "Transformer, joint": (models["ViViT 1, joint, frames"], 1e-3),
    "Transformer, factorised encoder": (models["ViViT 2, factorised encoder, frames"], 1e-3),
    "3D CNN": (ResNet3D(CLASSES, width=6, depths=(1, 1, 1, 1)), 4e-3),
    "2D CNN, averaged": (FrameCNN(CLASSES, width=12), 3e-3),
    "LRCN": (LRCN(CLASSES, width=8, recurrence="gru", hidden_size=256, pooling="last", **PARTS), 2e-3),
    "ConvLSTM": (ConvLSTM(CLASSES, widths=(9, 9)), 4e-3),
}
ablation = Ablation(
    factorisation.base,
    tuple(Row(name, {"model": model, "optimizer.peak_lr": rate}) for name, (model, rate) in ROWS.items()),
    columns=factorisation.columns,
)
