"""An ablation end to end: every cell once, resumed, shared by processes; failures shown; tables and pictures."""

import collections
import contextlib
import csv
import dataclasses
import json
import shutil
import signal
import subprocess
import sys
import threading
import time
import xml.etree.ElementTree
from pathlib import Path

import jax
import numpy as np
import pytest

import vitx
from vitx import configuration, storage
from vitx.ablations import cells, estimate, runner
from vitx.ablations.cells import CellResults, find_test_row
from vitx.ablations.description import Row
from vitx.ablations.pictures import learning_curves, pareto, pareto_front
from vitx.ablations.plan import Plan, create_plan
from vitx.ablations.tables import Table, TableRow, build_table, to_latex
from vitx.cli import main
from vitx.errors import Preempted, RunError
from vitx.evaluation.examples import load_predictions
from vitx.locks import Lease
from vitx.run import load_run
from vitx.training.logs import log_info


@pytest.fixture
def fake_runs(monkeypatch):
    """Replaces training; returns the list of cells that were run, and a dictionary of what to do in their place."""
    ran, instead = [], {}

    def run_cell(cell, lease, results):
        ran.append(cell.name)
        instead.get(cell.name, lambda: None)()
        time.sleep(0.005)
        results.record(cell, {"row": cell.row})
        return True

    monkeypatch.setattr(runner, "run_cell", run_cell)
    monkeypatch.setattr(runner, "POLL_SECONDS", 0.02)
    return ran, instead


@pytest.mark.smoke
def test_the_table_has_means_and_deviations_of_what_the_runs_logged(done):
    workdir, table = done
    for row in table.rows:
        values = [
            next(r for r in load_run(path).metrics() if r["split"] == "test")["motion/top1"]
            for path in sorted((workdir / "runs").glob(f"{row.name.replace(' ', '_')}_seed*"))
        ]
        assert row.seeds == (0, 1) and len(values) == 2
        assert row.values["motion/top1"] == (pytest.approx(np.mean(values)), pytest.approx(np.std(values, ddof=1)))
    cost = vitx.count_cost(load_run(workdir / "runs" / "base_seed0").experiment.model, (4, 24, 24, 3))
    assert table.rows[0].values["params"] == (cost.params, None)
    assert table.rows[0].values["gmacs"] == (cost.macs / 1e9, None)
    assert table.header["split"] == "test, 19 clips" and table.header["views"] == "1x1"
    assert {"dataset", "hardware", "commit"} <= table.header.keys()
    assert str(workdir.parent.parent) not in str(table)


def test_tables_are_written_in_four_formats_that_agree(done):
    workdir, table = done
    data = json.loads((workdir / "table.json").read_text())
    rows = list(csv.DictReader((workdir / "table.csv").read_text().splitlines()))
    for row, from_json, from_csv in zip(table.rows, data["rows"], rows, strict=True):
        mean, deviation = row.values["motion/top1"]
        assert from_json["values"]["motion/top1"] == {"mean": mean, "std": deviation}
        assert (float(from_csv["motion/top1"]), float(from_csv["motion/top1_std"])) == (mean, deviation)
        shown = f"{mean:.1f} ± {deviation:.1f}"
        assert shown in (workdir / "table.md").read_text()
        assert shown.replace("±", r"$\pm$") in (workdir / "table.tex").read_text()
    latex = (workdir / "table.tex").read_text()
    assert all(rule in latex for rule in (r"\toprule", r"\midrule", r"\bottomrule")) and r"motion/top1" in latex


def test_differences_are_paired_over_clips_where_the_metric_allows_it(done):
    workdir, table = done
    by_column = {difference.column: difference for difference in table.differences}
    assert "19 clips and 2 seeds" in by_column["motion/top1"].basis
    assert "t-test" in by_column["motion/macro_f1"].basis or by_column["motion/macro_f1"].verdict == "not tested"
    means = [row.values["motion/top1"][0] for row in table.rows]
    assert by_column["motion/top1"].mean == pytest.approx(means[1] - means[0])
    assert by_column["motion/top1"].verdict in (workdir / "table.md").read_text()


def test_pictures_are_written_as_png_and_svg(done):
    workdir, _ = done
    for name in ("curves", "pareto"):
        assert (workdir / f"{name}.png").stat().st_size > 5000
        assert xml.etree.ElementTree.parse(workdir / f"{name}.svg").getroot().tag.endswith("svg")


def test_predictions_of_every_clip_are_kept_beside_the_run(done):
    workdir, _ = done
    run = load_run(workdir / "runs" / "base_seed0")
    step, predictions = load_predictions(run.workdir / "predictions_test.npz")
    metrics = run.experiment.task.metrics(predictions)
    logged = next(row for row in run.metrics() if row["split"] == "test")
    assert step == run.step and predictions.views == "1x1"
    assert {name: logged[name] for name in metrics} == metrics


def test_finished_cells_are_never_trained_again(done, two_rows, monkeypatch):
    workdir, table = done
    monkeypatch.setattr(runner, "run_cell", None)
    assert vitx.ablate(two_rows, workdir) == table


def test_a_new_row_alone_is_run(done, two_rows, fake_runs):
    workdir, _ = done
    plan = create_plan(dataclasses.replace(two_rows, rows=(*two_rows.rows, Row("new"))), workdir)
    runner.run_cells(plan)
    assert fake_runs[0] == ["new_seed0", "new_seed1"]
    for name in fake_runs[0]:
        (workdir / "results" / f"{name}.json").unlink()


def test_the_dry_run_runs_nothing_and_knows_what_is_left(done, two_rows, tmp_path):
    workdir, _ = done
    estimates = vitx.ablate(two_rows, workdir, seeds=[0, 5], dry_run=True)
    assert collections.Counter(e.state for e in estimates) == {"finished": 2, "missing": 2}
    macs = create_plan(two_rows, workdir).costs["base"][1]
    assert estimates[0].clips == 16 and estimates[0].gmacs == pytest.approx(3 * macs * 16 / 1e9)
    assert all(estimate.seconds > 0 for estimate in estimates)
    assert "2 of 4 cells are left" in str(estimates) and len(str(estimates).splitlines()) == 6
    assert not (workdir / "runs" / "base_seed5").exists()


def test_the_estimate_of_a_new_ablation_is_measured(two_rows, tmp_path):
    (found, _) = estimate.estimate(create_plan(two_rows, tmp_path, seeds=[0]))
    assert found.seconds > estimate.START_UP_SECONDS and "measured here" in found.basis


def test_the_estimate_has_the_clips_that_are_read_in_training_validation_and_test(two_rows, tmp_path, monkeypatch):
    monkeypatch.setattr(estimate, "_measure_step", lambda base: (0.5, 1.0))
    monkeypatch.setattr(estimate, "_measure_reading", lambda base: 10.0)
    (found, _) = estimate.estimate(create_plan(two_rows, tmp_path, seeds=[0]))
    clips = 2 * 8 + 2 * 21 + 19  # two steps of eight, two validations, one test
    assert found.seconds == pytest.approx(2 * 0.5 + 2 * 1.0 + estimate.START_UP_SECONDS + 10.0 * clips)


def test_a_failed_cell_shows_its_reason_and_the_others_run(done, two_rows, tmp_path):
    shutil.copytree(done[0], tmp_path / "out")
    rows = (Row("base"), Row("diverges", {"optimizer.peak_lr": 1e30, "training.max_skipped": 0}))
    ablation = dataclasses.replace(two_rows, rows=rows, seeds=(0,))
    table = vitx.ablate(ablation, tmp_path / "out")
    assert table.rows[0].seeds == (0, 1) and table.rows[1].seeds == ()  # of earlier calls, too
    (reason,) = table.rows[1].failures.values()
    assert "max_skipped" in reason
    assert "failed" in (tmp_path / "out" / "table.md").read_text() and reason[:40] in str(table)
    assert all("max_skipped" in (tmp_path / "out" / f"table.{kind}").read_text() for kind in ("csv", "tex", "json"))


def test_processes_that_share_a_folder_run_every_cell_once(two_rows, folder, fake_runs):
    ran, _ = fake_runs
    plan = create_plan(dataclasses.replace(two_rows, seeds=tuple(range(5))), folder)
    threads = [threading.Thread(target=runner.run_cells, args=(plan,)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(ran) == sorted(cell.name for cell in plan.cells)


def test_a_failure_is_tried_again_by_the_next_call_and_not_by_one_that_runs_already(two_rows, tmp_path, fake_runs):
    ran, _ = fake_runs
    plan = create_plan(dataclasses.replace(two_rows, seeds=(0,)), tmp_path)
    results = CellResults(tmp_path)
    results.record_failure(plan.cells[0], "an earlier failure")
    runner.run_cells(plan)
    assert sorted(ran) == ["base_seed0", "no_temporal_layer_seed0"] and results.read_failure(plan.cells[0]) is None
    ran.clear()
    (tmp_path / "results" / "base_seed0.json").unlink()
    (tmp_path / "results" / "no_temporal_layer_seed0.json").unlink()
    fake_runs[1]["base_seed0"] = lambda: results.record_failure(plan.cells[1], "another process met this")
    runner.run_cells(plan)
    assert ran == ["base_seed0"]


def test_compiled_programs_are_kept_as_long_as_the_ablation_runs(two_rows, tmp_path):
    plan, chosen = Plan(two_rows, tmp_path, (), (), {}), jax.config.jax_compilation_cache_dir
    with runner.share_programs(plan):
        assert jax.config.jax_compilation_cache_dir == chosen
    jax.config.update("jax_compilation_cache_dir", None)
    try:
        with runner.share_programs(plan):
            folder = Path(jax.config.jax_compilation_cache_dir)
            assert folder.is_dir()
        assert not folder.exists() and jax.config.jax_compilation_cache_dir is None
    finally:
        jax.config.update("jax_compilation_cache_dir", chosen)


def test_a_cell_that_another_process_writes_does_not_hold_up_the_others(two_rows, tmp_path, monkeypatch):
    ran = []

    def run_cell(cell, lease, results):
        ran.append(cell.name)
        if ran == ["base_seed0"]:
            return False  # another process holds its run
        results.record(cell, {"row": cell.row})
        return True

    monkeypatch.setattr(runner, "run_cell", run_cell)
    runner.run_cells(create_plan(dataclasses.replace(two_rows, seeds=(0,)), tmp_path))
    assert ran == ["base_seed0", "no_temporal_layer_seed0", "base_seed0"]


def test_lines_of_processes_that_share_a_terminal_name_their_cell(two_rows, tmp_path, monkeypatch, capsys):
    def run_cell(cell, lease, results):
        log_info("step 1", "step 2")
        results.record(cell, {"row": cell.row})
        return True

    monkeypatch.setattr(runner, "run_cell", run_cell)
    plan = create_plan(two_rows, tmp_path, seeds=[3])
    runner.run_cells(plan, name_lines=True)
    lines = capsys.readouterr().err.splitlines()
    for cell in plan.cells:
        assert all(f"{cell.row}, seed 3: step {step}" in lines for step in (1, 2))
    log_info("after")
    assert capsys.readouterr().err == "after\n"


def test_a_lost_lease_leaves_the_cell_to_its_new_owner(two_rows, tmp_path, monkeypatch):
    class Lost(Lease):
        def __init__(self):
            """Holds nothing."""

        def check(self):
            raise RunError("the lease is another's")

    (cell, _) = create_plan(dataclasses.replace(two_rows, seeds=(0,)), tmp_path).cells
    for outcome in (lambda *_: None, lambda *_: 1 / 0):
        monkeypatch.setattr(cells, "train", outcome)
        results = CellResults(tmp_path)
        assert not cells.run_cell(cell, Lost(), results) and not results.names()


def test_names_of_rows_reach_the_processes_as_they_are(two_rows, small_file, tmp_path, monkeypatch):
    rows = (Row("-mixup"), Row("x*"), Row("xy"))
    monkeypatch.setattr(runner, "load_ablation", lambda file: dataclasses.replace(two_rows, rows=rows))
    commands = []

    class Worker:
        def __init__(self, command, env):
            commands.append(command)

        def wait(self):
            return 1

    monkeypatch.setattr(subprocess, "Popen", Worker)
    with pytest.raises(RunError, match="2 of 2 cells are not settled"):
        vitx.ablate("file.py", tmp_path, rows=["-mixup", "x[*]"], seeds=[0], jobs=2)
    taken = []
    monkeypatch.setattr(runner, "run_cells", lambda plan, **_: taken.extend(cell.row for cell in plan.cells))
    assert main(commands[0][3:]) == 0 and taken == ["-mixup", "x*"]


def test_an_ablation_with_relative_paths_resumes(two_rows, done, tmp_path, monkeypatch):
    """A run's config.json has absolute paths."""
    monkeypatch.chdir(done[0])
    weights = "runs/base_seed0"
    base = two_rows.base.override({"training.initialise_from": weights, "training.steps": 1})
    ablation = dataclasses.replace(two_rows, base=base, rows=two_rows.rows[:1], seeds=(0,))
    vitx.ablate(ablation, tmp_path)
    assert create_plan(ablation, tmp_path).cells[0].experiment.training.initialise_from == weights


def test_seeds_that_earlier_calls_have_finished_are_in_the_table(two_rows, tmp_path):
    CellResults(tmp_path).record(create_plan(two_rows, tmp_path, seeds=[7]).cells[0], {"row": "base", "seed": 7})
    (tmp_path / "ablation.json").write_text(json.dumps({"format": 1, "base": configuration.to_dict(two_rows.base)}))
    names = {cell.name for cell in create_plan(two_rows, tmp_path).all_cells()}
    assert {"base_seed7", "base_seed0", "no_temporal_layer_seed1"} <= names


def test_predictions_of_another_checkpoint_than_the_metrics_are_not_paired(done, two_rows, tmp_path):
    shutil.copytree(done[0], tmp_path / "out")
    path = tmp_path / "out" / "results" / "base_seed0.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"step": 99}))
    table = build_table(create_plan(two_rows, tmp_path / "out"))
    assert all("clips" not in difference.basis for difference in table.differences)


def test_a_request_to_stop_ends_the_ablation_and_releases_the_cell(two_rows, tmp_path, fake_runs):
    ran, instead = fake_runs
    plan = create_plan(dataclasses.replace(two_rows, seeds=(0,)), tmp_path)

    def stop():
        raise Preempted("stopped")

    instead["base_seed0"] = stop
    with pytest.raises(Preempted):
        runner.run_cells(plan)
    instead.clear()
    runner.run_cells(plan)
    assert ran == ["base_seed0", "base_seed0", "no_temporal_layer_seed0"]


def test_a_cell_is_the_test_of_its_own_settings_not_a_later_evaluation():
    rows = [{"step": 4, "split": "train"}, *({"step": step, "split": "test", "views": "1x1"} for step in (2, 4))]
    other = {"step": 4, "split": "test", "views": "4x3", "settings": {"data.eval_clips": 4}}
    assert find_test_row([*rows, other], 4)["views"] == "1x1"


def test_the_pareto_front_has_the_rows_that_none_beats_at_lower_or_equal_cost():
    points = {"cheap": (1.0, 50.0), "same cost, worse": (1.0, 40.0), "dear": (3.0, 70.0), "beaten": (2.0, 45.0)}
    assert pareto_front(points) == ["cheap", "dear"]
    assert pareto_front(points, is_higher=False) == ["same cost, worse"]


def test_a_metric_that_no_row_has_is_not_drawn():
    points = {"a": {"gmacs": (1.0, None), "top1": (50.0, None)}}
    assert len(pareto(points, {"top1": True, "loss": False}, {}).axes) == 1
    assert not pareto(points, {"loss": False}, {}).axes


def test_names_of_rows_are_drawn_and_typeset_as_they_are():
    name = "[2pt] lr $\\frac{1$ <b>"
    points = {name: {"gmacs": (1.0, None), "top1": (50.0, None)}}
    figure = pareto(points, {"top1": True}, {})
    figure.draw_without_rendering()
    assert name.replace("$", r"\$") in {text.get_text() for text in figure.legends[0].get_texts()}
    curves = learning_curves({name: [[{"step": 1, "split": "train", "loss": 1.0}]]}, [], {})
    curves.draw_without_rendering()
    table = Table({}, ("top1",), (TableRow(name, (0,), {"top1": (50.0, None)}, {}),), ())
    assert r"{}[2pt] lr \$\textbackslash{}frac\{1\$ \textless{}b\textgreater{} & 50.0 \\" in to_latex(table)


def test_equal_means_that_differ_by_rounding_are_no_front():
    assert pareto_front({"cheap": (1.0, 12.777777777777777), "dear": (2.0, 12.777777777777779)}) == ["cheap"]


def test_long_names_of_many_rows_stay_inside_the_picture():
    points = {
        f"a rather long name of row {i:02}": {"gmacs": (1.0 + i, None), "top1": (float(i), 1.0)} for i in range(20)
    }
    figure = pareto(points, {"top1": True}, {"top1": "(%)"})
    assert figure.axes[0].get_title() == "top1, test (%)"
    figure.draw_without_rendering()
    (legend,) = figure.legends
    box = legend.get_window_extent()
    assert box.x0 >= 0 and box.x1 <= figure.bbox.x1 and box.y0 >= 0
    assert {text.get_text() for text in legend.get_texts()} == {*points, "Pareto front"}


@pytest.mark.parametrize("costs", [(0.0032, 0.0058), (0.9, 1.1), (0.002, 0.02), (1.0, 300.0)])
def test_an_axis_of_costs_has_at_least_two_labels(costs):
    points = {str(cost): {"gmacs": (cost, None), "top1": (50.0, None)} for cost in costs}
    (axes,) = (figure := pareto(points, {"top1": True}, {})).axes
    figure.draw_without_rendering()
    low, high = axes.get_xlim()
    ticks = [*axes.xaxis.get_major_ticks(), *axes.xaxis.get_minor_ticks()]
    labels = [tick.label1.get_text() for tick in ticks if low <= tick.get_loc() <= high and tick.label1.get_text()]
    assert 2 <= len(labels) <= 9, labels


@pytest.mark.slow
def test_two_processes_share_the_cells_and_one_takes_over_when_the_other_is_killed(folder, small_file, tmp_path):
    """Last run: 2026-11-28: a local folder and both stores."""
    workdir, file = folder / "ablation", tmp_path / "file.py"
    changes = {"training.steps": 300, "training.evaluate_every": 0, "training.checkpoint_every": 50}
    file.write_text(
        "from vitx import Ablation, Row, load_experiment\n"
        f"ablation = Ablation(load_experiment({small_file!r}).override({changes!r}),\n"
        "    (Row('base'), Row('two layers', {'model.num_layers': 2})), seeds=(0, 1), columns=('motion/top1',))\n"
    )
    command = [sys.executable, "-m", "vitx", "ablate", str(file), "--workdir", str(workdir)]
    logs = [tmp_path / "first.log", tmp_path / "second.log"]
    with contextlib.ExitStack() as stack:
        processes = []
        for log, cell in zip(logs, ("base_seed0", "two_layers_seed0"), strict=True):
            output = stack.enter_context(log.open("w"))
            process = subprocess.Popen(command, cwd=tmp_path, stderr=output, stdout=subprocess.DEVNULL)
            processes.append(stack.enter_context(process))
            stack.callback(process.kill)
            while cell not in storage.names_in(workdir / "runs"):
                assert process.poll() is None, log.read_text()
                time.sleep(0.05)
        processes[0].send_signal(signal.SIGKILL)
        assert processes[1].wait(timeout=300) == 0, logs[1].read_text()
    lines = [line for log in logs for line in log.read_text().splitlines()]
    begun = collections.Counter(line.split("; row ")[1] for line in lines if "; row " in line)
    assert sorted(begun.values()) == [1, 1, 1, 2]  # the cell of the killed process alone was begun again
    data = json.loads(storage.read_text(workdir / "table.json"))
    assert [row["seeds"] for row in data["rows"]] == [[0, 1], [0, 1]]


@pytest.mark.parametrize("jobs", [0, 2])
def test_jobs_are_at_least_one_and_several_need_a_file(jobs, two_rows, tmp_path):
    with pytest.raises(vitx.UserError, match=f"jobs is {jobs}"):
        vitx.ablate(two_rows, tmp_path, jobs=jobs)


@pytest.mark.slow
def test_jobs_are_processes_that_share_the_cells(small_file, tmp_path):
    """Last run: 2026-11-28."""
    file = tmp_path / "file.py"
    file.write_text(
        "from vitx import Ablation, Row, load_experiment\n"
        f"base = load_experiment({small_file!r}).override({{'training.steps': 2, 'training.evaluate_every': 0}})\n"
        "ablation = Ablation(base, (Row('base'), Row('two layers', {'model.num_layers': 2})), seeds=(0, 1))\n"
    )
    table = vitx.ablate(file, tmp_path / "out", rows=["base"], jobs=2)
    assert [row.seeds for row in table.rows] == [(0, 1), ()]
    for seed in (0, 1):
        rows = load_run(tmp_path / "out" / "runs" / f"base_seed{seed}").metrics()
        assert [row["split"] for row in rows].count("test") == 1


def test_the_command_prints_the_table_and_the_estimates(done, two_rows, tmp_path, small_file, capsys, monkeypatch):
    workdir, _ = done
    file = tmp_path / "ablation.py"
    changes = {name: getattr(two_rows.base.training, name) for name in ("steps", "log_every", "evaluate_every")}
    file.write_text(
        "from vitx import Ablation, Row, load_experiment\n"
        f"changes = {{f'training.{{name}}': value for name, value in {changes!r}.items()}}\n"
        f"ablation = Ablation(load_experiment({small_file!r}).override(changes),\n"
        f"    (Row('base'), Row('no temporal layer', {{'model.num_temporal_layers': 0}})),\n"
        f"    seeds=(0, 1), columns={two_rows.columns!r})\n"
    )
    monkeypatch.setattr(runner, "run_cell", None)
    assert main(["ablate", str(file), "--workdir", str(workdir), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads((workdir / "table.json").read_text())
    assert main(["ablate", str(file), "--workdir", str(workdir), "--dry_run", "--json", "--rows", "base"]) == 0
    cells = json.loads(capsys.readouterr().out)["cells"]
    assert [(cell["row"], cell["state"]) for cell in cells] == [("base", "finished")] * 2
