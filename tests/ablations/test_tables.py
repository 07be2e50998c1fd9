"""Which clips are paired, and how values are shown."""

import numpy as np
import pytest

from vitx.ablations.description import Ablation, Row
from vitx.ablations.plan import Plan
from vitx.ablations.statistics import Difference
from vitx.ablations.tables import Table, TableRow, describe_part, has_same_clips, pair_examples, to_latex, to_markdown
from vitx.evaluation.evaluate import Predictions
from vitx.tasks.classification import Classification


def predictions(logits, labels, index=None, unreadable=()):
    index = np.arange(len(labels)) if index is None else np.asarray(index)
    return Predictions(
        {"motion": np.asarray(logits, np.float32)},
        {"motion": np.asarray(labels, np.int32)},
        index.astype(np.int32),
        tuple(unreadable),
        "1x1",
    )


def test_clips_are_paired_by_index_over_those_that_all_could_read():
    correct, wrong = [5.0, 0.0, 0.0], [0.0, 5.0, 0.0]
    ours = predictions([correct, correct, wrong], [0, 0, 0], index=[0, 1, 3], unreadable=[2])
    theirs = predictions([wrong, correct, correct], [0, 0, 0], index=[1, 2, 3], unreadable=[0])
    assert has_same_clips(ours, theirs)
    pair = pair_examples((Classification(), Classification()), ([ours], [theirs]), "motion/top1")
    np.testing.assert_array_equal(pair, [[[100, 0]], [[0, 100]]])  # clips 1 and 3


def test_clips_with_other_labels_or_of_another_number_are_not_paired():
    logits = np.zeros((3, 4))
    ours = predictions(logits, [0, 1, 2])
    assert not has_same_clips(ours, predictions(logits, [0, 1, 3]))
    assert not has_same_clips(ours, predictions(logits[:2], [0, 1]))
    assert has_same_clips(ours, predictions(logits + 1, [0, 1, 2]))


def test_a_metric_that_is_no_mean_over_clips_has_no_pairs():
    ours = predictions(np.eye(3), [0, 1, 2])
    assert pair_examples((Classification(), Classification()), ([ours], [ours]), "motion/macro_f1") is None


def test_special_characters_of_latex_and_markdown_are_escaped():
    row = TableRow("50 % a_b & c|d", (0,), {"motion/top1": (51.234, None)}, {})
    table = Table({}, ("motion/top1", "gmacs"), (row, TableRow("broken", (), {}, {1: "too\nlarge"})), ())
    assert r"50 \% a\_b \& c\textbar{}d & 51.2 & - \\" in to_latex(table)
    text = to_markdown(table)
    assert r"50 % a_b & c\|d" in text and "| failed |" in text and "seed 1: too large" in text


@pytest.mark.parametrize(
    "p, verdict", [(0.2, "no significant difference"), (0.01, "significant"), (None, "not tested")]
)
def test_every_difference_is_shown_with_its_verdict(p, verdict):
    found = Difference("a", "b", "motion/top1", 1.0, -1.0 if p else None, 3.0 if p else None, p, "clips")
    table = Table({}, (), (), (found,))
    assert f"| {verdict} |" in to_markdown(table)
    assert rf"& {verdict} \\" in to_latex(table) and to_latex(table).count(r"\bottomrule") == 2


def test_a_dataset_is_described_without_folders_of_this_machine(digits):
    assert "num_clips=(52, 21, 19)" in describe_part(digits)
    assert digits.data_dir not in describe_part(digits)


def test_the_reference_is_the_first_row_unless_another_is_named(tiny, tmp_path):
    rows = (Row("a"), Row("b"))
    assert Plan(Ablation(tiny, rows), tmp_path, (), (), {}).reference == "a"
    assert Plan(Ablation(tiny, rows, reference="b"), tmp_path, (), (), {}).reference == "b"
