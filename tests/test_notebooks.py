"""The notebooks of colab/ run from a clean kernel, hold no outputs, and open in Colab as they are."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "colab").glob("*.ipynb"))


def cells(path, kind):
    return [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == kind]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_outputs_are_stripped_and_the_first_cell_installs(path):
    code = cells(path, "code")
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)
    assert "%pip install" in "".join(code[0]["source"]) and "restart" in "".join(code[0]["source"])
    assert "".join(cells(path, "markdown")[0]["source"]).startswith("# ")
    # what a notebook defines, the package lacks
    assert not any(line.startswith(("def ", "class ")) for cell in code for line in cell["source"])


@pytest.mark.parametrize(
    ("clone", "expected"), [(None, "git clone"), ("vitx", "mv vitx vitx-src"), ("vitx-src", "restart")]
)
def test_the_first_cell_installs_from_a_clone_that_does_not_hide_the_package(clone, expected, tmp_path):
    """Python itself finds a clone named vitx as a package without code."""
    (source,) = {"".join(cells(path, "code")[0]["source"]) for path in NOTEBOOKS}
    if clone is not None:
        (tmp_path / clone / "vitx").mkdir(parents=True)
        (tmp_path / clone / "vitx" / "run.py").touch()
    bare = [sys.executable, "-S", "-c", re.sub("%pip .*", "pass", source)]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(bare, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 1 and expected in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_cell_runs_from_a_clean_kernel(path, tmp_path, monkeypatch):
    """Needs the extra colab. 2026-11-26, beside other jobs: quickstart 116 s, streaming 103 s, own_videos 86 s,
    pretrained 82 s; ablation 130 s of processor time.
    """
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]))
    book = nbformat.read(path, as_version=4)
    client = nbclient.NotebookClient(
        book, timeout=600, resources={"metadata": {"path": str(tmp_path)}}, kernel_name=_kernel(tmp_path, monkeypatch)
    )
    client.execute()
    pictures = [
        o for cell in book.cells if cell.cell_type == "code" for o in cell.outputs if "image/png" in o.get("data", {})
    ]
    assert len(pictures) >= 2


def _kernel(tmp_path, monkeypatch):
    """Returns the name of a kernel of this Python: one that is installed for the user may be another's."""
    pytest.importorskip("ipykernel")
    folder = tmp_path / "jupyter" / "kernels" / "tested"
    folder.mkdir(parents=True)
    command = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    (folder / "kernel.json").write_text(json.dumps({"argv": command, "display_name": "tested", "language": "python"}))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    return "tested"
