"""The embedded ablations: every row builds, and every file says what it shows."""

import ast
import re

import jax
import numpy as np
import pytest

from vitx.ablations.description import load_ablation


def ablation_files(root):
    return sorted((root / "experiments" / "ablations").glob("*.py"))


def test_every_row_of_every_file_builds_by_shapes(pytestconfig):
    files = ablation_files(pytestconfig.rootpath)
    assert "factorisation.py" in [file.name for file in files]
    for file in files:
        ablation = load_ablation(file)
        names = [row.name for row in ablation.rows]
        assert len(set(names)) == len(names) and ablation.reference in (None, *names), file
        for row in ablation.rows:
            experiment = ablation.base.override(row.changes)
            data = experiment.data
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


@pytest.mark.slow
def test_every_ablation_plans_on_its_own_data(pytestconfig, tmp_path):
    from vitx.ablations.plan import make_plan

    for file in ablation_files(pytestconfig.rootpath):
        plan = make_plan(load_ablation(file), tmp_path / file.stem)
        assert all(macs for _, macs in plan.costs.values()), file
