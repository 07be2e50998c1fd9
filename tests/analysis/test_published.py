"""Printed numbers beside our counts: every row has a source, deviations have reasons, tables and index are fresh."""

import csv
import dataclasses
import importlib.util
import io
import json

import pytest

from vitx.analysis import published
from vitx.analysis.model_index import format_index, model_index, variant_key
from vitx.analysis.published_tables import TITLES
from vitx.cli import main
from vitx.interop.formats import FORMATS
from vitx.models import VARIANTS

ROWS = list(published.published_rows())
COUNTS = published.read_counts()
WEIGHTS = {
    "Hugging Face": ("huggingface",),
    "scenic": ("scenic",),
    "image ViTs": ("image_timm",),
    "image ResNets": ("image",),
    "torchvision": ("resnet3d", "s3d"),
    "PyTorchVideo": ("bottleneck", "slowfast", "x3d"),
}
"""Words in the index's column of weights, and formats that read such files."""


@pytest.fixture(scope="module")
def make(pytestconfig):
    """The script that writes the tables."""
    path = pytestconfig.rootpath / "experiments" / "tables" / "make.py"
    spec = importlib.util.spec_from_file_location("make_tables", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.smoke
def test_every_row_names_a_model_a_table_and_its_source():
    for row in ROWS:
        assert row.model in VARIANTS and row.table in TITLES and row.name and row.source, row
        assert row.params_m or row.gmacs or (row.top1 and row.dataset), row
    assert len({dataclasses.astuple(row) for row in ROWS}) == len(ROWS)


def test_more_than_a_hundred_printed_costs_are_recomputed_from_checked_sources():
    recomputed = [row for row in ROWS if (row.params_m or row.gmacs) and row.is_checked]
    assert len(recomputed) > 100


def test_rows_have_a_reason_exactly_where_counts_deviate():
    for row in ROWS:
        names = published.list_deviations(row, COUNTS[row.key])
        assert bool(names) == bool(row.reason), (row.name, row.source, names, COUNTS[row.key])


@pytest.mark.parametrize(
    ("counted", "printed", "expected"),
    [
        (88.954, "88.9", True),
        (88.954, "89.0", True),
        (88.954, "88.8", False),
        (62.827, "62.9", False),
        (1.5, "2", True),
    ],
)
def test_a_printed_number_may_be_rounded_or_cut_off(counted, printed, expected):
    assert published.is_rounded(counted, printed) is expected


def test_differences_in_parameters_and_more_than_a_percent_of_macs_need_a_reason():
    row = dataclasses.replace(ROWS[0], params_m="3.8", gmacs="4.70")
    assert published.list_deviations(row, published.Count(3_794_274, 4_732_000_000)) == []
    assert published.list_deviations(row, published.Count(3_694_274, 4_732_000_000)) == ["parameters"]
    assert published.list_deviations(row, published.Count(3_794_274, 4_750_000_000)) == ["GMACs"]


def test_tables_and_index_are_those_of_the_stored_counts(make):
    for path, text in make.pages().items():
        assert path.read_text() == text, f"{path.name} is stale; run python experiments/tables/make.py"


def test_stored_counts_are_of_exactly_the_models_of_the_tables_and_the_index(make):
    assert list(COUNTS) == make.keys()


@pytest.mark.parametrize("pattern", ["x3d_xs", "mc3_18", "slow_r50", "vivit_b_16x2_fdp", "convlstm_forecaster_o*"])
def test_stored_counts_are_what_is_counted_now(pattern):
    """One model of each family; all of them when run by hand."""
    row = next(published.published_rows([pattern]))
    cost, compared = published.count(row.key), published.compare_row(row)
    assert COUNTS[row.key] == published.Count(cost.params, cost.macs)
    assert compared["params"] == cost.params
    assert compared["params_deviation_%"] == pytest.approx(100 * (cost.params / 1e6 / float(row.params_m) - 1))


def test_stored_parameters_are_the_frozen_ones(pytestconfig):
    with (pytestconfig.rootpath / "tests" / "models" / "parameters.csv").open() as file:
        frozen = {row["model"]: int(row["parameters"]) for row in csv.DictReader(file)}
    assert {name: COUNTS[variant_key(name)].params for name in frozen} == frozen


def test_every_recipe_is_in_the_index(make):
    assert make.RECIPES.read_text() == make.recipes_csv(), "run python experiments/tables/make.py --keep_counts"


@pytest.mark.slow
def test_all_stored_counts_are_what_is_counted_now(make):
    rows = csv.DictReader(io.StringIO(make.counts_csv()))
    for row, (key, stored) in zip(rows, COUNTS.items(), strict=True):
        assert (int(row["params"]), int(row["macs"])) == (stored.params, stored.macs), key


def test_the_index_names_what_is_known_of_every_variant(make, pytestconfig):
    rows = model_index(make.names())
    assert [row["model"] for row in rows] == make.names()
    for row in rows:
        assert row["family"] and row["paper"].startswith("arXiv:") and row["parameters"] > 0, row
        for path in row["recipes"]:
            assert (pytestconfig.rootpath / path).stem == row["model"] and (pytestconfig.rootpath / path).is_file()


def test_weights_of_the_index_are_of_formats_that_can_be_read_into_the_model(make):
    for row in model_index(make.names()):
        model = VARIANTS[row["model"]]
        for words, formats in WEIGHTS.items():
            if words in row["weights"]:
                assert any(FORMATS[name].fills(model) for name in formats), row
        assert bool(row["weights"]) == any(
            FORMATS[name].fills(model) for formats in WEIGHTS.values() for name in formats
        )


def test_accuracies_of_the_index_are_those_of_the_models_own_paper_at_its_own_input():
    accuracies = {
        row["model"]: row["published top-1, views"] for row in model_index(["videomae_b_16x2", "videomae_l_16x2"])
    }
    # VideoMAE V2 distils this network to 86.6 %
    assert accuracies["videomae_b_16x2"].startswith("Kinetics-400 81.5 (5x3), Something-Something V2 70.8 (2x3)")
    # 86.1 % and 75.4 % are those of more frames or pixels
    assert accuracies["videomae_l_16x2"] == "Kinetics-400 85.2 (5x3), Something-Something V2 74.3 (2x3)"


def test_the_index_names_the_input_of_an_accuracy_that_is_printed_for_another_one_alone():
    (row,) = model_index(["vivit_l_16x2"])
    assert row["published top-1, views"] == "Kinetics-400 80.3 (4x1), Kinetics-600 83.0 (4x3, input 32 x 320 x 320)"


def test_accuracies_of_the_index_are_of_the_variants_own_network():
    (row,) = model_index(["timesformer_hr"])
    assert row["published top-1, views"].startswith("Kinetics-400 79.7 (1x3)")
    # SlowFast's paper prints 77.9 % and 53.7 M for a network that is not this one
    (row,) = model_index(["slowfast_r101_8x8"])
    assert row["published top-1, views"] == "Kinetics-400 77.9 (10x3)"
    (row,) = model_index(["vivit_b_16x2"])
    assert row["published top-1, views"].startswith("Kinetics-400 80.0 (4x1), EPIC-Kitchens-100 action 43.1 (4x1)")
    assert "`vivit_b_16x2` | ViViT model 1 | arXiv:2103.15691 | 32 x 224 x 224 | 88,954,000 | 451.52 |" in "".join(
        format_index([row])
    )


def test_a_custom_model_is_counted_without_paper_or_accuracies(monkeypatch):
    monkeypatch.setitem(VARIANTS._parts, "vivit_mine", VARIANTS["cnn_small"])
    (row,) = model_index(["vivit_mine"])
    assert row["parameters"] == 145_072 and row["family"] == row["weights"] == "" and row["recipes"] == []


def test_the_index_is_printed_for_names_that_match(capsys):
    assert main(["models", "x3d_*", "--table"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 6 and all(line.startswith("| `x3d_") for line in lines[2:])
    assert main(["models", "x3d_m", "--table", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)["models"]
    assert row["parameters"] == 3_794_274 and row["input"] == "16 x 224 x 224"
