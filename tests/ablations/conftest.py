"""A small ablation of two rows."""

import pytest

import vitx
from vitx.ablations.description import Ablation, Row


@pytest.fixture(scope="session")
def tiny(small):
    """The smallest useful experiment: two steps."""
    return small.override(
        {"training.steps": 2, "training.log_every": 1, "training.evaluate_every": 1, "training.checkpoint_every": 2}
    )


@pytest.fixture(scope="session")
def two_rows(tiny):
    """An ablation of two rows and two seeds."""
    rows = (Row("base"), Row("no temporal layer", {"model.num_temporal_layers": 0}))
    return Ablation(tiny, rows, seeds=(0, 1), columns=("motion/top1", "motion/macro_f1", "params", "gmacs"))


@pytest.fixture(scope="session")
def done(two_rows, common_folder):
    """(folder, table) of that ablation, which has run; all test processes share its folder, and so its cells."""
    workdir = common_folder / "ablation" / "done"
    return workdir, vitx.ablate(two_rows, workdir)
