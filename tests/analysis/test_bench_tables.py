"""The tables of docs/speed.md are those of the records, and each record is of one of the commands."""

import runpy
import shlex

import pytest


@pytest.fixture(scope="module")
def script(pytestconfig):
    return runpy.run_path(str(pytestconfig.rootpath / "experiments" / "benchmarks" / "models.py"))


def test_the_tables_of_the_page_are_those_of_the_records(script):
    assert script["PAGE"].read_text() == script["format_page"](), "run python experiments/benchmarks/models.py --tables"


def test_every_record_is_of_a_command_and_says_so_in_its_line(script):
    kept, lines = [record for found in script["read_records"]().values() for record in found], script["format_tables"]()
    assert kept
    for record in kept:
        (line,) = (line for line in lines.splitlines() if f"`{shlex.join(record['command'])}`" in line)
        assert f"{record['models'][0]['forward_ms']:.0f} (" in line


def test_a_line_has_ratios_with_their_spread(script):
    row: dict = {"train_step_memory_bytes": 2_500_000_000}
    record = {"command": ["x3d_s"], "machine": {"load": 1.04, "threads": 2}}
    for name, (low, median, high) in {"": (8, 10, 12), "peer_": (16, 20, 24)}.items():
        for call in ("forward", "train_step"):
            row |= {f"{name}{call}_ms": median, f"{name}{call}_quartiles_ms": [low, high], f"{call}_ratio": 2.0}
    cells = script["format_line"](record, row).split(" | ")
    assert cells[1:5] == ["1.0", "10 (8 to 12)", "20 (16 to 24)", "2.00 (1.33 to 3.00)"] and cells[-1] == "2.50 GB |"
    row["forward_ratio_quartiles"] = [1.9, 2.1]
    assert script["format_line"](record, row).split(" | ")[4] == "2.00 (1.90 to 2.10)"
    disturbed = record | {"machine": {"load": 2.6, "threads": 2}}
    assert script["format_line"](disturbed, row).split(" | ")[2:5] == ["10 (8 to 12)", "20 (16 to 24)", "measure again"]
    alone = {name: value for name, value in row.items() if not name.startswith("peer_")}
    assert script["format_line"](record, alone).split(" | ")[2:5] == ["10 (8 to 12)", "", ""]
