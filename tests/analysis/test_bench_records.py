"""Records of the benchmark: they repeat their own command, and a loss is reported with its exit status."""

import json
from pathlib import Path

import pytest

import vitx
from vitx import cli, cli_bench
from vitx.analysis import bench_records as records
from vitx.analysis.bench import describe_machine
from vitx.errors import UserError

SMALL = ["cnn_small", "--batch", "1", "--repeats", "1", "--clip", "1", "16", "16", "--width", "4"]


def row(milliseconds: float = 100.0, spread: float = 1.0, memory: int = 1000, **fields) -> dict:
    times = {"forward_ms": milliseconds, "forward_quartiles_ms": [milliseconds - spread, milliseconds + spread]}
    return {"model": "cnn_small", "frames": 1, "height": 16, "width": 16, "batch": 1, "other": "x"} | (
        times | {"forward_memory_bytes": memory} | fields
    )


@pytest.fixture
def record(tmp_path):
    path = tmp_path / "record.json"
    records.write_record(path, SMALL, describe_machine(), [row()])
    return path


@pytest.fixture
def measured(monkeypatch):
    """Replaces measuring; returns the commands that were measured, and the rows that it gives."""
    commands, rows = [], [row()]
    measure = cli_bench._measure

    def instead(options, settings):
        commands.append(cli_bench._command(options, settings))
        return rows

    monkeypatch.setattr(cli_bench, "_measure", instead)
    return commands, rows, measure


@pytest.mark.parametrize(
    ("now", "losses"),
    [
        (row(104.0), []),
        (row(110.0), ["forward_ms"]),
        (row(110.0, spread=15.0), []),  # within the spread
        (row(50.0), []),
        (row(memory=1060), ["forward_memory_bytes"]),
        (row(memory=1040), []),
    ],
)
def test_a_loss_is_more_than_five_percent_beyond_the_spread(now, losses):
    compared = records.compare_rows([row()], [now])
    assert [x["measurement"] for x in compared if x["loss"]] == losses
    (time,) = (x for x in compared if x["measurement"] == "forward_ms")
    assert time["ratio"] == pytest.approx(100 / now["forward_ms"])
    assert time["spread"][0] <= time["ratio"] <= time["spread"][1]
    assert records.format_comparison(compared).count("LOSS") == len(losses)


def test_a_record_is_compared_by_its_own_command_and_a_loss_is_status_1(record, measured, capsys):
    commands, rows, _ = measured
    assert cli.main(["bench", "--compare", str(record), "--json"]) == 0
    assert {x["ratio"] for x in json.loads(capsys.readouterr().out)["comparison"]} == {1.0}
    rows[0] = row(200.0)
    assert cli.main(["bench", "--compare", str(record)]) == 1
    out = capsys.readouterr().out
    assert "LOSS" in out and "0.50" in out
    assert commands == [SMALL] * 2


def test_what_is_no_longer_measured_is_a_loss():
    before = [row(), row(batch=2) | {"frame_ms": 3.0}]
    compared = records.compare_rows(before, [row(batch=2)])
    missing = [(x["batch"], x["measurement"]) for x in compared if x["now"] is None]
    assert missing == [(1, "forward_memory_bytes"), (1, "forward_ms"), (2, "frame_ms")]
    assert [x["loss"] for x in compared] == [x["now"] is None for x in compared]
    assert records.format_comparison(compared).count("missing") == 3


def test_a_folder_gets_a_record_named_after_command_and_machine(tmp_path, measured):
    before = ["bench", "--batch", "1", "--repeats", "1", *SMALL[:1], *SMALL[5:]]  # options before the name
    assert cli.main([*before, "--json", str(tmp_path)]) == 0
    (path,) = tmp_path.iterdir()
    machine = describe_machine()
    assert path.name.startswith("cnn_small_batch_1") and path.stem.endswith(records.machine_kind(machine))
    found = records.read_record(path)
    assert found["command"] == SMALL and found["models"] == [row()]
    assert {"jax", "python"} <= found["machine"]["versions"].keys() and "commit" in found["machine"]
    assert found["machine"]["threads"] == machine["threads"]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"format": 2}, "format 1"),
        ({"models": [{"model": "x"}]}, "rows of models"),
        ({"models": [row(forward_quartiles_ms=[1])]}, "rows of models"),
        ({"models": [row(forward_ms="fast")]}, "rows of models"),
        ({"command": "cnn_small"}, "command"),
        ({"machine": {"device": "cpu", "processor": "Another CPU", "threads": 64}}, "another_cpu_64_cores"),
    ],
)
def test_a_file_that_cannot_be_compared_is_refused(record, measured, capsys, change, named):
    record.write_text(json.dumps(json.loads(record.read_text()) | change))
    assert cli.main(["bench", "--compare", str(record)]) == 2
    assert named in (error := capsys.readouterr().err) and str(record) in error
    assert measured[0] == []


def test_options_that_do_not_fit_are_refused(record, tmp_path, capsys):
    for words, named in (
        (["cnn_small", "--compare", str(record)], "cnn_small"),
        (["--compare", str(record), "--width", "4"], "--width"),
        (["--compare", str(record), "--batch", "8"], "--batch"),
        (["--compare", str(record), "--sweep"], "--sweep"),
        (["--compare", str(tmp_path / "missing.json")], "missing.json"),
        (["cnn_small", "--baseline", str(tmp_path)], "vitx/__init__.py"),
        (["cnn_small", "--baseline", str(tmp_path), "--rounds", "0"], "--rounds is 0"),
        (["cnn_small", "--baseline", str(tmp_path), "--json", str(tmp_path / "new.json")], "--baseline and --json"),
        (["cnn_small", "--eager"], "--against LIBRARY"),
        ([], "NAME"),
    ):
        assert cli.main(["bench", *words]) == 2
        assert named in capsys.readouterr().err


def test_a_baseline_is_measured_in_turns_with_this_version(tmp_path, monkeypatch, capsys):
    (tmp_path / "vitx").mkdir()
    (tmp_path / "vitx" / "__init__.py").write_text("")
    turns = []

    def measure(checkout, command):
        assert command == SMALL
        turns.append(checkout)
        return [row(100.0 + len(turns) if checkout == tmp_path else 150.0)]

    monkeypatch.setattr(records, "_measure", measure)
    assert cli.main(["bench", *SMALL, "--baseline", str(tmp_path), "--rounds", "3", "--json"]) == 1
    assert turns == [tmp_path, Path(vitx.__file__).parents[1]] * 3
    memory, time = json.loads(capsys.readouterr().out)["comparison"]
    assert (memory["ratio"], memory["loss"]) == (1.0, False)
    assert (time["before"], time["now"], time["loss"]) == (103.0, 150.0, True)
    assert time["ratio"] == pytest.approx(103 / 150)


def test_a_baseline_that_measures_nothing_of_the_same_name_is_refused(tmp_path, monkeypatch):
    (tmp_path / "vitx").mkdir()
    (tmp_path / "vitx" / "__init__.py").write_text("")
    monkeypatch.setattr(records, "_measure", lambda checkout, _: [row(batch=1 if checkout == tmp_path else 2)])
    with pytest.raises(UserError, match="nothing of the same name"):
        records.measure_beside(tmp_path, SMALL, 1, str)


@pytest.mark.slow  # four processes that compile
def test_another_checkout_runs_in_processes_of_its_own(capsys):
    here = Path(vitx.__file__).parents[1]
    assert cli.main(["bench", *SMALL, "--baseline", str(here), "--rounds", "2", "--json"]) in (0, 1)
    names = {x["measurement"] for x in json.loads(capsys.readouterr().out)["comparison"]}
    assert {"forward_ms", "train_step_ms", "frame_ms", "forward_memory_bytes"} <= names
