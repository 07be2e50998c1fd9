"""A package of a user's own: vitx trains, evaluates, resumes, converts and counts with its parts, found by name."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

import vitx
from vitx import plugins
from vitx.cli import main
from vitx.interop.fill import flatten_variables
from vitx.interop.formats import FORMATS
from vitx.interop.tensors import READERS
from vitx.layers.layouts import LAYOUTS
from vitx.models import VARIANTS
from vitx.run import load_run

EXPERIMENT = """
import video_parts
from vitx.experiment import load_experiment

small = load_experiment({small!r})
experiment = small.override({{
    "model": video_parts.MaskedViT(num_classes=(("appearance", 10), ("motion", 8))),
    "data.dataset": video_parts.EveryOther(small.data.dataset),
    "task": video_parts.Brier(),
    "training.steps": 3,
    "training.evaluate_every": 3,
}})
"""


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Installs the package as pip does, into a folder of its own; returns the folder."""
    site = tmp_path / "site"
    about = site / "video_parts-2.0.dist-info"
    about.mkdir(parents=True)
    shutil.copy(Path(__file__).parent / "plugin_package" / "video_parts.py", site)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: video_parts\nVersion: 2.0\n")
    (about / "entry_points.txt").write_text("[vitx.plugins]\nvideo_parts = video_parts\n")
    monkeypatch.syspath_prepend(site)
    plugins._pending.cache_clear()
    yield site
    plugins._pending.cache_clear()
    sys.modules.pop("video_parts", None)
    for registry, name in ((VARIANTS, "masked_vit_tiny"), (LAYOUTS, "relative"), (READERS, ".masked")):
        registry._parts.pop(name, None)
    FORMATS._parts.pop("masked", None)


def test_a_package_of_parts_works_like_those_of_vitx(package, small_file, tmp_path, capsys, monkeypatch):
    # by name, before anything of the package is imported
    assert main(["models", "masked_*", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["masked_vit_tiny"]["type"] == "MaskedViT"
    assert main(["cost", "masked_vit_tiny", "--num_classes", "5", "--json"]) == 0
    (cost,) = json.loads(capsys.readouterr().out)["models"]
    model = vitx.create_model("masked_vit_tiny", num_classes=5)
    shapes = jax.eval_shape(model.init, jax.random.key(0), np.zeros((1, 4, 24, 24, 3), np.float32))
    assert cost["params"] == sum(x.size for x in jax.tree.leaves(shapes)) and cost["macs"] > 0
    assert shapes["params"]["block_0"]["attention"]["relative_bias"].shape == (2, 3 * 3 * 3)

    # train, then resume
    experiment, run = tmp_path / "experiment.py", tmp_path / "run"
    experiment.write_text(EXPERIMENT.format(small=small_file))
    assert main(["train", str(experiment), "--workdir", str(run), "--debug"]) == 0
    longer = ["--training.steps", "5", "--extend", "--training.mesh.data", "1"]
    assert main(["train", str(experiment), "--workdir", str(run), *longer]) == 0
    assert load_run(run, "last").step == 5

    # evaluate in a process that knows the package only by its entry point
    monkeypatch.setenv("PYTHONPATH", f"{package}:{Path(vitx.__file__).parents[1]}")
    command = [sys.executable, "-m", "vitx.cli", "evaluate", str(run), "--json"]
    found = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert found["examples"] == 9 and found["step"] == 3

    # convert, start again, and read its own format
    own, bare = tmp_path / "own.safetensors", tmp_path / "weights.masked"
    assert main(["convert", str(run), str(own)]) == 0
    loaded = vitx.load_pretrained(own)
    jax.tree.map(np.testing.assert_array_equal, loaded.variables, jax.device_get(load_run(run).variables))
    tensors = {f"masked.{path.replace('/', '.')}": x for path, x in flatten_variables(loaded.variables).items()}
    with open(bare, "wb") as file:
        np.savez(file, **tensors)
    heads = {"num_classes": loaded.model.num_classes}
    again = vitx.load_pretrained(bare, "masked_vit_tiny", **heads)
    jax.tree.map(np.testing.assert_array_equal, again.variables, loaded.variables)
    with pytest.raises(vitx.UserError, match=r"holds a file of masked ViTs .*ResNet3D is read from"):
        vitx.load_pretrained(bare, "r3d_18")
    with pytest.raises(vitx.UserError, match=r"num_heads: 2 .*3"):
        vitx.pretrained.start_from(own, loaded.model.copy(num_heads=3))
