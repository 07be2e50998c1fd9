"""The embedded ablations: every row builds, and every file says what it shows."""

import ast
import re
from pathlib import Path

import jax
import numpy as np
import pytest

from vitx.ablations.description import load_ablation
from vitx.ablations.plan import create_plan
from vitx.training.overview import count_cost_of


def ablation_files(root):
    return sorted((root / "experiments" / "ablations").glob("*.py"))


def test_every_row_of_every_file_builds_by_shapes(pytestconfig):
    files = ablation_files(pytestconfig.rootpath)
    assert "factorisation.py" in [file.name for file in files]
    for file in files:
        ablation = load_ablation(file)
        names = [row.name for row in ablation.rows]
        assert len(set(names)) == len(names) and ablation.reference in (None, *names), file
        built = set()
        for row in ablation.rows:
            experiment = ablation.base.override(row.changes)
            data = experiment.data
            if (experiment.model, data.num_frames) in built:
                continue
            built.add((experiment.model, data.num_frames))
            video = jax.ShapeDtypeStruct((1, data.num_frames, *data.image_size, 3), np.uint8)
            task, model = experiment.task, experiment.model
            jax.eval_shape(lambda task=task, model=model, v=video: task.init(model, jax.random.key(0), {"video": v}))


def test_every_file_begins_with_its_command_and_states_its_result(pytestconfig):
    for file in ablation_files(pytestconfig.rootpath):
        docstring = ast.get_docstring(ast.parse(file.read_text()))
        assert f"vitx ablate {file.relative_to(pytestconfig.rootpath)} --workdir" in docstring, file
        assert re.search(r"not measured yet|\d{4}-\d{2}-\d{2}", docstring), file


def test_the_factorisation_has_every_layout_with_frames_and_tubelets_and_both_labels(pytestconfig):
    ablation = load_ablation(pytestconfig.rootpath / "experiments" / "ablations" / "factorisation.py")
    models = [row.changes["model"] for row in ablation.rows]
    layouts = {(type(model).__name__, model.layouts, model.tubelet_size[0]) for model in models}
    assert len(models) == 20 and {frames for *_, frames in layouts} == {1, 4}
    assert {name for _, names, _ in layouts for name in names} == {
        "joint", "time", "space", "time_and_space", "local", "sparse", "width", "height"
    }  # fmt: skip
    assert {label for model in models for label, _ in model.num_classes} == {"appearance", "motion"}
    assert len(ablation.seeds) == 3


def test_families_cost_the_same_within_a_tenth(pytestconfig):
    ablation = load_ablation(pytestconfig.rootpath / "experiments" / "ablations" / "families.py")
    costs = [count_cost_of(ablation.base.override(row.changes))[1] for row in ablation.rows]
    assert len(costs) == 6 and all(0.9 < cost / costs[0] < 1.1 for cost in costs), costs


@pytest.mark.slow
def test_every_ablation_plans_on_its_own_data(pytestconfig, tmp_path, monkeypatch):
    """Last run: 2026-11-26: eight files."""
    monkeypatch.chdir(tmp_path)
    for file in ablation_files(pytestconfig.rootpath):
        ablation = load_ablation(file)
        for row in ablation.rows:
            if (weights := row.changes.get("training.initialise_from")) is not None:
                Path(weights).parent.mkdir(parents=True, exist_ok=True)
                Path(weights).touch()
        plan = create_plan(ablation, tmp_path / file.stem)
        assert len(plan.cells) == 3 * len(ablation.rows) and all(macs for _, macs in plan.costs.values()), file
